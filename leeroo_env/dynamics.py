"""The rules of an episode, as pure functions over batches of episodes.

A stream of H queries arrives one by one and a budget of dollars has to last for all of them. Every step picks the
expert that answers the query at hand. The environments, the evaluation and the training loops all play by these
functions and by nothing else; the same inputs give the same episodes on every device.

B episodes, H queries an episode, N queries in the table, K experts, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

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
        rows: [n] int64, the rows of the table that queries are drawn from.
        horizon: H, queries an episode.
        budget_usd_per_query: lowest and highest budget, dollars a query; one is drawn per episode, log-uniform.
        cost_weight: what the mean cost of the dearest expert weighs against one correct answer in the reward.
        mean_cost_usd: [K], each expert's mean cost on the training split: all that is known of a price beforehand.
        price_range_usd: cheapest and dearest mean cost, the scale on which budgets are observed.
    """

    table: ExpertTable
    rows: Tensor
    horizon: int
    budget_usd_per_query: tuple[float, float]
    cost_weight: float
    mean_cost_usd: Tensor
    price_range_usd: tuple[float, float]


@dataclass(frozen=True)
class State:
    """Where B episodes stand. Every field's first dimension is B.

    Attributes:
        rows: [B, H] int64, the rows of the table that the episode asks about, in order.
        t: [B] int64, queries answered so far.
        budget_usd: [B] float64, what the episode began with; single precision would lose small sums beside large ones.
        left_usd: [B] float64, what is left of it.
        score: [B], sum of the scores so far.
        refused: [B] int64, calls so far that cost more than what was left.
        calls: [B, K] int64, calls made to each expert so far.
    """

    rows: Tensor
    t: Tensor
    budget_usd: Tensor
    left_usd: Tensor
    score: Tensor
    refused: Tensor
    calls: Tensor


@dataclass(frozen=True)
class Outcome:
    """What one step brought, each [B]: `refused` and `terminated` are bool, `score` and `cost_usd` 0 where refused."""

    reward: Tensor
    terminated: Tensor
    score: Tensor
    cost_usd: Tensor
    refused: Tensor


def make_rules(
    table: ExpertTable,
    split: str = "train",
    horizon: int = HORIZON,
    budget_usd_per_query: float | Sequence[float] | None = None,
    cost_weight: float = COST_WEIGHT,
) -> Rules:
    """Checks the settings of an episode and works out what follows from the table.

    Args:
        table: the experts' scores and costs.
        split: where queries are drawn from.
        horizon: H, queries an episode; drawn without replacement.
        budget_usd_per_query: a number fixes it, two give a range; None: cheapest to dearest expert's mean cost.
        cost_weight: weight of the cost in the reward.

    Raises:
        InputError: no such split, a horizon longer than the split, or a budget below every expert's cost.
    """
    rows = table.rows(split)
    if not 1 <= horizon <= len(rows):
        raise InputError(
            f"horizon {horizon}: must be 1 to {len(rows)}, the queries in the {split} split of {table.name}"
        )
    if not (math.isfinite(cost_weight) and cost_weight >= 0):
        raise InputError(f"cost weight {cost_weight}: must be 0 or more")
    mean_cost_usd = table.mean_cost_usd()
    price_range_usd = price_range(mean_cost_usd)
    budget = price_range_usd if budget_usd_per_query is None else budget_usd_per_query
    low, high = _low_and_high(budget)
    cheapest = float(mean_cost_usd.min())
    if low < cheapest * (1 - 1e-6):
        name = table.experts[int(mean_cost_usd.argmin())]
        raise InputError(
            f"budget {low:g} dollars a query: below every expert's mean cost; {name} is cheapest at {cheapest:.3g}"
        )
    return Rules(table, rows, horizon, (float(low), float(high)), cost_weight, mean_cost_usd, price_range_usd)


def _low_and_high(budget: float | Sequence[float]) -> tuple[float, float]:
    numbers = [float(usd) for usd in (budget if isinstance(budget, Sequence) else [budget])]
    if len(numbers) not in (1, 2):
        raise InputError(f"budget {tuple(numbers)}: give one number or two")
    if not all(math.isfinite(usd) and usd > 0 for usd in numbers):
        raise InputError(f"budget {', '.join(f'{usd:g}' for usd in numbers)}: must be finite and above 0")
    return min(numbers), max(numbers)


def price_range(mean_cost_usd: Tensor) -> tuple[float, float]:
    """Cheapest and dearest mean cost; free experts count as a tenth of the cheapest that is not."""
    dearest = float(mean_cost_usd.max())
    if dearest == 0:
        return 1.0, 1.0
    cheapest = float(mean_cost_usd.min())
    return (cheapest if cheapest > 0 else float(mean_cost_usd[mean_cost_usd > 0].min()) / 10), dearest


def budget_grid(rules: Rules, n: int = 6) -> list[float]:
    """The budgets of a report, dollars a query: geometric from 1.2 x the cheapest price to below the dearest."""
    low, high = rules.price_range_usd
    low, high = 1.2 * low, max(high, 2.4 * low)
    return [low * (high / low) ** (i / n) for i in range(n)]


