"""PPO on the device: it learns what stable-baselines3's PPO learns, waits for nothing and can be captured."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import agents.ppo.cuda_graph
import agents.ppo.ppo
from agents.estimators import Estimates
from agents.policies.bid_price import BidPricePolicy, estimate_features
from agents.policies.budget_value import BudgetValue, fit_budget_value
from agents.policies.multi_call import MultiCallPolicy
from agents.ppo.ppo import DevicePPO, loss_gradients
from agents.ppo.storage import Rollout
from agents.training.checkpoint import restore_checkpoint, save_checkpoint
from leeroo_env import ExpertTable, InputError, LeerooVectorEnv
from leeroo_env.sb3 import LeerooSB3VecEnv
from tests.conftest import random_table

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size", "ignore:You are trying to run")

B, H = 6, 8
POLICIES: dict[str, tuple[Any, int]] = {  # class and M
    "MLP": ("MlpPolicy", 1),
    "MLP, 4 calls": ("MlpPolicy", 4),
    "bid price": (BidPricePolicy, 1),
    "asking": (MultiCallPolicy, 4),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "clipped values": {"clip_range_vf": 0.05, "clip_range": 0.02, "ent_coef": 0.01},
    "target KL": {"target_kl": 2e-4, "learning_rate": 3e-3},
    "episodes in mid-course": {"n_steps": 5},
    "several episodes": {"n_steps": 21},
    "ragged minibatch": {"batch_size": 13},
    "minibatch of one": {"batch_size": 47},
    "schedules": {"learning_rate": lambda left: 3e-3 * left, "clip_range": lambda left: 0.01 + 0.2 * left},
    "advantages as they are": {"normalize_advantage": False, "vf_coef": 0.3, "max_grad_norm": 0.1},
}
COMBINED = [("MLP", name) for name in SETTINGS]
COMBINED += [(policy, name) for policy in list(POLICIES)[1:] for name in ("default", "episodes in mid-course")]
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def small() -> ExpertTable:
    answers = np.random.default_rng(1).choice(["a", "b", "c"], size=(90, 4)).astype(object)
    return random_table(n=90, answers=answers)


@pytest.fixture(scope="module")
def estimates(small: ExpertTable) -> Estimates:
    noise = torch.randn(small.scores.shape, generator=torch.Generator().manual_seed(0))
    return Estimates((small.scores + 0.3 * noise).clamp(0, 1), small.costs_usd)


@pytest.fixture(scope="module")
def plan(small: ExpertTable, estimates: Estimates) -> BudgetValue:
    rows = small.rows("train")
    return fit_budget_value(small, rows, estimates[rows])


@pytest.fixture
def make(small: ExpertTable, estimates: Estimates, plan: BudgetValue) -> Make:
    """`make(DevicePPO, "bid price", n_steps=5)`, begun from the plan; the same seed seeds the global generators."""

    def made(algorithm: type[PPO], policy: str, device: str = "cpu", **chosen: Any) -> PPO:
        kind, max_calls = POLICIES[policy]
        features, network = None, {"net_arch": [8]}
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
            model.policy.start_from(plan)
        return model

    return made


class Watching(BaseCallback):
    """Trains only the value in the first iteration, as `Monitor`; keeps what is told of episodes."""

    def __init__(self, stop_at: int = 10**9):
        super().__init__()
        self.stop_at, self.told = stop_at, []

    def _on_rollout_start(self) -> None:
        if isinstance(self.model.policy, BidPricePolicy):
            self.model.policy.train_actor(self.num_timesteps > 0)

    def _on_step(self) -> bool:
        self.told += [info["episode"] for info in self.locals["infos"] if info]
        return self.num_timesteps < self.stop_at


def learn(model: PPO, iterations: int = 3, stop_at: int = 10**9, **kwargs: Any) -> Watching:
    watching = Watching(stop_at)
    model.learn(iterations * model.n_steps * B, callback=watching, **kwargs)
    return watching


def learnt(model: PPO) -> dict[str, Tensor]:
    """Parameters, and Adam's moments and steps."""
    state = model.policy.optimizer.state_dict()["state"]
    moments = {f"{i}.{name}": torch.as_tensor(v).cpu() for i, own in state.items() for name, v in own.items()}
    return {name: value.detach().cpu().clone() for name, value in model.policy.state_dict().items()} | moments


