"""Computes what all episodes have in common from a table and the settings of an episode.

n queries of a split, N queries in the table, K experts, F features of a query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leeroo_env.cost_scale import CostScale
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable
from leeroo_env.table.schema import MAX_COST_USD
from leeroo_env.tensors import normal_tensors
from leeroo_env.variants import shared_models

HORIZON = 64
COST_WEIGHT = 0.02
MAX_COST_WEIGHT = 1e6
MAX_COST_RATIO = 1e19
MAX_EVIDENCE = 6.0  # in log-odds


@dataclass(frozen=True)
class Rules:
    """What all episodes have in common.

    Attributes:
        table: the experts' scores and costs.
        features: [N, F], what the agent observes of each query.
        rows: [n] int64, the rows of the table from which queries are drawn.
        horizon: H, queries per episode.
        budget_usd_per_query: lowest and highest budget in dollars per query; each episode draws one, log-uniformly.
        cost_weight: weight in the reward of a call at the highest mean cost, against 1 for a correct answer.
        cost_scale: the experts' mean costs on the training split, all that is known of costs before a call.
        max_calls: M, the most calls per query.
        reliability: [N, K] in [0, 1], estimated chance that an expert's answer is correct; determines its vote.
        evidence: [N, K], what a call tells of its own answer, in log-odds of being right; observed after the call.
        models: [K] int64, equal where experts are variants of one model, which has one vote for an answer; None: all
            differ.
    """

    table: ExpertTable
    features: Tensor
    rows: Tensor
    horizon: int
    budget_usd_per_query: tuple[float, float]
    cost_weight: float
    cost_scale: CostScale
    max_calls: int
    reliability: Tensor
    evidence: Tensor
    models: Tensor | None

    @property
    def n_actions(self) -> int:
        """The K experts and, with M > 1, the stop action."""
        return len(self.table.experts) + (self.max_calls > 1)


@normal_tensors
def make_rules(
    table: ExpertTable,
    split: str = "train",
    horizon: int = HORIZON,
    budget_usd_per_query: float | Sequence[float] | None = None,
    cost_weight: float = COST_WEIGHT,
    max_calls: int = 1,
    reliability: Tensor | None = None,
    features: Tensor | None = None,
    evidence: Tensor | None = None,
) -> Rules:
    """Checks the settings of an episode and derives the rules from them.

    Args:
        table: the experts' scores and costs.
        split: where queries are drawn from.
        horizon: H, queries per episode; drawn without replacement.
        budget_usd_per_query: one number fixes it, two are a range; None: from the lowest mean cost to the highest.
        cost_weight: weight of the cost in the reward.
        max_calls: M, the most calls per query.
        reliability: [N, K] or [1, K] in [0, 1], determines the experts' votes; None: each expert's mean score on the
            training split.
        features: [N, F], what the agent observes of each query; None: the table's embeddings.
        evidence: [N, K] or [1, K], what a call tells of its answer, in log-odds of being right; None: nothing, 0.

    Raises:
        InputError: there is no such split; the horizon exceeds it; a budget is below every expert's mean cost;
            max_calls exceeds the experts, or the table has no answers to compare; reliability, evidence or features
            have another shape or range.
    """
    rows = table.rows(split)
    if not 1 <= horizon <= len(rows):
        raise InputError(
            f"horizon {horizon}: must be 1 to {len(rows)}, the queries in the {split} split of {table.name}"
        )
    if not 0 <= cost_weight <= MAX_COST_WEIGHT:
        raise InputError(f"cost weight {cost_weight}: must be 0 or more, at most {MAX_COST_WEIGHT:g}")
    scale = table.cost_scale()
    if scale.high_usd > scale.low_usd * MAX_COST_RATIO:
        raise InputError(
            f"{table.name}: mean costs of a call from {scale.low_usd:.3g} to {scale.high_usd:.3g} dollars are too far "
            f"apart to be compared; at most {MAX_COST_RATIO:g} times"
        )
    budget = _budget_range(table, scale, budget_usd_per_query)
    _check_max_calls(table, max_calls)
    return Rules(
        table=table,
        features=_features(table, features),
        rows=rows,
        horizon=horizon,
        budget_usd_per_query=budget,
        cost_weight=cost_weight,
        cost_scale=scale,
        max_calls=max_calls,
        reliability=_reliability(table, reliability),
        evidence=_evidence(table, evidence),
        models=shared_models(table.experts, table.device),
    )


def _budget_range(table: ExpertTable, scale: CostScale, given: float | Sequence[float] | None) -> tuple[float, float]:
    """Lowest and highest budget in dollars per query."""
    if given is None:
        return scale.low_usd, scale.high_usd
    numbers = [float(usd) for usd in (given if isinstance(given, Sequence) else [given])]
    if len(numbers) not in (1, 2):
        raise InputError(f"budget {tuple(numbers)}: give one number or two")
    if not all(math.isfinite(usd) and usd > 0 for usd in numbers):
        raise InputError(f"budget {', '.join(f'{usd:g}' for usd in numbers)}: must be finite and above 0")
    if max(numbers) > MAX_COST_USD:
        raise InputError(f"budget {max(numbers):g} dollars a query: must be at most {MAX_COST_USD:g}")
    cheapest = float(scale.mean_usd.min())
    if min(numbers) < cheapest * (1 - 1e-6):
        name = table.experts[int(scale.mean_usd.argmin())]
        raise InputError(
            f"budget {min(numbers):g} dollars a query: below every expert's mean cost; {name} is cheapest at "
            f"{cheapest:.3g}"
        )
    return min(numbers), max(numbers)


def _check_max_calls(table: ExpertTable, max_calls: int) -> None:
    if not 1 <= max_calls <= len(table.experts):
        raise InputError(f"max_calls {max_calls}: must be 1 to {len(table.experts)}, the experts of {table.name}")
    if max_calls > 1 and not table.has_answers():
        raise InputError(
            f"max_calls {max_calls}: {table.name}: answers.parquet has no column answer, or only nulls in it; without "
            "answers there is nothing to compare"
        )


def _features(table: ExpertTable, given: Tensor | None) -> Tensor:
    if given is None:
        return table.embeddings
    shape, n = list(given.shape), len(table)
    if len(shape) != 2 or shape[0] != n or shape[1] == 0 or not given.is_floating_point():
        raise InputError(f"features {given.dtype} {shape}: must be floating point, [{n}, F], for {table.name}")
    return given.to(table.device)


def _reliability(table: ExpertTable, given: Tensor | None) -> Tensor:
    """[N, K]; one row for all queries is expanded without a copy."""
    if given is None:
        return table.mean_score().expand(len(table), -1)
    n, k = table.scores.shape
    if tuple(given.shape) not in ((n, k), (1, k)):
        raise InputError(f"reliability {list(given.shape)}: must be [{n}, {k}] or [1, {k}] for {table.name}")
    if not bool(((given >= 0) & (given <= 1)).all()):
        raise InputError("reliability: must be numbers in [0, 1]")
    return given.to(table.device, torch.float32).expand(n, k)


def _evidence(table: ExpertTable, given: Tensor | None) -> Tensor:
    """[N, K]; one row for all queries is expanded without a copy."""
    n, k = table.scores.shape
    if given is None:
        return torch.zeros(1, k, dtype=torch.float32, device=table.device).expand(n, -1)
    if tuple(given.shape) not in ((n, k), (1, k)):
        raise InputError(f"evidence {list(given.shape)}: must be [{n}, {k}] or [1, {k}] for {table.name}")
    if not bool((given.abs() <= MAX_EVIDENCE).all()):
        raise InputError(f"evidence: must be numbers from {-MAX_EVIDENCE:g} to {MAX_EVIDENCE:g}, in log-odds")
    return given.to(table.device, torch.float32).expand(n, k)


def budget_grid(rules: Rules, n: int = 6) -> list[float]:
    """n budgets for reports, in dollars per query: geometric from 1.2 x the lowest mean cost to below the highest."""
    low, high = rules.cost_scale.low_usd, rules.cost_scale.high_usd
    low, high = 1.2 * low, max(high, 2.4 * low)
    return [low * (high / low) ** (i / n) for i in range(n)]
