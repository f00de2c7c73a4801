"""Micro-batches made ahead of the training loop, in other processes where there are any to spare.

What a batch holds depends on its number alone, so that it is the same with any number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from .maker import Maker, Work

AHEAD = 2
"""Micro-batches that each worker has ready."""
MOST_WORKERS = 12


class _Numbered(Dataset[Work]):
    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __getitem__(self, number: int) -> Work:
        return self.maker(number)


def pick_workers(workers: int, device: torch.device) -> int:
    """``workers`` where it is not negative, else 0 on a CPU and all cores but two, at most 12, beside a GPU."""
    if workers >= 0:
        return workers
    return 0 if device.type == "cpu" else max(0, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 2))


def stream(maker: Maker, numbers: Sequence[int], workers: int, device: torch.device) -> Iterator[Work]:
    """The micro-batches of ``numbers``, in this order, on ``device``.

    Args:
        maker: copied into each worker.
        numbers: which ones.
        workers: processes; 0 makes each batch when it is asked for.
        device: where they go; copies to a GPU do not wait.
    """
    if workers:
        _more_files()
    loader: DataLoader[Work] = DataLoader(
        _Numbered(maker),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=device.type == "cuda",
        # Not fork: this process has threads by now, and perhaps a GPU.
        multiprocessing_context="spawn" if workers else None,
        # Its own generator: the loader draws a number from it, and nothing may depend on torch's global one.
        generator=torch.Generator(),
    )
    for work in loader:
        yield work.to(device)


def _more_files() -> None:
    """Tensors travel as open files; a low soft limit is raised to the hard one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
