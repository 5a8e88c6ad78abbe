"""For each expert, what is spent for as much as it scores alone.

G budgets, K experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from agents.evaluation.evaluate import Result
from agents.evaluation.headline import dollars
from agents.evaluation.metrics import matching_cost


@dataclass(frozen=True)
class Match:
    """What an expert alone scores and costs, and what is spent for the same score.

    Attributes:
        expert: its name.
        score: of the expert, mean per query.
        cost_usd: of the expert, mean per query.
        paid_usd: for the same score, mean per query, interpolated between the budgets; NaN: never matched.
        least: whether that is the least that was spent.
        reached: the highest score that was reached.
    """

    expert: str
    score: float
    cost_usd: float
    paid_usd: float
    least: bool
    reached: float

    @property
    def is_matched(self) -> bool:
        return not math.isnan(self.paid_usd)

    @property
    def share(self) -> float | None:
        """Of the expert's cost, for its score; None where that is never reached, or where the expert is free."""
        return self.paid_usd / self.cost_usd if self.is_matched and self.cost_usd > 0 else None

    def words(self) -> str:
        if not self.is_matched:
            return f"not matched; {100 * self.reached / max(self.score, 1e-30):.1f} % of its score at most"
        paid = dollars(1000 * self.paid_usd)
        if self.least:
            return f"matched already at {paid}, the least that was spent"
        if self.share is None:
            return f"matched at {paid}; it is free"
        return f"matched at {paid}: {100 * self.share:.0f} % of its cost"


def matches(own: Result, alone: Mapping[str, Result]) -> list[Match]:
    """What `own` spends for the score of each expert, from the best expert to the worst; `alone` has them as "always
    EXPERT"."""
    order = own.cost_usd.argsort(kind="stable")
    spent, reached = own.cost_usd[order], own.score[order]
    found = []
    for name, one in sorted(alone.items(), key=lambda item: -float(item[1].score[0])):
        score = float(one.score[0])
        paid_usd = matching_cost(spent, reached, score)
        found.append(
            Match(
                expert=name.removeprefix("always "),
                score=score,
                cost_usd=float(one.cost_usd[0]),
                paid_usd=paid_usd,
                least=paid_usd == spent.min(),
                reached=float(reached.max()),
            )
        )
    return found
