"""Several processes that train one model, started by ``accelerate launch`` or ``torchrun``.

The micro-batches of a step are dealt to the processes in turn, so a step is the same whatever their number, and a run
may go on with another one. Gradients are summed once a step instead of by DistributedDataParallel while they
come: they are small beside the frozen LLMs, and stages and features switch parameters on and off, which its reducer
does not bear.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Peers:
    """This process among its peers; alone unless ``WORLD_SIZE`` in the environment is above 1.

    Attributes:
        rank: 0 writes the run folder.
        size: number of processes.
        device: the device of this process, None where that is left to the config.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.size = 0, 1
        self.device: torch.device | None = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
            self.rank, self.size, self.device = state.process_index, state.num_processes, state.device

    @property
    def writes(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes in place; one that no process has stays None."""
        if self.size == 1:
            return
        from accelerate.utils import reduce

        device = parameters[0].device
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
        flat = torch.cat([_gradient(p).flatten() for p in parameters])
        has, flat = reduce(has, "sum"), reduce(flat, "sum")
        for p, used, own in zip(parameters, has.tolist(), flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = own.view_as(p).clone() if used else None

    def gather(self, records: list[Any]) -> list[Any]:
        """Lists of all processes joined, in turn: what was dealt out comes back in its order."""
        if self.size == 1:
            return records
        import torch.distributed as dist

        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, records)
        return [record for turn in zip(*out, strict=True) for record in turn]

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Every process gets the tensors of the first one."""
        if self.size == 1:
            return
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.data.copy_(broadcast(tensor.data.clone(), from_process=0))

    def close(self) -> None:
        """Leave the others; the last thing a process does."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    def from_first(self, value: Any) -> Any:
        """The first process's ``value``."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value], from_process=0)[0]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