def within_rounding(one: PPO, other: PPO, rtol: float = 0, atol: float = 1e-6) -> None:
    first, second = learnt(one), learnt(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=rtol, atol=atol, msg=name)


def same_bits(one: PPO, other: PPO) -> None:
    first, second = learnt(one), learnt(other)
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def same_env(one: PPO, other: PPO) -> None:
    """Within the last digit of budgets: powers of several numbers at once are rounded otherwise than one by one."""
    first, second = (model.env.env.state_dict() for model in (one, other))
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-12, atol=1e-18, msg=name)


def same_told(one: Any, other: Any) -> None:
    """Of all episodes that ended, in their order; but for the seconds that they took."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name in first.keys() - {"t"}:
            np.testing.assert_allclose(second[name], first[name], rtol=1e-12, atol=1e-18, err_msg=name)


@pytest.mark.parametrize(("policy", "chosen"), COMBINED)
def test_learns_what_sb3_learns(make: Make, policy: str, chosen: str):
    """Protects the minibatches' order, the draws of actions, the loss, Adam and everything that is told on the way."""
    models, told = [], []
    for algorithm in (PPO, DevicePPO):
        models.append(make(algorithm, policy, **SETTINGS[chosen]))
        told.append(learn(models[-1]).told)
    within_rounding(*models)
    same_told(*told)
    same_told(*(model.ep_info_buffer for model in models))
    same_env(*models)
    assert models[0]._n_updates == models[1]._n_updates
    assert np.array_equal(models[0]._last_episode_starts, models[1]._last_episode_starts)
    if chosen != "target KL":
        logged = [model.logger.name_to_value for model in models]
        for name in ("policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction", "explained_variance"):
            assert logged[1][f"train/{name}"] == pytest.approx(logged[0][f"train/{name}"], abs=1e-5), name


def test_learns_what_sb3_learns_where_episodes_are_out_of_step(make: Make):
    """One call a query, but some episodes were begun again before the others."""
    models = []
    for algorithm in (PPO, DevicePPO):
        model = make(algorithm, "MLP", n_steps=5)
        learn(model, 1)
        mask = np.arange(B) % 3 == 0
        model._last_obs, _ = model.env.env.reset(options={"reset_mask": mask})
        model._last_episode_starts = mask
        learn(model, 4, reset_num_timesteps=False)
        models.append(model)
    assert not models[1].rollout.in_step
    within_rounding(*models)
    same_env(*models)


@pytest.mark.parametrize("policy", ["MLP", "MLP, 4 calls"])
def test_the_environment_goes_on_by_steps(make: Make, policy: str):
    """Protects the state, the streams and the returns that a rollout hands back."""
    envs = []
    for algorithm in (PPO, DevicePPO):
        model = make(algorithm, policy, n_steps=13)
        learn(model)
        envs.append(model.env)
    for actions in np.random.default_rng(0).integers(4, size=(3 * H, B)):
        (seen, rewards, ended, infos), other = (env.step(actions) for env in envs)
        assert np.array_equal(seen, other[0]) and np.array_equal(rewards, other[1]) and np.array_equal(ended, other[2])
        same_told([i["episode"] for i in infos if i], [i["episode"] for i in other[3] if i])


def test_a_state_once_seen_stays_as_it_is(make: Make):
    """Whoever keeps the environment's state between two rollouts keeps it."""
    model = make(DevicePPO, "MLP", n_steps=5)
    learn(model, 1)
    kept = vars(model.env.env.state)
    before = deepcopy(kept)
    learn(model, 1, reset_num_timesteps=False)
    assert all(torch.equal(kept[name], before[name]) for name in kept)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), ent_coef=st.sampled_from([0.0, 0.03]), clip_vf=st.sampled_from([0.1, torch.inf]))
