"""What the processes of a data-parallel run tell each other: means of tensors, decisions of the first one, and work.

They are started by `torchrun`, one on each GPU or several on a CPU; tensors on a GPU travel by NCCL, others by gloo.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from leeroo_env import InputError

TIMEOUT = timedelta(days=1)  # the first process fits and evaluates for long; one that dies ends the others at once


class ProcessLost(InputError):
    """Another process has ended, so that nothing can be waited for."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, of which this is one; a run without `torchrun` is the only one.

    Attributes:
        rank: the number of this one. The first, 0, fits, evaluates and writes.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def mean(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The means over all processes of floating-point tensors of one type, with one message."""
        if self.world == 1:
            return tuple(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        _together(dist.all_reduce, flat)
        parts = (flat / self.world).split([tensor.numel() for tensor in tensors])
        return tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True))

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the `values` [n] of all processes, of which each has n."""
        if self.world == 1:
            return values.mean(), values.std()
        n, x = len(values) * self.world, values.double()
        sums = torch.stack([x.sum(), x.square().sum()])
        _together(dist.all_reduce, sums)
        mean = sums[0] / n
        variance = (sums[1] - n * mean.square()) / (n - 1)
        return mean.to(values.dtype), variance.clamp(min=0).sqrt().to(values.dtype)

    def told(self, flag: bool = False) -> bool:
        """The `flag` of the first process."""
        if self.world == 1:
            return flag
        said = torch.tensor([flag], dtype=torch.uint8)
        _together(dist.broadcast, said, 0)
        return bool(said)

    def send(self, tensors: dict[str, Tensor], rank: int) -> None:
        """Sends named tensors from the first process to another; none of them: there is no more work."""
        form = {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()}
        header = torch.frombuffer(bytearray(json.dumps(form).encode()), dtype=torch.uint8)
        _together(dist.send, torch.tensor([len(header)]), rank)
        for tensor in (header, *tensors.values()):
            _together(dist.send, tensor.detach().cpu().reshape(-1).view(torch.uint8), rank)

    def receive(self) -> dict[str, Tensor]:
        """The tensors that the first process has sent, on the CPU."""

        def received(dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
            tensor = torch.empty(list(shape), dtype=dtype)
            _together(dist.recv, tensor.view(-1).view(torch.uint8), 0)
            return tensor

        header = received(torch.uint8, [int(received(torch.int64, [1]))])
        form = json.loads(bytes(header.tolist()))
        return {name: received(getattr(torch, dtype), shape) for name, (dtype, shape) in form.items()}


ALONE = Processes()


@contextmanager
def processes() -> Iterator[Processes]:
    """The processes that `torchrun` has started with this one; `ALONE` without it. At the end of the first one's block
    the others learn that there is no more work.

    Raises:
        InputError: there are more of them on this machine than GPUs, which are used where there are any.
    """
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if world == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", world)), torch.cuda.device_count()
        if here > gpus:
            raise InputError(f"{here} processes for {gpus} GPUs: must not be more; for a CPU set CUDA_VISIBLE_DEVICES=")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    own = Processes(dist.get_rank(), world)
    yield own  # after an error this process ends, which the others notice: they may be waiting for something else
    if own.rank == 0:
        for rank in range(1, world):
            own.send({}, rank)
    dist.destroy_process_group()


def _together(collective: Callable[..., Any], *arguments: Any) -> None:
    """Calls what all processes have to take part in. Raises ProcessLost where one has ended."""
    try:
        collective(*arguments)
    except RuntimeError:
        raise ProcessLost("another process of this run has ended; start all of them again, with --resume") from None
