"""Whom to ask next, if anybody: what one more call is worth, its answers' consequences thought through.

A call is worth what the delivered answer gains by it, and what calls after it may gain: that is worked out two calls
ahead with the model of `answer_model` over the experts that come into question, and learnt beyond, by fitted
value iteration on the training queries (Ernst et al., Tree-based batch mode reinforcement learning, 2005).

B queries at hand, K experts, L of them considered, C calls before the last, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from agents.policies.answer_model import AnswerModel, Calls, Posterior, fit_answer_model, group_answers
from leeroo_env.dynamics import vote_weight
from leeroo_env.table import ExpertTable

N_CANDIDATES = 5  # experts, those that would give the most by themselves; 4 to 8 do alike on train and val
CLOSERS = 3  # of them, as the second of two calls
FORBIDDEN = -1e4
HIDDEN = 32
PRICES = (5e-3, 40.0)  # of the dearest expert's mean cost, in score: from spending freely to counting every cent
SWEEPS = 3
QUERIES = 16_000  # a sweep
STEPS = 500
BATCH = 2_048
LEARNING_RATE = 3e-3
EXPLORATION_RATE = 0.15  # share of calls at random in the fitting
NOISE_SCALE = 0.03  # of the value of calls in it
CONTINUATION_WEIGHT = 0.5  # of the fitted continuation: best of 0, 0.5 and 1 by cross-validation on train and val


@dataclass(frozen=True)
class CallEstimates:
    """What calls are worth.

    Attributes:
        who: [B, L] int64, the experts considered.
        gain: [B, L], what each is expected to add to the score, this call and what may follow, less prices to come;
            `FORBIDDEN` where it cannot be asked.
        now: [B], the chance that the leading answer is right; 0 where there is none.
        features: [B, L, F], what the part that is learnt goes by.
        second: [B, L], what the best of two calls adds, the part that is worked out.
    """

    who: Tensor
    gain: Tensor
    now: Tensor
    features: Tensor
    second: Tensor


class CallValue(nn.Module):
    """`max_calls` M of K experts; C = M - 1 calls are the most that can have been made when it is consulted."""

    continuation_weight: Tensor

    def __init__(self, n_experts: int, max_calls: int):
        super().__init__()
        self.max_calls = max_calls
        self.register_buffer("continuation_weight", torch.ones(()))  # 1 while `continuation_net` is fitted
        self.answer_model = AnswerModel(n_experts)
        self.continuation_net = nn.Sequential(
            nn.Linear(10 + max_calls, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)
        )
        nn.init.zeros_(self.continuation_net[-1].weight)  # type: ignore[arg-type]
        nn.init.constant_(self.continuation_net[-1].bias, -4.0)  # type: ignore[arg-type]

    def forward(
        self, chance: Tensor, price: Tensor, calls: Calls, allowed: Tensor, share: Tensor | None = None
    ) -> CallEstimates:
        """What to think of asking each expert, and of delivering.

        Args:
            chance: [B, K], estimated, that experts are right.
            price: [B, K], what calls cost, in score.
            calls: those made.
            allowed: [B, K] bool, the experts that may be asked.
            share: [B, K], what part of the money left calls take; two can follow each other that together take no more
                than all of it. None: money has no end.
        """
        votes = vote_weight(chance.clamp(0, 1))
        belief = self.answer_model.posterior(chance, votes, calls)
        now, alone = belief.now(), (belief.chance() - price).masked_fill(~allowed, FORBIDDEN)
        worth, who = alone.topk(min(N_CANDIDATES, alone.shape[1]), dim=1)
        votes, price = votes.gather(1, who), price.gather(1, who)
        share = torch.zeros_like(price) if share is None else share.gather(1, who)
        step = self.answer_model.after(belief, who, votes) - now[:, None]
        net = (step - price).masked_fill(worth <= FORBIDDEN, FORBIDDEN)
        second, agrees = self._two_ahead(belief, who, votes, price, net, share)
        features = self._features(now, step, price, worth + price, agrees, second, net, calls.made)
        more = (calls.made < self.max_calls - 1)[:, None]
        gain = step + (second + self.continuation_weight * softplus(self.continuation_net(features).squeeze(-1))) * more
        return CallEstimates(who, gain.masked_fill(worth <= FORBIDDEN, FORBIDDEN), now, features, second)

    def _two_ahead(
        self, belief: Posterior, who: Tensor, votes: Tensor, price: Tensor, net: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the best second call after each of `who` [B, L] is expected to add, less its price, once it is known
        whether the first one agrees with the leading answer; and the chance that it does; both [B, L]."""
        n = who.shape[1]
        outcomes = self.answer_model.outcomes(belief, who)  # [B, 3, L, H, Z]
        by_hypothesis = outcomes.sum(dim=4)
        chance = by_hypothesis.sum(dim=3)
        best, leader = belief.leader()
        led = best[:, None] > 0
        at = leader[:, None, None, None].expand(-1, 3, n, 1)
        stays = torch.where(led[:, None], by_hypothesis.gather(3, at).squeeze(3), 0.0)  # the leading answer is right
        own = torch.einsum("bz,blz->bl", belief.joint.sum(dim=1), belief.right_of(who))
        stays[:, 1] = torch.where(
            votes > best[:, None], own - stays[:, 0], stays[:, 1]
        )  # or the first one's, if it leads
        standing = torch.stack(
            [best[:, None] + votes, votes.maximum(best[:, None]), best[:, None].expand(-1, n)], dim=1
        )
        top = net.topk(min(CLOSERS, n), dim=1).indices  # the second calls
        right = torch.einsum("bolhz,bcz->bolc", outcomes, belief.right_of(who.gather(1, top)))
        overrules = votes.gather(1, top)[:, None, None] > standing[..., None]
        value = torch.where(overrules, right, stays[..., None])
        value = value - chance[..., None] * price.gather(1, top)[:, None, None]
        other = top[:, None] != torch.arange(n, device=who.device)[:, None]
        other &= (net.gather(1, top) > FORBIDDEN)[:, None] & (share[..., None] + share.gather(1, top)[:, None] <= 1)
        value = value.masked_fill(~other[:, None], -torch.inf).amax(dim=3)
        return (value - stays).clamp(min=0).sum(dim=1), chance[:, 0]

    def _features(
        self,
        now: Tensor,
        step: Tensor,
        price: Tensor,
        right: Tensor,
        agrees: Tensor,
        second: Tensor,
        net: Tensor,
        made: Tensor,
    ) -> Tensor:
        """[B, L, F]; nothing here tells which expert it is about, so little can be learnt by heart."""
        log_price = price.clamp(min=1e-5).log() / 4
        top, at = net.topk(min(2, net.shape[1]), dim=1)
        best, next_best = top[:, 0].clamp(-1, 1), top[:, -1].clamp(-1, 1)
        shared = [now, best, next_best, log_price.gather(1, at)[:, 0], step.gather(1, at)[:, 0]]
        own = [step, log_price, price.clamp(max=2), right.clamp(-1, 1), agrees, second]
        calls = one_hot(made.clamp(max=self.max_calls - 1), self.max_calls)[:, None, 1:]
        calls = calls.expand(-1, net.shape[1], -1).float()
        return torch.cat([torch.stack([*own, *(x[:, None].expand_as(step) for x in shared)], dim=2), calls], dim=2)