def test_gradients_of_the_loss_are_autograds(seed: int, ent_coef: float, clip_vf: float):
    generator = torch.Generator().manual_seed(seed)
    n, k, vf_coef, clip = 32, 5, 0.4, 0.2

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    logits = (2 * normal(n, k)).masked_fill(normal(n, k) > 0.7, -1e4)
    actions = logits.argmax(dim=1)
    logits, values = logits.requires_grad_(), normal(n).requires_grad_()
    distribution = torch.distributions.Categorical(logits=logits)
    log_probs = distribution.log_prob(actions)
    old_log_probs, old_values = log_probs.detach() + 0.3 * normal(n), values.detach() + 0.2 * normal(n)
    advantages, returns = normal(n) * (normal(n) > -0.5), normal(n)
    ratio = (log_probs - old_log_probs).exp()
    policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    value_loss = (returns - old_values - (values - old_values).clamp(-clip_vf, clip_vf)).square().mean()
    loss = policy_loss - ent_coef * distribution.entropy().mean() + vf_coef * value_loss
    kl, outside = (ratio - 1 - ratio.log()).mean(), ((ratio - 1).abs() > clip).double().mean()
    expected = torch.stack([policy_loss, value_loss, -distribution.entropy().mean(), kl, outside, loss]).detach()
    clips = torch.tensor([clip, clip_vf], dtype=torch.float64)
    known = (actions, old_log_probs, old_values, advantages, returns, clips, ent_coef, vf_coef)
    found, statistics = loss_gradients(logits.detach(), values.detach(), *known)
    torch.testing.assert_close(found, torch.autograd.grad(loss, [logits, values]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(statistics, expected, rtol=1e-6, atol=1e-9)


def test_advantages_are_those_of_sb3s_buffer(small: ExpertTable):
    env, rng, steps = LeerooVectorEnv(B, small, horizon=H), np.random.default_rng(0), 20
    env.reset(seed=0)
    ours = Rollout(env, steps, 0)
    theirs = RolloutBuffer(
        steps, env.single_observation_space, env.single_action_space, gamma=0.97, gae_lambda=0.9, n_envs=B
    )
    starts = rng.random((steps + 1, B)) < 0.2
    theirs.rewards, theirs.values = rng.normal(size=(2, steps, B)).astype(np.float32)
    theirs.episode_starts = starts[:-1].astype(np.float32)
    for name in ("rewards", "values"):
        getattr(ours, name).copy_(torch.from_numpy(getattr(theirs, name)))
    ours.starts.copy_(torch.from_numpy(starts))
    last_values = torch.randn(B)
    theirs.compute_returns_and_advantage(last_values, starts[-1])
    ours.estimate_advantages(last_values, 0.97, 0.9)
    np.testing.assert_allclose(ours.advantages.numpy(), theirs.advantages, atol=1e-5)
    np.testing.assert_allclose(ours.returns.numpy(), theirs.returns, atol=1e-5)


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
def test_the_guard_sees_what_waits(waiting: Callable[[Tensor], Any]):
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
    for owner, name in (
        *((DevicePPO, "_play"), (DevicePPO, "_update"), (Rollout, "end_step")),
        (Rollout, "estimate_advantages"),
    ):
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
    learn(model, 3, reset_num_timesteps=False)
    assert model.rollout.in_step == (POLICIES[policy][1] == 1 and not out_of_step)


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
            agents.ppo.ppo, "capture", lambda work, changed, _: real(work, changed, torch.device("cuda"))
        )

    return begin


def with_rate_on_the_device(model: DevicePPO) -> DevicePPO:
    """As on a GPU."""
    group = model.policy.optimizer.param_groups[0]
    group |= {"capturable": True, "lr": torch.tensor(float(group["lr"]))}
    return model


GRAPHED = [
    *[("MLP", name) for name in ("default", "clipped values", "several episodes", "schedules", "ragged minibatch")],
    *[(policy, "episodes in mid-course") for policy in POLICIES],
    ("bid price", "schedules"),
]


@pytest.mark.parametrize(("policy", "chosen"), GRAPHED)
def test_replaying_learns_the_same_bits(make: Make, policy: str, chosen: str, on_graphs: Callable[[], None]):
    """Protects what a capture demands: all that changes is in tensors that stay where they are, and trying the work
    out leaves no trace."""
    plain, replayed = (with_rate_on_the_device(make(DevicePPO, policy, **SETTINGS[chosen])) for _ in range(2))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - SB3 shuffles with it
    told = learn(plain).told
    on_graphs()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    same_told(learn(replayed).told, told)
    same_bits(plain, replayed)
    same_env(plain, replayed)


def test_what_is_captured_keeps_what_it_reads(on_graphs: Callable[[], None], monkeypatch: pytest.MonkeyPatch):
    """A graph knows addresses alone: were a tensor gone, its place would be another's."""
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
    """Trying out takes more steps than these have room for."""
    on_graphs()
    learn(make(DevicePPO, "MLP", n_steps=2, batch_size=12))


def test_another_optimizer_state_is_captured_again(make: Make, on_graphs: Callable[[], None]):
    """`set_parameters` replaces Adam's moments; a graph would go on with those that are gone."""
    models = []
    for begin in (lambda: None, on_graphs):
        model = with_rate_on_the_device(make(DevicePPO, "MLP"))
        begin()
        learn(model)
        model.set_parameters(deepcopy(model.get_parameters()))
        learn(model, reset_num_timesteps=False)
        models.append(model)
    same_bits(*models)


@pytest.mark.parametrize("policy", POLICIES)
def test_tensors_keep_their_places(make: Make, policy: str):
    model = make(DevicePPO, policy, n_steps=5, batch_size=13)

    def places() -> list[int]:
        state = model.policy.optimizer.state
        moments = [state[p][name] for p in model.policy.parameters() if state[p] for name in sorted(state[p])]
        tensors = [*model.rollout.tensors(), *model.rollout._upcoming, *model._places.values(), model._clips]
        return [tensor.data_ptr() for tensor in [*tensors, model._sums, *model.policy.parameters(), *moments]]

    learn(model, 2)
    before, works = places(), dict(model._works)
    learn(model, 3)
    assert places() == before and model._works == works


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_gpu_learns_what_a_cpu_learns(make: Make, policy: str, monkeypatch: pytest.MonkeyPatch):
    """Devices draw different numbers, so the likeliest actions are taken here, and steps in the order of a CPU."""
    monkeypatch.setattr(Tensor, "exponential_", lambda self: self.fill_(1.0))

    def order(self: DevicePPO, t: int, b: int) -> Tensor:
        return torch.from_numpy(np.random.permutation(t * b)).to(self.device)  # noqa: NPY002 - SB3's generator

    monkeypatch.setattr(DevicePPO, "_order", order)
    for chosen in ("default", "episodes in mid-course", "schedules"):
        models = [make(DevicePPO, policy, device=device, **SETTINGS[chosen]) for device in ("cpu", "cuda")]
        start = models[0].policy.state_dict()
        models[1].policy.load_state_dict(start)
        told = []
        for model in models:
            np.random.seed(1)  # noqa: NPY002
            told.append(learn(model).told)
        assert [episode["l"] for episode in told[0]] == [episode["l"] for episode in told[1]]
        np.testing.assert_allclose(*([episode["r"] for episode in each] for each in told), atol=1e-4)
        within_rounding(*models, rtol=1e-2, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_goes_on_with_what_a_cpu_has_learnt(make: Make, tmp_path: Path):
    """The learning rate of the file is a number, which a captured step would take for good."""
    model = make(DevicePPO, "MLP", learning_rate=lambda left: 1e-3 * left)
    learn(model)
    model.save(tmp_path / "model.zip")
    loaded = DevicePPO.load(tmp_path / "model.zip", env=make(DevicePPO, "MLP", device="cuda").env, device="cuda")
    learn(loaded, reset_num_timesteps=False)
    rate = loaded.policy.optimizer.param_groups[0]["lr"]
    assert isinstance(rate, Tensor) and rate.is_cuda


@pytest.mark.parametrize("policy", ["MLP", "MLP, 4 calls", "bid price"])
def test_goes_on_from_any_iteration_to_the_same_bits(make: Make, policy: str, tmp_path: Path):
    class Saving(Watching):
        def _on_rollout_start(self) -> None:
            super()._on_rollout_start()
            save_checkpoint(tmp_path / str(self.num_timesteps), self.model, {})

    chosen = {"n_steps": 5, "batch_size": 13, "learning_rate": lambda left: 3e-3 * left}
    whole, n = make(DevicePPO, policy, **chosen), 5 * B
    whole.learn(4 * n, callback=Saving())
    for done in (n, 2 * n, 3 * n):
        resumed = make(DevicePPO, policy, **chosen)
        (path,) = (tmp_path / str(done)).iterdir()
        restore_checkpoint(path, resumed)
        learn_on = Watching()
        resumed.learn(4 * n - done, callback=learn_on, reset_num_timesteps=False)
        same_bits(whole, resumed)
        same_env(whole, resumed)


@pytest.mark.parametrize("stop_at", [3 * B, 5 * B, 7 * B])
def test_a_callback_stops_it_where_it_is(make: Make, stop_at: int):
    """In the middle of a rollout, too, the environment stands where it was stopped, and learning goes on from there."""
    models = []
    for algorithm in (PPO, DevicePPO):
        model = make(algorithm, "MLP", n_steps=5)
        learn(model, 3, stop_at=stop_at)
        models.append(model)
    assert models[1].num_timesteps == models[0].num_timesteps == stop_at
    same_env(*models)
    learn(models[1], 2, reset_num_timesteps=False)
    assert models[1].num_timesteps == stop_at + 10 * B
    assert int(models[1].env.env.state.t[0]) == (stop_at // B + 10) % H


def test_saves_and_loads(make: Make, tmp_path: Path):
    model = make(DevicePPO, "bid price", learning_rate=lambda left: 1e-3 * left)
    learn(model)
    model.save(tmp_path / "model.zip")
    loaded = DevicePPO.load(tmp_path / "model.zip", device="cpu")
    same_bits(model, loaded)
    seen = model.env.reset()
    assert np.array_equal(loaded.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0])
    loaded.set_env(make(DevicePPO, "bid price").env)
    before = learnt(loaded)
    learn(loaded, reset_num_timesteps=False)
    assert loaded.num_timesteps == 6 * H * B
    assert any(not torch.equal(before[name], value) for name, value in learnt(loaded).items())
    learn(PPO.load(tmp_path / "model.zip", env=make(PPO, "bid price").env, device="cpu"), 1)


def test_goes_on_in_another_environment_or_by_other_rules(make: Make, on_graphs: Callable[[], None]):
    """Protects against rollouts and graphs of those before."""
    on_graphs()
    model, other = make(DevicePPO, "MLP"), make(DevicePPO, "MLP")
    learn(model)
    model.set_env(other.env)
    learn(model)
    assert model.rollout.env is other.env.env and int(other.env.env._episodes[0]) > 1
    rules = replace(other.env.env.rules, cost_weight=50.0)
    other.env.set_attr("rules", rules)
    learn(model)
    assert model.rollout.rules is rules and float(model.rollout.rewards.min()) < -10


def test_refuses_what_it_cannot_learn_on_or_by(make: Make):
    model = make(DevicePPO, "MLP")
    for env in (VecNormalize(model.env), gymnasium.make("Leeroo-v0")):
        with pytest.raises(InputError, match=r"^\w+: DevicePPO plays on a LeerooSB3VecEnv; stable_baselines3.PPO"):
            DevicePPO("MlpPolicy", env, device="cpu")
    with pytest.raises(InputError, match=r"^VecNormalize: DevicePPO plays on"):
        model.set_env(VecNormalize(model.env))
    for optimizer, kwargs in (
        (torch.optim.RMSprop, {}),
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, {"amsgrad": True}),
    ):
        network = {"optimizer_class": optimizer, "optimizer_kwargs": kwargs}
        with pytest.raises(
            InputError, match=f"^optimizer {optimizer.__name__}: DevicePPO learns by plain torch.optim.Adam"
        ):
            DevicePPO("MlpPolicy", model.env, policy_kwargs=network, device="cpu")
    with pytest.raises(InputError, match=r"^device meta: DevicePPO learns where the table is, on cpu$"):
        DevicePPO("MlpPolicy", model.env, device="meta")
