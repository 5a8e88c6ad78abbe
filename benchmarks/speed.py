"""What the speed claims come from: one command measures everything and writes benchmarks/RESULTS.md.

python benchmarks/speed.py                              all of it; replaces this machine's section of the file
python benchmarks/speed.py --only env                   replaces these rows
python benchmarks/speed.py --quick --only env calls     a look; the file stays as it is

What is compared runs in turn, A B B A, on one thread of torch unless a row says otherwise; a ratio is that of one turn,
and rows show medians and, in brackets, ranges. What the machine allows is counted: the bytes that a step has to move at
least, at the speed of a big copy, measured on the spot.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import large_tables  # noqa: E402
from measuring import (  # noqa: E402
    CORES,
    HEAD,
    Row,
    alternated,
    conditions,
    learning,
    limit,
    machine,
    now,
    rate,
    ratio,
    seconds,
    with_threads,
    write_section,
)

from agents.estimators.ensemble import Predictor, fit_predictor, table_estimates  # noqa: E402
from agents.estimators.mlp import fit_networks  # noqa: E402
from agents.estimators.ridge_pca import fit_components  # noqa: E402
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
from leeroo_env.dynamics.fused import sample  # noqa: E402
from leeroo_env.sb3 import LeerooSB3VecEnv  # noqa: E402

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
Measure = Literal[
    "train_py", "default", "env", "calls", "beside_peers", "sb3_defaults", "update", "large", "fits", "cuda"
]
MLP = {"net_arch": [64, 64]}
PEERS = {"CleanRL": "peer_cleanrl.py", "PufferLib": "peer_pufferlib.py"}


@dataclass(frozen=True)
class Setup:
    """What is measured on, and how thoroughly. The table is on the CPU but for the rows of a GPU, `device`."""

    name: str
    table: ExpertTable
    device: torch.device
    pairs: int
    quick: bool
    peers: Path | None

    @cached_property
    def predictor(self) -> Predictor:
        return fit_predictor(self.table)

    @cached_property
    def played_rules(self) -> Rules:
        """With the estimates as features, as the default policy sees them."""
        estimates = table_estimates(self.table, self.predictor)
        return make_rules(self.table, features=estimate_features(estimates, self.table.cost_scale()))


def main(
    table: Path = Path("tables/mmlu_pro"),
    pairs: int = 5,
    quick: bool = False,
    only: tuple[Measure, ...] = (),
    peers: Path | None = None,
) -> None:
    """Measures, prints and writes.

    Args:
        table: table directory, seen from the repository; where there is none, the built-in `tiny`.
        pairs: turns of what is compared.
        quick: two pairs, of sizes at which numbers mean little, to see that everything runs; nothing is written.
        only: names of what to measure; all if empty.
        peers: Python of an environment with CleanRL and PufferLib, made as their `peer_*.py` say.
    """
    torch.set_num_threads(1)
    directory = (ROOT / table).resolve()
    name = str(directory) if directory.is_dir() else DEFAULT
    pairs = min(pairs, 2) if quick else pairs
    setup = Setup(name, resolve(name, None, "cpu"), choose_device("auto"), pairs, quick, peers and peers.absolute())
    above = f"{conditions(pairs, setup.peers)}\n`{setup.table!r}`{'; quick, which proves nothing' * quick}."
    print(f"## {machine()}\n\n{above}\n\n{HEAD}", flush=True)
    lines = []
    for measure in (train_py, default, env, calls, beside_peers, sb3_defaults, update, large, fits, cuda):
        if not only or measure.__name__ in only:
            for row in measure(setup):
                lines.append(row.markdown())
                print(lines[-1], flush=True)
    if not quick:
        write_section(RESULTS, machine(), above, lines, merge=bool(only))


def train_py(setup: Setup) -> list[Row]:
    """`train.py` from its start to its report, in a process of its own, and what took how long."""
    kinds: list[tuple[str, list[str], float | None]] = [
        ("make train, once set up: train.py on the tiny table, to its report", ["--table", DEFAULT], 15)
    ]
    if setup.name != DEFAULT:
        what = f"train.py on {setup.table.name}, {len(setup.table.experts)} experts"
        kinds.append((f"{what}, --max-calls 1", ["--table", setup.name, "--max-calls", "1"], 20))
        kinds.append((f"{what}, several calls", ["--table", setup.name], None))
    quick = ["--timesteps", "20000"] if setup.quick else []
    runs: list[list[tuple[float, dict[str, float]]]] = [[] for _ in kinds]
    works = [partial(run_train, [*options, *quick], kept) for (_, options, _), kept in zip(kinds, runs, strict=True)]
    rows = []
    for (what, _, mark), wall_s, kept in zip(kinds, alternated(setup.pairs, *works), runs, strict=True):
        cpu_s = np.median([cpu_s for cpu_s, _ in kept])
        phases = {name: np.median([phases[name] for _, phases in kept]) for name in kept[0][1]}
        parts = [f"{name} {s:.1f} s" for name, s in phases.items()]
        parts.append(f"{cpu_s:.0f} CPU seconds, {cpu_s / CORES / np.median(wall_s):.0%} of {CORES} cores")
        rows.append(Row(what, wall_s, "s", mark, ", ".join(parts), at_most=True))
    return rows


def run_train(options: Sequence[str], kept: list[tuple[float, dict[str, float]]]) -> float:
    """Seconds of a run; keeps its CPU seconds, and those of its phases where the run directory has them."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "train.py", "--run-dir", str(run_dir), *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(done.stderr)
        timings = run_dir / "timings.json"
        phases = json.loads(timings.read_text()) if timings.exists() else {}
    kept.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, phases))
    return wall_s


