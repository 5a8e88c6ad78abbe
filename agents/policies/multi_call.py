"""The bid-price policy for several calls a query: calls go on while one more is worth its money's opportunity cost.

The value of a call comes from `call_value`, the opportunity cost from `budget_value`; training adjusts prices, biases
and the logit of stopping from there.

Shapes: B observations, n training queries, K experts, L candidates, M = `max_calls`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.estimators.base import Estimates
from agents.policies.answer_model import AnswerModel, calls_from_features
from agents.policies.bid_price import NARROW, TEMPERATURE, BidPriceNetwork, BidPricePolicy
from agents.policies.budget_value import MIN_COST_RATIO, fit_budget_value
from agents.policies.call_value import FORBIDDEN, PARTS, CallValue, fit_call_value
from agents.progress import Bars, silent
from leeroo_env.dynamics import action_mask
from leeroo_env.table import ExpertTable


@dataclass(frozen=True)
class NetValues:
    """The value of one more call less its opportunity cost.

    Attributes:
        experts: [B, L] int64, the candidates.
        net: [B, L]; `FORBIDDEN` where the expert cannot be called.
        stop_value: [B], the chance that the leading answer is right.
        made: [B] int64, number of calls made.
    """

    experts: Tensor
    net: Tensor
    stop_value: Tensor
    made: Tensor


class MultiCallNetwork(BidPriceNetwork):
    """Observations [B, 6K + 5] (estimate, call and budget features) to logits [B, K + 1] and value features [B, 33].

    Logits of calls are (gain x chance that the call is affordable - price x opportunity cost) / temperature + bias; the
    last logit is that of the stop action. Price, biases and stop logit depend on the budget alone and start as 1, 0, 0.
    """

    def __init__(self, mean_cost_usd: list[float], price_range_usd: list[float], horizon: int, max_calls: int):
        super().__init__(mean_cost_usd, price_range_usd, horizon)
        self.latent_dim_pi = len(mean_cost_usd) + 1
        self.max_calls = max_calls
        self.call_value = CallValue(len(mean_cost_usd), max_calls).requires_grad_(False)
        self.stop_logit = nn.Sequential(nn.Linear(2, NARROW), nn.Tanh(), nn.Linear(NARROW, 1))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        budget = self._budget(observations)
        values = self._net_values(observations, budget)
        return self._call_logits(budget[0], values), self._call_features(observations, budget, values)

    def forward_actor(self, observations: Tensor) -> Tensor:
        budget = self._budget(observations)
        return self._call_logits(budget[0], self._net_values(observations, budget))

    def forward_critic(self, observations: Tensor) -> Tensor:
        budget = self._budget(observations)
        return self._call_features(observations, budget, self._net_values(observations, budget))

    def _net_values(self, observations: Tensor, of_budget: tuple[Tensor, Tensor, Tensor]) -> NetValues:
        """Of observations and their `_budget`."""
        k = len(self.mean_cost_usd)
        calls = calls_from_features(observations[:, 2 * k : 6 * k + 3], self.max_calls)
        budget, usd, queries = of_budget
        cost_usd = (observations[:, k : 2 * k] * self.high_usd).maximum(MIN_COST_RATIO * self.mean_cost_usd)
        allowed = action_mask(self.mean_cost_usd, usd[:, 0]) & (observations[:, 2 * k : 3 * k] == 0)
        terms = self.budget_value.considered_terms(observations[:, :k], cost_usd, usd, queries, allowed)
        affordable, price, allowed, among = terms
        price = self.price(budget).exp() * price
        with torch.no_grad():
            if_affordable = torch.where(affordable > 0, price / affordable, 1.0)
            budget_share = cost_usd / usd.clamp(min=1e-30)
            estimates = self.call_value(observations[:, :k], if_affordable, calls, allowed, budget_share, among)
        experts, gain = estimates.experts, estimates.gain
        net = gain * affordable.gather(1, experts) - price.gather(1, experts)
        return NetValues(experts, net.masked_fill(gain <= FORBIDDEN, FORBIDDEN), estimates.stop_value, calls.made)

    def _call_logits(self, budget: Tensor, values: NetValues) -> Tensor:
        call = values.net / TEMPERATURE + self.bias(budget).gather(1, values.experts)
        logits = torch.full((len(call), self.latent_dim_pi - 1), FORBIDDEN, device=call.device)
        stop = self.stop_logit(budget).masked_fill(values.made[:, None] == 0, FORBIDDEN)
        return torch.cat([logits.scatter(1, values.experts, call.clamp(min=FORBIDDEN)), stop], dim=1)

    def _call_features(
        self, observations: Tensor, of_budget: tuple[Tensor, Tensor, Tensor], values: NetValues
    ) -> Tensor:
        k = len(self.mean_cost_usd)
        budget, usd, queries = of_budget
        features = self.critic(torch.cat([observations[:, : 2 * k], budget], dim=1))
        best = values.net.detach().amax(dim=1)
        this_query = values.stop_value + torch.where(values.made > 0, best.clamp(min=0), best.clamp(min=-1))
        value = self.budget_value.value_at(queries - 1, usd) + this_query[:, None]
        return torch.cat([features, value], dim=1)


class MultiCallPolicy(BidPricePolicy):
    """`MultiCallNetwork` as a policy of stable-baselines3; arguments as `BidPricePolicy`, and `max_calls`."""

    def __init__(self, *args: Any, max_calls: int, **kwargs: Any):
        self.max_calls = max_calls
        super().__init__(*args, **kwargs)

    @property
    def network(self) -> MultiCallNetwork:
        assert isinstance(self.mlp_extractor, MultiCallNetwork)
        return self.mlp_extractor

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = MultiCallNetwork(*self._network_arguments, self.max_calls)  # type: ignore[assignment]

    def _actor(self) -> tuple[nn.Sequential, ...]:
        return (*super()._actor(), self.network.stop_logit)

    @property
    def digest_width(self) -> int:
        return 0

    @property
    def answer_model(self) -> AnswerModel:
        """As fitted; training does not change it."""
        return self.network.call_value.answer_model

    def set_call_value(self, call_value: CallValue) -> None:
        """Takes over what `agents.policies.call_value.fit_call_value` has fitted."""
        self.network.call_value.load_state_dict(call_value.state_dict())
        self.set_models(call_value.answer_model.models)

    def set_models(self, models: Tensor | None) -> None:
        """Tells which of the K experts are one model, as `leeroo_env.variants.shared_models` does."""
        self.answer_model.models = models if models is None else models.to(self.device)


def start_from_plan(
    policy: BidPricePolicy,
    table: ExpertTable,
    rows: Tensor,
    estimates: Estimates,
    seed: int = 0,
    bars: Bars = silent,
    evidence: Tensor | None = None,
) -> None:
    """Makes an untrained policy the greedy one with respect to a budget value (and call value) fitted to the training
    queries `rows` [n] with these out-of-fold estimates, and evidence [n, K] of their answers. `bars` show the progress.

    The budget value is that of one call a query for several calls, too: one from simulated calls scored
    a little less on two tables, and more on a third.
    """
    several = isinstance(policy, MultiCallPolicy)
    with bars("starting policy", 1 + several * PARTS) as bar:
        if isinstance(policy, MultiCallPolicy):
            policy.set_call_value(fit_call_value(table, rows, estimates, policy.max_calls, seed, bar.update, evidence))
        policy.start_from(fit_budget_value(table, rows, estimates, seed))
        bar.update()
