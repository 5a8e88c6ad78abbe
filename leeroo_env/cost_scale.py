"""The scale on which costs and budgets are compared: the experts' mean costs, with the lowest and the highest.

K experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CostScale:
    """Mean costs in dollars a call, and the ends of their logarithmic scale, which are above 0.

    Attributes:
        mean_usd: [K], each expert's mean cost.
        low_usd: the lowest mean cost.
        high_usd: the highest mean cost.
    """

    mean_usd: Tensor
    low_usd: float
    high_usd: float

    @classmethod
    def of(cls, mean_usd: Tensor) -> CostScale:
        """The scale of mean costs [K]. Beside free experts the low end is a tenth of the lowest cost above 0; where all
        experts are free, both ends are 1 dollar."""
        high_usd = float(mean_usd.max())
        if high_usd == 0:
            return cls(mean_usd, 1.0, 1.0)
        low_usd = float(mean_usd.min())
        return cls(mean_usd, low_usd if low_usd > 0 else float(mean_usd[mean_usd > 0].min()) / 10, high_usd)

    @property
    def log_range(self) -> float:
        """The natural logarithm of the highest over the lowest mean cost, at least log 2."""
        return max(math.log(self.high_usd / self.low_usd), math.log(2))
