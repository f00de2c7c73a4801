"""Finds the installed TensorRT, native or RTX, and knows what each release can do.

Both packages have the same interface (``trt_api``). Importing one needs no GPU.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Final, cast

from ..core.errors import EnvironmentFault, InputError
from .trt_api import TensorRt

LABEL: Final = "parser-audited, ahead-of-time compiled (RTX), not GPU-verified"
"""How far the TensorRT backend has been run; stands wherever it is offered, until a GPU has run it."""


@dataclass(frozen=True)
class Package:
    """One of the two packages.

    Attributes:
        name: as in the manifest and in ``--target``.
        modules: import names; the first that is there is taken.
        extra: of this project, which installs it.
        flavours: attention flavour -> first release whose parser and kernels do it right.
    """

    name: str
    modules: tuple[str, ...]
    extra: str
    flavours: dict[str, tuple[int, int]]


PACKAGES: Final[dict[str, Package]] = {
    p.name: p
    for p in (
        # 10.15: KV cache update. 11.0: TRT_Attention; 11.1: its key and value lengths.
        Package("tensorrt", ("tensorrt",), "tensorrt", {"mask": (10, 15), "dual": (11, 1)}),
        # The wheels on PyPI install the last name; the others are NVIDIA's own installers.
        Package(
            "tensorrt-rtx",
            ("tensorrt_rtx", "tensorrt_rtx_bindings"),
            "rtx",
            {"mask": (1, 7), "dual": (1, 7)},
        ),
    )
}


def package(name: str) -> Package:
    """Look a package up.

    Raises:
        InputError: 2111 unknown name.
    """
    if name not in PACKAGES:
        raise InputError(
            2111, "unknown TensorRT package", where=name, expected=f"expected {' or '.join(sorted(PACKAGES))}"
        )
    return PACKAGES[name]


def load(name: str) -> TensorRt:
    """Import ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        EnvironmentFault: 5011 not installed, or its libraries cannot be loaded.
        InputError: 2111 unknown name.
    """
    wanted = package(name)
    reason = ""
    for module in wanted.modules:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as e:
            reason = reason or str(e)
        except (ImportError, OSError) as e:  # there, but without its shared libraries
            reason = f"{module}: {e}"
        else:
            if hasattr(found, "Builder"):
                return cast(TensorRt, found)
            reason = f"{module} has no Builder: it is another package of that name"
    raise EnvironmentFault(
        5011,
        "package not installed",
        where=name,
        expected=reason[:300],
        fix=f"pip install 'latentwire[{wanted.extra}]'",
    )


def release(version: str) -> tuple[int, int]:
    """Major and minor number: ``1.7.1.116`` is (1, 7)."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def check_flavour(name: str, version: str, flavour: str) -> None:
    """Refuse a release that reads this flavour wrongly or not at all.

    Raises:
        InputError: 2111.
    """
    known = package(name).flavours
    if flavour in known and release(version) >= known[flavour]:
        return
    able = [f for f, first in known.items() if release(version) >= first]
    raise InputError(
        2111,
        f"{name} {version} cannot run the attention flavour {flavour}",
        where=f"--flavour {flavour}",
        expected=f"it can run {' and '.join(able) or 'none of ours'}"
        + "".join(f"; {f} needs {name} {major}.{minor}" for f, (major, minor) in known.items() if f == flavour),
        fix=f"pip install --upgrade 'latentwire[{package(name).extra}]'"
        + (f", or --flavour {able[0]}" if able else ""),
    )
