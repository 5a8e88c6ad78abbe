"""An algorithm of sb3-contrib, or any other of stable-baselines3's kind, on `Leeroo-v0`.

python examples/contrib_qrdqn.py --table tiny --steps 50000
"""

from __future__ import annotations

import torch
import tyro
from sb3_contrib import QRDQN

from agents.evaluation.evaluate import evaluate
from agents.policies.description import describe_policy
from agents.routers.policy import PolicyRouter
from leeroo_env import LeerooVectorEnv
from leeroo_env.dynamics import budget_grid, make_rules
from leeroo_env.sb3 import LeerooSB3VecEnv


def main(table: str = "tiny", steps: int = 50_000, seed: int = 0) -> float:
    """Trains QR-DQN and returns its mean score on the val split over the budgets of a report.

    Args:
        table: table directory or name of a built-in table.
        steps: queries to route in training.
        seed: decides everything that is random.
    """
    torch.set_num_threads(1)
    env = LeerooSB3VecEnv(LeerooVectorEnv(num_envs=32, table=table))
    network = {"net_arch": [64, 64], "n_quantiles": 25}
    model = QRDQN(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        gamma=1.0,
        buffer_size=20_000,
        batch_size=256,
        learning_starts=2_000,
        exploration_fraction=0.5,
        policy_kwargs=network,
        seed=seed,
        device="cpu",
    )
    model.learn(steps, log_interval=steps)  # in episodes: never

    rules = make_rules(env.env.rules.table, "val")
    router = PolicyRouter(model.policy, describe_policy(rules, "qrdqn", network))
    result = evaluate(router, rules, budget_grid(rules), episodes=32)
    print("score per query by budget:", " ".join(f"{s:.3f}" for s in result.score), f"mean {result.mean_score:.4f}")
    return result.mean_score


if __name__ == "__main__":
    tyro.cli(main)
