"""The rules of an episode, as pure functions over batches of episodes.

A stream of H queries arrives one by one and a budget of dollars has to last for all of them. With one call a query
every step picks the expert that answers the query at hand. With M calls a query every step asks one more expert about
it, or delivers the answer that those asked agree on most. The environments, the evaluation and the training loops all
play by these functions and by nothing else; the same inputs give the same episodes on every device.

B episodes, H queries an episode, N queries in the table, K experts, M: max_calls, F features of a query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from leeroo_env.cost_scale import CostScale
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable

HORIZON = 64
COST_WEIGHT = 0.02

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, the step of SplitMix64, as a signed integer


@dataclass(frozen=True)
class Rules:
    """What stays the same over all episodes.

    Attributes:
        table: the experts' scores and costs.
        features: [N, F], what the agent observes of each query.
        rows: [n] int64, the rows of the table that queries are drawn from.
        horizon: H, queries an episode.
        budget_usd_per_query: lowest and highest budget, dollars a query; one is drawn per episode, log-uniform.
        cost_weight: what the mean cost of the dearest expert weighs against one correct answer in the reward.
        cost_scale: the experts' mean costs on the training split, all that is known of costs before a call.
        max_calls: M, experts that can be asked about one query.
        reliability: [N, K] in [0, 1], the estimated chance that an expert's answer is right; weighs its vote.
    """

    table: ExpertTable
    features: Tensor
    rows: Tensor
    horizon: int
    budget_usd_per_query: tuple[float, float]
    cost_weight: float
    cost_scale: CostScale
    max_calls: int
    reliability: Tensor

    @property
    def n_actions(self) -> int:
        """Each of the experts can be asked; with M > 1 the last action delivers."""
        return len(self.table.experts) + (self.max_calls > 1)


@dataclass(frozen=True)
class State:
    """Where B episodes stand. Every field's first dimension is B.

    Attributes:
        rows: [B, H] int64, the rows of the table that the episode asks about, in order.
        t: [B] int64, queries delivered so far.
        budget_usd: [B] float64, what the episode began with; single precision would lose small sums beside large ones.
        left_usd: [B] float64, what is left of it.
        score: [B], sum of the scores so far.
        refused: [B] int64, calls so far that were refused.
        calls: [B, K] int32, calls made to each expert so far, refused ones too.
        asked: [B, M] int64, the experts asked about the query at hand, in order; -1 where there is none yet.
        answers: [B, M] int64, what they answered; -1 where they gave no answer, or the call was refused.
        support: [B, M] float64, the votes for the answer that this call was the first to give.
        strongest: [B, M] float64, the strongest of these votes.
        leader: [B] int64, the first call that gave the leading answer; -1 where no call was answered.
        call_features: [B, 3K + 3], the `call_features` of these calls.
        steps: [B] int64, steps so far.

    With one call a query `answers`, `support`, `strongest` and `call_features` are [B, 0].
    """

    rows: Tensor
    t: Tensor
    budget_usd: Tensor
    left_usd: Tensor
    score: Tensor
    refused: Tensor
    calls: Tensor
    asked: Tensor
    answers: Tensor
    support: Tensor
    strongest: Tensor
    leader: Tensor
    call_features: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Outcome:
    """What one step brought, each [B]: `terminated`, `refused` and `delivered` are bool.

    `score` is that of the delivered answer, 0 where none was delivered; `cost_usd` is 0 where no call was answered.
    """

    reward: Tensor
    terminated: Tensor
    score: Tensor
    cost_usd: Tensor
    refused: Tensor
    delivered: Tensor


@dataclass(frozen=True)
class VoteCount:
    """What the experts asked about B queries agree on.

    Attributes:
        leader: [B] int64, the first asked of the experts that gave the leading answer; -1 where no call was answered.
        support: [B] float64, the sum of the votes for the leading answer; 0 where nobody gave an answer.
        share: [B] float64, its share of the votes for all answers.
        different: [B] int64, how many different answers were given.
        agrees: [B, M] bool, the calls that gave the leading answer.
        group: [B, M] int64, the first call that gave the same answer; -1 where a call brought none.
    """

    leader: Tensor
    support: Tensor
    share: Tensor
    different: Tensor
    agrees: Tensor
    group: Tensor


def make_rules(
    table: ExpertTable,
    split: str = "train",
    horizon: int = HORIZON,
    budget_usd_per_query: float | Sequence[float] | None = None,
    cost_weight: float = COST_WEIGHT,
    max_calls: int = 1,
    reliability: Tensor | None = None,
    features: Tensor | None = None,
) -> Rules:
    """Checks the settings of an episode and works out what follows from the table.

    Args:
        table: the experts' scores and costs.
        split: where queries are drawn from.
        horizon: H, queries an episode; drawn without replacement.
        budget_usd_per_query: a number fixes it, two give a range; None: cheapest to dearest expert's mean cost.
        cost_weight: weight of the cost in the reward.
        max_calls: M, experts that can be asked about one query.
        reliability: [N, K] or [1, K] in [0, 1], weighs the experts' votes; None: each expert's mean score on the
            training split.
        features: [N, F], what the agent observes of each query; None: the table's embeddings.

    Raises:
        InputError: no such split, a horizon longer than the split, a budget below every expert's cost, more calls than
            experts or than answers are known for, or reliability or features of another shape or range.
    """
    rows = table.rows(split)
    if not 1 <= horizon <= len(rows):
        raise InputError(
            f"horizon {horizon}: must be 1 to {len(rows)}, the queries in the {split} split of {table.name}"
        )
    if not (math.isfinite(cost_weight) and cost_weight >= 0):
        raise InputError(f"cost weight {cost_weight}: must be 0 or more")
    scale = table.cost_scale()
    budget = (scale.low_usd, scale.high_usd) if budget_usd_per_query is None else budget_usd_per_query
    low, high = _low_and_high(budget)
    cheapest = float(scale.mean_usd.min())
    if low < cheapest * (1 - 1e-6):
        name = table.experts[int(scale.mean_usd.argmin())]
        raise InputError(
            f"budget {low:g} dollars a query: below every expert's mean cost; {name} is cheapest at {cheapest:.3g}"
        )
    _check_max_calls(table, max_calls)
    return Rules(
        table=table,
        features=_features(table, features),
        rows=rows,
        horizon=horizon,
        budget_usd_per_query=(float(low), float(high)),
        cost_weight=cost_weight,
        cost_scale=scale,
        max_calls=max_calls,
        reliability=_reliability(table, reliability),
    )


def _check_max_calls(table: ExpertTable, max_calls: int) -> None:
    if not 1 <= max_calls <= len(table.experts):
        raise InputError(f"max_calls {max_calls}: must be 1 to {len(table.experts)}, the experts of {table.name}")
    if max_calls > 1 and not table.has_answers():
        raise InputError(
            f"max_calls {max_calls}: {table.name}: answers.parquet has no column answer, or only nulls in it; without "
            "answers nothing can agree"
        )


def _reliability(table: ExpertTable, given: Tensor | None) -> Tensor:
    """[N, K]; one row for all queries takes no more memory than that."""
    if given is None:
        return table.mean_score().expand(len(table), -1)
    n, k = table.scores.shape
    if tuple(given.shape) not in ((n, k), (1, k)):
        raise InputError(f"reliability {list(given.shape)}: must be [{n}, {k}] or [1, {k}] for {table.name}")
    if not bool(((given >= 0) & (given <= 1)).all()):
        raise InputError("reliability: must be numbers in [0, 1]")
    return given.to(table.device, torch.float32).expand(n, k)


def _features(table: ExpertTable, given: Tensor | None) -> Tensor:
    if given is None:
        return table.embeddings
    if given.dim() != 2 or given.shape[0] != len(table) or given.shape[1] == 0 or not given.is_floating_point():
        raise InputError(
            f"features {given.dtype} {list(given.shape)}: must be floats [{len(table)}, F] for {table.name}"
        )
    return given.to(table.device)


def _low_and_high(budget: float | Sequence[float]) -> tuple[float, float]:
    numbers = [float(usd) for usd in (budget if isinstance(budget, Sequence) else [budget])]
    if len(numbers) not in (1, 2):
        raise InputError(f"budget {tuple(numbers)}: give one number or two")
    if not all(math.isfinite(usd) and usd > 0 for usd in numbers):
        raise InputError(f"budget {', '.join(f'{usd:g}' for usd in numbers)}: must be finite and above 0")
    return min(numbers), max(numbers)


def budget_grid(rules: Rules, n: int = 6) -> list[float]:
    """The budgets of a report, dollars a query: geometric from 1.2 x the cheapest price to below the dearest."""
    low, high = rules.cost_scale.low_usd, rules.cost_scale.high_usd
    low, high = 1.2 * low, max(high, 2.4 * low)
    return [low * (high / low) ** (i / n) for i in range(n)]


def sample_episodes(rules: Rules, keys: Tensor, budget_usd_per_query: Tensor | None = None) -> State:
    """The start of B episodes. An episode's queries and budget depend on its key alone.

    Args:
        keys: [B] int64, any numbers; `episode_keys` makes good ones.
        budget_usd_per_query: [B], overrides the drawn budget.
    """
    if budget_usd_per_query is None:
        low, high = rules.budget_usd_per_query
        uniform = (_hash(keys + 1) & (2**53 - 1)).double() / 2**53
        budget_usd_per_query = low * (high / low) ** uniform
    rows = rules.rows[_draw(keys, len(rules.rows), rules.horizon)]
    return new_episodes(rules, rows, budget_usd_per_query.double() * rules.horizon)


def new_episodes(rules: Rules, rows: Tensor, budget_usd: Tensor) -> State:
    """The start of B episodes about the queries `rows` [B, H] with `budget_usd` [B], float64."""
    b, k = len(rows), len(rules.table.experts)
    zeros = torch.zeros(b, dtype=torch.int64, device=rows.device)
    several = rules.max_calls > 1
    answers, support, strongest, leader = _no_votes(b, rules.max_calls if several else 0, rows.device)
    return State(
        rows=rows,
        t=zeros,
        budget_usd=budget_usd,
        left_usd=budget_usd,
        score=torch.zeros(b, device=rows.device),
        refused=zeros,
        calls=torch.zeros(b, k, dtype=torch.int32, device=rows.device),
        asked=torch.full((b, rules.max_calls), -1, device=rows.device),
        answers=answers,
        support=support,
        strongest=strongest,
        leader=leader,
        call_features=torch.zeros(b, 3 * k + 3 if several else 0, device=rows.device),
        steps=zeros,
    )


def step(rules: Rules, state: State, actions: Tensor) -> tuple[State, Outcome]:
    """Asks one expert about the query at hand or, with M > 1, delivers; in every episode.

    A call that costs more than what is left is refused: no answer, no cost, and the episode goes on.

    Args:
        actions: [B] int64, the experts to ask; K delivers.
    """
    return _ask_only(rules, state, actions) if rules.max_calls == 1 else _ask_or_deliver(rules, state, actions)


def _ask_only(rules: Rules, state: State, actions: Tensor) -> tuple[State, Outcome]:
    """`step` with one call a query: the answer is delivered at once, a refused call scores 0."""
    row = current_rows(state)
    score, cost_usd = _scores(rules, row, actions), _costs_usd(rules, row, actions)
    fits = cost_usd <= state.left_usd
    cost_usd, score, refused = cost_usd * fits, score * fits, ~fits
    t = state.t + 1
    after = State(
        rows=state.rows,
        t=t,
        budget_usd=state.budget_usd,
        left_usd=state.left_usd - cost_usd,
        score=state.score + score,
        refused=state.refused + refused,
        calls=state.calls.scatter_add(1, actions[:, None], torch.ones_like(state.calls[:, :1])),
        asked=state.asked,
        answers=state.answers,
        support=state.support,
        strongest=state.strongest,
        leader=state.leader,
        call_features=state.call_features,
        steps=t,
    )
    delivered = torch.ones_like(refused)
    return after, Outcome(_reward(rules, score, cost_usd), t >= rules.horizon, score, cost_usd, refused, delivered)


def _ask_or_deliver(rules: Rules, state: State, actions: Tensor) -> tuple[State, Outcome]:
    """`step` with M > 1. The Mth call delivers as well; asking an expert again is refused.

    Episodes end after different numbers of steps: one that has ended stays as it is and brings nothing more.
    """
    k, m = len(rules.table.experts), rules.max_calls
    row, playing, call = current_rows(state), state.t < rules.horizon, _calls_made(state.call_features, m)
    asks, expert = playing & (actions < k), actions.clamp(max=k - 1)
    cost_usd = _costs_usd(rules, row, expert)
    again = state.call_features.gather(1, expert[:, None]).squeeze(1) > 0
    refused = asks & ((cost_usd > state.left_usd) | again)
    charged = asks & ~refused
    cost_usd = cost_usd * charged
    asked = state.asked.scatter(1, call[:, None], actions.masked_fill(~asks, -1)[:, None])
    answer, vote = _at(rules.table.answer_ids, row, expert), vote_weight(_at(rules.reliability, row, expert))
    so_far = state.answers, state.support, state.strongest, state.leader
    *votes, group = _count(*so_far, call, answer, vote, charged)
    answers, support, strongest, leader = votes
    goes_on = asks & (call < m - 1)
    delivered = playing & ~goes_on
    leading = asked.gather(1, leader.clamp(min=0)[:, None]).squeeze(1)
    score = _scores(rules, row, leading.clamp(min=0)) * ((leader >= 0) & delivered)
    polled = state.call_features.scatter(1, expert[:, None], 1.0)
    polled.scatter_add_(1, expert[:, None] + 2 * k, (_told(group, m) * charged)[:, None])
    led = _told(leader, m).masked_fill(leader < 0, 2.0)[:, None]  # which is nobody's
    polled[:, k : 2 * k] = polled[:, 2 * k : 3 * k] == led
    polled[:, 3 * k :] = _totals(_share(support, leader), (support > 0).sum(dim=1), call + 1, m)
    t, on, over = state.t + delivered, goes_on[:, None], ~goes_on[:, None]
    after = State(
        rows=state.rows,
        t=t,
        budget_usd=state.budget_usd,
        left_usd=state.left_usd - cost_usd,
        score=state.score + score,
        refused=state.refused + refused,
        calls=state.calls.scatter_add(1, expert[:, None], asks.int()[:, None]),
        asked=asked.masked_fill(over, -1),
        answers=answers.masked_fill(over, -1),
        support=support * on,
        strongest=strongest * on,
        leader=leader.masked_fill(~goes_on, -1),
        call_features=polled * on,
        steps=state.steps + playing,
    )
    return after, Outcome(_reward(rules, score, cost_usd), t >= rules.horizon, score, cost_usd, refused, delivered)


def _scores(rules: Rules, rows: Tensor, experts: Tensor) -> Tensor:
    """Scores float32 of the `experts` [B] on the queries `rows` [B], [B]."""
    return _at(rules.table.scores, rows, experts).float()


def _costs_usd(rules: Rules, rows: Tensor, experts: Tensor) -> Tensor:
    """What the `experts` [B] cost on the queries `rows` [B], in dollars, float64 [B]."""
    return _at(rules.table.costs_usd, rows, experts).double()


def _at(values: Tensor, rows: Tensor, experts: Tensor) -> Tensor:
    """`values` [N, K] of the `experts` [B] on the queries `rows` [B], [B].

    Flat, since indexing by pairs takes several times as long; one row for all queries stays one.
    """
    if values.stride(0) == 0:
        return values[0].index_select(0, experts)
    return values.reshape(-1).index_select(0, rows * values.shape[1] + experts)


def _reward(rules: Rules, score: Tensor, cost_usd: Tensor) -> Tensor:
    return (score - rules.cost_weight / rules.cost_scale.high_usd * cost_usd).float()


def vote_weight(reliability: Tensor) -> Tensor:
    """What an answer weighs in the poll: the square of the odds that it is right, these cut at 1 to 49 and 49 to 1.

    Votes of the weak should not outweigh the strong as often as independence would have it: experts err together. Of
    powers of the chance and of the odds this one delivered best on train and val of two tables.
    """
    chance = reliability.clamp(0.02, 0.98)
    return (chance / (1 - chance)).square()


def count_votes(asked: Tensor, answered: Tensor, answer_ids: Tensor, weights: Tensor) -> VoteCount:
    """Which of the answers given to each query has the strongest support, the sum of its supporters' weights.

    Among equals it is the one with the strongest single supporter, then the one given first. A missing answer agrees
    with nobody; it leads only where nobody gave an answer.

    Args:
        asked: [B, M] int64, the experts asked, in order; -1 where there is none.
        answered: [B, M] bool, which of these calls were answered.
        answer_ids: [B, M] whole numbers, equal in a row where the answers are; -1: no answer.
        weights: [B, M] float32 above 0, what each vote weighs.
    """
    b, m = asked.shape
    answers, support, strongest, leader = _no_votes(b, m, asked.device)
    groups = []
    for call, of_call in enumerate(zip(answer_ids.T, weights.T, answered.T, strict=True)):
        number = torch.full_like(leader, call)
        answers, support, strongest, leader, group = _count(answers, support, strongest, leader, number, *of_call)
        groups.append(group)
    group = torch.stack(groups, dim=1)
    leading = leader.clamp(min=0)[:, None]
    return VoteCount(
        leader=torch.where(leader >= 0, asked.gather(1, leading).squeeze(1), -1),
        support=support.gather(1, leading).squeeze(1),
        share=_share(support, leader),
        different=(support > 0).sum(dim=1),
        agrees=(group == leader[:, None]) & (group >= 0),
        group=group,
    )


def _no_votes(b: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`answers`, `support`, `strongest` and `leader` of `State` before the first call."""
    none, zero = torch.full((b, m), -1, device=device), torch.zeros(b, m, dtype=torch.float64, device=device)
    return none, zero, zero, torch.full((b,), -1, device=device)


