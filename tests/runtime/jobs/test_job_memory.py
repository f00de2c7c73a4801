"""Memory of a job does not grow with its rows: neither of the parent, which plans and counts, nor of a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROWS_OF_SHARD = 1000
MARGIN = 24 << 20
"""Bytes by which two peaks may differ. A row kept as a mere dict with its text would be over 500 bytes."""

MEASURE = """
import json, resource, sys
from pathlib import Path
from latentwire.core.console import configure
from latentwire.runtime.jobs.local import LocalWorkers
from tests.runtime.jobs.test_local import run
configure(quiet=True)
backend = LocalWorkers(1, encoder="rogue:open_encoder")
manifest = run(sys.argv[1], Path(sys.argv[2]), backend, int(sys.argv[3]), fsync=False)
peaks = [resource.getrusage(who).ru_maxrss << 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps([manifest["totals"]["rows"], *peaks]))
"""


def peaks(rows: int, folder: Path, root: Path) -> tuple[int, int]:
    """Peak resident bytes of the parent and of its worker."""
    folder.mkdir()
    name = folder / "in.jsonl"
    with name.open("w", encoding="utf-8") as file:
        for i in range(rows):
            file.write(
                json.dumps({"custom_id": f"row-{i}", "text": f"text number {i} " + "and more words " * 8}) + "\n"
            )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(root), *sys.path])}
    command = [sys.executable, "-c", MEASURE, str(name), str(folder / "out"), str(ROWS_OF_SHARD)]
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=folder)
    done, parent, worker = json.loads(found.stdout.splitlines()[-1])
    assert done == rows
    return parent, worker


def compare(few: int, many: int, tmp_path: Path, root: Path) -> None:
    small, large = peaks(few, tmp_path / "few", root), peaks(many, tmp_path / "many", root)
    print(
        f"{few} and {many} rows: parent {small[0] >> 20} and {large[0] >> 20} MiB, worker {small[1] >> 20} and", end=" "
    )
    print(f"{large[1] >> 20} MiB")
    assert large[0] - small[0] < MARGIN
    assert large[1] - small[1] < MARGIN


def test_memory_is_flat_in_rows(tmp_path: Path, root: Path) -> None:
    compare(2_000, 30_000, tmp_path, root)


@pytest.mark.slow
def test_memory_is_flat_up_to_a_million_rows(tmp_path: Path, root: Path) -> None:
    compare(10_000, 1_000_000, tmp_path, root)
