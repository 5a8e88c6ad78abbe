"""Estimates the chance that answers are right from which experts gave them and which experts agree.

A two-parameter item response model (Birnbaum, 1968). Given a query's ease z ~ N(0, 1), expert k is right with chance
sigmoid(c_k + loading_k z), independently of the others; c_k is such that the mean over z is the estimated chance. Right
answers are equal. A wrong one is missing with chance silence_k; the others fall into groups of equal answers as in a
Chinese restaurant process (Aldous, 1985). As experts err together more than this allows, expert k's outcome counts to
the power trust_k. Variants of one model that say the same are one witness.

Shapes: B queries, K experts, L of them under consideration, C calls at most, Z nodes of the ease, and H = C + 1
hypotheses: that the answer of group 0 to C - 1 is right, or that none of them is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, logsigmoid, pad

from agents.estimators.evidence import CHANCE_WEIGHT, VOTE_WEIGHT, updated_each
from leeroo_env.dynamics import vote_weight
from leeroo_env.table import ExpertTable
from leeroo_env.variants import shared_models

EASE_NODES = 7  # of the Gauss-Hermite quadrature
MIN_CHANCE = 0.01  # estimated chances are clamped to this and 1 less this
LOADING_STEPS = 75
STEPS = 200
BATCH = 750
LEARNING_RATE = 0.1
BATCH_SCORES = 64_000  # the most scores in a batch: of many experts fewer queries are taken
FITTED_CALLS = 4  # the most calls of a query in fitting


@dataclass(frozen=True)
class Calls:
    """The calls made for B queries, as the agent observes them.

    Attributes:
        asked: [B, C] int64, the experts called; -1 where there is no call or it was cut off.
        group: [B, C] int64, the answers: calls with equal answers share a number below C; -1 where there is none.
        made: [B] int64, number of calls, those cut off included.
        features: [B, 4K + 3], the features of `leeroo_env.dynamics` that these were read from, if any.
        evidence: [B, C], what the calls told of their answers, in log-odds; None: nothing.
    """

    asked: Tensor
    group: Tensor
    made: Tensor
    features: Tensor | None = None
    evidence: Tensor | None = None


@dataclass(frozen=True)
class Posterior:
    """The distribution of right answers and ease, given the calls made for B queries.

    Attributes:
        joint: [B, H, Z], chance of hypothesis and ease; sums to 1.
        right: [B, K, Z], chance that each expert is right, given the ease; [B, L, Z], that of the experts `among`.
        count: [B, C], number of experts in each group of equal answers.
        support: [B, C], votes for each group.
        wrong: [B, H], number of experts whose answer is wrong under each hypothesis.
        cast: [B, K, C], the votes for each group that are of each model, by the numbers of `AnswerModel.models`; None:
            all experts are different models.
        among: [B, L] int64, the experts that are considered; None: all.
    """

    joint: Tensor
    right: Tensor
    count: Tensor
    support: Tensor
    wrong: Tensor
    cast: Tensor | None = None
    among: Tensor | None = None

    @cached_property
    def leader(self) -> tuple[Tensor, Tensor]:
        """Votes for the leading answer [B], 0 where there is none, and its group [B]."""
        return self.support.max(dim=1)

    @cached_property
    def hypotheses(self) -> Tensor:
        """[B, H], the chance of each."""
        return self.joint.sum(dim=2)

    def leader_chance(self) -> Tensor:
        """[B], the chance that the leading answer is right; 0 where there is none."""
        votes, leader = self.leader
        return self.hypotheses.gather(1, leader[:, None]).squeeze(1).masked_fill(votes <= 0, 0.0)

    def right_of(self, experts: Tensor) -> Tensor:
        """`right` of `experts` [B, l], which are among those considered; [B, l, Z]."""
        if self.among is not None:
            experts = (self.among[:, None] == experts[..., None]).int().argmax(dim=2)
        return self.right.gather(1, experts[..., None].expand(-1, -1, self.right.shape[2]))

    def expert_chance(self) -> Tensor:
        """[B, K] or [B, L], the chance that each expert considered and not called yet is right."""
        return torch.bmm(self.right, self.joint.sum(dim=1)[..., None]).squeeze(2)


class AnswerModel(nn.Module):
    """The item response model of K experts, with few parameters each (silence, loading, trust) against overfitting.

    Attributes:
        models: [K] int64, equal where experts are one model; None where all differ. Not stored: it follows from names.
    """

    ease: Tensor
    weight: Tensor
    silence: Tensor
    models: Tensor | None

    def __init__(self, n_experts: int, models: Tensor | None = None):
        super().__init__()
        self.register_buffer("models", models, persistent=False)
        nodes, weights = np.polynomial.hermite_e.hermegauss(EASE_NODES)
        self.register_buffer("ease", torch.tensor(nodes, dtype=torch.float32), persistent=False)
        self.register_buffer("weight", torch.tensor(weights / weights.sum(), dtype=torch.float32), persistent=False)
        self.register_buffer("silence", torch.full((n_experts,), 0.1))
        self.loading = nn.Parameter(torch.full((n_experts,), 0.5))
        self.trust = nn.Parameter(torch.ones(n_experts))
        self.log_concentration = nn.Parameter(torch.tensor(math.log(4.0)))

    def log_odds(self, chance: Tensor, experts: Tensor | None = None) -> Tensor:
        """Log-odds of being right at each ease, [B, K, Z], such that the mean over the ease is `chance` [B, K]; that of
        `experts` [B, K] where they are not all in order.

        The probit approximation of the logistic-normal integral (MacKay, 1992) and one Newton step.
        """
        chance = chance.clamp(MIN_CHANCE, 1 - MIN_CHANCE)
        loading = self.loading if experts is None else self.loading[experts]
        slope = loading[..., None] * self.ease
        centre = torch.logit(chance) * (1 + math.pi / 8 * loading.square()).sqrt()
        right = torch.sigmoid(centre[..., None] + slope)
        error = chance - right @ self.weight
        centre = centre + (error / ((right * (1 - right)) @ self.weight).clamp(min=1e-3)).clamp(-1, 1)
        return centre[..., None] + slope

    def posterior(self, chance: Tensor, votes: Tensor, calls: Calls, among: Tensor | None = None) -> Posterior:
        """Bayes' rule on `calls`, from experts' estimated chances of being right and votes, both [B, K].

        Only the experts `among` [B, L] are considered for the next call; None: all.
        """
        called, answered = calls.asked >= 0, calls.group >= 0
        experts = calls.asked.clamp(min=0)
        given = votes.gather(1, experts)
        if self.models is not None:
            called = called & ~repeats(self.models[experts], calls, given)
        if among is None:
            log_odds = self.log_odds(chance)
            called_log_odds = log_odds.gather(1, experts[..., None].expand(-1, -1, EASE_NODES))  # [B, C, Z]
        else:
            some = torch.cat([experts, among], dim=1)
            both = self.log_odds(chance.gather(1, some), some)
            called_log_odds, log_odds = both.split([experts.shape[1], among.shape[1]], dim=1)
        silence = self.silence[experts].clamp(1e-6, 1 - 1e-6)
        trust = (self.trust[experts] * called)[..., None]
        log_answer = torch.where(answered, torch.log1p(-silence), silence.log())[..., None]
        log_wrong = trust * (logsigmoid(-called_log_odds) + log_answer)
        hypotheses = torch.arange(calls.group.shape[1] + 1, device=chance.device)
        member = (
            (calls.group[..., None] == hypotheses) & called[..., None]
        ).float()  # [B, C, H]: no call's is the last
        right_instead = torch.bmm(member.transpose(1, 2), trust * logsigmoid(called_log_odds) - log_wrong)
        count = member.sum(dim=1)
        wrong, log_prior = self._group_prior(count)
        log_joint = log_wrong.sum(dim=1, keepdim=True) + right_instead + log_prior[..., None] + self.weight.log()
        votes_for = member[..., :-1] * given[..., None]
        return Posterior(
            joint=log_joint.flatten(1).softmax(dim=1).view(log_joint.shape),
            right=torch.sigmoid(log_odds),
            count=count[:, :-1],
            support=votes_for.sum(dim=1),
            wrong=wrong,
            cast=None if self.models is None else _by_model(votes_for, self.models[experts], len(self.models)),
            among=among,
        )

    def _group_prior(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """Under each hypothesis, the number of wrong answers and the log chance that they form groups of these sizes
        `count` [B, H], the last 0, in the Chinese restaurant process; -inf for groups without answers. Both [B, H]."""
        concentration, empty = self.log_concentration.exp(), count <= 0
        group = (self.log_concentration + torch.lgamma(count.clamp(min=1))).masked_fill(empty, 0.0)
        wrong = count.sum(dim=1, keepdim=True) - count
        normaliser = torch.lgamma(wrong + concentration) - torch.lgamma(concentration)
        log_prior = group.sum(dim=1, keepdim=True) - group - normaliser
        groups = log_prior[:, :-1].masked_fill(empty[:, :-1], -torch.inf)
        return wrong, torch.cat([groups, log_prior[:, -1:]], dim=1)

    def support_after(self, posterior: Posterior, experts: Tensor, votes: Tensor) -> Tensor:
        """[B, L, C], the votes for each group if one of `experts` [B, L] joined it with its `votes` [B, L]; to those of
        its own model it adds what they lack."""
        votes = votes[..., None]
        if self.models is not None and posterior.cast is not None:
            model = self.models[experts][..., None].expand(-1, -1, posterior.cast.shape[2])
            votes = (votes - posterior.cast.gather(1, model)).clamp(min=0)
        return posterior.support[:, None] + votes

    def leader_chance_after(self, posterior: Posterior, experts: Tensor, votes: Tensor) -> Tensor:
        """[B, L], the expected chance that the leading answer is right after one more call, to each of `experts` [B, L]
        with `votes` [B, L]."""
        both_right = torch.bmm(posterior.right_of(experts), posterior.joint.transpose(1, 2))  # [B, L, H]
        leader_votes, leader = (part[:, None] for part in posterior.leader)
        second_votes, second = posterior.support.scatter(1, leader, -1.0).max(dim=1, keepdim=True)
        places = torch.cat([leader, second], dim=1)
        silence, concentration = self.silence[experts], self.log_concentration.exp()
        fails = posterior.hypotheses.gather(1, places)[:, None] - both_right.gather(
            2, places[:, None].expand(-1, experts.shape[1], -1)
        )
        # a failing expert joins a wrong answer in proportion to the number of experts that gave it
        wrong = (posterior.wrong.gather(1, places) + concentration)[:, None]
        joins_wrong = fails * (1 - silence[..., None]) / wrong  # and the leading answer, or the second, is right
        joins_wrong = joins_wrong.masked_fill((torch.cat([leader_votes, second_votes], dim=1) <= 0)[:, None], 0.0)
        leads = leader == torch.arange(posterior.count.shape[1], device=leader.device)  # [B, C]
        wins = self.support_after(posterior, experts, votes) >= torch.where(leads, second_votes, leader_votes)[:, None]
        rival_right = torch.where(leads[:, None], joins_wrong[..., 1:], joins_wrong[..., :1]) * posterior.count[:, None]
        group_right = torch.where(wins, both_right[..., :-1], rival_right)
        new_right = torch.where(votes > leader_votes, both_right[..., -1], joins_wrong[..., 0] * concentration)
        total = (fails[..., 0] * silence).masked_fill(leader_votes <= 0, 0.0) + new_right
        for right in group_right.masked_fill((posterior.count <= 0)[:, None], 0.0).unbind(2):
            total = total + right
        return total

    def outcomes(self, posterior: Posterior, experts: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """What a call to each of `experts` [B, L] may bring: it agrees with the leading answer, gives another, or none.

        Returns:
            Chances [B, 3, 1 + c, L] of the outcome, alone and together with that each of the `others` [B, c] is right;
            and chances [B, 3, L] of the outcome together with that the answer that leads now is right.
        """
        leader_votes, leader = (part[:, None] for part in posterior.leader)
        leads = (leader == torch.arange(posterior.wrong.shape[1], device=leader.device)) & (leader_votes > 0)  # [B, H]
        follows = posterior.count.gather(1, leader) / (posterior.wrong + self.log_concentration.exp())
        weights = torch.stack([leads.float(), follows.masked_fill(leads, 0.0), torch.ones_like(follows)], dim=1)
        by_ease = torch.bmm(weights, posterior.joint)  # [B, 3, Z]; all else is linear in these
        events = pad(posterior.right_of(others), (0, 0, 1, 0), value=1.0)  # [B, 1 + c, Z]
        first = events[:, :, None] * posterior.right_of(experts)[:, None]  # [B, 1 + c, L, Z]
        right = torch.bmm(by_ease, first.flatten(1, 2).transpose(1, 2)).unflatten(
            2, first.shape[1:3]
        )  # [B, 3, 1 + c, L]
        either = torch.bmm(by_ease, events.transpose(1, 2))[..., None]  # [B, 3, 1 + c, 1]
        fails, silence = either - right, self.silence[experts]
        silent = silence[:, None] * fails[:, 2]
        agrees = right[:, 0] + (1 - silence)[:, None] * fails[:, 1]
        leader_right = torch.stack([right[:, 0, 0], (1 - silence) * fails[:, 0, 0], silence * fails[:, 0, 0]], dim=1)
        return torch.stack([agrees, either[:, 2] - agrees - silent, silent], dim=1), leader_right


def repeats(models: Tensor, calls: Calls, votes: Tensor) -> Tensor:
    """[B, C] bool, the calls that say what another call of the same model says with a larger vote, or as the first of
    equal ones; from models and votes [B, C]. No answer is something said, too."""
    made = calls.asked >= 0
    same = (models[:, :, None] == models[:, None]) & (calls.group[:, :, None] == calls.group[:, None]) & made[:, None]
    order = torch.arange(models.shape[1], device=models.device)
    larger, equal = votes[:, None] > votes[..., None], votes[:, None] == votes[..., None]
    return (same & (larger | (equal & (order < order[:, None])))).any(dim=2) & made


def _by_model(votes_for: Tensor, models: Tensor, k: int) -> Tensor:
    """[B, K, C], votes for groups by model, from those of calls [B, C, C] and the models called [B, C]."""
    cast = votes_for.new_zeros(len(models), k, models.shape[1])
    return cast.scatter_add(1, models[..., None].expand_as(votes_for), votes_for)


@torch.no_grad()
def simulate_answers(model: AnswerModel, chance: Tensor, generator: torch.Generator) -> Tensor:
    """Answers that the model expects of K experts to n queries with these chances [n, K] of being right.

    Returns:
        [n, K] int64; equal numbers are equal answers, 0 is the right one, -1 is none.
    """
    n, k = chance.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=chance.device)

    node = torch.multinomial(model.weight.expand(n, -1), 1, generator=generator)  # of the ease
    log_odds = model.log_odds(chance).gather(2, node[:, None].expand(-1, k, -1)).squeeze(2)
    right = uniform(n, k) < torch.sigmoid(log_odds)
    silent = ~right & (uniform(n, k) < model.silence)
    count = torch.zeros(n, k, device=chance.device)  # experts in each group of equal wrong answers
    answers = torch.zeros(n, k, dtype=torch.int64, device=chance.device)
    for expert in range(k):
        wrong = ~right[:, expert] & ~silent[:, expert]
        new = torch.nn.functional.one_hot((count > 0).sum(dim=1).clamp(max=k - 1), k) * model.log_concentration.exp()
        group = torch.multinomial(torch.where(count > 0, count, new), 1, generator=generator)
        count.scatter_add_(1, group, wrong[:, None].float())
        answers[:, expert] = torch.where(wrong, group.squeeze(1) + 1, 0)
    return answers.masked_fill(silent, -1)


def calls_from_features(features: Tensor, max_calls: int) -> Calls:
    """The calls that the call features [B, 4K + 3] of `leeroo_env.dynamics` describe, ordered arbitrarily."""
    k = (features.shape[1] - 3) // 4
    answers = features[:, 2 * k : 3 * k]  # 0 for experts not called, or cut off
    answered, experts = (answers != 0).int().topk(max_calls - 1, dim=1)
    group = (answers.gather(1, experts) * max_calls).round().long() - 1
    return Calls(
        asked=experts.masked_fill(answered == 0, -1),
        group=group.clamp(min=-1),
        made=(features[:, -1] * max_calls).round().long(),
        features=features,
        evidence=features[:, 3 * k : 4 * k].gather(1, experts),
    )


def evidence_by_expert(calls: Calls, k: int) -> Tensor:
    """What calls to each of the K experts told, [B, K]; 0 of those not called."""
    if calls.features is not None:
        return calls.features[:, 3 * k : 4 * k]
    if calls.evidence is None:
        return torch.zeros(len(calls.asked), k, dtype=torch.float32, device=calls.asked.device)
    evidence = torch.zeros(len(calls.asked), k + 1, dtype=calls.evidence.dtype, device=calls.asked.device)
    return evidence.scatter(1, calls.asked.where(calls.asked >= 0, k), calls.evidence)[:, :k]


def told(chance: Tensor, calls: Calls) -> tuple[Tensor, Tensor]:
    """Estimated chances of being right [B, K] and votes [B, K] after the evidence of `calls`."""
    if calls.evidence is None:
        return chance, vote_weight(chance.clamp(0, 1))
    evidence = evidence_by_expert(calls, chance.shape[1])
    after, for_votes = updated_each(chance, evidence, CHANCE_WEIGHT, VOTE_WEIGHT)
    return after, vote_weight(for_votes)


def group_answers(answer_ids: Tensor) -> Tensor:
    """For each of `answer_ids` [B, C], the first column of its row with the same answer; -1 where there is none."""
    same = answer_ids[:, :, None] == answer_ids[:, None]
    return same.int().argmax(dim=2).masked_fill(answer_ids < 0, -1)


def fit_answer_model(
    table: ExpertTable, rows: Tensor, chance: Tensor, seed: int = 0, evidence: Tensor | None = None
) -> AnswerModel:
    """Fits the model to training queries.

    First the loadings, by the marginal likelihood of all experts' scores; then all parameters, by the cross-entropy of
    whether experts and leading answers are right after up to four calls. These go to experts drawn at random, cheap and
    accurate ones more often.

    Args:
        table: with answers.
        rows: [n], the training queries.
        chance: [n, K], out-of-fold estimates that experts are right.
        seed: of the draws.
        evidence: [n, K], what calls tell of their answers; None: nothing.
    """
    device = table.device
    evidence = torch.zeros_like(chance) if evidence is None else evidence
    generator = torch.Generator(device).manual_seed(seed)
    scores, answer_ids = table.scores[rows], table.answer_ids[rows].long()
    model = AnswerModel(scores.shape[1], shared_models(table.experts)).to(device)
    fails = scores < 0.5
    silence = ((answer_ids < 0) & fails).sum(dim=0) / fails.sum(dim=0).clamp(min=1)
    model.silence.copy_(silence)
    mean_cost = table.mean_cost_usd()
    relative_cost = mean_cost / mean_cost.max().clamp(min=1e-30)
    preference = (scores.mean(dim=0).clamp(min=0.01) / (relative_cost + 0.02)).log() / 2
    _fit_loadings(model, scores, chance, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    size = batch_size(len(preference))
    for step in range(STEPS):
        n_calls = min(step % FITTED_CALLS + 1, len(preference))
        batch = torch.randint(len(rows), (size,), generator=generator, device=device)
        draw = torch.empty(size, len(preference), device=device).exponential_(generator=generator)
        asked = (preference - draw.log()).topk(n_calls, dim=1).indices  # Gumbel top-k: without replacement
        loss = _loss(model, scores[batch], answer_ids[batch], chance[batch], evidence[batch], asked)
        drift = sum((p - p0).square().sum() for p, p0 in zip(model.parameters(), start, strict=True))
        optimizer.zero_grad()
        (loss + 1e-3 * drift).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False)


def batch_size(n_experts: int) -> int:
    """The number of queries in a batch."""
    return min(BATCH, BATCH_SCORES // n_experts)


def _fit_loadings(model: AnswerModel, scores: Tensor, chance: Tensor, generator: torch.Generator) -> None:
    """Maximum marginal likelihood (Bock and Aitkin, 1981) of scores [n, K]."""
    optimizer = torch.optim.Adam([model.loading], lr=0.05)
    for _ in range(LOADING_STEPS):
        size = batch_size(scores.shape[1])
        batch = torch.randint(len(scores), (size,), generator=generator, device=scores.device)
        log_odds, score = model.log_odds(chance[batch]), scores[batch][..., None]
        log_likelihood = (score * logsigmoid(log_odds) + (1 - score) * logsigmoid(-log_odds)).sum(dim=1)
        optimizer.zero_grad()
        (-torch.logsumexp(log_likelihood + model.weight.log(), dim=1).mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _loss(
    model: AnswerModel, scores: Tensor, answer_ids: Tensor, chance: Tensor, evidence: Tensor, asked: Tensor
) -> Tensor:
    """Cross-entropy of the model's chances before and after the last of the calls `asked` [B, n]."""
    group = group_answers(answer_ids.gather(1, asked))
    last = asked[:, -1:]
    but_last = torch.cat([asked[:, :-1], torch.full_like(last, -1)], dim=1)
    made = (asked >= 0).sum(dim=1)
    evidence = evidence.gather(1, asked)
    calls_before = Calls(but_last, group, made - 1, evidence=evidence)
    calls = Calls(asked, group, made, evidence=evidence)
    before = model.posterior(*told(chance, calls_before), calls_before)
    expected = model.leader_chance_after(before, last, vote_weight(chance.clamp(0, 1)).gather(1, last)).squeeze(1)
    chance, votes = told(chance, calls)
    after = model.posterior(chance, votes, calls, among=last)  # no other expert's chance is needed
    score = _leader_score(scores, votes, asked, group, after.leader[1])
    targets = [(expected, score), (after.leader_chance(), score), (before.expert_chance(), scores)]
    return sum(binary_cross_entropy(p.clamp(1e-3, 1 - 1e-3), y) for p, y in targets)  # type: ignore[return-value]


def _leader_score(scores: Tensor, votes: Tensor, asked: Tensor, group: Tensor, leader: Tensor) -> Tensor:
    """[B], the score of the leading answer; where there is no answer, of the called expert with most votes."""
    supports = (group == leader[:, None]).float() + 1e-3 * votes.gather(1, asked) / votes.max()
    return scores.gather(1, asked.gather(1, supports.argmax(dim=1, keepdim=True))).squeeze(1)
