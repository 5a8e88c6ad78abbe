"""Data-parallel training: every process plays episodes on its own share of the training queries and learns with all.

The first process has the table, fits, evaluates and writes; it sends the others what they need of their queries and the
policy, and they train along. Shapes: n training queries, N queries in the table, K experts, F features of a query.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pydantic
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor

from agents.distributed import Processes, ProcessLost
from agents.policies.multi_call import MultiCallPolicy
from agents.training.callbacks import Interrupted, train_actor_after_warm_up
from agents.training.checkpoint import network_tensors, restore_networks
from agents.training.config import PolicyKind, TrainConfig
from agents.training.factory import make_model
from agents.training.run_dir import CONFIG, read_settings
from agents.training.runtime import choose_device
from leeroo_env import ExpertTable, InputError
from leeroo_env.cost_scale import CostScale
from leeroo_env.dynamics import Rules
from leeroo_env.table.mapped import unknown_queries
from leeroo_env.table.schema import ANSWER_COLUMNS, TableInfo
from leeroo_env.variants import shared_models

OF_TABLE = ("scores", "costs_usd", "answer_ids")
OF_RULES = ("features", "reliability", "evidence")
JOB_TEXT = "job"


@dataclass(frozen=True)
class Job:
    """A training that other processes take part in, but for its tensors.

    Attributes:
        config: the settings.
        policy: its kind.
        info: of the table.
        budget_usd_per_query: of the rules, as `max_calls`.
        max_calls: the most calls of a query.
        num_timesteps: steps already made.
    """

    config: TrainConfig
    policy: PolicyKind
    info: TableInfo
    budget_usd_per_query: tuple[float, float]
    max_calls: int
    num_timesteps: int


JOB = pydantic.TypeAdapter(Job)


def check_parallel(config: TrainConfig, table: ExpertTable, processes: Processes) -> None:
    """Raises InputError where several processes cannot train with these settings."""
    if processes.world == 1:
        return
    if config.algo != "ppo":
        raise InputError(f"algo {config.algo}: only ppo learns in several processes; start it without torchrun")
    if config.tune:
        raise InputError(f"tune {config.tune}: searches in one process; start it without torchrun")
    share = len(table.rows("train")) // processes.world
    if share < config.horizon:
        raise InputError(
            f"horizon {config.horizon}: must be at most {share}, the training queries of each of the {processes.world} "
            "processes"
        )


def check_resumed(run_dir: Path, processes: Processes) -> None:
    """Raises InputError where a run, or one of its seeds, began with another number of processes."""
    for path in [run_dir, *run_dir.glob("seed-*")]:
        trained = read_settings(path).get("hyperparameters") if (path / CONFIG).exists() else None
        if trained and (began := trained.get("processes", 1)) != processes.world:
            raise InputError(f"{run_dir}: began with {began} processes and goes on with as many, not {processes.world}")


def share_of(rules: Rules, processes: Processes, rank: int = 0) -> dict[str, Tensor]:
    """What is known of every W-th training query, copied: `OF_TABLE` and `OF_RULES`, [n / W, ...]; what is the same for
    all queries remains one row."""
    table, rows = rules.table, rules.rows[rank :: processes.world]
    own = {name: getattr(table, name) for name in OF_TABLE} | {name: getattr(rules, name) for name in OF_RULES}
    return {name: v[:1] if v.stride(0) == 0 else v[rows.to(v.device)] for name, v in own.items()}


def parts_of_rules(share: dict[str, Tensor], info: TableInfo) -> dict[str, Any]:
    """The attributes of `Rules` that a share of the queries decides, their table among them, in which features take the
    place of embeddings. The cost scale remains that of all training queries."""
    n, device = len(share["scores"]), share["scores"].device
    own = {name: value.expand(n, -1) for name, value in share.items()}
    table = ExpertTable(
        info=info,
        queries=unknown_queries(n),
        answers=pa.table({name: pa.array([], dtype) for name, dtype in ANSWER_COLUMNS.items()}),
        embeddings=own["features"],
        split=torch.zeros(n, dtype=torch.int8, device=device),
        **{name: own[name] for name in OF_TABLE},
    )
    return {"table": table, "rows": torch.arange(n, device=device), **{name: own[name] for name in OF_RULES}}


def own_rules(rules: Rules, processes: Processes) -> Rules:
    """The rules by which the first process trains: those of its share."""
    if processes.world == 1:
        return rules
    return replace(rules, **parts_of_rules(share_of(rules, processes), rules.table.info))


def lead(processes: Processes, config: TrainConfig, policy: PolicyKind, rules: Rules, model: BaseAlgorithm) -> None:
    """Lets the other processes take part in a training that begins: sends each its share of the queries and the `model`
    as it stands.

    Args:
        processes: of which this is the first.
        config: the settings.
        policy: its kind.
        rules: with all training queries.
        model: of this process.
    """
    for rank in range(1, processes.world):
        job = Job(config, policy, rules.table.info, rules.budget_usd_per_query, rules.max_calls, model.num_timesteps)
        tensors = share_of(rules, processes, rank) | {"mean_usd": rules.cost_scale.mean_usd}
        text = torch.frombuffer(bytearray(JOB.dump_json(job)), dtype=torch.uint8)
        processes.send({JOB_TEXT: text, **tensors, **network_tensors(model)}, rank)


def follow(processes: Processes) -> int:
    """Takes part in the trainings of the first process, to which Ctrl-C is left, until there are no more; returns the
    exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            tensors = processes.receive()
        except ProcessLost:
            return 2  # the first process has said why
        if not tensors:
            return 0
        _train_along(processes, tensors)


def _train_along(processes: Processes, tensors: dict[str, Tensor]) -> None:
    """Trains on the share that has been sent; episodes are others than those of the other processes."""
    job: Job = JOB.validate_json(bytes(tensors.pop(JOB_TEXT).tolist()))
    config, device = job.config, choose_device(job.config.device)
    torch.set_num_threads(config.threads)
    own = {name: tensors.pop(name).to(device) for name in (*OF_TABLE, *OF_RULES)}
    rules = Rules(
        **parts_of_rules(own, job.info),
        horizon=config.horizon,
        budget_usd_per_query=job.budget_usd_per_query,
        cost_weight=config.cost_weight,
        cost_scale=CostScale.of(tensors.pop("mean_usd").to(device)),
        max_calls=job.max_calls,
        models=shared_models([expert.name for expert in job.info.experts], device),
    )
    own_seed = (config.seed + job.num_timesteps) % 2**32  # a resumed training does not repeat its first episodes
    model, _ = make_model(replace(config, seed=own_seed), job.policy, rules, processes)
    if isinstance(model.policy, MultiCallPolicy):
        model.policy.set_models(rules.models)
    restore_networks(model, tensors)
    model.num_timesteps = job.num_timesteps
    model.set_logger(Logger(None, []))
    remaining, never = max(0, config.timesteps - job.num_timesteps), cast(int, None)
    with suppress(Interrupted):
        model.learn(remaining, Follower(processes, config.timesteps), never, reset_num_timesteps=job.num_timesteps == 0)


class Follower(BaseCallback):
    """Begins every iteration as the first process does, and stops when that does."""

    def __init__(self, processes: Processes, timesteps: int):
        super().__init__()
        self.processes, self.timesteps = processes, timesteps

    def _on_rollout_start(self) -> None:
        train_actor_after_warm_up(self.model, self.timesteps)
        if self.processes.told():
            raise Interrupted

    def _on_step(self) -> bool:
        return True