def fit_call_value(table: ExpertTable, rows: Tensor, estimates: Tensor, max_calls: int, seed: int = 0) -> CallValue:
    """Learns what calls are worth on the training queries `rows` [n] from their left-out estimates [n, 2K].

    Every sweep asks on about some queries, at prices of all sizes, mostly whom the last sweep would ask, and fits what
    two calls ahead leave out: the value of what was found, less what was foreseen of it.
    """
    device = table.device
    generator = torch.Generator(device).manual_seed(seed)
    chance, cost_usd = estimates.chunk(2, dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        asking = CallValue(chance.shape[1], max_calls).to(device)
    asking.answer_model.load_state_dict(fit_answer_model(table, rows, chance, seed).state_dict())
    asking.requires_grad_(False)
    if max_calls == 1:
        return asking
    cost = cost_usd / table.mean_cost_usd().max().clamp(min=1e-30)
    answer_ids = table.answer_ids[rows].long()
    for _ in range(SWEEPS):
        parts = []
        for _ in range(-(-QUERIES // BATCH)):
            batch = torch.randint(len(rows), (BATCH,), generator=generator, device=device)
            parts += _explore(asking, chance[batch], cost[batch], answer_ids[batch], generator)
        features, second, found = (torch.cat(part) for part in zip(*parts, strict=True))
        _fit_continuation_net(asking.continuation_net, features, second, found, generator)
    asking.continuation_weight.fill_(CONTINUATION_WEIGHT)
    return asking


def _explore(
    asking: CallValue, chance: Tensor, cost: Tensor, answer_ids: Tensor, generator: torch.Generator
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Asks on about B queries. For each call but the last: features and lookahead value of the one made, and what the
    state that it led to is worth over delivering."""
    b, device = len(chance), chance.device
    low, high = PRICES
    price = low * (high / low) ** torch.rand(b, 1, generator=generator, device=device) * cost
    asked = torch.full((b, asking.max_calls), -1, device=device)
    steps, before = [], None
    for n in range(asking.max_calls):
        advice = asking(chance, price, calls_from_table(asked[:, :-1], answer_ids), not_asked(asked, chance.shape[1]))
        net = advice.gain - price.gather(1, advice.who)
        if before is not None:
            steps.append((*before, net.amax(dim=1).clamp(min=0)))
        lot = torch.empty(2, b, net.shape[1], device=device).exponential_(generator=generator)
        noisy = net / NOISE_SCALE - lot[0].log()
        curious = torch.rand(b, 1, generator=generator, device=device) < EXPLORATION_RATE
        place = torch.where(curious, lot[1].masked_fill(net < FORBIDDEN / 2, -1.0), noisy).argmax(dim=1, keepdim=True)
        at = place[..., None].expand(-1, -1, advice.features.shape[2])
        before = advice.features.gather(1, at).squeeze(1), advice.second.gather(1, place).squeeze(1)
        asked[:, n] = advice.who.gather(1, place).squeeze(1)
    return steps


def _fit_continuation_net(
    continuation_net: nn.Module, features: Tensor, second: Tensor, found: Tensor, generator: torch.Generator
) -> None:
    """Least squares of `found` [n] less `second` [n] on `features` [n, F]."""
    continuation_net.requires_grad_(True)
    optimizer = torch.optim.AdamW(continuation_net.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(found), (BATCH,), generator=generator, device=found.device)
        error = second[batch] + softplus(continuation_net(features[batch]).squeeze(1)) - found[batch]
        optimizer.zero_grad()
        error.square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    continuation_net.requires_grad_(False)


def simulate_calls(asking: CallValue, chance: Tensor, price: Tensor, answer_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Asks about n queries as long as it pays at a `price` [n, K], answers being as `answer_ids` [n, K] say.

    Returns:
        [n, M], the experts asked, -1 where none was any more, and the chance that the leading answer was right then.
    """
    n, k = chance.shape
    asked = torch.full((n, asking.max_calls), -1, device=chance.device)
    told, on = [], torch.ones(n, dtype=torch.bool, device=chance.device)
    for call in range(asking.max_calls + 1):
        advice = asking(chance, price, calls_from_table(asked, answer_ids), not_asked(asked, k))
        if call > 0:
            told.append(advice.now)
        if call < asking.max_calls:
            net, place = (advice.gain - price.gather(1, advice.who)).max(dim=1)
            on = on & ((net > 0) | (call == 0))
            asked[:, call] = torch.where(on, advice.who.gather(1, place[:, None]).squeeze(1), -1)
    return asked, torch.stack(told, dim=1)


def calls_from_table(asked: Tensor, answer_ids: Tensor) -> Calls:
    """The calls to `asked` [B, C], -1 where there is none, all answered as the table's `answer_ids` [B, K] say."""
    made = asked >= 0
    given = answer_ids.gather(1, asked.clamp(min=0)).masked_fill(~made, -1)
    return Calls(asked, group_answers(given), made.sum(dim=1))


def not_asked(asked: Tensor, k: int) -> Tensor:
    """[B, K] bool, the experts not among `asked` [B, C]."""
    closed = torch.zeros(len(asked), k + 1, dtype=torch.bool, device=asked.device)
    return ~closed.scatter_(1, asked.where(asked >= 0, k), True)[:, :k]
