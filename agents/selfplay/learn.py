"""Learns a round's agent from the table of all answers so far."""

from __future__ import annotations

from dataclasses import replace

from agents.evaluation.evaluate import Result, clearly_above, episodes_for, evaluate
from agents.routers import Router
from agents.selfplay.context import SelfPlay
from agents.selfplay.records import Learned, ValScores
from agents.training.callbacks import VAL_QUERIES
from agents.training.config import TrainConfig
from agents.training.trainer import Trainer
from leeroo_env import ExpertTable
from leeroo_env.dynamics import budget_grid

FROM_TABLE = ("mlp_extractor.value", "mlp_extractor.cost_ratios")  # tensors that follow from a table, without training


def learn(selfplay: SelfPlay, number: int, table: ExpertTable) -> Learned:
    """Fits estimates and budget value, trains the last round's policy further, and writes the agent to keep.

    The policy from before training is kept unless the trained one is clearly better on val, and the last round's agent
    where it is clearly better than the new one.

    Args:
        table: all answers so far, with missing ones imputed.
    """
    config, directory = selfplay.config, selfplay.directory(number)
    horizon = min(config.horizon, len(table.rows("val")), len(table.rows("train")))
    trainer = Trainer(TrainConfig(horizon=horizon, seed=config.seed, max_calls=1), table)
    trainer.prepare()
    val_rules = trainer.held_out_rules("val")
    priced = replace(val_rules, cost_scale=table.cost_scale("val"))
    budgets = selfplay.rounds[0].budgets_usd if number else budget_grid(priced)
    policy = trainer.model.policy
    last = selfplay.agent(number - 1) if number else None
    if last is not None:
        weights = {name: x for name, x in last.policy.state_dict().items() if name not in FROM_TABLE}
        policy.load_state_dict(policy.state_dict() | weights)

    def play(router: Router) -> Result:
        return evaluate(router, val_rules, budgets, episodes_for(val_rules, VAL_QUERIES), config.seed)

    start = {name: x.clone() for name, x in policy.state_dict().items()}
    best = play(trainer.router)
    trainer.learn(config.timesteps)
    trained = play(trainer.router)
    if better := clearly_above(trained, best):
        best = trained
    else:
        policy.load_state_dict(start)
    before = play(last.router(table)) if last is not None else None
    kept = before is None or not clearly_above(before, best)
    trainer.save(directory)
    if last is not None and not kept:
        last.save(directory)
    return Learned(
        budgets_usd=budgets,
        val=ValScores(score=best.score.tolist(), cost_usd=best.cost_usd.tolist(), mean=best.mean_score),
        val_before=None if before is None else before.mean_score,
        training_helped=better,
        kept=kept,
    )
