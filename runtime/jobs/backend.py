"""Who runs the shards of a job, as the command line names it."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import InputError
from ..choices import OnPoison, RunnerName
from .inprocess import InProcess
from .local import LocalWorkers
from .task import Backend


@dataclass(frozen=True)
class Runner:
    """How shards are run; changes no byte.

    Attributes:
        backend: ``local`` starts processes on this machine, ``ray`` actors on a cluster.
        workers: how many; None: one per device, on CPUs one per four cores; 0 (``local``): this process alone.
        on_poison: ``bisect`` finds the row that kills a worker and gives it error 5003; ``fail`` stops the job.
        address: of the Ray cluster; None: one of its own, on this machine.
    """

    backend: RunnerName = "local"
    workers: int | None = None
    on_poison: OnPoison = "bisect"
    address: str | None = None

    def __post_init__(self) -> None:
        if self.address is not None and self.backend != "ray":
            raise InputError(2111, "only --backend ray has an address", where="option address", fix="leave it out")
        if self.workers == 0 and self.backend == "ray":
            expected = "expected at least one actor"
            raise InputError(2111, "option value out of range", where="option workers", expected=expected)


def open_backend(runner: Runner) -> Backend:
    """Ready to run; starts nothing yet.

    Raises:
        EnvironmentFault: 5011 Ray is not installed.
    """
    if runner.backend == "ray":
        from .ray_backend import RayActors

        return RayActors(runner.workers, runner.on_poison, runner.address)
    if runner.workers == 0:
        return InProcess()
    return LocalWorkers(runner.workers, runner.on_poison)
