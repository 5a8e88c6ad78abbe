"""A small table, a budget value and models on it; CUDA graphs emulated on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import agents.ppo.cuda_graph
from agents.estimators import Estimates
from agents.policies.bid_price import BidPricePolicy, estimate_features
from agents.policies.budget_value import BudgetValue, fit_budget_value
from agents.policies.multi_call import MultiCallPolicy
from leeroo_env import ExpertTable, LeerooVectorEnv
from leeroo_env.sb3 import LeerooSB3VecEnv
from tests.agents.ppo.models import POLICIES, B, H, Make
from tests.conftest import random_table


@pytest.fixture(scope="package")
def small() -> ExpertTable:
    answers = np.random.default_rng(1).choice(["a", "b", "c"], size=(90, 4)).astype(object)
    return random_table(n=90, answers=answers)


@pytest.fixture(scope="package")
def estimates(small: ExpertTable) -> Estimates:
    noise = torch.randn(small.scores.shape, generator=torch.Generator().manual_seed(0))
    return Estimates((small.scores + 0.3 * noise).clamp(0, 1), small.costs_usd)


@pytest.fixture(scope="package")
def budget_value(small: ExpertTable, estimates: Estimates) -> BudgetValue:
    rows = small.rows("train")
    return fit_budget_value(small, rows, estimates[rows])


@pytest.fixture
def make(small: ExpertTable, estimates: Estimates, budget_value: BudgetValue) -> Make:
    """`make(DevicePPO, "bid price", n_steps=5)`, started from the budget value; seeds the global generators."""

    def made(algorithm: type[PPO], policy: str, device: str = "cpu", **chosen: Any) -> PPO:
        kind, max_calls = POLICIES[policy]
        features: Tensor | None = None
        network: dict[str, Any] = {"net_arch": [8]}
        if kind != "MlpPolicy":
            scale = small.cost_scale()
            features = estimate_features(estimates, scale)
            prices = {"mean_cost_usd": scale.mean_usd.tolist(), "price_range_usd": [scale.low_usd, scale.high_usd]}
            network = {**prices, "horizon": H}
        if kind is MultiCallPolicy:
            network["max_calls"] = max_calls
        env = LeerooSB3VecEnv(LeerooVectorEnv(B, small.to(device), horizon=H, max_calls=max_calls, features=features))
        chosen = {"n_steps": H, "batch_size": 16, "n_epochs": 2, "learning_rate": 1e-3, "gamma": 0.98} | chosen
        model = algorithm(kind, env, policy_kwargs=network, seed=0, device=device, stats_window_size=1000, **chosen)
        if isinstance(model.policy, BidPricePolicy):
            model.policy.start_from(budget_value)
        return model

    return made


class Graph(TorchDispatchMode):
    """A CUDA graph on a CPU: a capture runs no kernel for good, a replay runs the same ones on the same memory, and no
    line of Python with them."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[Any, ...]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> Graph:
        self.generator = torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        torch.set_rng_state(self.generator)
        with torch.no_grad():
            for tensor, value in reversed(self.before):
                tensor.copy_(value)
        self.before.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before += [(x, x.detach().clone()) for x in tree_leaves(value) if isinstance(x, Tensor)]
        out = func(*args, **kwargs)
        self.kernels.append((func, args, kwargs, tree_leaves(out)))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, places in self.kernels:
            for place, value in zip(places, tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


@pytest.fixture
def on_graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on `agents.ppo.cuda_graph` captures, by `Graph`."""
    generator = {"get_rng_state": lambda _: torch.get_rng_state(), "set_rng_state": lambda s, _: torch.set_rng_state(s)}
    stream = SimpleNamespace(wait_stream=lambda _: None)
    cuda = SimpleNamespace(
        Stream=lambda _: stream,
        current_stream=lambda _: stream,
        stream=contextlib.nullcontext,
        CUDAGraph=Graph,
        graph=lambda graph: graph,
        **generator,
    )

    def begin() -> None:
        real = agents.ppo.cuda_graph.capture
        monkeypatch.setattr(agents.ppo.cuda_graph, "torch", SimpleNamespace(cuda=cuda, no_grad=torch.no_grad))
        monkeypatch.setattr(
            agents.ppo.cuda_graph, "capture", lambda work, changed, _: real(work, changed, torch.device("cuda"))
        )

    return begin
