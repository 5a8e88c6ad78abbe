"""Counts weighted votes: which of several experts' answers to a query leads.

B queries, M calls of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VoteCount:
    """The result of a vote among the answers to each of B queries.

    Attributes:
        leader: [B] int64, the first called of the experts that gave the leading answer; -1 where no call was answered.
        support: [B] float64, the sum of the votes for the leading answer; 0 where there is no answer.
        share: [B] float64, its share of all votes.
        different: [B] int64, the number of different answers.
        agrees: [B, M] bool, the calls that gave the leading answer.
        group: [B, M] int64, the first call that gave the same answer; -1 where a call gave none.
    """

    leader: Tensor
    support: Tensor
    share: Tensor
    different: Tensor
    agrees: Tensor
    group: Tensor


def vote_weight(reliability: Tensor) -> Tensor:
    """The weight of an expert's vote: the squared odds that its answer is correct, with the odds clipped at 49 to 1.

    Independent errors would call for the log odds, but experts err together, and many unreliable experts should not
    outvote a reliable one. Among powers of the chance and of the odds, this one scored best on the train and val splits
    of two tables.
    """
    chance = reliability.clamp(0.02, 0.98)
    return (chance / (1 - chance)).square()


def count_votes(
    asked: Tensor, answered: Tensor, answer_ids: Tensor, weights: Tensor, models: Tensor | None = None
) -> VoteCount:
    """The answer to each query with the strongest support, the sum of the weights of the experts that gave it.

    Experts that are one model have one vote for an answer, the largest of theirs: they err together.
    Ties go to the answer with the largest single weight, then to the one given first. A missing answer agrees with no
    other; it leads only where there is no answer at all.

    Args:
        asked: [B, M] int64, the experts called, in order; -1 where there is none.
        answered: [B, M] bool, which of these calls were answered.
        answer_ids: [B, M] integers, equal within a row where the answers are; -1: no answer.
        weights: [B, M] float32 above 0, the weight of each vote.
        models: [K] int64, equal where experts are one model, as `leeroo_env.variants.shared_models`; None: all differ.
    """
    b, m = asked.shape
    answers, support, strongest, leader = no_votes(b, m, asked.device)
    groups = []
    for call, of_call in enumerate(zip(answer_ids.T, weights.T, answered.T, strict=True)):
        number = torch.full_like(leader, call)
        own = None if models is None else own_votes(models, asked, weights, asked[:, call])
        votes = answers, support, strongest, leader
        answers, support, strongest, leader, group = add_vote(*votes, number, *of_call, own)
        groups.append(group)
    group = torch.stack(groups, dim=1)
    leading = leader.clamp(min=0)[:, None]
    return VoteCount(
        leader=torch.where(leader >= 0, asked.gather(1, leading).squeeze(1), -1),
        support=support.gather(1, leading).squeeze(1),
        share=leading_share(support, leader),
        different=(support > 0).sum(dim=1),
        agrees=(group == leader[:, None]) & (group >= 0),
        group=group,
    )


def no_votes(b: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`answers`, `support`, `strongest` and `leader` of `leeroo_env.dynamics.State` before the first call."""
    none, zero = torch.full((b, m), -1, device=device), torch.zeros(b, m, dtype=torch.float64, device=device)
    return none, zero, zero, torch.full((b,), -1, device=device)


def add_vote(
    answers: Tensor,
    support: Tensor,
    strongest: Tensor,
    leader: Tensor,
    call: Tensor,
    answer: Tensor,
    vote: Tensor,
    answered: Tensor,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Counts one more call by the rule of `count_votes`; only the answer that gains a vote can take the lead.

    Args:
        answers: and `support`, `strongest` and `leader`: the votes so far, as in `leeroo_env.dynamics.State`.
        call: [B] int64, the number of the call.
        answer: [B] integers, -1 for none.
        vote: [B], its weight, above 0.
        answered: [B] bool, whether the call was answered.
        own: [B, M], the `own_votes` of this call's model; None: no model was called before.

    Returns:
        The new votes, and the first call that gave the same answer, [B] int64; -1 where this call gave none.
    """
    given, call = answered & (answer >= 0), call[:, None]
    missing = ~given
    vote = vote.double() * answered  # sums of float32 are exact in it: equal support is equal in any order
    same = answers == answer.masked_fill(missing, -2)[:, None]
    number = torch.arange(answers.shape[1], dtype=torch.float32, device=call.device)  # integers are slow to reduce
    group = torch.where(same, number, call).amin(dim=1).long()
    place = group[:, None]
    answers = answers.scatter(1, call, answer.long().masked_fill(missing, -1)[:, None])
    added = vote if own is None else (vote - (own * same).amax(dim=1)).clamp(min=0)
    support = support.scatter_add(1, place, (added * given)[:, None])
    strongest = strongest.scatter_reduce(1, place, vote[:, None], "amax")
    rivals = torch.stack([group, leader.clamp(min=0)], dim=1)
    gained, before = support.gather(1, rivals).unbind(1)
    its_best, best = strongest.gather(1, rivals).unbind(1)
    stronger = (its_best > best) | ((its_best == best) & (group < leader))
    leads = answered & ((leader < 0) | (gained > before) | ((gained == before) & stronger))
    return answers, support, strongest, torch.where(leads, group, leader), group.masked_fill(missing, -1)


def own_votes(models: Tensor, asked: Tensor, votes: Tensor, expert: Tensor) -> Tensor:
    """The votes [B, M] of the calls `asked` [B, M], 0 where that is another model than `expert` [B] by `models` [K]."""
    return votes * (models[asked.clamp(min=0)] == models[expert.clamp(min=0)][:, None])


def leading_share(support: Tensor, leader: Tensor) -> Tensor:
    """The leading answer's share of the votes, [B] float64, from `support` [B, M] and `leader` [B]."""
    leading = support.gather(1, leader.clamp(min=0)[:, None]).squeeze(1)
    return leading / support.sum(dim=1).clamp(min=1e-30)
