"""Which devices and how many threads each worker of this machine gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ...core.errors import InputError
from ...core.processors import usable_processors
from ..options import Machine

CORES: Final = 4
"""Cores of one worker, where nobody says how many workers: with more, a small encoder does not get faster."""
CPU: Final = "cpu"


def places(machine: Machine, workers: int | None, pieces: int = 0) -> list[Machine]:
    """The machine of each worker.

    Args:
        machine: of all together: ``device`` may be a list, ``cuda:0,cuda:1``; ``threads`` are shared out.
        workers: how many; None: one per device, on CPUs one per ``CORES`` threads.
        pieces: how many there is work for; 0: not known.

    Raises:
        InputError: 2111 devices of two kinds, one device twice, no device.
    """
    devices = split_devices(machine.device)
    threads = machine.threads or usable_processors()
    if workers is None:
        workers = max(1, threads // CORES) if devices == [CPU] else len(devices)
    count = max(1, min(workers, pieces or workers))
    each = max(1, threads // count)
    return [replace(machine, device=devices[i % len(devices)], threads=each) for i in range(count)]


def split_devices(device: str) -> list[str]:
    """``cuda:0,cuda:1`` to its parts.

    Raises:
        InputError: 2111.
    """
    devices = device.split(",")
    kinds = {d.partition(":")[0] for d in devices}
    if len(kinds) > 1 or len(set(devices)) < len(devices) or "" in devices:
        what = "devices of one job must be of one kind, each named once"
        expected = f"expected as cuda:0,cuda:1, got {device!r}"
        raise InputError(2111, what, where="option device", expected=expected)
    return devices
