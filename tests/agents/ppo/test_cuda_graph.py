"""Nothing within a rollout or an update waits for the device, and captured steps learn the same bits."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import agents.ppo.cuda_graph
from agents.ppo.collector import Collector
from agents.ppo.ppo import DevicePPO
from agents.ppo.storage import RolloutStorage
from agents.ppo.updater import Updater
from tests.agents.ppo.models import (
    POLICIES,
    SETTINGS,
    B,
    Make,
    learn,
    same_bits,
    same_env,
    same_episodes,
    with_rate_on_the_device,
)

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size", "ignore:You are trying to run")

WAITING_KERNELS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "multinomial"),
    *("_unique2", "unique_dim", "bincount", "repeat_interleave"),
}
WAITING_CALLS = {"cpu", "cuda", "numpy", "tolist", "__array__", "from_numpy", "tensor", "as_tensor"}


class _Kernels(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, leaves = func.overloadpacket.__name__, tree_leaves((args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        devices = {leaf.device for leaf in tensors if leaf.dim()} | {x for x in leaves if isinstance(x, torch.device)}
        masked = name in ("index", "index_put", "index_put_") and any(x.dtype == torch.bool for x in tensors[1:])
        if name in WAITING_KERNELS or masked or len(devices) > 1:
            raise RuntimeError(f"waits: {name}")
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        moved = name == "to" and any(isinstance(x, str | torch.device) for x in tree_leaves((args, kwargs or {})))
        at = args[1] if name in ("__getitem__", "__setitem__") else ()
        moved |= any(isinstance(x, list | np.ndarray) for x in (at if isinstance(at, tuple) else (at,)))
        if name == "one_hot":  # on a CPU alone it looks at the numbers
            return (args[0][..., None] == torch.arange(args[1], device=args[0].device)).long()
        if name in WAITING_CALLS or moved:
            raise RuntimeError(f"waits: {name}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def nothing_waits() -> Iterator[None]:
    """Raises where the host would have to wait for a GPU."""
    with _Calls(), _Kernels():
        yield


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: x.to("cpu"),
        lambda x: x + torch.tensor([1.0]),
        lambda x: torch.multinomial(x, 1),
        lambda x: x[[0, -1]],
        lambda x: x[None][:, [0, -1]],
    ],
)
def test_the_guard_raises_where_the_host_would_wait(waiting: Callable[[Tensor], Any]):
    with pytest.raises(RuntimeError, match="waits"), nothing_waits():
        waiting(torch.ones(3))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("out_of_step", [False, True])
def test_nothing_waits_for_the_device(make: Make, policy: str, out_of_step: bool, monkeypatch: pytest.MonkeyPatch):
    """The host may wait between rollouts and updates, never within."""

    def guarded(work: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*args: Any) -> Any:
            with nothing_waits():
                return work(*args)

        return inner

    model = make(DevicePPO, policy, n_steps=5, batch_size=13)
    learn(model, 1)
    if out_of_step:
        model.env.env.reset(options={"reset_mask": np.arange(B) < 2})
    for owner, name in ((Collector, "step"), (Updater, "update"), (RolloutStorage, "compute_advantages")):
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
    learn(model, 3, reset_num_timesteps=False)
    assert model.collector.in_step == (POLICIES[policy][1] == 1 and not out_of_step)


GRAPHED = [
    *[("MLP", name) for name in ("default", "clipped values", "several episodes", "schedules", "ragged minibatch")],
    *[(policy, "episodes in mid-course") for policy in POLICIES],
    ("bid price", "schedules"),
]


@pytest.mark.parametrize(("policy", "chosen"), GRAPHED)
def test_replaying_learns_the_same_bits(make: Make, policy: str, chosen: str, on_graphs: Callable[[], None]):
    """A capture needs all that changes to be in tensors that keep their addresses; warming up leaves no trace."""
    plain, replayed = (with_rate_on_the_device(make(DevicePPO, policy, **SETTINGS[chosen])) for _ in range(2))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - SB3 shuffles with it
    episodes = learn(plain).episodes
    on_graphs()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    same_episodes(learn(replayed).episodes, episodes)
    same_bits(plain, replayed)
    same_env(plain, replayed)


def test_what_is_captured_keeps_what_it_reads(on_graphs: Callable[[], None], monkeypatch: pytest.MonkeyPatch):
    """A graph knows addresses alone: the memory of a tensor that is gone would belong to another."""
    on_graphs()
    graph = SimpleNamespace(replay=lambda: None)
    monkeypatch.setattr(agents.ppo.cuda_graph.torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(agents.ppo.cuda_graph.torch.cuda, "graph", contextlib.nullcontext)
    numbers = torch.ones(2)
    alive = weakref.ref(numbers)
    again = agents.ppo.cuda_graph.capture(lambda x=numbers: x.sum(), [], torch.device("cuda"))  # type: ignore[misc]
    del numbers
    again()
    assert alive() is not None


def test_rollouts_of_a_step_or_two_can_be_captured(make: Make, on_graphs: Callable[[], None]):
    """Warming up takes more steps than these have room for."""
    on_graphs()
    learn(make(DevicePPO, "MLP", n_steps=2, batch_size=12))


def test_another_optimizer_state_is_captured_again(make: Make, on_graphs: Callable[[], None]):
    """`set_parameters` replaces Adam's moments; a graph would use the memory of the old ones."""
    models = []
    for begin in (lambda: None, on_graphs):
        model = with_rate_on_the_device(make(DevicePPO, "MLP"))
        begin()
        learn(model)
        parameters: dict[str, Any] = deepcopy(model.get_parameters())
        model.set_parameters(parameters)
        learn(model, reset_num_timesteps=False)
        models.append(model)
    same_bits(*models)


@pytest.mark.parametrize("policy", POLICIES)
def test_tensors_keep_their_addresses(make: Make, policy: str):
    model = make(DevicePPO, policy, n_steps=5, batch_size=13)

    def addresses() -> list[int]:
        state = model.policy.optimizer.state
        moments = [state[p][name] for p in model.policy.parameters() if state[p] for name in sorted(state[p])]
        collector, updater = model.collector, model.updater
        tensors = [*collector.tensors(), *collector._upcoming, *updater._indices.values(), updater.weights.clips]
        tensors += [updater.statistics, *model.policy.parameters(), *moments]
        return [tensor.data_ptr() for tensor in tensors]

    def captured() -> list[dict]:
        return [dict(part._captures._works) for part in (model.collector, model.updater)]

    learn(model, 2)
    before, works = addresses(), captured()
    learn(model, 3)
    assert addresses() == before and captured() == works
