"""Work of a fixed shape on tensors that keep their places, captured on a GPU so that doing it again is one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 3


def capture(work: Callable[[], None], changed: Sequence[Tensor], device: torch.device) -> Callable[[], None]:
    """`work` as one CUDA graph; on a CPU as it is.

    Args:
        work: reads and writes tensors in place and asks the host for nothing.
        changed: the tensors that it changes; trying it out leaves no trace on them, nor on the random numbers to come.
        device: where they are.
    """
    if device.type != "cuda":
        return work
    before = [tensor.detach().clone() for tensor in changed]
    generator = torch.cuda.get_rng_state(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # a capture needs what libraries set up at first use
        for _ in range(WARM_UPS):
            work()
            with torch.no_grad():  # at once: there may be room for one step only
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.set_rng_state(generator, device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def again(_: Callable[[], None] = work) -> None:  # a graph reads tensors that live only as long as what made it
        graph.replay()

    return again
