"""Locks end with their holder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from latentwire.core.locks import claim, exclusive, new_locked_folder

HOLD = """
import sys, time
from pathlib import Path
from latentwire.core.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_second_holder_waits_and_says_so(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "lock"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(lock), "0.5"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "held\n"
        waited: list[float] = []
        with exclusive(lock, on_wait=lambda: waited.append(time.monotonic())):
            assert len(waited) == 1
        child.wait()
    with exclusive(lock, on_wait=lambda: waited.append(0)):
        assert len(waited) == 1


def test_claim_tells_whether_a_folder_is_in_use(tmp_path: Path) -> None:
    folder, handle = new_locked_folder(lambda: tmp_path / "a")
    with claim(folder) as ours:
        assert not ours
    assert handle is not None
    os.close(handle)
    with claim(folder) as ours:
        assert ours
    with claim(tmp_path / "none") as ours:
        assert not ours


def test_files_are_judged_by_age(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("")
    with claim(path) as ours:
        assert not ours
    os.utime(path, (0, 0))
    with claim(path) as ours:
        assert ours