def default(setup: Setup) -> list[Row]:
    """Training as `train.py` does by default, estimates given, with one and with two threads."""
    model = bid_price_model(setup, 64 if setup.quick else 0)
    work = learning(model)
    work()
    rates = alternated(setup.pairs, *(partial(with_threads, n, work) for n in (1, 2)))
    marked = zip((1, 2), (None, 250e3), rates, strict=True)
    what = "PPO, default policy and settings, threads"
    return [Row(f"{what}: {n}", r, "steps/s", mark, byte_limit(model, r, n)) for n, mark, r in marked]


def env(setup: Setup) -> list[Row]:
    """The vector environment with observations, against Gymnasium's loop over environments, and without them."""
    n_envs, steps = (64, 64) if setup.quick else (1024, 512)
    rules = make_rules(setup.table)
    ours = LeerooVectorEnv(n_envs, setup.table)
    theirs = SyncVectorEnv([lambda: LeerooEnv(setup.table)] * 64, autoreset_mode=AutoresetMode.SAME_STEP)
    ours.reset(seed=0), theirs.reset(seed=0)
    works = (partial(play, ours, steps), partial(play, theirs, steps // 4), playing_rows(rules, n_envs))
    fast, slow, bare = alternated(setup.pairs, *works)
    what = f"environment, {n_envs:,} episodes"
    return [
        Row(f"{what}, observations written", fast, "steps/s", 2.5e6, step_limit(rules, fast)),
        ratio("the same against SyncVectorEnv of 64", fast, slow, 15),
        Row(f"{what}, rows, no observations", bare, "steps/s", 10e6, step_limit(rules, bare, observed=False)),
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
    single, several = alternated(setup.pairs, *(partial(play, each, steps, masked=True) for each in envs))
    moved = [step_bytes(each.rules) for each in envs]
    reached = step_limit(envs[1].rules, several)
    note = f"{rate(several)} beside {rate(single)}; {reached}; bytes alone: {moved[1] / moved[0]:.2f} x"
    return [Row(what, single / several, "x", 2, note, at_most=True)]


def beside_peers(setup: Setup) -> list[Row]:
    """PPO by stable-baselines3, CleanRL and PufferLib on the same batch of episodes: with our settings and networks of
    the same sizes, and with the minibatches and epochs that PufferLib comes with."""
    n_envs, rows = 128 if setup.quick else 1024, []
    for batch_size, n_epochs in ((1024, 4), (8192, 1)):
        sizes: dict[str, Any] = {"n_steps": 64, "batch_size": batch_size, "n_epochs": n_epochs}
        models = []
        for kind in (DevicePPO, PPO):
            env = LeerooSB3VecEnv(LeerooVectorEnv(n_envs, setup.table))
            models.append(kind("MlpPolicy", env, policy_kwargs=MLP, seed=0, device="cpu", **sizes))
            learning(models[-1])()
        given = (setup.name, n_envs, *sizes.values())
        peers = [partial(run_peer, setup.peers, script, *given) for script in PEERS.values()] if setup.peers else []
        ours, *theirs = alternated(setup.pairs, *map(learning, models), *peers)
        what = f"PPO, MLP 64x64, {n_envs:,} episodes, minibatches of {batch_size:,}, epochs: {n_epochs}, against"
        rows.append(ratio(f"{what} stable-baselines3", ours, theirs[0], 1.2))
        if not peers:
            rows += [Row(f"{what} {name}", [], "x", note="--peers is not given") for name in PEERS]
        rows += [ratio(f"{what} {name}", ours, slow) for name, slow in zip(PEERS, theirs[1:], strict=False)]
    return rows


def run_peer(python: Path, script: str, *given: Any) -> float:
    """Steps a second of two iterations after a first one, in a process of its own."""
    command = [str(python), str(ROOT / "benchmarks" / script), *map(str, given), "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout)


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
        rates.append(alternated(turns, *map(learning, (theirs, same, own))))
        results = [val_result(setup, rules, model) for model in (theirs, same, own)]
        gains.append(lead(results[2], results[0]))
        scores.append([result.mean_score for result in results])
    slow, alike, fast = np.concatenate(rates, axis=1)
    points, stderr = [100 * gain[2] for gain in gains], 100 * np.mean([gain[3] for gain in gains])
    mean_scores = "{:.4f}, {:.4f} with the same settings, {:.4f} with ours".format(*np.mean(scores, axis=0))
    what, steps = "PPO, MLP 64x64, against stable-baselines3's defaults with 8 DummyVecEnvs", turns * n_steps * 8
    note = f"standard error {stderr:.2f} a seed; theirs scores {mean_scores}"
    return [
        ratio(f"{what}, the same", alike, slow, 4),
        ratio(f"{what}, our settings", fast, slow, 15),
        Row(f"score on val less theirs, {steps:,} steps each, 2 seeds, our settings", points, "points", 0, note),
    ]


def val_result(setup: Setup, rules: Rules, model: Any) -> Result:
    val = make_rules(setup.table, "val", min(rules.horizon, len(setup.table.rows("val"))))
    router = PolicyRouter(model.policy, describe_policy(rules, "ppo", MLP))
    return evaluate(router, val, budget_grid(val), 8 if setup.quick else None)


def update(setup: Setup) -> list[Row]:
    """What the closed form of the gradients of PPO's loss gains: updates by it and by automatic differentiation."""
    model, works = bid_price_model(setup, 64 if setup.quick else 0), []
    learning(model)()
    learning(model)()  # the first iteration trains the value alone
    closed = model.updater
    assert closed is not None
    for updater in (closed, AutogradUpdater(closed.policy, closed.storage, closed.settings)):
        updater.start(0.2, float("inf"))
        works.append(updating(updater, model.batch_size))
    what = "update of a minibatch, default policy, gradients of the loss in closed form against automatic"
    return [ratio(what, *alternated(setup.pairs, *works))]


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


def large(setup: Setup) -> list[Row]:
    """What the size of a table costs."""
    sizes, steps, rounds = ((1_000, 10_000), 8, 2) if setup.quick else ((10**4, 10**5, 10**6, 10**7), 256, setup.pairs)
    measured, rows = large_tables.measure(sizes, steps=steps, rounds=rounds), []
    for what, speeds, memory in (("environment", "speeds", "played"), ("PPO", "training_speeds", "trained")):
        for size in measured:
            used = getattr(size, memory)
            note = f"memory: {used.anonymous_mb:,.0f} MB of its own, {used.files_mb:,.0f} MB of files"
            rows.append(Row(f"{what}, {size.queries:,} queries", getattr(size, speeds), "steps/s", None, note))
        slower = np.divide(getattr(measured[0], speeds), getattr(measured[-1], speeds))
        same = "a step moves as much; of a large table more of it comes from memory"
        rows.append(Row(f"{what}, time of a step, largest against smallest", slower, "x", 1.25, same, at_most=True))
    return rows


def fits(setup: Setup) -> list[Row]:
    """The fits of the agent's estimates that a GPU speeds up, there."""
    if setup.device.type != "cuda":
        return []
    table = resolve(setup.name, None, setup.device)
    rows = table.rows("train")
    works = [partial(seconds, partial(fit, table, rows), setup.device) for fit in (fit_components, fit_networks)]
    alternated(1, *works)
    ridge_s, networks_s = alternated(setup.pairs, *works)
    note = f"ridge {np.median(ridge_s):.2f} s, networks {np.median(networks_s):.2f} s"
    what = f"GPU: ridge and networks fitted to {len(rows):,} queries"
    return [Row(what, ridge_s + networks_s, "s", 2, note, at_most=True)]


def cuda(setup: Setup) -> list[Row]:
    """The environment and the training on a GPU; the marks are for the most episodes at a time."""
    if setup.device.type != "cuda":
        return [Row("on a GPU", [], "", None, "torch finds no usable GPU here")]
    setup = replace(setup, table=resolve(setup.name, None, setup.device))
    sizes = (256, 512) if setup.quick else (4_096, 16_384, 65_536, 262_144)
    rows = [row for n_envs in sizes for row in cuda_env(setup, n_envs, 2e9 if n_envs == sizes[-1] else None)]
    return rows + [cuda_training(setup, n_envs, 20e6 if n_envs == sizes[-2] else None) for n_envs in sizes[:-1]]


def cuda_env(setup: Setup, n_envs: int, mark: float | None) -> list[Row]:
    """Rows in place of observations, step by step and, for actions known beforehand, an episode a launch."""
    rules = make_rules(setup.table)
    works = [*(playing_rows(rules, n_envs, on_graph) for on_graph in (True, False)), playing_known(rules, n_envs)]
    alternated(1, *works)
    fast, slow, fused = alternated(setup.pairs, *works)
    what = f"GPU: environment, {n_envs:,} episodes"
    note = f"{step_limit(rules, fast, observed=False)}; {rate(slow)} not captured"
    reached = f"{limit(fused, known_step_bytes(rules), rules.table.device)}; {rate(fast)} step by step"
    return [
        Row(f"{what}, rows, no observations", fast, "steps/s", None, note),
        Row(f"{what}, actions known beforehand", fused, "steps/s", mark, reached),
    ]


def cuda_training(setup: Setup, n_envs: int, mark: float | None) -> Row:
    ours = bid_price_model(setup, n_envs)
    learning(ours)()
    with patch("agents.ppo.cuda_graph.capture", lambda work, *_: work):
        plain = bid_price_model(setup, n_envs)
        learning(plain)()
    fast, slow = alternated(setup.pairs, learning(ours), learning(plain))
    note = f"{byte_limit(ours, fast)}; {rate(slow)} not captured"
    return Row(f"GPU: PPO, default policy and settings, {n_envs:,} episodes", fast, "steps/s", mark, note)


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


def playing_rows(rules: Rules, n_envs: int, on_graph: bool = False, episodes: int = 8) -> Callable[[], float]:
    """Whole episodes by `leeroo_env.dynamics`, for an agent that looks features up by rows; their steps a second."""
    device = rules.table.device
    numbers = torch.arange(n_envs, device=device)
    rows, actions = torch.zeros_like(numbers), numbers % rules.n_actions

    def fresh(episode: int) -> State:
        return dynamics.sample_episodes(rules, dynamics.episode_keys(numbers, torch.full_like(numbers, episode)))

    state = State(**{name: value.clone() for name, value in vars(fresh(0)).items()})

    def put(new: State) -> None:
        nonlocal state
        if not on_graph:
            state = new
            return
        for name, value in vars(new).items():  # a graph changes its own tensors
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


def playing_known(rules: Rules, n_envs: int, episodes: int = 8) -> Callable[[], float]:
    """Whole episodes by `leeroo_env.dynamics.play`, sampled anew each time; their steps a second."""
    device = rules.table.device
    numbers = torch.arange(n_envs, device=device)
    actions = (numbers % rules.n_actions).repeat(rules.horizon, 1)

    def work() -> float:
        began = now(device)
        for episode in range(episodes):
            keys = dynamics.episode_keys(numbers, torch.full_like(numbers, episode))
            dynamics.play(rules, sample(rules, keys), actions)
        return actions.numel() * episodes / (now(device) - began)

    return work


def bid_price_model(setup: Setup, n_envs: int = 0) -> DevicePPO:
    """As `train.py` makes it by default."""
    model, _ = make_model(TrainConfig(n_envs=n_envs), "bid-price", setup.played_rules)
    assert isinstance(model, DevicePPO) and isinstance(model.policy, BidPricePolicy)
    start_from_plan(model.policy, setup.played_rules, setup.predictor.rows, setup.predictor.out_of_fold)
    return model


def step_bytes(rules: Rules, observed: bool = True) -> int:
    """What a step has to move at least for one episode: what it looks up, what of the state it changes, the outcome;
    where it is observed, an embedding read and an observation written."""
    before = dynamics.sample_episodes(rules, torch.zeros(1, dtype=torch.int64, device=rules.table.device))
    after, outcome = dynamics.step(rules, before, torch.zeros_like(before.t))
    old = {id(value) for value in vars(before).values()}
    changed = {id(value): value.nbytes for value in vars(after).values() if id(value) not in old}
    looked_up = before.t.nbytes * 2 + rules.table.scores.element_size() + rules.table.costs_usd.element_size()
    seen = rules.table.embeddings[0].nbytes + dynamics.observe(rules, before).nbytes if observed else 0
    return seen + looked_up + 2 * sum(changed.values()) + sum(value.nbytes for value in vars(outcome).values())


def known_step_bytes(rules: Rules) -> int:
    """The same of `leeroo_env.dynamics.play` on a GPU, where the state stays in registers: a row sampled, written and
    read, an action read, a score and a cost looked up, and the outcome written but for `delivered`, always true."""
    before = dynamics.sample_episodes(rules, torch.zeros(1, dtype=torch.int64, device=rules.table.device))
    _, outcome = dynamics.step(rules, before, torch.zeros_like(before.t))
    looked_up = rules.table.scores.element_size() + rules.table.costs_usd.element_size()
    return 3 * before.t.nbytes + looked_up + sum(v.nbytes for name, v in vars(outcome).items() if name != "delivered")


def step_limit(rules: Rules, rates: np.ndarray, observed: bool = True) -> str:
    return limit(rates, step_bytes(rules, observed), rules.table.device)


def byte_limit(model: DevicePPO, rates: np.ndarray, threads: int = 1) -> str:
    """Of training: a step of the environment, and what is kept of it written once and read once an epoch."""
    assert model.collector is not None
    rules, stored = model.collector.rules, model.collector.storage
    inputs = (stored.digest if stored.digest.shape[2] else stored.tail)[0, 0]
    others = (stored.rows, stored.actions, stored.log_probs, stored.values, stored.advantages, stored.returns)
    kept = inputs.nbytes + sum(tensor.element_size() for tensor in others)
    moved = step_bytes(rules) + (1 + model.n_epochs) * kept
    return limit(rates, moved, model.device, threads)


if __name__ == "__main__":
    tyro.cli(main)
