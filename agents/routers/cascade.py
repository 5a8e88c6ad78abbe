"""Fixed panels and fixed cascades, the rules of most published systems that ask more than one model.

n training queries, K experts, Q panels, C: the most experts of a panel, P policies, F features, T thresholds, X prices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.estimators import Estimates
from agents.estimators.evidence import VOTE_WEIGHT, updated
from agents.policies.answer_model import Calls, evidence_by_expert
from agents.routers.panels import Panels, answers_in_order, describe, fit_logistic, fit_ridge
from agents.routers.sequences import SequenceRouter, best_at_prices
from leeroo_env.dynamics import count_votes, vote_weight

N_THRESHOLDS = 14
CHUNK = 40  # panels at a time in fitting


class Majority(SequenceRouter):
    """A panel that is always asked as a whole and votes: the best on the training queries at the budget per query."""

    def __init__(self, panels: Panels, features: Estimates, max_calls: int, seed: int = 0):
        score, cost_usd = panels.score.mean(dim=1), panels.cost_usd.double().mean(dim=1)
        which = torch.tensor(cheapest_first(panels), device=score.device)
        policies = best_at_prices(
            panels.members[which], score[which], cost_usd[which], panels.prices, panels.mean_cost_usd
        )
        super().__init__(features, panels.mean_cost_usd, max_calls, policies, seed)

    def continues(self, policy: Tensor, estimates: Estimates, calls: Calls) -> Tensor:
        return torch.ones_like(policy, dtype=torch.bool)


class Scorer:
    """The chance that the leading answer of a panel is right: a logistic regression for each panel, on `describe`.

    Attributes:
        weights: [Q, F]; 0 for the longest panels, after which no expert is asked.
        log_odds: [Q, n], out of fold.
    """

    def __init__(self, panels: Panels):
        short = (panels.size < panels.longest).nonzero().squeeze(1)
        self.log_odds = torch.zeros_like(panels.score)
        self.weights = torch.zeros(0)
        for part in short.split(CHUNK):
            features = panels.described(part)
            weights, self.log_odds[part] = fit_logistic(features, panels.score[part], panels.fold)
            if len(self.weights) == 0:
                self.weights = weights.new_zeros(len(panels.members), weights.shape[1])
            self.weights[part] = weights


class Cascade(SequenceRouter):
    """FrugalGPT (Chen, Zaharia and Zou, arXiv:2305.05176): experts in a fixed order of rising cost, until the
    answer is reliable enough.

    Reliability is predicted by a logistic regression on the answers so far, one for every prefix of an order. Of all
    orders of the experts considered and thresholds at each step, it follows the best at the budget per query.
    """

    models: Tensor | None = None  # missing in files written before it was there

    def __init__(self, panels: Panels, scorer: Scorer, features: Estimates, max_calls: int, seed: int = 0):
        found = [_best_thresholds(panels, scorer, number) for number in cheapest_first(panels)]
        order, score, cost_usd, threshold = (torch.cat(part) for part in zip(*found, strict=True))
        mean_cost_usd = panels.mean_cost_usd
        policies = best_at_prices(panels.members[order], score, cost_usd, panels.prices, mean_cost_usd)
        super().__init__(features, mean_cost_usd, max_calls, policies, seed)
        self.threshold, self.models = threshold[policies.tried], panels.models
        parts = [panels.parts(number) for number in order[policies.tried].tolist()]
        self.weights = scorer.weights[torch.tensor(parts, device=features.device)]  # [P, C, F]

    def continues(self, policy: Tensor, estimates: Estimates, calls: Calls) -> Tensor:
        order = self.policies.order[policy]
        step = (calls.made - 1).clamp(0, order.shape[1] - 1)
        log_odds = (described_calls(estimates, calls, order, self.models) * self.weights[policy, step]).sum(dim=1)
        return log_odds < self.threshold[policy].gather(1, step[:, None]).squeeze(1)


def cheapest_first(panels: Panels) -> list[int]:
    """The numbers of the panels, first that of the cheapest expert alone."""
    cheapest = panels.index[(int(panels.mean_cost_usd.argmin()),)]
    return [cheapest, *(i for i in range(len(panels.members)) if i != cheapest)]


def described_calls(estimates: Estimates, calls: Calls, order: Tensor, models: Tensor | None = None) -> Tensor:
    """`describe` of the calls made to the experts `order` [B, C]; [B, F]. `models` as in `count_votes`."""
    chance = estimates.reliability()
    made, answers = answers_in_order(calls, order, chance.shape[1])
    evidence = evidence_by_expert(calls, chance.shape[1])
    chance, evidence = (part.gather(1, order.clamp(min=0)) for part in (chance, evidence))
    votes = count_votes(order, made, answers, vote_weight(updated(chance, evidence, VOTE_WEIGHT)), models)
    return describe(votes, updated(chance, evidence, 1.0), made, made & (answers >= 0))


def _best_thresholds(panels: Panels, scorer: Scorer, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best thresholds at each price for asking the experts of the panel `number` one by one.

    Returns:
        The panel's number [X], mean score [X] and cost [X], and thresholds [X, C]: log-odds below them continue.
    """
    parts = panels.parts(number)
    size = int(panels.size[number])
    n, x = panels.score.shape[1], len(panels.prices)
    score, cost_usd = panels.score[parts[0]].mean()[None], panels.cost_usd[parts[0]].mean()[None]
    reaches = torch.ones(1, n, device=score.device)  # [combinations of thresholds, n], 1 where this step is reached
    grids = []
    for step in range(size - 1):
        log_odds = scorer.log_odds[parts[step]]
        grid = quantiles(log_odds)
        grids.append(grid)
        continues = (log_odds < grid[:, None]).float()
        gains = [x[parts[step + 1]] - x[parts[step]] for x in (panels.score, panels.cost_usd)]
        gained, paid = ((reaches @ (continues * gain).T / n).flatten() for gain in gains)
        score = score.repeat_interleave(len(grid)) + gained
        cost_usd = cost_usd.repeat_interleave(len(grid)) + paid
        if step < size - 2:
            reaches = (reaches[:, None] * continues).flatten(0, 1)
    best = (score - panels.prices[:, None] * cost_usd).argmax(dim=1)
    threshold = torch.full((x, panels.members.shape[1]), -torch.inf, device=score.device)
    place = best
    for step in reversed(range(size - 1)):
        threshold[:, step] = grids[step][place % len(grids[step])]
        place = place // len(grids[step])
    return torch.full_like(best, number), score[best], cost_usd[best], threshold