def begin(rules: Rules, keys: Tensor, budget_usd_per_query: Tensor | None = None) -> State:
    """The start of B episodes. An episode's queries and budget depend on its key alone.

    Args:
        keys: [B] int64, any numbers; `episode_keys` makes good ones.
        budget_usd_per_query: [B], overrides the drawn budget.
    """
    b, k = len(keys), len(rules.table.experts)
    if budget_usd_per_query is None:
        low, high = rules.budget_usd_per_query
        uniform = (_hash(keys + 1) & (2**53 - 1)).double() / 2**53
        budget_usd_per_query = low * (high / low) ** uniform
    budget_usd = budget_usd_per_query.double() * rules.horizon
    zeros = torch.zeros(b, dtype=torch.int64, device=keys.device)
    return State(
        rows=rules.rows[_draw(keys, len(rules.rows), rules.horizon)],
        t=zeros,
        budget_usd=budget_usd,
        left_usd=budget_usd,
        score=torch.zeros(b, device=keys.device),
        refused=zeros,
        calls=torch.zeros(b, k, dtype=torch.int64, device=keys.device),
    )


def step(rules: Rules, state: State, actions: Tensor) -> tuple[State, Outcome]:
    """Asks one expert about the query at hand, in every episode.

    A call that costs more than what is left is refused: it scores 0, costs nothing, and the episode goes on.

    Args:
        actions: [B] int64, the experts to ask.
    """
    row = current_rows(state)
    cost_usd = rules.table.costs_usd[row, actions].double()
    refused = cost_usd > state.left_usd
    cost_usd = cost_usd.masked_fill(refused, 0.0)
    score = rules.table.scores[row, actions].masked_fill(refused, 0.0)
    t = state.t + 1
    after = State(
        rows=state.rows,
        t=t,
        budget_usd=state.budget_usd,
        left_usd=state.left_usd - cost_usd,
        score=state.score + score,
        refused=state.refused + refused,
        calls=state.calls.scatter_add(1, actions[:, None], torch.ones_like(actions)[:, None]),
    )
    reward = (score - rules.cost_weight / rules.price_range_usd[1] * cost_usd).float()
    return after, Outcome(reward, t >= rules.horizon, score, cost_usd, refused)


def current_rows(state: State) -> Tensor:
    """The row of the table that each episode asks about now, [B] int64; the last one once the episode has ended."""
    return state.rows.gather(1, state.t.clamp(max=state.rows.shape[1] - 1)[:, None]).squeeze(1)


def observe(rules: Rules, state: State) -> Tensor:
    """What the agent sees: the query's embedding, then the budget features; [B, D + 2] float32."""
    embeddings = rules.table.embeddings[current_rows(state)].float()
    budget = budget_features(rules.price_range_usd, state.left_usd, rules.horizon - state.t)
    return torch.cat([embeddings, budget], dim=1)


def budget_features(price_range_usd: tuple[float, float], left_usd: Tensor, queries_left: Tensor) -> Tensor:
    """What the agent sees of money and time, from nothing but dollars left [B] and queries left [B]; [B, 2] float32.

    First the dollars per remaining query on the log scale of the experts' mean costs, 0 at the cheapest's and 1 at the
    dearest's, cut at -1 and 2. Then the number of queries left, log2 / 10, so that 1,024 queries are 1.
    """
    low, high = price_range_usd
    queries = queries_left.clamp(min=1).float()
    pace = torch.log(left_usd / queries / low) / max(math.log(high / low), math.log(2))
    return torch.stack([pace.clamp(-1, 2).float(), torch.log2(queries) / 10], dim=1)


def action_mask(mean_cost_usd: Tensor, left_usd: Tensor) -> Tensor:
    """The experts whose known mean cost [K] fits what is left [B]; [B, K] bool. The cheapest always stays allowed."""
    mask = mean_cost_usd <= left_usd[:, None]
    mask[:, mean_cost_usd.argmin()] = True
    return mask


def restart(state: State, where: Tensor, fresh: State) -> State:
    """`state` with the episodes at the indices `where` [b] replaced by the `fresh` ones."""
    if len(where) == len(state.t):
        return fresh
    names = [field.name for field in fields(State)]
    return replace(state, **{n: getattr(state, n).index_copy(0, where, getattr(fresh, n)) for n in names})


def episode_keys(streams: Tensor, episodes: Tensor) -> Tensor:
    """Keys of the episodes number `episodes` [B] of the random streams `streams` [B]; [B] int64."""
    return _hash(_hash(streams) + episodes * _GOLDEN)


def _hash(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014) on int64: the same random bits on every device."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -7723592293110705685
    return x ^ ((x >> 31) & (2**33 - 1))


def _draw(keys: Tensor, n: int, horizon: int) -> Tensor:
    """`horizon` different numbers below n for each key, [B, H] int64: the head of a pseudo-random permutation.

    A generalised Feistel network with cycle walking (Black and Rogaway, 2002) permutes without ever holding the n
    numbers, so the draw costs the same for a thousand queries and for ten million.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    rounds = 8 if n >= 50 else 24  # measured: chi-squared of ordered pairs and triples, with 400,000 keys, within noise
    round_keys = [_hash(keys + (2 + i))[:, None] for i in range(rounds)]

    def permute(x: Tensor) -> Tensor:
        left, right = x % a, x // a
        for i, key in enumerate(round_keys):
            if i % 2 == 0:
                left = (left + _hash(key + right)) % a
            else:
                right = (right + _hash(key + left)) % b
        return left + a * right

    x = permute(torch.arange(horizon, device=keys.device).expand(len(keys), horizon))
    while bool((outside := x >= n).any()):
        x = torch.where(outside, permute(x), x)
    return x
