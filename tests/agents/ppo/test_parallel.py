"""Two processes update as one does on their minibatches joined."""

from __future__ import annotations

import multiprocessing
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from agents.distributed import ALONE, Processes
from agents.policies.bid_price import BidPricePolicy
from agents.ppo.ppo import DevicePPO
from agents.ppo.storage import RolloutStorage
from agents.ppo.updater import Updater, UpdateSettings
from leeroo_env.files import read_tensors, write_tensors
from tests.agents.ppo.models import SETTINGS, B, Make, learn

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size", "ignore:You are trying to run")

CASES = [("bid price", "default"), ("multi call", "clipped values"), ("MLP", "target KL"), ("MLP", "default")]
N = 8  # steps of a minibatch of one process
EPOCHS = 2


@dataclass
class Case:
    """A policy and a rollout of T x B steps."""

    policy: ActorCriticPolicy
    storage: RolloutStorage
    settings: UpdateSettings
    clip: float


def case(make: Make, policy: str, chosen: str) -> Case:
    """A rollout whose advantages differ so much between its halves that each normalised by itself would be others."""
    model = make(DevicePPO, policy, **SETTINGS[chosen])
    learn(model, iterations=1)
    storage = model.collector.storage
    storage.advantages[:, 1::2] = 5 + 3 * storage.advantages[:, 1::2]
    if isinstance(model.policy, BidPricePolicy):
        model.policy.train_actor(True)
    return Case(model.policy, storage, model.updater.settings, model.clip_range(1.0))


def updated(one: Case, processes: Processes) -> dict[str, Tensor]:
    """Parameters and counts after some minibatches: those of a process, or for `ALONE` those of two joined."""
    storage, policy, t = copy(one.storage), deepcopy(one.policy), len(one.storage.rows)
    if processes.world > 1:
        for name, value in vars(storage).items():
            if name not in ("step", "_features"):
                setattr(storage, name, value[:, processes.rank :: 2].contiguous())
    updater = Updater(policy, storage, one.settings, processes)
    updater.start(one.clip, torch.inf)
    n_updates = 0
    for epoch in range(EPOCHS):
        order = torch.randperm(t * B // 2, generator=torch.Generator().manual_seed(epoch))
        for own in order.split(N):
            joint = [own // (B // 2) * B + own % (B // 2) * 2 + rank for rank in range(2)]
            n_updates += updater.update(own if processes.world > 1 else torch.cat(joint))
    counts = {"updates": torch.tensor(n_updates), "statistics": updater.statistics}
    return {**policy.state_dict(), **counts}


def update_all(cases: list[Case], rank: int, directory: Path) -> None:
    """One of the two processes; writes what it has learnt."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory / 'store'}", rank=rank, world_size=2)
    for number, one in enumerate(cases):
        write_tensors(directory / f"{number}-{rank}.safetensors", updated(one, Processes(rank, 2)))
    dist.destroy_process_group()


def test_two_processes_update_as_one_with_the_joint_batch(make: Make, tmp_path: Path):
    cases = [case(make, *chosen) for chosen in CASES]
    other = multiprocessing.get_context("spawn").Process(target=update_all, args=(cases, 1, tmp_path))
    other.start()
    update_all(cases, 0, tmp_path)
    other.join(60)
    assert other.exitcode == 0
    for number, one in enumerate(cases):
        joint = updated(one, ALONE)
        for rank in range(2):
            own = read_tensors(tmp_path / f"{number}-{rank}.safetensors")
            for name, value in joint.items():
                torch.testing.assert_close(own[name], value, rtol=0, atol=1e-6, msg=f"{CASES[number]}: {name}")
        assert joint["updates"] > 0 and any(not torch.equal(joint[n], v) for n, v in one.policy.state_dict().items())
    assert updated(cases[2], ALONE)["updates"] < 6  # both have stopped for the divergence that is that of both
