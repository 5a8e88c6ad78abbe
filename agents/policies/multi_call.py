"""The bid-price policy for several calls a query: ask on while a call is worth more than what its money buys later.

What a call is worth comes from `call_value`, what money buys from a plan; PPO trains prices, biases and patience on
from there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from agents.policies.answer_model import AnswerModel, calls_from_features
from agents.policies.bid_price import NARROW, TEMPERATURE, BidPriceNetwork, BidPricePolicy
from agents.policies.budget_value import LEAST_COST, BudgetValue, cost_ratios, fit_budget_value, solve_call_sequences
from agents.policies.call_value import FORBIDDEN, CallValue, fit_call_value, simulate_calls
from leeroo_env.dynamics import action_mask, price_range
from leeroo_env.table import ExpertTable

WAYS = 24
WAY_PRICES = (2e-3, 100.0)  # as `agents.policies.call_value.PRICES`, a little wider
SAMPLE = 768


class MultiCallNetwork(BidPriceNetwork):
    """Observations [B, 5K + 5] (estimate features, poll features, budget features) to logits [B, K + 1], the last of
    which delivers, and features of the value.

    Logits are (gain x chance of an answer - price x what the plan says the money is worth) / temperature + bias,
    against patience for delivering. Price, biases and patience depend on the budget alone and begin as 1, 0 and 0.
    """

    def __init__(self, mean_cost_usd: list[float], price_range_usd: list[float], horizon: int, max_calls: int):
        super().__init__(mean_cost_usd, price_range_usd, horizon)
        self.latent_dim_pi = len(mean_cost_usd) + 1
        self.max_calls = max_calls
        self.call_value = CallValue(len(mean_cost_usd), max_calls).requires_grad_(False)
        self.stop_logit = nn.Sequential(nn.Linear(2, NARROW), nn.Tanh(), nn.Linear(NARROW, 1))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        who, net, now, made = self._weigh(observations)
        return self._ask_logits(observations, who, net, made), self._ask_features(observations, net, now, made)

    def forward_actor(self, observations: Tensor) -> Tensor:
        who, net, _, made = self._weigh(observations)
        return self._ask_logits(observations, who, net, made)

    def forward_critic(self, observations: Tensor) -> Tensor:
        _, net, now, made = self._weigh(observations)
        return self._ask_features(observations, net, now, made)

    def _weigh(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The experts considered [B, L], what asking them brings net of its price [B, L], what delivering is worth [B],
        and the calls made [B]."""
        k = len(self.mean_cost_usd)
        calls = calls_from_features(observations[:, 2 * k : 5 * k + 3], self.max_calls)
        budget, usd, queries = self._budget(observations)
        cost_usd = (observations[:, k : 2 * k] * self.dearest_usd).maximum(LEAST_COST * self.mean_cost_usd)
        answered, price = self.budget_value.call_terms(cost_usd, usd, queries)
        price = self.price(budget).exp() * price
        allowed = action_mask(self.mean_cost_usd, usd[:, 0]) & (observations[:, 2 * k : 3 * k] == 0)
        with torch.no_grad():
            if_answered = torch.where(answered > 0, price / answered, 1.0)
            advice = self.call_value(observations[:, :k], if_answered, calls, allowed, cost_usd / usd.clamp(min=1e-30))
        net = advice.gain * answered.gather(1, advice.who) - price.gather(1, advice.who)
        return advice.who, net.masked_fill(advice.gain <= FORBIDDEN, FORBIDDEN), advice.now, calls.made

    def _ask_logits(self, observations: Tensor, who: Tensor, net: Tensor, made: Tensor) -> Tensor:
        budget, _, _ = self._budget(observations)
        ask = net / TEMPERATURE + self.bias(budget).gather(1, who)
        logits = torch.full((len(who), self.latent_dim_pi), FORBIDDEN, device=who.device)
        deliver = self.stop_logit(budget).masked_fill(made[:, None] == 0, FORBIDDEN)
        return torch.cat([logits[:, :-1].scatter(1, who, ask.clamp(min=FORBIDDEN)), deliver], dim=1)

    def _ask_features(self, observations: Tensor, net: Tensor, now: Tensor, made: Tensor) -> Tensor:
        k = len(self.mean_cost_usd)
        budget, usd, queries = self._budget(observations)
        features = self.critic(torch.cat([observations[:, : 2 * k], budget], dim=1))
        best = net.detach().amax(dim=1)
        here = now + torch.where(made > 0, best.clamp(min=0), best.clamp(min=-1))
        return torch.cat([features, self.budget_value.value_at(queries - 1, usd) + here[:, None]], dim=1)


