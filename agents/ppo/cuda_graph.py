"""Captures GPU work of a fixed shape as a CUDA graph, so that repeating it takes one launch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

WARM_UPS = 3


class Captures:
    """Work on one device, captured when it is first asked for and kept by key."""

    def __init__(self, device: torch.device):
        self._device = device
        self._works: dict[Hashable, Callable[[], None]] = {}

    def get(self, key: Hashable, work: Callable[[], None], changed: Sequence[Tensor]) -> Callable[[], None]:
        """What `capture` made of the `work` of this `key`."""
        if key not in self._works:
            self._works[key] = capture(work, changed, self._device)
        return self._works[key]


def capture(work: Callable[[], None], changed: Sequence[Tensor], device: torch.device) -> Callable[[], None]:
    """`work` as one CUDA graph; on a CPU `work` itself.

    Args:
        work: reads and writes tensors in place, without synchronisation with the host.
        changed: the tensors that it changes: warm-up runs leave no trace on them, nor on the random number generator.
        device: where they are.
    """
    if device.type != "cuda":
        return work
    before = [tensor.detach().clone() for tensor in changed]
    generator = torch.cuda.get_rng_state(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # libraries set up their handles at first use, which a capture does not allow
        for _ in range(WARM_UPS):
            work()
            with torch.no_grad():  # after each run: there may be room in storage for one step only
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.set_rng_state(generator, device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay(_: Callable[[], None] = work) -> None:  # holding `work` keeps alive the tensors that the graph reads
        graph.replay()

    return replay
