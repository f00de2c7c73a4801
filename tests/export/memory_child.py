"""Run by ``test_memory`` in a process of its own: export a model folder, report how much memory that took.

python memory_child.py MODEL OUT PRECISION  ->  one JSON line: bytes, seconds
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from latentwire.core.console import configure
from latentwire.engines.bundle import AdapterInfo, Bundle, EncoderInfo, Manifest, describe_files
from latentwire.engines.specs import bundle_specs
from latentwire.export.export import llm_info
from latentwire.export.gate_weights import check_weights
from latentwire.export.parts import write_llm, write_table
from latentwire.export.target import Wishes, choose
from latentwire.models.folder import open_folder


def peak() -> int:
    """Most bytes ever resident in this process; ``getrusage`` would also count the one that started it."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def main(model: Path, out: Path, precision: str) -> dict[str, float]:
    """Bytes written, peak above the start while exporting, then while checking by value; seconds of both."""
    target = choose(Wishes(precision=precision))
    llm = open_folder(model, "shape", model.parent / "fingerprints")
    before, start = peak(), time.monotonic()
    config = write_llm(llm, out, target)
    write_table(llm, out / "embeddings.safetensors")
    files = describe_files(out)
    export_peak, export_s = peak() - before, time.monotonic() - start
    start = time.monotonic()
    info, mark = llm_info(llm, config, target.precision.dtype), "00" * 32
    parts = (EncoderInfo("none", mark, 6, 5, 64), info, AdapterInfo("none", 2, mark))
    manifest = Manifest(files, *parts, bundle_specs(info, 6, info.dtype), precision, {}, {})
    check_weights(Bundle(out, manifest), llm)
    return {
        "bytes": sum(p.stat().st_size for p in out.iterdir()),
        "before": before,
        "export": export_peak,
        "check": peak() - before,
        "export_s": export_s,
        "check_s": time.monotonic() - start,
    }


if __name__ == "__main__":
    configure(quiet=True)
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])))
