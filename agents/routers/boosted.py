"""Two-stage trees: ask a fixed panel, then let boosted trees decide whether one more expensive expert pays.

n training queries, K experts, C: the most experts of a panel, P policies, X prices.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.estimators import Estimates
from agents.policies.answer_model import Calls
from agents.routers.cascade import Gains, cheapest_first, described_calls, with_chance
from agents.routers.panels import FOLDS, Panels
from agents.routers.sequences import SequenceRouter, best_at_prices

PANELS = 6  # that get trees: those which a linear model of the gain finds best at the most prices
SETTINGS = {
    "max_iter": 60,
    "learning_rate": 0.06,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 40,
    "l2_regularization": 5.0,
}


class TwoStageTrees(SequenceRouter):
    """Asks all experts of a panel but the most expensive; then that one, if its gain exceeds the price of its cost.

    The gain is predicted by gradient boosted trees (Friedman, 2001; Ke et al., LightGBM, 2017) averaged with a
    linear model, the cost is estimated. The trees see the estimates of all experts and which answers agree; those
    that predict for a training query are fitted without its fold. Of panels and prices it follows the best for what
    is left; panels asked as a whole, and single experts, count as well.
    """

    def __init__(self, panels: Panels, gains: Gains, features: Estimates, max_calls: int, seed: int = 0):
        """Args: `gains`, what a linear model expects of each panel's last expert."""
        self.linear = gains.weights
        self.calls_made = (panels.members >= 0).sum(dim=1)
        fixed = torch.tensor(cheapest_first(panels), device=features.device)
        prices = panels.prices
        tried = [(fixed, panels.score[fixed].mean(dim=1), panels.cost_usd[fixed].mean(dim=1), 0.0 * fixed.float())]
        self.trees: dict[int, Any] = {}
        for number in self._promising(panels, gains.told):
            told, self.trees[number] = _fit(panels, number, seed)
            score, cost_usd = played(panels, number, (told + gains.told[number]) / 2, prices)
            tried.append((torch.full_like(prices, number).long(), score, cost_usd, prices))
        panel, score, cost_usd, price = (torch.cat(part) for part in zip(*tried, strict=True))
        policies = best_at_prices(panels.members[panel], score, cost_usd, prices, panels.mean_cost_usd)
        super().__init__(features, panels.mean_cost_usd, max_calls, policies, seed)
        self.panel, self.price = panel[policies.tried], price[policies.tried]
        self.by_trees = policies.tried >= len(fixed)
        self.size = self.calls_made[self.panel]

    def continues(self, policy: Tensor, estimates: Estimates, calls: Calls) -> Tensor:
        """Trees are asked about nothing but the last expert of their panels."""
        continues = torch.ones_like(policy, dtype=torch.bool)
        asks_trees = self.by_trees[policy] & (calls.made == self.size[policy] - 1) & (calls.made > 0)
        panel = torch.where(asks_trees, self.panel[policy], -1)
        for number in panel.unique().tolist():
            if number < 0:
                continue
            at = (panel == number).nonzero().squeeze(1)
            order = self.policies.order[policy[at]]
            of_them = Calls(calls.asked[at], calls.group[at], calls.made[at])
            described = described_calls(estimates[at], of_them, order)
            told = _predict(self.trees[number], _inputs(described, estimates[at]), panel.device)
            last = order.gather(1, of_them.made[:, None])
            chance, cost_usd = (part[at].gather(1, last) for part in (estimates.score, estimates.cost_usd))
            linear = with_chance(described, chance) @ self.linear[number]
            told, cost_usd = (told + linear) / 2, cost_usd.squeeze(1)
            continues[at] = told > self.price[policy[at]] * cost_usd
        return continues

    def _promising(self, panels: Panels, gains: Tensor) -> list[int]:
        """The panels that are best at the most prices by the linear model, and at some alone."""
        several = (self.calls_made > 1).nonzero().squeeze(1).tolist()
        worth = []
        for number in several:
            score, cost_usd = played(panels, number, gains[number], panels.prices)
            worth.append(score - panels.prices * cost_usd)
        best = Counter(several[place] for place in torch.stack(worth).argmax(dim=0).tolist()) if several else Counter()
        return [number for number, _ in best.most_common(PANELS)]


def played(panels: Panels, number: int, told: Tensor, prices: Tensor) -> tuple[Tensor, Tensor]:
    """Mean score and cost at each price [X] on the training queries, if the last expert of the panel `number` is asked
    where the gain `told` [n] exceeds the price of its estimated cost."""
    members = [k for k in panels.members[number].tolist() if k >= 0]
    before = panels.index[tuple(members[:-1])]
    cost_usd = panels.estimates.cost_usd[:, members[-1]]
    asks = (told > prices[:, None] * cost_usd).float()
    score, paid = (
        of[before].mean() + asks @ (of[number] - of[before]) / len(told) for of in (panels.score, panels.cost_usd)
    )
    return score, paid


def _inputs(described: Tensor, seen: Estimates) -> np.ndarray:
    """What trees see: `describe` [B, F] and the estimated chances of all experts."""
    return torch.cat([described[:, 1:], seen.score], dim=1).cpu().numpy()


def _predict(trees: Any, inputs: np.ndarray, device: Any) -> Tensor:
    return torch.from_numpy(trees.predict(inputs)).float().to(device)


def _fit(panels: Panels, number: int, seed: int) -> tuple[Tensor, Any]:
    """The gain of a panel's last expert over the others, as trees without each query's fold tell it [n]; and the trees
    fitted to all."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    before = panels.parts(number)[int((panels.members[number] >= 0).sum()) - 2]
    described = panels.described(torch.tensor([before], device=panels.score.device))[0]
    inputs = _inputs(described, panels.estimates)
    gain = (panels.score[number] - panels.score[before]).cpu().numpy()
    fold = panels.fold.cpu().numpy()
    told = np.zeros(len(gain))

    def fitted(rows: np.ndarray) -> Any:
        return HistGradientBoostingRegressor(**SETTINGS, early_stopping=False, random_state=seed).fit(
            inputs[rows], gain[rows]
        )

    for part in range(FOLDS):
        if (fold == part).any() and (fold != part).any():
            told[fold == part] = fitted(fold != part).predict(inputs[fold == part])
    return torch.from_numpy(told).float().to(panels.score.device), fitted(fold >= 0)
