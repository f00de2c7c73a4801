"""``latentwire doctor``: what is installed, what works here, and what to install for the rest.

Nothing is guessed from names: packages are looked up, engines compute, a toy bundle is compressed for and answered.
Changes nothing but a folder of temporary files.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from ..core.console import print_json, print_table, print_text
from ..core.errors import EXIT_ENVIRONMENT, EXIT_OK, LatentWireError
from ..core.files import human_bytes
from ..core.processors import usable_processors
from .installed import Extra, extras
from .options import GenerateOptions
from .pipeline import Pipeline

TEXT: Final = "The bridge was opened in 1932."
BACKENDS: Final = {"ort-cpu": ("ort", "cpu"), "ort-cuda": ("ort", "cuda"), "torch-ref": ("torch-ref", "cpu")}
"""Engines that run any bundle, as ``Pipeline.open`` calls them: backend and device."""
LOW_DISK: Final = 2 << 30
"""Bytes below which the embedded model and a bundle do not fit beside each other."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: what.
        works: it did.
        detail: what came of it, or what is missing.
        needed: without it nothing runs at all.
    """

    name: str
    works: bool
    detail: str
    needed: bool = False


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        machine: label -> value.
        extras: groups of packages; the first one is what is always needed.
        checks: engines and the path through a toy bundle.
        models: name -> state, of the catalogue.
    """

    machine: dict[str, str]
    extras: tuple[Extra, ...]
    checks: tuple[Check, ...]
    models: dict[str, str]

    @property
    def healthy(self) -> bool:
        """Whether bundles can be run here."""
        return not self.extras[0].missing and all(check.works for check in self.checks if check.needed)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "healthy": self.healthy}


def doctor(bundle: Path | None, as_json: bool) -> int:
    """Look at everything and print it.

    Args:
        bundle: also compress and answer with this bundle, on every engine that works.
        as_json: for programs.

    Returns:
        0 where bundles can be run, else ``EXIT_ENVIRONMENT``.
    """
    found = examine(bundle)
    if as_json:
        print_json(found.to_json())
    else:
        show(found)
    return EXIT_OK if found.healthy else EXIT_ENVIRONMENT


def examine(bundle: Path | None = None) -> Report:
    """Try everything."""
    checks = [tried("toy bundle", _toy, needed=True), *engine_checks()]
    if bundle is not None:
        works = {check.name for check in checks if check.works}
        for name, (backend, device) in BACKENDS.items():
            if name in works:
                checks.append(tried(f"{bundle} on {name}", partial(_answers, bundle, backend, device)))
    return Report(machine(), extras(), tuple(checks), models())


def tried(name: str, run: Callable[[], str], needed: bool = False) -> Check:
    """The outcome of one trial; whatever goes wrong becomes its detail."""
    try:
        return Check(name, True, run(), needed)
    except LatentWireError as e:
        return Check(name, False, str(e), needed)
    except Exception as e:  # noqa: BLE001  a broken package raises anything, and is what is looked for
        return Check(name, False, f"{type(e).__name__}: {str(e)[:200]}", needed)


def engine_checks() -> list[Check]:
    """Every engine; ONNX Runtime also computes something."""
    from ..engines.available import available
    from ..engines.ort_probe import compute

    out = []
    for engine in available():
        backend, device = BACKENDS.get(engine.name, ("", ""))
        check = Check(engine.name, engine.works, engine.detail, needed=engine.name == "ort-cpu")
        if engine.works and backend == "ort":

            def run(device: str = device, detail: str = engine.detail) -> str:
                compute(device)
                return f"{detail}, computes"

            check = tried(engine.name, run, check.needed)
        out.append(check)
    return out


def machine() -> dict[str, str]:
    """Interpreter, processors, memory, disk, GPU."""
    from ..models.store import home

    store = home()
    folder = next(path for path in (store, *store.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    writable = "" if os.access(folder, os.W_OK) else ", not writable"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {
        "latentwire": _version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processors": f"{usable_processors()} usable of {os.cpu_count()}"
        + (f", OMP_NUM_THREADS={threads}" if threads else ""),
        "memory": _memory(),
        "models in": f"{store} ({human_bytes(free)} free{writable}{', low' if free < LOW_DISK else ''})",
        "gpu": _gpu(),
    }


def models() -> dict[str, str]:
    """Name -> state of every model that can be added by name."""
    from ..models.catalogue import CATALOGUE
    from ..models.store import status

    return {name: status(entry).state for name, entry in CATALOGUE.items()}


def show(found: Report) -> None:
    """For people; what is missing stands with the command that brings it."""
    print_table(["machine", ""], list(found.machine.items()))
    print_text()
    packages = {name: version for extra in found.extras for name, version in extra.installed.items()}
    print_table(["package", "version"], sorted(packages.items()))
    print_text()
    rows = [[e.name, len(e.installed), ", ".join(e.missing), e.fix] for e in found.extras]
    print_table(["packages for", "here", "missing", "to install"], rows)
    print_text()
    print_table(["tried", "works", "detail"], [[c.name, "yes" if c.works else "no", c.detail] for c in found.checks])
    print_text()
    fixes = [[n, s, "" if s == "ready" else f"latentwire models add {n}"] for n, s in found.models.items()]
    print_table(["model", "state", "to add"], fixes)
    print_text("\nbundles run here" if found.healthy else "\nbundles do not run here: see what is missing above")


def _toy() -> str:
    from ..engines.toy import write_toy_bundle

    with tempfile.TemporaryDirectory(prefix="latentwire-doctor-") as folder:
        return _answers(write_toy_bundle(folder).path, "toy", "cpu")


def _answers(bundle: Path, backend: str, device: str) -> str:
    with Pipeline.open(bundle, backend=backend, device=device) as pipe:
        (frame,) = pipe.compress([TEXT])
        (answer,) = pipe.generate([frame], ["When was it opened?"], GenerateOptions(max_new_tokens=4))
    return f"{len(TEXT)} characters to {len(frame)} bytes, answered {answer!r}"


def _version() -> str:
    from importlib.metadata import version

    return version("latentwire")


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{human_bytes(total)}, {human_bytes(free)} unused"


def _gpu() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none found (no nvidia-smi)"
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"nvidia-smi does not answer: {e}"
    lines = [line.strip() for line in run.stdout.splitlines() if line.strip()]
    return "; ".join(lines) if run.returncode == 0 and lines else f"nvidia-smi: {(run.stderr or run.stdout).strip()}"