def _count(
    answers: Tensor,
    support: Tensor,
    strongest: Tensor,
    leader: Tensor,
    call: Tensor,
    answer: Tensor,
    vote: Tensor,
    answered: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Counts one more call, by the rule of `count_votes`: only the answer that gains a vote can take the lead.

    Args:
        answers: and `support`, `strongest` and `leader`: the votes so far, as in `State`.
        call: [B], number of the call.
        answer: [B], -1 for none.
        vote: [B], above 0.
        answered: [B] bool, whether the call was.

    Returns:
        The votes now, and the first call that gave the same answer [B]; -1 where this one brought none.
    """
    given, call = answered & (answer >= 0), call[:, None]
    missing = ~given
    vote = vote.double() * answered  # sums of float32 are exact in it: equal support is equal in any order
    same = answers == answer.masked_fill(missing, -2)[:, None]
    number = torch.arange(answers.shape[1], dtype=torch.float32, device=call.device)  # whole ones are slow to reduce
    group = torch.where(same, number, call).amin(dim=1).long()
    place = group[:, None]
    answers = answers.scatter(1, call, answer.long().masked_fill(missing, -1)[:, None])
    support = support.scatter_add(1, place, (vote * given)[:, None])
    strongest = strongest.scatter_reduce(1, place, vote[:, None], "amax")
    rivals = torch.stack([group, leader.clamp(min=0)], dim=1)
    gained, before = support.gather(1, rivals).unbind(1)
    its_best, best = strongest.gather(1, rivals).unbind(1)
    stronger = (its_best > best) | ((its_best == best) & (group < leader))
    leads = answered & ((leader < 0) | (gained > before) | ((gained == before) & stronger))
    return answers, support, strongest, torch.where(leads, group, leader), group.masked_fill(missing, -1)


def _share(support: Tensor, leader: Tensor) -> Tensor:
    """The leading answer's share of the votes, [B] float64."""
    leading = support.gather(1, leader.clamp(min=0)[:, None]).squeeze(1)
    return leading / support.sum(dim=1).clamp(min=1e-30)


def call_features(n_experts: int, asked: Tensor, answered: Tensor, polled: VoteCount, max_calls: int) -> Tensor:
    """What the agent sees of the calls made about the query at hand, [B, 3K + 3] float32.

    Of each expert: whether it was asked, whether it gave the leading answer, and which answer it gave: the number of
    the first call that gave it, from 1, / M; -1 / M for none, 0 where nobody was asked or the call was refused. Then
    the leading answer's share of the votes, the number of different answers and the calls made, both / M.

    Args:
        n_experts: K.
        asked: [B, m] int64, the calls as in `count_votes`, m up to M.
        answered: [B, m] bool.
        polled: what `count_votes` says of them.
        max_calls: M.
    """
    k, made, who = n_experts, asked >= 0, asked.clamp(min=0)
    told = torch.cat([made, made & polled.agrees, _told(polled.group, max_calls) * answered], dim=1)
    features = torch.zeros(len(asked), 3 * k + 3, device=asked.device)
    features.scatter_add_(1, torch.cat([who, who + k, who + 2 * k], dim=1), told)  # nobody is asked twice
    features[:, 3 * k :] = _totals(polled.share, polled.different, made.sum(dim=1), max_calls)
    return features


def _told(group: Tensor, max_calls: int) -> Tensor:
    """How the agent sees which answer was given, by the first call that gave it; see `call_features`."""
    return (group + 1).masked_fill(group < 0, -1) / max_calls


def _totals(share: Tensor, different: Tensor, made: Tensor, max_calls: int) -> Tensor:
    """[B, 3] float32."""
    return (torch.stack([share * max_calls, different, made]).float() / max_calls).T


def _calls_made(polled: Tensor, max_calls: int) -> Tensor:
    """[B] int64, from `call_features`."""
    return (polled[:, -1] * max_calls).round().long()


def current_rows(state: State) -> Tensor:
    """The row of the table that each episode asks about now, [B] int64; the last one once the episode has ended."""
    return state.rows.gather(1, state.t.clamp(max=state.rows.shape[1] - 1)[:, None]).squeeze(1)


def observe(rules: Rules, state: State) -> Tensor:
    """What the agent sees, float32: the query's features, with M > 1 the poll's, then the budget's.

    [B, F + 2], with M > 1 [B, F + 3K + 5].
    """
    features = rules.features.index_select(0, current_rows(state))
    polled, (b, f) = state.call_features.shape[1], features.shape
    seen = torch.empty(b, f + polled + 2, device=features.device)
    seen[:, :f] = features  # converts half precision on the way: the widest part is written once
    seen[:, f : f + polled] = state.call_features
    seen[:, f + polled :] = budget_features(rules.cost_scale, state.left_usd, rules.horizon - state.t)
    return seen


def budget_features(scale: CostScale, left_usd: Tensor, queries_left: Tensor) -> Tensor:
    """What the agent sees of money and time, from nothing but dollars left [B] and queries left [B]; [B, 2] float32.

    First the dollars per remaining query on the log scale of the experts' mean costs, 0 at the cheapest's and 1 at the
    dearest's, cut at -1 and 2. Then the number of queries left, log2 / 10, so that 1,024 queries are 1.
    """
    queries = queries_left.clamp(min=1).float()
    pace = torch.log(left_usd / queries / scale.low_usd) / scale.log_range
    return torch.stack([pace.clamp(-1, 2).float(), torch.log2(queries) / 10], dim=1)


def action_mask(mean_cost_usd: Tensor, left_usd: Tensor) -> Tensor:
    """The experts whose known mean cost [K] fits what is left [B]; [B, K] bool. The cheapest always stays allowed."""
    return mean_cost_usd <= left_usd.maximum(mean_cost_usd.amin())[:, None]


def state_mask(rules: Rules, state: State) -> Tensor:
    """The actions that make sense now, bool: [B, K] as `action_mask` says, with M > 1 [B, K + 1].

    With M > 1 no expert is asked about a query twice, and delivering takes a call. Once one was made, an expert's mean
    cost has to fit, the cheapest's too.
    """
    if rules.max_calls == 1:
        return action_mask(rules.cost_scale.mean_usd, state.left_usd)
    return call_mask(rules.cost_scale.mean_usd, state.left_usd, state.call_features)


def call_mask(mean_cost_usd: Tensor, left_usd: Tensor, polled: Tensor) -> Tensor:
    """`state_mask` with M > 1, from mean costs [K], dollars left [B] and `call_features` [B, 3K + 3]."""
    begun = polled[:, -1] > 0
    least = torch.where(begun, left_usd, left_usd.maximum(mean_cost_usd.amin()))
    allowed = (mean_cost_usd <= least[:, None]) & (polled[:, : len(mean_cost_usd)] == 0)
    return torch.cat([allowed, begun[:, None]], dim=1)


def replace_episodes(state: State, where: Tensor, fresh: State) -> State:
    """`state` with the episodes at the indices `where` [b] replaced by the `fresh` ones."""
    if len(where) == len(state.t):
        return fresh
    names = [field.name for field in fields(State)]
    return replace(state, **{n: getattr(state, n).index_copy(0, where, getattr(fresh, n)) for n in names})


def replace_ended(state: State, ended: Tensor, fresh: State) -> State:
    """`state` with the episodes that have `ended` [B] replaced by the `fresh` ones; the host need not know which."""

    def chosen(name: str) -> Tensor:
        new, old = getattr(fresh, name), getattr(state, name)
        return torch.where(ended.view(-1, *[1] * (old.dim() - 1)), new, old)

    return State(**{field.name: chosen(field.name) for field in fields(State)})


def select_episodes(state: State, where: Tensor) -> State:
    """The episodes at the indices `where` [b]."""
    return State(**{field.name: getattr(state, field.name).index_select(0, where) for field in fields(State)})


def episode_keys(streams: Tensor, episodes: Tensor) -> Tensor:
    """Keys of the episodes number `episodes` [B] of the random streams `streams` [B]; [B] int64."""
    return _hash(_hash(streams) + episodes * _GOLDEN)


def _hash(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014) on int64: the same random bits on every device."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        y = x >> shift
        y &= 2 ** (64 - shift) - 1  # shifts of signed integers copy the sign
        y ^= x
        x = y.mul_(factor) if factor != 1 else y
    return x


def _draw(keys: Tensor, n: int, horizon: int) -> Tensor:
    """`horizon` different numbers below n for each key, [B, H] int64: the head of a pseudo-random permutation.

    A generalised Feistel network with cycle walking (Black and Rogaway, 2002) permutes without ever holding the n
    numbers, so the draw costs the same for a thousand queries and for ten million.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    rounds = 8 if n >= 50 else 24  # measured: chi-squared of ordered pairs and triples, with 400,000 keys, within noise
    round_keys = _hash(keys + torch.arange(2, 2 + rounds, device=keys.device)[:, None])

    def permute(x: Tensor, round_keys: Tensor) -> Tensor:
        left, right = x % a, x // a
        for i, key in enumerate(round_keys):
            if i % 2 == 0:
                left = _hash(key + right).add_(left).remainder_(a)
            else:
                right = _hash(key + left).add_(right).remainder_(b)
        return left + a * right

    x = permute(torch.arange(horizon, device=keys.device), round_keys[:, :, None])
    while len(outside := (x >= n).nonzero()):
        episode, place = outside.unbind(1)
        x[episode, place] = permute(x[episode, place], round_keys[:, episode])
    return x
