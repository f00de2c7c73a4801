"""Which GPUs each TensorRT package can compile for."""

from __future__ import annotations

from typing import Final

from ..core.errors import InputError
from ..engines.trt_api import TensorRt
from ..engines.trt_memory import open_device

DATA_CENTRE: Final = ("sm_90", "sm_100", "sm_103")
"""GPUs that TensorRT-RTX leaves to native TensorRT."""


def gpus_of(trt: TensorRt) -> list[str]:
    """GPUs that TensorRT-RTX can compile for without having them, ``sm_75`` and so on; none of native TensorRT."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return [f"sm_{name[2:]}" for name in members if name.startswith("SM")]


def choose_gpus(trt: TensorRt, package: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The GPUs a plan will be for: those asked for, else the one that is there.

    Raises:
        InputError: 2111 a GPU that the package cannot compile for; names those it can.
        EnvironmentFault: 5001 none was asked for, or the package needs one, and there is none.
    """
    if package == "tensorrt":
        here = open_device().gpu()
        if set(wanted) - {here}:
            raise InputError(
                2111,
                "native TensorRT builds for the GPU that is there",
                where=f"--gpu {','.join(wanted)}",
                expected=f"this machine has {here}",
                fix="export on the machine that will run the plan, or leave --gpu out",
            )
        return (here,)
    gpus, able = wanted or (open_device().gpu(),), gpus_of(trt)
    for gpu in gpus:
        if gpu not in able:
            large = gpu in DATA_CENTRE
            raise InputError(
                2111,
                f"TensorRT-RTX {trt.__version__} cannot compile for this GPU"
                + (", which is for data centres: it serves GeForce and RTX cards" if large else ""),
                where=f"--gpu {gpu}",
                expected=f"it can compile for {', '.join(able)}",
                fix="use --target tensorrt on that machine" if large else "choose one or several of these",
            )
    return gpus
