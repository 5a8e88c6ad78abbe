"""Scores and costs of panels of experts on the training queries, to which the routers of several calls are fitted.

A panel is a set of experts in order of mean cost, which all vote on a query by the rules of an episode. Of many experts
only the most useful are considered (`shortlist`).

n training queries, K experts, Q panels, C: the most experts of a panel, F features, X prices.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from agents.estimators.base import MAX_CONSIDERED, MAX_PANEL_QUERIES, Estimates, first_alike
from agents.estimators.evidence import VOTE_WEIGHT, updated
from agents.policies.answer_model import Calls
from agents.routers.base import experts_by_cost, price_grid
from leeroo_env import dynamics
from leeroo_env.dynamics import VoteCount, vote_weight
from leeroo_env.table import ExpertTable
from leeroo_env.variants import shared_models

LONGEST = 4  # experts of a panel: five add little, and there are many such panels
CONSIDERED = 10
RARELY = 0.02
N_PRICES = 80
PRICE_ENDS = (3.0, 0.01)  # of `price_grid`: from where cost outweighs score to where it hardly counts
CHUNK = 200_000
FOLDS = 5
RIDGE = 3.0
NEWTON_STEPS = 6
FOLD_STEPS = 2  # more for each fold, from the weights fitted to all


class Panels:
    """All panels of the experts considered.

    Attributes:
        rows: [n], the training queries.
        estimates: of these, out of fold.
        prices: [X], score a dollar, falling.
        members: [Q, C] int64, each panel's experts by rising mean cost; -1 after the last.
        index: a panel's number by its experts.
        size: [Q] int64, its number of experts.
        score: [Q, n], of the answer it delivers.
        cost_usd: [Q, n], of its calls.
        fold: [n] int64, the folds for models fitted on panels.
        models: [K] int64, equal where experts are one model; None where all differ.
    """

    def __init__(
        self,
        table: ExpertTable,
        estimates: Estimates,
        max_calls: int,
        seed: int = 0,
        evidence: Tensor | None = None,
    ):
        """Args: the table, estimates of all its rows, most calls a query, a seed, and the evidence [N, K]."""
        rows = table.rows("train")
        self.rows = rows = rows[:: -(-len(rows) // MAX_PANEL_QUERIES)]
        self.estimates = estimates[rows]
        chance = self.estimates.reliability()
        told = torch.zeros_like(chance) if evidence is None else evidence[rows]
        self.chance, self.votes = updated(chance, told, 1.0), vote_weight(updated(chance, told, VOTE_WEIGHT))
        self.mean_cost_usd, self.models = table.mean_cost_usd(), shared_models(table.experts, table.device)
        self.prices = price_grid(self.mean_cost_usd, N_PRICES, *PRICE_ENDS)
        self.answer_ids, scores, cost_usd = table.answer_ids[rows].long(), table.scores[rows], table.costs_usd[rows]
        order = experts_by_cost(self.mean_cost_usd)
        useful = shortlist(scores, cost_usd, self.answer_ids, self.prices, CONSIDERED)
        self.experts = [k for k in order.tolist() if useful[k]]
        self.longest = min(max_calls, LONGEST, len(order))
        panels = [p for m in range(1, min(self.longest, len(self.experts)) + 1) for p in combinations(self.experts, m)]
        cheapest = [tuple(order[:m].tolist()) for m in range(1, self.longest + 1)]
        panels += [p for p in cheapest if p not in set(panels)]
        self.index = {p: i for i, p in enumerate(panels)}
        padded = [[*p, *[-1] * (self.longest - len(p))] for p in panels]
        self.members = torch.tensor(padded, device=table.device)
        self.size = (self.members >= 0).sum(dim=1)
        self.score = torch.empty(len(panels), len(rows), device=table.device)
        self.cost_usd = torch.empty_like(self.score)
        step = max(1, CHUNK // len(rows))
        for start in range(0, len(panels), step):
            part = slice(start, start + step)
            votes, *_ = self.count_votes(self.members[part])
            self.score[part] = scores.gather(1, votes.leader.view(-1, len(rows)).T).T
            asked = self.members[part]
            paid = cost_usd.T[asked.clamp(min=0)] * (asked >= 0)[..., None]
            self.cost_usd[part] = paid.sum(dim=1)
        generator = torch.Generator().manual_seed(seed)
        fold = torch.arange(len(rows)) % FOLDS
        self.fold = fold[torch.randperm(len(rows), generator=generator)].to(table.device)
        self.fold = self.fold[first_alike(table, rows)]

    def parts(self, number: int) -> list[int]:
        """The panels of the first 1, 2, ... experts of a panel, [C]; itself from its size on."""
        members = tuple(k for k in self.members[number].tolist() if k >= 0)
        return [self.index[members[: m + 1]] for m in range(self.longest)]

    def count_votes(self, members: Tensor) -> tuple[VoteCount, Tensor, Tensor]:
        """The votes of panels [q, C] on all queries, [q * n], and their chances of being right after the evidence of
        their calls, and answers, [q * n, C]."""
        q, c = members.shape
        experts = members.clamp(min=0).T.reshape(-1)  # [C * q]
        made = (members >= 0)[:, None].expand(-1, len(self.rows), -1).reshape(-1, c)
        told = self.chance, self.votes, self.answer_ids
        chance, votes, answers = (x.T[experts].view(c, q * len(self.rows)).T for x in told)
        asked = members[:, None].expand(-1, len(self.rows), -1).reshape(-1, c)
        return dynamics.count_votes(asked, made, answers, votes, self.models), chance, answers

    def described(self, panels: Tensor) -> Tensor:
        """`describe` of the panels of these numbers [q] on all queries, [q, n, F]."""
        members = self.members[panels]
        votes, chance, answers = self.count_votes(members)
        made = (members >= 0)[:, None].expand(-1, len(self.rows), -1).reshape(chance.shape)
        return describe(votes, chance, made, made & (answers >= 0)).view(len(panels), len(self.rows), -1)


def shortlist(scores: Tensor, cost_usd: Tensor, answer_ids: Tensor, prices: Tensor, n: int) -> Tensor:
    """The `n` most useful experts for a simple rule: ask two; where they differ, deliver a third's answer. [K] bool.

    An expert's usefulness is the net score of the best rule with it, less that of the best rule of all, at the price
    where this difference is smallest. The cheapest and the best expert are always included. Of a large pool only those
    are compared that are among the best alone at some price: pairs with a third grow with the cube of their number.
    """
    k = scores.shape[1]
    if k > MAX_CONSIDERED:
        net = scores.mean(dim=0) - prices[:, None] * cost_usd.mean(dim=0)  # [X, K]
        rank = net.argsort(dim=1, descending=True, stable=True).argsort(dim=1).amin(dim=0)
        among = rank.argsort(stable=True)[:MAX_CONSIDERED].sort().values
        useful = torch.zeros(k, dtype=torch.bool, device=scores.device)
        useful[among] = shortlist(scores[:, among], cost_usd[:, among], answer_ids[:, among], prices, n)
        return useful
    first, second = torch.triu_indices(k, k, device=scores.device)  # a pair of one expert with itself: that one alone
    one, other = answer_ids[:, first], answer_ids[:, second]
    differ = (one != other) | (one < 0)
    kept = scores[:, first] * ~differ
    mean = len(scores)
    asks = differ.float().T
    score = (kept.sum(dim=0)[:, None] + asks @ scores) / mean  # [pairs, K]
    twice = (first != second).float()
    start = cost_usd.mean(dim=0)[first] + cost_usd.mean(dim=0)[second] * twice
    cost = start[:, None] + asks @ cost_usd / mean
    alone, paid = scores.mean(dim=0), cost_usd.mean(dim=0)
    net = score - prices[:, None, None] * cost  # [X, pairs, K]
    rarely = differ.float().mean(dim=0) < RARELY  # a third expert that is hardly ever asked shows no use
    third = net.masked_fill(rarely[:, None], -torch.inf).amax(dim=1)
    best = (alone - prices[:, None] * paid).maximum(third)  # [X, K]
    in_pair = net.amax(dim=2)
    best = best.scatter_reduce(1, first.expand(len(prices), -1), in_pair, "amax")
    best = best.scatter_reduce(1, second.expand(len(prices), -1), in_pair, "amax")
    use = (best - best.amax(dim=1, keepdim=True)).amax(dim=0)
    use[[int(alone.argmax()), int(paid.argmin())]] = torch.inf
    useful = torch.zeros(k, dtype=torch.bool, device=scores.device)
    useful[use.topk(min(n, k)).indices] = True
    return useful


def describe(votes: VoteCount, chance: Tensor, made: Tensor, given: Tensor) -> Tensor:
    """Features of the answers so far, [B, F]: estimated chances, agreement with the leading answer, and its support.

    Args:
        votes: the vote count.
        chance: [B, C] in [0, 1], of those asked, estimated after the evidence of the calls.
        made: [B, C] bool, whether there is such a call.
        given: [B, C] bool, whether it brought an answer.
    """
    logit = torch.logit(chance.clamp(0.02, 0.98)) * made
    agrees = votes.agrees.float()
    leads = torch.where(agrees.bool(), logit, -9.0).amax(dim=1, keepdim=True).clamp(min=-4)
    summary = [torch.ones_like(leads), leads, votes.share.float()[:, None], (votes.different == 1).float()[:, None]]
    return torch.cat([*summary, logit, agrees, agrees * logit, given.float()], dim=1)


def fit_logistic(features: Tensor, target: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge logistic regressions by Newton's method, many at once.

    Args:
        features: [q, n, F], the first is 1.
        target: [q, n] in [0, 1].
        fold: [n].

    Returns:
        Weights [q, F] fitted to all, and out-of-fold predictions [q, n], in log-odds.
    """
    q, f = len(features), features.shape[2]
    ridge = RIDGE * torch.eye(f, device=features.device)
    ridge[0, 0] = 1e-3
    predicted = torch.empty_like(target)

    def newton(weights: Tensor, use: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            chance = torch.sigmoid(torch.einsum("qnf,qf->qn", features, weights))
            slope = torch.einsum("qnf,qn->qf", features, (target - chance) * use) - weights @ ridge
            curve = chance * (1 - chance) * use
            hessian = (features * curve[..., None]).transpose(1, 2) @ features + ridge
            weights = weights + torch.linalg.solve(hessian, slope)
        return weights

    weights = newton(torch.zeros(q, f, device=features.device), torch.ones_like(target[0]), NEWTON_STEPS)
    for part in range(FOLDS):
        without = newton(weights, (fold != part).float(), FOLD_STEPS)
        predicted[:, fold == part] = torch.einsum("qnf,qf->qn", features[:, fold == part], without)
    return weights, predicted


def fit_ridge(features: Tensor, target: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regressions, many at once; as `fit_logistic`."""
    ridge = RIDGE * torch.eye(features.shape[2], device=features.device)
    ridge[0, 0] = 1e-3
    gram, moment, predicted = [], [], torch.empty_like(target)
    for part in range(FOLDS):
        x, y = features[:, fold == part], target[:, fold == part]
        gram.append(x.transpose(1, 2) @ x)
        moment.append(torch.einsum("qnf,qn->qf", x, y))
    all_gram, all_moment = sum(gram) + ridge, sum(moment)
    for part in range(FOLDS):
        without = torch.linalg.solve(all_gram - gram[part], all_moment - moment[part])
        predicted[:, fold == part] = torch.einsum("qnf,qf->qn", features[:, fold == part], without)
    return torch.linalg.solve(all_gram, all_moment), predicted


def answers_in_order(calls: Calls, order: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Whether the experts `order` [B, C] were asked, and the groups of their answers, -1 for none; both [B, C]."""
    group = torch.full((len(order), k + 1), -2, device=order.device)
    group.scatter_(1, calls.asked.where(calls.asked >= 0, k), calls.group.clamp(min=-1))
    group[:, k] = -2
    group = group.gather(1, order.where(order >= 0, k))
    return group > -2, group.clamp(min=-1)
