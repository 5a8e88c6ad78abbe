"""Writes what a run shows in TensorBoard: described scalars, the choices by budget, a page of text, and HParams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from agents.evaluation.decision import AGENT, best_router
from agents.evaluation.evaluate import Result
from agents.evaluation.headline import dollars
from agents.evaluation.markdown import table_head, table_line

MOST_EXPERTS = 20  # with charts of their own

# By the beginning of a tag; the longest that fits describes it.
DESCRIPTIONS = {
    "val/score": "Mean score per query on the val split, over the budgets, of the policy as it stands.",
    "val/score/budget_": "Score on val at one budget; 1 is the smallest. The text page has the budgets in dollars.",
    "val/kept_score": "Score on val of the policy that is kept: it changes only where another is clearly better.",
    "val/lead_over_start": "Score on val less that of the policy before training, on the same queries: what is learnt.",
    "eval/gain_over_start": "Score on val less that of the policy before training, mean over the budgets.",
    "eval/gain_over_start/budget_": "The same at one budget; 1 is the smallest.",
    "val/lead_over_best_router": "Score on val less that of the best other router there, on the same queries.",
    "val/spend_share/budget_": "Share of the budget that is spent, on val at one budget.",
    "choices/budget_": "Share of the calls on val that go to this expert at one budget.",
    "test/score": "Mean score per query on the test split, over the budgets, of the kept policy; once, at the end.",
    "test/lead_over_start": "The same less that of the policy before training, on the same queries.",
    "test/lead_over_best_router": "The same less that of the router that was best on val, on the same queries.",
    "episode/return": "Mean return of the training episodes that ended: score less weighted cost, summed up.",
    "episode/score_per_query": "Mean score per query in training episodes, where actions are drawn at random.",
    "episode/spend_usd_per_query": "Dollars spent per query in training episodes, whose budgets are drawn at random.",
    "episode/cut_off_calls": "Calls in a training episode that cost more than what was left.",
    "episode/budget_left_share": "Share of the budget left at the end of training episodes.",
    "share_of_calls/": "Share of the calls in training episodes that go to this expert.",
    "time/steps_per_s": "Queries routed per second of training, evaluations not counted.",
    "train/entropy": "Entropy of the policy in nats: 0 is a certain choice.",
    "train/value_loss": "Squared error of the critic, which predicts the return.",
    "train/explained_variance": "Share of the returns' variance that the critic predicts; 1 is all.",
    "train/policy_gradient_loss": "What the policy's update minimises.",
    "train/approx_kl": "How far an update moved the policy (Kullback-Leibler divergence).",
    "train/clip_fraction": "Share of the steps whose update was clipped.",
}
NOT_COMPARED = ("agent", "device", "policy_kwargs", "resume", "run_dir", "seeds", "threads", "tune", "tuned", "verify")
METRICS = ("val/kept_score", "test/score", "test/lead_over_start", "test/lead_over_best_router")


def description_of(tag: str) -> str:
    """What a scalar means; empty where it is not described."""
    known = [start for start in DESCRIPTIONS if tag == start or (start[-1] in "_/" and tag.startswith(start))]
    return DESCRIPTIONS[max(known, key=len)] if known else ""


class EventFile(TensorBoardOutputFormat):
    """SB3's TensorBoard output with descriptions of the scalars, and a step after which earlier entries are hidden."""

    def __init__(self, folder: str, purge_step: int | None):
        self.writer = SummaryWriter(log_dir=folder, purge_step=purge_step)
        self._is_closed = False
        self._described: set[str] = set()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        scalars = {
            key: float(value)  # type: ignore[arg-type]
            for key, value in key_values.items()
            if isinstance(value, np.ScalarType) and not isinstance(value, str)
        }
        file_writer: Any = self.writer.file_writer
        for key in sorted(scalars):
            if key not in self._described:
                self._described.add(key)
                file_writer.add_summary(Summary(value=[_described(key, scalars[key])]), step)
            file_writer.add_summary(Summary(value=[Summary.Value(tag=key, simple_value=scalars[key])]), step)
        others = {key: value for key, value in key_values.items() if key not in scalars}
        super().write(others, {key: key_excluded[key] for key in others}, step)