class MultiCallPolicy(BidPricePolicy):
    """An SB3 policy around `MultiCallNetwork`; arguments as `BidPricePolicy`, and `max_calls`."""

    def __init__(self, *args: Any, max_calls: int, **kwargs: Any):
        self.max_calls = max_calls
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = MultiCallNetwork(*self._network_arguments, self.max_calls)  # type: ignore[assignment]

    def _actor(self) -> tuple[nn.Sequential, ...]:
        assert isinstance(self.network, MultiCallNetwork)
        return (*super()._actor(), self.network.stop_logit)

    @property
    def digest_width(self) -> int:
        return 0

    @property
    def answer_model(self) -> AnswerModel:
        """What has been learnt of how experts agree; training leaves it as it is."""
        assert isinstance(self.network, MultiCallNetwork)
        return self.network.call_value.answer_model

    def set_call_value(self, asking: CallValue) -> None:
        """Takes over what `agents.policies.call_value.fit_call_value` has learnt."""
        assert isinstance(self.network, MultiCallNetwork)
        self.network.call_value.load_state_dict(asking.state_dict())


def start_from_plan(policy: BidPricePolicy, table: ExpertTable, rows: Tensor, estimates: Tensor, seed: int = 0) -> None:
    """Makes an untrained policy the one that follows from left-out estimates [n, 2K] of training queries `rows` [n]."""
    if not isinstance(policy, MultiCallPolicy):
        policy.start_from(fit_budget_value(table, rows, estimates, seed))
        return
    asking = fit_call_value(table, rows, estimates, policy.max_calls, seed)
    policy.set_call_value(asking)
    policy.start_from(fit_multi_call_budget_value(table, rows, estimates, asking, seed))


@torch.no_grad()
def fit_multi_call_budget_value(
    table: ExpertTable, rows: Tensor, estimates: Tensor, asking: CallValue, seed: int = 0
) -> BudgetValue:
    """The plan for a table, from how `asking` would go about training queries `rows` [n], whose left-out estimates are
    [n, 2K], at prices from low to high."""
    device = table.device
    sample = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:SAMPLE].to(device)
    mean_cost_usd = table.mean_cost_usd()
    low_usd, high_usd = price_range(mean_cost_usd)
    low, high = WAY_PRICES
    prices = torch.logspace(math.log10(low), math.log10(high), WAYS, device=device) / high_usd
    chance, cost_usd = estimates[sample].chunk(2, dim=1)
    answer_ids, costs_usd = table.answer_ids[rows[sample]].long(), table.costs_usd[rows[sample]]
    spent_usd, value = [], []
    for price in prices:
        asked, told = simulate_calls(asking, chance, price * cost_usd, answer_ids)
        spent_usd.append((costs_usd.gather(1, asked.clamp(min=0)) * (asked >= 0)).cumsum(dim=1))
        value.append(told)
    ratios = cost_ratios(estimates.chunk(2, dim=1)[1], table.costs_usd[rows], mean_cost_usd)
    return solve_call_sequences(torch.stack(spent_usd), torch.stack(value), ratios, mean_cost_usd, (low_usd, high_usd))
