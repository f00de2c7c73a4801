"""Fuzzing guided by coverage: ``python tests/fuzz/guided.py [TARGET ...] [--runs N] [--seconds N]``; see scripts/fuzz.

Every target runs in a process of its own until ``runs`` inputs were tried or something was found; the input is then in
``finds/TARGET-*``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run the targets one after another; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs for each target")
    parser.add_argument("--seconds", type=int, default=0, help="stop a target after this time; 0: never")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=Path.home() / ".cache" / "latentwire" / "fuzz")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        fuzz(given.targets[0], given)
        return 0
    found = 0
    for name in given.targets or importlib.import_module("targets").TARGETS:
        options = [f"--{key}={getattr(given, key)}" for key in ("runs", "seconds", "seed", "corpus")]
        found |= subprocess.run([sys.executable, __file__, name, "--one", *options], check=False).returncode
    return 1 if found else 0


def fuzz(name: str, given: argparse.Namespace) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["latentwire.runtime", "latentwire.engines.manifest", "latentwire.core"]):
        targets = importlib.import_module("targets")

    home = given.corpus / name
    home.mkdir(parents=True, exist_ok=True)
    for i, seed_input in enumerate(targets.seeds(name, HERE.parents[1])):
        (home / f"seed-{i}").write_bytes(seed_input)
    (HERE / "finds").mkdir(exist_ok=True)
    limits = [
        f"-max_total_time={given.seconds}",
        "-max_len=8192",
        "-timeout=10",  # wall time: on a busy machine a process may stand still for seconds
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    ]
    options = [
        f"-runs={given.runs}",
        f"-seed={given.seed}",
        f"-artifact_prefix={HERE / 'finds'}{os.sep}{name}-",
        *limits,
    ]
    atheris.Setup([sys.argv[0], *options, str(home)], lambda data: targets.check(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