def quantiles(log_odds: Tensor) -> Tensor:
    """Thresholds [T] at even quantiles of `log_odds` [n], and infinity."""
    at = torch.linspace(0, 1, N_THRESHOLDS + 1, device=log_odds.device)[1:-1]
    return torch.cat([log_odds.quantile(at), log_odds.new_full((1,), torch.inf)])


class Gains:
    """The gain in score from the last expert of a panel: a ridge regression for each panel, on `describe` of the
    others' answers and the last one's estimated score.

    Attributes:
        weights: [Q, F + 2]; 0 for single experts.
        predicted: [Q, n], gains out of fold.
    """

    def __init__(self, panels: Panels):
        self.predicted = torch.zeros_like(panels.score)
        self.weights = torch.zeros(0)
        for part in (panels.size > 1).nonzero().squeeze(1).split(CHUNK):
            before = torch.tensor([panels.parts(i)[panels.size[i] - 2] for i in part.tolist()], device=part.device)
            last = panels.members[part].gather(1, panels.size[part, None] - 1).squeeze(1)
            chance = panels.estimates.score.T[last, :, None]
            features = with_chance(panels.described(before), chance)
            gain = panels.score[part] - panels.score[before]
            weights, self.predicted[part] = fit_ridge(features, gain, panels.fold)
            if len(self.weights) == 0:
                self.weights = weights.new_zeros(len(panels.members), weights.shape[1])
            self.weights[part] = weights


def with_chance(described: Tensor, chance: Tensor) -> Tensor:
    """`describe` [..., F], then the estimated score [..., 1] of the next expert and its logit; [..., F + 2]."""
    return torch.cat([described, chance, chance.clamp(0.02, 0.98).logit()], dim=-1)
