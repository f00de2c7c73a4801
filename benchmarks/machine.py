"""What a figure must say about where it was taken: machine, load, versions, commit, command.

Out: plain dictionaries. Nothing is measured here but how much others use the machine.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from ..core.processors import usable_processors

LOOK_S: Final = 1.0
"""Seconds to see whether others use the machine before anything is started; the load average of the last minute would
count the set-up."""
OTHERS: Final = 0.05
"""Share of the processors, above which others have disturbed a measurement."""
PACKAGES: Final = ("latentwire", "numpy", "onnxruntime", "tokenizers", "torch", "transformers")


def machine() -> dict[str, Any]:
    """CPU model, processors this process may use, memory, system."""
    return {
        "cpu": cpu_name(),
        "processors": usable_processors(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """As the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def slug() -> str:
    """The machine's name for a file: ``amd-epyc-2cpu``."""
    words = "".join(c if c.isalnum() else " " for c in cpu_name().lower()).split()
    return "-".join([*words[:4], f"{usable_processors()}cpu"])


def load() -> float | None:
    """Load average of the last minute; None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def used() -> dict[str, float] | None:
    """Processor seconds so far: of the whole machine, of this process with its ended children, and the time now.

    None where the system does not tell (Linux does: proc(5), ``/proc/stat``).
    """
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    # user, nice, system, and after idle and iowait: irq, softirq. Guests are among users already.
    ticks = [int(words[i]) for i in (0, 1, 2, 5, 6)]
    return {
        "all": sum(ticks) / os.sysconf("SC_CLK_TCK"),
        "own": sum(os.times()[:4]),
        "at": time.monotonic(),
    }


def others(before: Mapping[str, float] | None, now: Mapping[str, float] | None) -> float | None:
    """Processors that others used on average between two answers of ``used``; None where one is missing."""
    if before is None or now is None:
        return None
    spent = {name: now[name] - before[name] for name in ("all", "own", "at")}
    return max(0.0, spent["all"] - spent["own"]) / max(spent["at"], 1e-9)


def disturbed(processors: float | None) -> str | None:
    """A warning if others used more of the machine than a measurement bears, else None."""
    if processors is None or processors <= OTHERS * (os.cpu_count() or 1):
        return None
    return f"others used {processors:.2f} of {os.cpu_count()} processors; trust CPU time only"


def busy(seconds: float = LOOK_S) -> str | None:
    """Looks on for so long; a warning if others use the machine now, else None."""
    before = used()
    time.sleep(seconds)
    return disturbed(others(before, used()))


OWN_OUTPUT: Final = ":(top,exclude)benchmarks/results"
"""A run writes its own tables while it goes on; they change no measured line."""


def run_facts(seed: int) -> dict[str, Any]:
    """Commit, dirty flag, command, seed, date, versions, the load now and ``used`` so far."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (said := _git("status", "--porcelain", "--", ":/", OWN_OUTPUT)) is None else bool(said),
        "command": " ".join(["latentwire", *sys.argv[1:]]),
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "load_before": load(),
        "used_before": used(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