def _described(tag: str, value: float) -> Summary.Value:
    """A first value with the description of its tag, which TensorBoard's server reads of tensors only."""
    plugin_data = SummaryMetadata.PluginData(plugin_name="scalars", content=b"")
    metadata = SummaryMetadata(
        plugin_data=plugin_data, summary_description=description_of(tag), data_class="DATA_CLASS_SCALAR"
    )
    return Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(np.float32(value)))


def tensorboard_logger(run_dir: Path, resumed_at: int) -> Logger:
    """A logger to one event file; TensorBoard hides what a killed run logged after the step that it is `resumed_at`."""
    return Logger(str(run_dir), [EventFile(str(run_dir), resumed_at or None)])


def hyperparameters(settings: Mapping[str, Any]) -> HParam:
    """For the HParams page: settings that are numbers or words, and the scores by which runs are compared."""
    shown = {
        name: value if isinstance(value, int | float) else str(value or "all")
        for name, value in settings.items()
        if name not in NOT_COMPARED
    }
    return HParam(shown, dict.fromkeys(METRICS, 0.0))


def about(settings: Mapping[str, Any], budgets_usd: list[float], experts: Sequence[str]) -> str:
    """The text page: what is trained, the budgets, the settings, and what every tag means; Markdown."""
    budgets = [table_line([f"budget_{i}", dollars(1000 * usd)]) for i, usd in enumerate(budgets_usd, start=1)]
    rows = [table_line([name, str(value)]) for name, value in settings.items() if value not in ("", (), False)]
    tags = [table_line([f"{tag}…" if tag[-1] in "_/" else tag, text]) for tag, text in DESCRIPTIONS.items()]
    return "\n".join(
        [
            f"Is it learning? **val/lead_over_start** rises above 0. Is it better than rules without reinforcement "
            f"learning? **val/lead_over_best_router** is above 0. What does it choose? **choices/budget_1** is what it "
            f"asks when money is short, **choices/budget_{len(budgets_usd)}** when there is plenty. Type "
            "val/ into the filter of the scalars to see the first two.",
            "",
            f"Experts: {', '.join(experts[:MOST_EXPERTS])}{' and more' if len(experts) > MOST_EXPERTS else ''}.",
            "",
            *table_head(["budget", "dollars per 1,000 queries"]),
            *budgets,
            "",
            *table_head(["setting", "value"]),
            *rows,
            "",
            *table_head(["tag", "meaning"]),
            *tags,
        ]
    )


def val_scalars(
    result: Result, start: Result, others: Mapping[str, Result], budgets_usd: list[float], experts: Sequence[str]
) -> dict[str, float]:
    """The scalars of one evaluation on val.

    Args:
        result: of the policy as it stands.
        start: of the policy before training.
        others: of the other routers, on the same episodes.
        budgets_usd: [G], dollars a query.
        experts: [K] names.
    """
    gain = result.mean_score - start.mean_score
    scalars = {"val/score": result.mean_score, "val/lead_over_start": gain, "eval/gain_over_start": gain}
    if (best := best_router(others)) is not None:
        scalars["val/lead_over_best_router"] = result.mean_score - others[best].mean_score
    shares = result.calls / result.calls.sum(axis=1, keepdims=True).clip(min=1e-30)
    shown = shares.max(axis=0).argsort()[::-1][:MOST_EXPERTS] if len(experts) > MOST_EXPERTS else range(len(experts))
    for g, usd in enumerate(budgets_usd):
        scalars[f"val/score/budget_{g + 1}"] = float(result.score[g])
        scalars[f"eval/gain_over_start/budget_{g + 1}"] = float(result.score[g] - start.score[g])
        scalars[f"val/spend_share/budget_{g + 1}"] = float(result.cost_usd[g] / usd)
        scalars |= {f"choices/budget_{g + 1}/{experts[k]}": float(shares[g, k]) for k in shown}
    return scalars


def test_scalars(test: Mapping[str, Result], gain: float, rival: str | None) -> dict[str, float]:
    """The scalars of the end: of the kept policy on test, over its start and the router that was best on val."""
    scalars = {"test/score": test[AGENT].mean_score, "test/lead_over_start": gain}
    if rival is not None:
        scalars["test/lead_over_best_router"] = test[AGENT].mean_score - test[rival].mean_score
    return scalars
