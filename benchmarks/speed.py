"""What the speed claims come from: one command measures everything and writes benchmarks/RESULTS.md.

python benchmarks/speed.py                              all of it; replaces this machine's section of the file
python benchmarks/speed.py --quick --only env calls     a look at some of it; the file stays as it is
python benchmarks/speed.py --only env --write           replaces these rows

What is compared runs in turn, A B B A, on one thread of torch unless a row says otherwise; a ratio is that of one turn,
and rows show medians and, in brackets, ranges. Limits are counted: the bytes that a step has to move at least or the
FLOPs of its matrix products, at the speed of a big copy or of a product of that shape, measured on the spot.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import large_tables  # noqa: E402
from sections import add_section, read_section  # noqa: E402

from agents.estimators.ensemble import Predictor, fit_predictor, table_estimates  # noqa: E402
from agents.evaluation.evaluate import Result, evaluate, lead  # noqa: E402
from agents.policies.bid_price import BidPricePolicy, estimate_features  # noqa: E402
from agents.policies.description import describe_policy  # noqa: E402
from agents.policies.multi_call import start_from_plan  # noqa: E402
from agents.ppo.cuda_graph import capture  # noqa: E402
from agents.ppo.loss import ppo_loss  # noqa: E402
from agents.ppo.policy_inputs import evaluate_inputs  # noqa: E402
from agents.ppo.ppo import DevicePPO  # noqa: E402
from agents.ppo.updater import Updater  # noqa: E402
from agents.routers.policy import PolicyRouter  # noqa: E402
from agents.training.config import TrainConfig  # noqa: E402
from agents.training.factory import make_model  # noqa: E402
from agents.training.runtime import choose_device  # noqa: E402
from leeroo_env import ExpertTable, LeerooEnv, LeerooVectorEnv, dynamics  # noqa: E402
from leeroo_env.builtin import DEFAULT, resolve  # noqa: E402
from leeroo_env.dynamics import Rules, State, budget_grid, make_rules  # noqa: E402
from leeroo_env.sb3 import LeerooSB3VecEnv  # noqa: E402

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
EARLIER = " (an earlier run)"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
Measure = Literal["env", "calls", "sb3_defaults", "batched", "default", "update", "train_py", "large", "cuda"]
MLP = {"net_arch": [64, 64]}
TWELVE = (
    "Llama-2-7b-hf", "Yi-6B-Chat", "Mistral-7B-Instruct-v0.1", "Qwen1.5-7B-Chat", "mathstral-7B", "Meta-Llama-3.1-8B",
    "Llama-2-13b-hf", "c4ai-command-r-v01", "Mixtral-8x7B-Instruct-v0.1", "Qwen1.5-72B-Chat", "Meta-Llama-3-70B",
    "gpt-4o-2024-05-13",
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """What is measured on, and how thoroughly. The table is on the CPU but for the rows of a GPU, `device`."""

    name: str
    table: ExpertTable
    device: torch.device
    pairs: int
    quick: bool

    @cached_property
    def predictor(self) -> Predictor:
        return fit_predictor(self.table)

    @cached_property
    def played_rules(self) -> Rules:
        """With the estimates as features, as the default policy sees them."""
        estimates = table_estimates(self.table, self.predictor)
        return make_rules(self.table, features=estimate_features(estimates, self.table.cost_scale()))


@dataclass(frozen=True)
class Row:
    """One claim.

    Attributes:
        what: is measured.
        values: one a pair, or none where it could not be measured.
        unit: of the values.
        target: what their median should be at least, or `at_most`; None: nothing is asked.
        limit: what the machine allows and how much of that is reached, or why there is no value.
    """

    what: str
    values: Sequence[float] | np.ndarray
    unit: str
    target: float | None
    limit: str
    at_most: bool = False

    def markdown(self) -> str:
        goal = "" if self.target is None else f"{'≤' if self.at_most else '≥'} {shown(self.target)} {self.unit}".strip()
        if len(self.values) == 0:
            return f"| {self.what} | | {goal} | not measured | {self.limit} |"
        median, low, high = (shown(f(self.values)) for f in (np.median, np.min, np.max))
        measured = f"{median} {self.unit}" + (f" ({low} to {high})" if len(self.values) > 1 else "")
        return f"| {self.what} | {measured} | {goal} | {self.verdict()} | {self.limit} |"

    def verdict(self) -> str:
        if self.target is None:
            return ""
        median = float(np.median(self.values))
        if median <= self.target if self.at_most else median >= self.target:
            return "met"
        gap = abs(median - self.target)
        return f"missed by {gap / self.target:.0%}" if self.target else f"missed by {shown(gap)} {self.unit}"


def main(
    table: Path = Path("../shared/data/mmlu_pro"),
    pairs: int = 5,
    quick: bool = False,
    only: tuple[Measure, ...] = (),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    write: bool = False,
) -> None:
    """Measures, prints and writes.

    Args:
        table: table directory, seen from the repository; where there is none, the built-in `tiny`.
        pairs: turns of what is compared.
        quick: two pairs, of sizes at which numbers mean little: to see that everything runs.
        only: names of what to measure; all if empty.
        device: cpu leaves out the rows of a GPU.
        write: write the file even where not everything is measured in full.
    """
    torch.set_num_threads(1)
    directory = (ROOT / table).resolve()
    name = str(directory) if directory.is_dir() else DEFAULT
    pairs = min(pairs, 2) if quick else pairs
    setup = Setup(name, resolve(name, None, "cpu"), choose_device(device), pairs, quick)
    heading, lines = (
        machine(),
        [f"{versions()}. Load at the start {os.getloadavg()[0]:.1f}, {pairs} pairs, {CORES} cores."],
    )
    lines += [
        f"`{setup.table!r}`{'; quick, which proves nothing' * quick}.",
        "",
        "| what | measured | target | | limit |",
    ]
    lines += ["|---" * 5 + "|"]
    print("\n".join([f"## {heading}", *lines]), flush=True)
    for measure in (env, calls, sb3_defaults, batched, default, update, train_py, large, cuda):
        if not only or measure.__name__ in only:
            for row in measure(setup):
                lines.append(row.markdown())
                print(lines[-1], flush=True)
    if write or not (quick or only):
        write_section(heading, "\n".join(lines))


def env(setup: Setup) -> list[Row]:
    """The vector environment with observations, against Gymnasium's loop over environments, and without them."""
    n_envs, steps, episodes = (64, 64, 1) if setup.quick else (1024, 512, 16)
    rules = make_rules(setup.table)
    ours = LeerooVectorEnv(n_envs, setup.table)
    theirs = SyncVectorEnv([lambda: LeerooEnv(setup.table)] * 64, autoreset_mode=AutoresetMode.SAME_STEP)
    ours.reset(seed=0), theirs.reset(seed=0)
    works = (lambda: play(ours, steps), lambda: play(theirs, steps // 4), lambda: play_rows(rules, n_envs, episodes))
    fast, slow, bare = alternated(setup.pairs, *works)
    copied, what = copy_bytes_per_s(rules.table.device), f"environment, {n_envs:,} episodes"
    written = limit(fast, step_bytes(rules) + observation_bytes(rules), "B", copied)
    return [
        Row(f"{what}, observations written", fast, "steps/s", 1.5e6, written),
        Row("the same against SyncVectorEnv of 64", fast / slow, "x", 15, f"beside {rate(slow)}"),
        Row(f"{what}, rows, no observations", bare, "steps/s", 10e6, limit(bare, step_bytes(rules), "B", copied)),
    ]


def calls(setup: Setup) -> list[Row]:
    """What a step costs with four calls a query, against one."""
    what = "time of a step, 4 calls a query against 1"
    if not setup.table.has_answers():
        return [Row(what, [], "x", 2, "the table has no answers", at_most=True)]
    n_envs, steps = (64, 64) if setup.quick else (1024, 512)
    envs = [LeerooVectorEnv(n_envs, setup.table, max_calls=m) for m in (1, 4)]
    for each in envs:
        each.reset(seed=0)
    single, several = alternated(setup.pairs, *(lambda e=e: play(e, steps, masked=True) for e in envs))
    moved = [step_bytes(e.rules) + observation_bytes(e.rules) for e in envs]
    reached = limit(several, moved[1], "B", copy_bytes_per_s(setup.table.device))
    note = f"{rate(several)}; {reached}; bytes alone: {moved[1] / moved[0]:.2f} x"
    return [Row(what, single / several, "x", 2, note, at_most=True)]


def sb3_defaults(setup: Setup) -> list[Row]:
    """PPO with an MLP against stable-baselines3 as it comes: the same settings, and ours; scores on val."""
    rules, turns = make_rules(setup.table), -(-setup.pairs // 2)
    n_steps, n_envs = (128, 16) if setup.quick else (2048, 256)
    rates, gains, scores = [], [], []
    for seed in (0, 1):
        settings: dict[str, Any] = {"n_steps": n_steps, "policy_kwargs": MLP, "seed": seed, "device": "cpu"}
        theirs = PPO("MlpPolicy", DummyVecEnv([lambda: LeerooEnv(setup.table)] * 8), **settings)
        same = DevicePPO("MlpPolicy", LeerooSB3VecEnv(LeerooVectorEnv(8, setup.table)), **settings)
        own, _ = make_model(TrainConfig(policy="mlp", n_envs=n_envs, seed=seed), "mlp", rules)
        rates.append(alternated(turns, *(learning(model) for model in (theirs, same, own))))
        results = [val_result(setup, rules, model) for model in (theirs, same, own)]
        gains.append(lead(results[2], results[0]))
        scores.append([result.mean_score for result in results])
    slow, alike, fast = np.concatenate(rates, axis=1)
    points, stderr = [100 * gain[2] for gain in gains], 100 * np.mean([gain[3] for gain in gains])
    mean_scores = "{:.4f}, {:.4f} with the same settings, {:.4f} with ours".format(*np.mean(scores, axis=0))
    what, steps = "PPO, MLP 64x64, against stable-baselines3's defaults with 8 DummyVecEnvs", turns * n_steps * 8
    note = f"standard error {stderr:.2f} a seed; theirs scores {mean_scores}"
    return [
        Row(f"{what}, the same", alike / slow, "x", 4, f"{rate(alike)} beside {rate(slow)}; {flop_limit(same, alike)}"),
        Row(f"{what}, our settings", fast / slow, "x", 15, f"{rate(fast)}; {flop_limit(own, fast)}"),
        Row(f"score on val less theirs, {steps:,} steps each, 2 seeds, our settings", points, "points", 0, note),
    ]


def batched(setup: Setup) -> list[Row]:
    """PPO on the device against stable-baselines3's on the same batched environment: speed, and equal parameters."""
    n_envs = 128 if setup.quick else 1024
    settings: dict[str, Any] = {"n_steps": 64, "batch_size": 1024, "n_epochs": 4, "seed": 0, "device": "cpu"}
    models = []
    for kind in (DevicePPO, PPO):
        env = LeerooSB3VecEnv(LeerooVectorEnv(n_envs, setup.table))
        models.append(kind("MlpPolicy", env, policy_kwargs=MLP, **settings))
        learning(models[-1])()  # at once: making a model seeds the generators, which all share
    parameters = zip(*(model.policy.parameters() for model in models), strict=True)
    apart = max(float((a - b).detach().abs().max()) for a, b in parameters)
    fast, slow = alternated(setup.pairs, *(learning(model) for model in models))
    what = f"PPO, MLP 64x64, {n_envs:,} episodes, against stable-baselines3 on the same"
    note = f"{rate(fast)} beside {rate(slow)}; {flop_limit(models[0], fast)}"
    rounding = f"after {64 * n_envs * 4 // 1024:,} minibatches in single precision"
    return [
        Row(what, fast / slow, "x", 1.2, note),
        Row("largest difference of a parameter, one iteration", [apart], "", 1e-5, rounding, at_most=True),
    ]


def default(setup: Setup) -> list[Row]:
    """Training as `train.py` does by default, estimates given, with one and with two threads."""
    model = bid_price_model(setup, 64 if setup.quick else 0)
    work = learning(model)
    work()
    rates = alternated(setup.pairs, *(lambda n=n: with_threads(n, work) for n in (1, 2)))
    rows = []
    for n, measured in zip((1, 2), rates, strict=True):
        note = f"{byte_limit(model, measured, n)}; {flop_limit(model, measured, n)}"
        rows.append(Row(f"PPO, default policy and settings, threads: {n}", measured, "steps/s", 1e5, note))
    return rows


def update(setup: Setup) -> list[Row]:
    """What the closed form of the gradients of PPO's loss gains: updates by it and by automatic differentiation."""
    default_model = bid_price_model(setup, 64 if setup.quick else 0)
    env = LeerooSB3VecEnv(LeerooVectorEnv(64 if setup.quick else 1024, setup.table))
    mlp = DevicePPO("MlpPolicy", env, n_steps=64, batch_size=1024, policy_kwargs=MLP, seed=0, device="cpu")
    rows = []
    for name, model in (("default policy", default_model), ("MLP 64x64", mlp)):
        learning(model)()
        learning(model)()  # the default policy's first iteration trains the value alone
        closed = model.updater
        assert closed is not None
        works = []
        for updater in (closed, AutogradUpdater(closed.policy, closed.storage, closed.settings)):
            updater.start(0.2, float("inf"))
            works.append(updating(updater, model.batch_size))
        fast, slow = alternated(setup.pairs, *works)
        note = f"{rate(fast)} beside {rate(slow)}"
        what = f"update of a minibatch, {name}, gradients of the loss in closed form against automatic"
        rows.append(Row(what, fast / slow, "x", None, note))
    return rows


class AutogradUpdater(Updater):
    """Differentiates `ppo_loss`."""

    def gradients(self, indices: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        batch = self.minibatch(indices)
        loss, statistics = ppo_loss(*evaluate_inputs(self.policy, batch.inputs), batch, self.weights)
        gradients = torch.autograd.grad(loss, self.parameters)
        self.clip(gradients)
        return gradients, statistics


def updating(updater: Updater, batch_size: int) -> Callable[[], float]:
    """Updates on one minibatch, 100 times; steps a second."""
    indices = torch.randperm(updater.storage.actions.numel())[:batch_size]

    def work(times: int = 100) -> float:
        began = time.perf_counter()
        for _ in range(times):
            updater.update(indices)
        return times * len(indices) / (time.perf_counter() - began)

    return work


def train_py(setup: Setup) -> list[Row]:
    """`train.py` from its start to its report, half as many times as there are pairs."""
    experts, rows = setup.table.experts, []
    pools = [experts, TWELVE] if set(TWELVE) < set(experts) else [experts]
    runs = np.array([[run_train(setup, pool) for pool in pools] for _ in range(-(-setup.pairs // 2))])
    for pool, (wall_s, cpu_s) in zip(pools, runs.transpose(1, 2, 0), strict=True):
        least_s = np.median(cpu_s) / CORES
        reached = f"{least_s:.0f} s were {CORES} cores always busy, {least_s / np.median(wall_s):.0%} reached"
        note = f"{np.median(cpu_s):.0f} CPU seconds: {reached}"
        rows.append(Row(f"train.py to its report, {len(pool)} experts", wall_s, "s", 60, note, at_most=True))
    return rows


def large(setup: Setup) -> list[Row]:
    """What the size of a table costs."""
    sizes, steps, rounds = ((1_000, 10_000), 8, 2) if setup.quick else ((10**4, 10**5, 10**6, 10**7), 256, setup.pairs)
    measured, rows = large_tables.measure(sizes, steps=steps, rounds=rounds), []
    same = "bytes and FLOPs of a step are equal; of a large table more of its cache lines come from memory"
    for what, speeds, memory in (("environment", "speeds", "played"), ("PPO", "training_speeds", "trained")):
        for size in measured:
            used = getattr(size, memory)
            note = f"memory: {used.anonymous_mb:,.0f} MB of its own, {used.files_mb:,.0f} MB of files"
            rows.append(Row(f"{what}, {size.queries:,} queries", getattr(size, speeds), "steps/s", None, note))
        slower = np.divide(getattr(measured[0], speeds), getattr(measured[-1], speeds))
        rows.append(Row(f"{what}, time of a step, largest against smallest", slower, "x", 1.25, same, at_most=True))
    return rows


def cuda(setup: Setup) -> list[Row]:
    """The environment and the training on a GPU."""
    if setup.device.type != "cuda":
        why = "left out by --device cpu" if torch.cuda.is_available() else "torch finds no usable GPU here"
        return [Row("on a GPU", [], "", None, why)]
    setup, rows = replace(setup, table=resolve(setup.name, None, setup.device)), []
    for n_envs in (256,) if setup.quick else (4_096, 16_384, 65_536):
        rows += [*cuda_env(setup, n_envs), *cuda_training(setup, n_envs)]
    return rows if setup.quick else [*rows, *cuda_env(setup, 262_144)]


def cuda_env(setup: Setup, n_envs: int, few: int = 32) -> list[Row]:
    """Rows in place of observations; so few episodes that moving them costs nothing show what launching costs."""
    rules = make_rules(setup.table)
    works = [captured_rows(rules, n, on_graph) for n, on_graph in ((n_envs, True), (n_envs, False), (few, True))]
    for work in works:
        work()
    fast, slow, launching = alternated(setup.pairs, *works)
    launches = bound(fast, float(np.median(launching)) * n_envs / few)
    note = f"{limit(fast, step_bytes(rules), 'B', copy_bytes_per_s(setup.device))}; launches alone: {launches}"
    what = f"GPU: environment, {n_envs:,} episodes, rows, no observations"
    return [
        Row(what, fast, "steps/s", 500e6, note),
        Row(f"{what}, captured against not", fast / slow, "x", 1, f"beside {rate(slow)}"),
    ]


def cuda_training(setup: Setup, n_envs: int) -> list[Row]:
    ours = bid_price_model(setup, n_envs)
    learning(ours)()
    with patch("agents.ppo.cuda_graph.capture", lambda work, *_: work):
        plain = bid_price_model(setup, n_envs)
        learning(plain)()
    fast, slow = alternated(setup.pairs, learning(ours), learning(plain))
    steps, replay_s = ours.n_steps * n_envs, replay_seconds(setup.device)
    replays = ours.n_steps + ours.n_epochs * -(-steps // ours.batch_size)
    note = f"{replays:,} replays of {replay_s * 1e6:.1f} us or more: {bound(fast, steps / (replays * replay_s))}"
    what = f"GPU: PPO, default policy and settings, {n_envs:,} episodes"
    return [
        Row(what, fast, "steps/s", 5e6, f"{byte_limit(ours, fast)}; {note}"),
        Row(f"{what}, captured against not", fast / slow, "x", 1, f"beside {rate(slow)}"),
    ]


def alternated(pairs: int, *works: Callable[[], float]) -> np.ndarray:
    """What each of the works returns, [works, pairs]: A B, B A, ... so that a machine that changes meets all alike."""
    measured = np.zeros((len(works), pairs))
    for pair in range(pairs):
        for i in range(len(works)) if pair % 2 == 0 else reversed(range(len(works))):
            measured[i, pair] = works[i]()
    return measured


def play(env: VectorEnv, steps: int, masked: bool = False) -> float:
    """Steps a second of random actions, those that make sense where `masked`; choosing them does not count."""
    rng, seconds = np.random.default_rng(0), 0.0
    for _ in range(steps):
        actions = rng.integers(env.single_action_space.n, size=env.num_envs)  # type: ignore[attr-defined]
        if masked:
            mask = env.action_masks()  # type: ignore[attr-defined]
            actions = (mask * (1 - rng.random(mask.shape))).argmax(axis=1)
        began = time.perf_counter()
        env.step(actions)
        seconds += time.perf_counter() - began
    return steps * env.num_envs / seconds


def play_rows(rules: Rules, n_envs: int, episodes: int) -> float:
    """Steps a second of whole episodes by `leeroo_env.dynamics`, for an agent that looks features up by rows."""
    numbers, actions = torch.arange(n_envs), torch.randint(rules.n_actions, (rules.horizon, n_envs))
    began = time.perf_counter()
    for episode in range(episodes):
        state = dynamics.sample_episodes(rules, dynamics.episode_keys(numbers, torch.full_like(numbers, episode)))
        for chosen in actions:
            dynamics.current_rows(state)
            state, _ = dynamics.step(rules, state, chosen)
    return episodes * actions.numel() / (time.perf_counter() - began)


def captured_rows(rules: Rules, n_envs: int, on_graph: bool, episodes: int = 4) -> Callable[[], float]:
    """`play_rows` on a GPU, in place, with one expert all through an episode; its steps a second."""
    device = rules.table.device
    numbers = torch.arange(n_envs, device=device)
    rows, actions = torch.zeros_like(numbers), numbers % rules.n_actions

    def fresh(episode: int) -> State:
        return dynamics.sample_episodes(rules, dynamics.episode_keys(numbers, torch.full_like(numbers, episode)))

    state = State(**{name: value.clone() for name, value in vars(fresh(0)).items()})

    def put(new: State) -> None:
        for name, value in vars(new).items():
            if value is not getattr(state, name):
                getattr(state, name).copy_(value)

    def step() -> None:
        rows.copy_(dynamics.current_rows(state))
        put(dynamics.step(rules, state, actions)[0])

    go = capture(step, [rows, *vars(state).values()], device) if on_graph else step

    def work() -> float:
        began = now(device)
        for episode in range(episodes):
            put(fresh(episode))
            for _ in range(rules.horizon):
                go()
        return episodes * rules.horizon * n_envs / (now(device) - began)

    return work


def learning(model: Any) -> Callable[[], float]:
    """An iteration of training, which goes on where the last one ended; its steps a second."""

    def work() -> float:
        steps, began = model.n_steps * model.n_envs, now(model.device)
        model.learn(steps, log_interval=None, reset_num_timesteps=False)
        return steps / (now(model.device) - began)

    return work


def with_threads(threads: int, work: Callable[[], float]) -> float:
    torch.set_num_threads(threads)
    try:
        return work()
    finally:
        torch.set_num_threads(1)


def bid_price_model(setup: Setup, n_envs: int = 0) -> DevicePPO:
    """As `train.py` makes it by default."""
    model, _ = make_model(TrainConfig(n_envs=n_envs), "bid-price", setup.played_rules)
    assert isinstance(model, DevicePPO) and isinstance(model.policy, BidPricePolicy)
    start_from_plan(model.policy, setup.table, setup.predictor.rows, setup.predictor.out_of_fold)
    return model


def val_result(setup: Setup, rules: Rules, model: Any) -> Result:
    val = make_rules(setup.table, "val", min(rules.horizon, len(setup.table.rows("val"))))
    router = PolicyRouter(model.policy, describe_policy(rules, "ppo", MLP))
    return evaluate(router, val, budget_grid(val), 8 if setup.quick else None)


def run_train(setup: Setup, experts: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of train.py in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "train.py", "--table", setup.name, "--experts", ",".join(experts)]
        command += ["--max-calls", "1"]
        command += ["--run-dir", f"{directory}/run", *(["--timesteps", "20000"] if setup.quick else [])]
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def step_bytes(rules: Rules) -> int:
    """What a step has to move at least for one episode: what it looks up, what of the state it changes, the outcome."""
    before = dynamics.sample_episodes(rules, torch.zeros(1, dtype=torch.int64, device=rules.table.device))
    after, outcome = dynamics.step(rules, before, torch.zeros_like(before.t))
    old = {id(value) for value in vars(before).values()}
    changed = {id(value): value.nbytes for value in vars(after).values() if id(value) not in old}
    looked_up = before.t.nbytes * 2 + rules.table.scores.element_size() + rules.table.costs_usd.element_size()
    return looked_up + 2 * sum(changed.values()) + sum(value.nbytes for value in vars(outcome).values())


def observation_bytes(rules: Rules) -> int:
    """An embedding read, an observation written."""
    state = dynamics.sample_episodes(rules, torch.zeros(1, dtype=torch.int64, device=rules.table.device))
    return rules.table.embeddings[0].nbytes + dynamics.observe(rules, state).nbytes


def byte_limit(model: DevicePPO, rates: np.ndarray, threads: int = 1) -> str:
    """Of training: a step of the environment, and what is kept of it written once and read once an epoch."""
    assert model.collector is not None
    rules, stored = model.collector.rules, model.collector.storage
    inputs = (stored.digest if stored.digest.shape[2] else stored.tail)[0, 0]
    others = (stored.rows, stored.actions, stored.log_probs, stored.values, stored.advantages, stored.returns)
    kept = inputs.nbytes + sum(tensor.element_size() for tensor in others)
    moved = step_bytes(rules) + observation_bytes(rules) + (1 + model.n_epochs) * kept
    return limit(rates, moved, "B", copy_bytes_per_s(model.device, threads))


def flop_limit(model: Any, rates: np.ndarray, threads: int = 1) -> str:
    """Of training: the matrix products of an iteration, at the speed of the widest layer's with a minibatch."""
    with FlopCounterMode(display=False) as counter:
        learning(model)()
    wide = max((m for m in model.policy.modules() if isinstance(m, torch.nn.Linear)), key=lambda m: m.weight.numel())
    shape = model.batch_size, wide.in_features, wide.out_features
    per_step = counter.get_total_flops() / (model.n_steps * model.n_envs)
    return limit(rates, per_step, "FLOP", product_flops_per_s(*shape, threads), f" ({'x'.join(map(str, shape))})")


def limit(rates: np.ndarray, per_step: float, unit: str, per_s: float, how: str = "") -> str:
    return f"{per_step:,.0f} {unit} a step at {per_s / 1e9:,.1f} G{unit}/s{how}: {bound(rates, per_s / per_step)}"


def bound(rates: np.ndarray, most: float) -> str:
    return f"{most:,.0f} steps/s, {np.median(rates) / most:.0%} reached"


@cache
def copy_bytes_per_s(device: torch.device, threads: int = 1) -> float:
    """Read and written by a copy far larger than any cache."""
    source = torch.ones(2**26 if device.type == "cpu" else 2**30, device=device)
    target = torch.empty_like(source)
    return with_threads(threads, lambda: 2 * source.nbytes / fastest(lambda: target.copy_(source), device))


@cache
def product_flops_per_s(rows: int, inner: int, columns: int, threads: int = 1) -> float:
    a, b, times = torch.randn(rows, inner), torch.randn(inner, columns), 1 + 10**8 // (rows * inner * columns)
    work = lambda: [a @ b for _ in range(times)]  # noqa: E731
    return with_threads(threads, lambda: 2 * times * rows * inner * columns / fastest(work, a.device))


def replay_seconds(device: torch.device, times: int = 1000) -> float:
    """Of a captured graph that does next to nothing."""
    x = torch.zeros(1, device=device)
    replay = capture(lambda: x.zero_(), [x], device)  # type: ignore[arg-type, return-value]
    return fastest(lambda: [replay() for _ in range(times)], device) / times


def fastest(work: Callable[[], Any], device: torch.device, times: int = 5) -> float:
    """Seconds, the least of some tries."""
    seconds = []
    for _ in range(times):
        began = now(device)
        work()
        seconds.append(now(device) - began)
    return min(seconds)


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rate(rates: np.ndarray) -> str:
    return f"{np.median(rates):,.0f} steps/s"


def shown(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu}, {CORES} cores, {memory_gb:.0f} GB, {gpu}"


def versions() -> str:
    packages = (f"{name} {version(name)}" for name in ("torch", "stable-baselines3", "gymnasium", "numpy"))
    return ", ".join([f"Python {platform.python_version()}", *packages])


def write_section(heading: str, text: str) -> None:
    """Replaces the section of that heading, or adds it. Rows that were not measured now stay, marked as of before."""
    before = read_section(RESULTS, heading)
    rows = {cells(line): line for line in text.splitlines() if line.startswith("| ")}
    merged = [rows.pop(cells(line), marked(line)) for line in before.splitlines() if line.startswith("| ")]
    above = text[: text.index("| ")].rstrip()
    table = [*merged, *rows.values()]
    table.insert(1, "|---" * 5 + "|")
    title = "# Speed\n\nWritten by `python benchmarks/speed.py`."
    add_section(RESULTS, title, heading, "\n\n".join([above, "\n".join(table)]))


def cells(line: str) -> str:
    """What a row of a table is about, without the mark of an earlier measurement."""
    return line.split("|")[1].strip().removesuffix(EARLIER)


def marked(line: str) -> str:
    what = line.split("|")[1]
    return line if what.strip().endswith(EARLIER) else line.replace(what, f" {what.strip()}{EARLIER} ", 1)


if __name__ == "__main__":
    tyro.cli(main)
