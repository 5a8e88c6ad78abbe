"""Two-stage trees: ask a fixed panel, then let boosted trees decide whether one more expensive expert pays.

n training queries, K experts, C: the most experts of a panel, P policies, X prices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.estimators import Estimates
from agents.policies.answer_model import Calls
from agents.routers.cascade import Gains, cheapest_first, described_calls, with_chance
from agents.routers.panels import FOLDS, Panels
from agents.routers.sequences import SequenceRouter, best_at_prices

PANELS = 6  # with trees: those that are best at the most prices by the linear model
SETTINGS = {
    "max_iter": 60,
    "learning_rate": 0.06,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 40,
    "l2_regularization": 5.0,
}


class TwoStageTrees(SequenceRouter):
    """Asks all experts of a panel but the most expensive; then that one, if its gain exceeds the price of its cost.

    The gain is the mean of two predictions: by gradient boosted trees (Friedman, 2001; Ke et al., LightGBM, 2017) and
    by a linear model. The trees use the estimates of all experts and which answers agree; training queries are
    predicted out of fold. Of all panels and prices the router follows the best at the budget per query; panels that are
    always asked as a whole, and single experts, are among them.
    """

    models: Tensor | None = None  # missing in files written before it was there

    def __init__(self, panels: Panels, gains: Gains, features: Estimates, max_calls: int, seed: int = 0):
        """Args: `gains`, the linear predictions of the gain of each panel's last expert."""
        self.linear, self.models = gains.weights, panels.models
        self.calls_made = (panels.members >= 0).sum(dim=1)
        fixed = torch.tensor(cheapest_first(panels), device=features.device)
        prices = panels.prices
        tried = [(fixed, panels.score[fixed].mean(dim=1), panels.cost_usd[fixed].mean(dim=1), 0.0 * fixed.float())]
        self.trees: dict[int, Trees] = {}
        for number in self._promising(panels, gains.predicted):
            predicted, self.trees[number] = _fit(panels, number, seed)
            score, cost_usd = second_stage(panels, number, (predicted + gains.predicted[number]) / 2, prices)
            tried.append((torch.full_like(prices, number).long(), score, cost_usd, prices))
        panel, score, cost_usd, price = (torch.cat(part) for part in zip(*tried, strict=True))
        policies = best_at_prices(panels.members[panel], score, cost_usd, prices, panels.mean_cost_usd)
        super().__init__(features, panels.mean_cost_usd, max_calls, policies, seed)
        self.panel, self.price = panel[policies.tried], price[policies.tried]
        self.by_trees = policies.tried >= len(fixed)
        self.size = self.calls_made[self.panel]

    def continues(self, policy: Tensor, estimates: Estimates, calls: Calls) -> Tensor:
        """Trees decide only about the last expert of their panels."""
        continues = torch.ones_like(policy, dtype=torch.bool)
        last_call = self.by_trees[policy] & (calls.made == self.size[policy] - 1) & (calls.made > 0)
        at = last_call.nonzero().squeeze(1)
        if len(at) == 0:
            return continues
        policy, estimates = policy[at], estimates[at]
        panel, order = self.panel[policy], self.policies.order[policy]
        evidence = None if calls.evidence is None else calls.evidence[at]
        these = Calls(calls.asked[at], calls.group[at], calls.made[at], evidence=evidence)
        described = described_calls(estimates, these, order, self.models)
        predicted = self.forest.predict(_inputs(described, estimates), panel).float()
        last = order.gather(1, these.made[:, None])
        chance, cost_usd = (part.gather(1, last) for part in (estimates.score, estimates.cost_usd))
        linear = (with_chance(described, chance) * self.linear[panel]).sum(dim=1)
        continues[at] = (predicted + linear) / 2 > self.price[policy] * cost_usd.squeeze(1)
        return continues

    @cached_property
    def forest(self) -> Forest:
        """The trees of all panels."""
        return Forest.of(self.trees)

    def _promising(self, panels: Panels, gains: Tensor) -> list[int]:
        """The panels that are best at the most prices by the linear model."""
        several = (self.calls_made > 1).nonzero().squeeze(1).tolist()
        net = []
        for number in several:
            score, cost_usd = second_stage(panels, number, gains[number], panels.prices)
            net.append(score - panels.prices * cost_usd)
        best = Counter(several[place] for place in torch.stack(net).argmax(dim=0).tolist()) if several else Counter()
        return [number for number, _ in best.most_common(PANELS)]


def second_stage(panels: Panels, number: int, predicted: Tensor, prices: Tensor) -> tuple[Tensor, Tensor]:
    """Mean score and cost at each price [X] on the training queries, if the last expert of the panel `number` is asked
    where the `predicted` gain [n] exceeds the price of its estimated cost."""
    members = [k for k in panels.members[number].tolist() if k >= 0]
    before = panels.index[tuple(members[:-1])]
    cost_usd = panels.estimates.cost_usd[:, members[-1]]
    asks = (predicted > prices[:, None] * cost_usd).float()
    score, paid = (
        x[before].mean() + asks @ (x[number] - x[before]) / len(predicted) for x in (panels.score, panels.cost_usd)
    )
    return score, paid


