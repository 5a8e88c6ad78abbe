"""What answers tell: who is likely right, given who was asked about a query and who agrees with whom.

A query is easy or hard for all experts at once, by more than its estimates say: given a hidden ease z, standard normal,
expert k is right with chance sigmoid(c_k + loading_k z), and experts fail apart from each other (a two-parameter item
response model, Birnbaum, 1968); c_k is such that the mean over z is the estimated chance. Right answers are equal. A
wrong one is missing with chance silence_k; others join an earlier wrong answer or are new as in a Chinese restaurant
(Aldous, 1985). What is left of experts' likeness is met by trust_k: the power to which an expert's word counts.

B queries at hand, K experts, L of them considered, C calls made at most, H = C + 1 hypotheses: that the answer of group
0 to C - 1 is right, or none of them. Z values of the ease.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, logsigmoid, one_hot

from leeroo_env.dynamics import vote_weight
from leeroo_env.table import ExpertTable

EASES = 7
SURE = 0.01  # no estimated chance is nearer to 0 or 1
FIRST_STEPS = 150
STEPS = 400
BATCH = 1_500
LEARNING_RATE = 0.02
CALLS = 4  # of a query, in fitting


@dataclass(frozen=True)
class Calls:
    """The calls made about B queries, as the agent sees them.

    Attributes:
        asked: [B, C] int64, the experts; -1 where there is none, or it was refused.
        group: [B, C] int64, which answer they gave: a number below C, equal where answers are, or -1 for none.
        made: [B] int64, how many, refused ones too.
        polled: [B, 3K + 3], the `leeroo_env.dynamics.poll_features` that they were read from, if any.
    """

    asked: Tensor
    group: Tensor
    made: Tensor
    polled: Tensor | None = None


@dataclass(frozen=True)
class Posterior:
    """What is believed of B queries after calls.

    Attributes:
        joint: [B, H, Z], chances of hypothesis and ease together; they sum to 1.
        right: [B, K, Z], chance that an expert is right, given the ease.
        count: [B, C], how many gave each answer.
        support: [B, C], the votes for it.
        wrong: [B, H], how many gave an answer other than that of the hypothesis.
    """

    joint: Tensor
    right: Tensor
    count: Tensor
    support: Tensor
    wrong: Tensor

    def leader(self) -> tuple[Tensor, Tensor]:
        """Support of the leading answer [B], 0 where there is none, and its group [B]."""
        return self.support.max(dim=1)

    def now(self) -> Tensor:
        """[B], the chance that the leading answer is right; 0 where there is none."""
        best, leader = self.leader()
        return torch.where(best > 0, self.joint.sum(dim=2).gather(1, leader[:, None]).squeeze(1), 0.0)

    def right_of(self, who: Tensor) -> Tensor:
        """Rows `who` [B, L] of `right`, [B, L, Z]."""
        return self.right.gather(1, who[..., None].expand(-1, -1, self.right.shape[2]))

    def chance(self) -> Tensor:
        """[B, K], that experts not asked yet are right."""
        return torch.einsum("bz,bkz->bk", self.joint.sum(dim=1), self.right)


class AnswerModel(nn.Module):
    """The model of K experts; four numbers each at most, so little can be learnt by heart."""

    ease: Tensor
    weight: Tensor
    silence: Tensor

    def __init__(self, n_experts: int):
        super().__init__()
        nodes, weights = np.polynomial.hermite_e.hermegauss(EASES)
        self.register_buffer("ease", torch.tensor(nodes, dtype=torch.float32), persistent=False)
        self.register_buffer("weight", torch.tensor(weights / weights.sum(), dtype=torch.float32), persistent=False)
        self.register_buffer("silence", torch.full((n_experts,), 0.1))
        self.loading = nn.Parameter(torch.full((n_experts,), 0.5))
        self.trust = nn.Parameter(torch.ones(n_experts))
        self.log_concentration = nn.Parameter(torch.tensor(math.log(4.0)))

    def strength(self, chance: Tensor) -> Tensor:
        """Log-odds of being right at each ease, [B, K, Z], such that the mean chance is `chance` [B, K]: the usual
        approximation (MacKay, 1992) and a step of Newton's."""
        chance = chance.clamp(SURE, 1 - SURE)
        slope = (self.loading[:, None] * self.ease)[None]
        centre = torch.logit(chance) * (1 + math.pi / 8 * self.loading.square()).sqrt()
        right = torch.sigmoid(centre[..., None] + slope)
        off = chance - right @ self.weight
        centre = centre + (off / ((right * (1 - right)) @ self.weight).clamp(min=1e-3)).clamp(-1, 1)
        return centre[..., None] + slope

    def posterior(self, chance: Tensor, votes: Tensor, calls: Calls) -> Posterior:
        """What follows from `calls`, from experts' estimated chances and votes [B, K]."""
        strength = self.strength(chance)
        made, answer = calls.asked >= 0, calls.group >= 0
        who = calls.asked.clamp(min=0)
        said = strength.gather(1, who[..., None].expand(-1, -1, EASES))  # [B, C, Z]
        quiet = self.silence[who].clamp(1e-6, 1 - 1e-6)
        trust = (self.trust[who] * made)[..., None]
        wrong = trust * (logsigmoid(-said) + torch.where(answer, torch.log1p(-quiet), quiet.log())[..., None])
        member = one_hot(calls.group.clamp(min=0), calls.group.shape[1]) * (made & answer)[..., None]  # [B, C, C]
        instead = torch.einsum("bcu,bcz->buz", member.float(), trust * logsigmoid(said) - wrong)
        none = wrong.sum(dim=1, keepdim=True)
        count = member.sum(dim=1).float()
        others, prior = self._seated(count)
        log_joint = torch.cat([none + instead, none], dim=1) + prior[..., None] + self.weight.log()
        groups = log_joint[:, :-1].masked_fill((count == 0)[..., None], -torch.inf)
        log_joint = torch.cat([groups, log_joint[:, -1:]], dim=1)
        return Posterior(
            joint=log_joint.flatten(1).softmax(dim=1).view(log_joint.shape),
            right=torch.sigmoid(strength),
            count=count,
            support=(member * votes.gather(1, who)[..., None]).sum(dim=1),
            wrong=others,
        )

    def _seated(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """How many gave wrong answers under each hypothesis, and the log chance that they fell into such groups; both
        [B, H], from the sizes of the groups [B, C]."""
        concentration = self.log_concentration.exp()
        table = torch.where(count > 0, self.log_concentration + torch.lgamma(count.clamp(min=1)), 0.0)
        tables, total = table.sum(dim=1, keepdim=True), count.sum(dim=1, keepdim=True)
        wrong = torch.cat([total - count, total], dim=1)
        seats = torch.lgamma(wrong + concentration) - torch.lgamma(concentration)
        return wrong, torch.cat([tables - table, tables], dim=1) - seats

    def after(self, belief: Posterior, who: Tensor, votes: Tensor) -> Tensor:
        """[B, L], the chance that the leading answer is right once one of `who` [B, L], whose votes are `votes`, was
        asked as well."""
        right = belief.right_of(who)
        joins = torch.einsum("bhz,blz->blh", belief.joint, right)  # it and the hypothesis are right
        fails = belief.joint.sum(dim=2)[:, None] - joins
        quiet = self.silence[who][..., None]
        concentration = self.log_concentration.exp()
        misleads = fails * (1 - quiet) / (belief.wrong + concentration)[:, None]  # for each that gave that wrong answer
        best, leader = belief.leader()
        led = (best > 0)[:, None]
        at = leader[:, None, None].expand(-1, who.shape[1], 1)

        def of_leader(x: Tensor) -> Tensor:
            return torch.where(led, x.gather(2, at).squeeze(2), 0.0)

        total = of_leader(fails * quiet)
        total = total + torch.where(votes > best[:, None], joins[..., -1], of_leader(misleads) * concentration)
        for group in range(belief.count.shape[1]):
            rivals = belief.support.clone()
            rivals[:, group] = -1.0
            rival, second = rivals.max(dim=1)
            wins = belief.support[:, group, None] + votes >= rival[:, None]
            other = misleads.gather(2, second[:, None, None].expand(-1, who.shape[1], 1)).squeeze(2)
            other = torch.where((rival > 0)[:, None], other * belief.count[:, group, None], 0.0)
            total = total + torch.where(wins, joins[..., group], other) * (belief.count[:, group, None] > 0)
        return total

    def outcomes(self, belief: Posterior, who: Tensor) -> Tensor:
        """Chances of hypothesis and ease [B, 3, L, H, Z] together with what each of `who` [B, L] does when asked:
        agrees with the leading answer, gives another one, gives none."""
        right = belief.right_of(who)[:, :, None]
        joint = belief.joint[:, None]
        correct = joint * right
        silent = (joint - correct) * self.silence[who][..., None, None]
        best, leader = belief.leader()
        leads = (one_hot(leader, belief.joint.shape[1]) * (best > 0)[:, None]).bool()[:, None, :, None]
        size = belief.count.gather(1, leader[:, None])
        follows = (size / (belief.wrong + self.log_concentration.exp()))[:, None, :, None]
        agrees = torch.where(leads, correct, (joint - correct - silent) * follows)
        return torch.stack([agrees, joint - agrees - silent, silent], dim=1)


def calls_from_features(polled: Tensor, max_calls: int) -> Calls:
    """The calls that `leeroo_env.dynamics.poll_features` [B, 3K + 3] tell of; in any order, which does not matter."""
    k = (polled.shape[1] - 3) // 3
    which = polled[:, 2 * k : 3 * k]  # 0 for those who were not asked, or refused
    answered, who = (which != 0).int().topk(max_calls - 1, dim=1)
    group = (which.gather(1, who) * max_calls).round().long() - 1
    return Calls(
        asked=who.masked_fill(answered == 0, -1),
        group=group.clamp(min=-1),
        made=(polled[:, -1] * max_calls).round().long(),
        polled=polled,
    )


def group_answers(answer_ids: Tensor) -> Tensor:
    """The first place in each row of `answer_ids` [B, C] that holds the same answer; -1 where there is none."""
    same = answer_ids[:, :, None] == answer_ids[:, None]
    return same.int().argmax(dim=2).masked_fill(answer_ids < 0, -1)


def fit_answer_model(table: ExpertTable, rows: Tensor, chance: Tensor, seed: int = 0) -> AnswerModel:
    """Fits the model to the training queries `rows` [n], whose left-out estimated `chance` of each expert is [n, K].

    First the loadings, by how likely the scores of all experts are together; then everything, by how well it tells who
    is right, and whether the leading answer is, after up to four calls of random experts, cheap and good ones most.
    """
    device = table.device
    generator = torch.Generator(device).manual_seed(seed)
    scores, answer_ids = table.scores[rows], table.answer_ids[rows].long()
    model = AnswerModel(scores.shape[1]).to(device)
    fails = scores < 0.5
    quiet = ((answer_ids < 0) & fails).sum(dim=0) / fails.sum(dim=0).clamp(min=1)
    model.silence.copy_(quiet)
    votes = vote_weight(chance.clamp(0, 1))
    mean_cost = table.mean_cost_usd()
    liked = (scores.mean(dim=0).clamp(min=0.01) / (mean_cost / mean_cost.max().clamp(min=1e-30) + 0.02)).log() / 2
    _fit_loadings(model, scores, chance, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    for step in range(STEPS):
        n = min(step % CALLS + 1, len(liked))
        batch = torch.randint(len(rows), (BATCH,), generator=generator, device=device)
        lot = torch.empty(BATCH, len(liked), device=device).exponential_(generator=generator)
        asked = (liked - lot.log()).topk(n, dim=1).indices
        loss = _loss(model, scores[batch], answer_ids[batch], chance[batch], votes[batch], asked)
        drift = sum((p - was).square().sum() for p, was in zip(model.parameters(), start, strict=True))
        optimizer.zero_grad()
        (loss + 1e-3 * drift).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False)


def _fit_loadings(model: AnswerModel, scores: Tensor, chance: Tensor, generator: torch.Generator) -> None:
    """Maximum marginal likelihood (Bock and Aitkin, 1981) of scores [n, K]."""
    optimizer = torch.optim.Adam([model.loading], lr=0.05)
    for _ in range(FIRST_STEPS):
        batch = torch.randint(len(scores), (BATCH,), generator=generator, device=scores.device)
        strength, score = model.strength(chance[batch]), scores[batch][..., None]
        likely = (score * logsigmoid(strength) + (1 - score) * logsigmoid(-strength)).sum(dim=1)
        optimizer.zero_grad()
        (-torch.logsumexp(likely + model.weight.log(), dim=1).mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _loss(
    model: AnswerModel, scores: Tensor, answer_ids: Tensor, chance: Tensor, votes: Tensor, asked: Tensor
) -> Tensor:
    """Cross-entropy of what the model says before and after the last of the calls `asked` [B, n]."""
    group = group_answers(answer_ids.gather(1, asked))
    last = asked[:, -1:]
    but_last = torch.cat([asked[:, :-1], torch.full_like(last, -1)], dim=1)
    made = (asked >= 0).sum(dim=1)
    before = model.posterior(chance, votes, Calls(but_last, group, made - 1))
    after = model.after(before, last, votes.gather(1, last)).squeeze(1)
    belief = model.posterior(chance, votes, Calls(asked, group, made))
    delivered = _delivered(scores, votes, asked, group, belief.leader()[1])
    told = [(after, delivered), (belief.now(), delivered), (before.chance(), scores)]
    return sum(binary_cross_entropy(p.clamp(1e-3, 1 - 1e-3), y) for p, y in told)  # type: ignore[return-value]


def _delivered(scores: Tensor, votes: Tensor, asked: Tensor, group: Tensor, leader: Tensor) -> Tensor:
    """[B], the score of the leading answer; where nobody gave one, of the expert with most to say."""
    supports = (group == leader[:, None]).float() + 1e-3 * votes.gather(1, asked) / votes.max()
    return scores.gather(1, asked.gather(1, supports.argmax(dim=1, keepdim=True))).squeeze(1)