def _inputs(described: Tensor, estimates: Estimates) -> Tensor:
    """Inputs of the trees: `describe` [B, F] without its constant, and the estimated scores of all experts."""
    return torch.cat([described[:, 1:], estimates.score], dim=1)


@dataclass(frozen=True)
class Trees:
    """Boosted regression trees as tensors, which are stored and need no scikit-learn.

    Attributes:
        start: the prediction that the trees add to.
        feature: [T, V] int64, the input that each node of T trees looks at.
        threshold: [T, V] float64; inputs up to it go left.
        child: [T, V, 2] int64, left and right; a leaf is its own child.
        value: [T, V] float64, of leaves.
        depth: of the deepest leaf.
    """

    start: float
    feature: Tensor
    threshold: Tensor
    child: Tensor
    value: Tensor
    depth: int

    @classmethod
    def of(cls, fitted: Any) -> Trees:
        """From a fitted HistGradientBoostingRegressor of numbers."""
        nodes = [trees[0].nodes for trees in fitted._predictors]
        size = max(len(tree) for tree in nodes)

        def padded(column: str, dtype: Any) -> Tensor:
            return torch.tensor(np.stack([np.pad(tree[column].astype(dtype), (0, size - len(tree))) for tree in nodes]))

        leaf, own = padded("is_leaf", bool), torch.arange(size).expand(len(nodes), -1)
        child = torch.stack([torch.where(leaf, own, padded(side, np.int64)) for side in ("left", "right")], dim=2)
        return cls(
            start=float(np.ravel(fitted._baseline_prediction)[0]),
            feature=padded("feature_idx", np.int64).where(~leaf, 0),
            threshold=padded("num_threshold", np.float64),
            child=child,
            value=padded("value", np.float64),
            depth=int(max(tree["depth"].max() for tree in nodes)),
        )

    def predict(self, inputs: Tensor, root: Tensor | int = 0, start: Tensor | None = None) -> Tensor:
        """[B, inputs] -> [B] float64, summed tree by tree as scikit-learn does; from the nodes `root` [B] and the
        predictions `start` [B], where these differ."""
        at = torch.zeros(len(self.feature), len(inputs), dtype=torch.int64, device=inputs.device) + root
        x = inputs.double().T
        for _ in range(self.depth):
            right = x.gather(0, self.feature.gather(1, at)) > self.threshold.gather(1, at)
            at = self.child.flatten(1).gather(1, 2 * at + right)
        total = x.new_full((len(inputs),), self.start) if start is None else start.clone()
        for value in self.value.gather(1, at):
            total += value
        return total


@dataclass(frozen=True)
class Forest:
    """The trees of Q panels side by side, so that queries of all panels are predicted together.

    Attributes:
        trees: with the nodes of one panel's after those of another.
        panel: [Q] int64, the panels' numbers, rising.
        root: [Q] int64, the first node of each panel's trees.
        start: [Q] float64, as of `Trees`.
    """

    trees: Trees
    panel: Tensor
    root: Tensor
    start: Tensor

    @classmethod
    def of(cls, trees: dict[int, Trees]) -> Forest:
        """From the trees of each panel by its number; as many of each."""
        panels = sorted(trees)
        parts = [trees[number] for number in panels]
        feature, threshold, value = (
            torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("feature", "threshold", "value")
        )
        device = feature.device
        size = torch.tensor([part.feature.shape[1] for part in parts], device=device)
        root = size.cumsum(0) - size
        child = torch.cat([part.child + first for part, first in zip(parts, root, strict=True)], dim=1)
        start = torch.tensor([part.start for part in parts], dtype=torch.float64, device=device)
        joined = Trees(0.0, feature, threshold, child, value, max(part.depth for part in parts))
        return cls(joined, torch.tensor(panels, device=device), root, start)

    def predict(self, inputs: Tensor, panel: Tensor) -> Tensor:
        """[B, inputs] and the numbers of panels [B] -> [B] float64."""
        which = torch.searchsorted(self.panel, panel)
        return self.trees.predict(inputs, self.root[which], self.start[which])


def _fit(panels: Panels, number: int, seed: int) -> tuple[Tensor, Trees]:
    """Out-of-fold predictions of the gain of a panel's last expert over the others [n], and the trees fitted to all."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    before = panels.parts(number)[int((panels.members[number] >= 0).sum()) - 2]
    described = panels.described(torch.tensor([before], device=panels.score.device))[0]
    inputs = _inputs(described, panels.estimates).cpu().numpy()
    gain = (panels.score[number] - panels.score[before]).cpu().numpy()
    fold = panels.fold.cpu().numpy()
    predicted = np.zeros(len(gain))

    def fitted(rows: np.ndarray) -> Any:
        return HistGradientBoostingRegressor(**SETTINGS, early_stopping=False, random_state=seed).fit(
            inputs[rows], gain[rows]
        )

    for part in range(FOLDS):
        if (fold == part).any() and (fold != part).any():
            predicted[fold == part] = fitted(fold != part).predict(inputs[fold == part])
    trees = Trees.of(fitted(fold >= 0))
    on_device: dict[str, Any] = {
        name: x.to(panels.score.device) for name, x in vars(trees).items() if isinstance(x, Tensor)
    }
    return torch.from_numpy(predicted).float().to(panels.score.device), replace(trees, **on_device)
