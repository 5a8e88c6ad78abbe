"""The bid-price policy for several calls a query: calls go on while one more is worth its money's opportunity cost.

The value of a call comes from `call_value`, the opportunity cost from `budget_value`; training adjusts prices, biases
and the logit of stopping from there.

Shapes: B observations, n training queries, K experts, L candidates, M = `max_calls`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from agents.estimators.base import Estimates
from agents.policies.answer_model import AnswerModel, calls_from_features
from agents.policies.bid_price import NARROW, TEMPERATURE, BidPriceNetwork, BidPricePolicy
from agents.policies.budget_value import MIN_COST_RATIO, fit_budget_value
from agents.policies.call_value import FORBIDDEN, CallValue, fit_call_value
from leeroo_env import dynamics
from leeroo_env.dynamics import Rules, action_mask

LATER_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
WEIGHING_QUERIES = 16_384  # that one of them is chosen on


class MultiCallNetwork(BidPriceNetwork):
    """Observations [B, 6K + 5] (estimate, call and budget features) to logits [B, K + 1] and value features [B, 33].

    Logits of calls are (gain x chance that the call is affordable - price x opportunity cost) / temperature + bias; the
    last logit is that of the stop action. Price, biases and stop logit depend on the budget alone and start as 1, 0, 0.
    Gains count later calls at the prices of the plan: what training changes is left out of what it reads, which is then
    computed once a rollout.
    """

    def __init__(self, mean_cost_usd: list[float], price_range_usd: list[float], horizon: int, max_calls: int):
        super().__init__(mean_cost_usd, price_range_usd, horizon)
        self.latent_dim_pi = len(mean_cost_usd) + 1
        self.max_calls = max_calls
        self.call_value = CallValue(len(mean_cost_usd), max_calls).requires_grad_(False)
        self.stop_logit = nn.Sequential(nn.Linear(2, NARROW), nn.Tanh(), nn.Linear(NARROW, 1))

    @property
    def digest_width(self) -> int:
        """F of `digest`."""
        return 2 * len(self.mean_cost_usd) + 3 * self.call_value.n_candidates + 5

    def digest(self, observations: Tensor) -> Tensor:
        """The part of the forward pass without learnable parameters, [B, 2K + 3L + 5]: estimates [2K], budget features
        [2]; value of stopping now, whether there was a call, value of the queries to come [1] each; and of the
        candidates [L] each: which expert it is, gain x chance that the call is affordable (`FORBIDDEN` where it cannot
        be called), opportunity cost."""
        k = len(self.mean_cost_usd)
        calls = calls_from_features(observations[:, 2 * k : 6 * k + 3], self.max_calls)
        budget, usd, queries = self._budget(observations)
        cost_usd = (observations[:, k : 2 * k] * self.high_usd).maximum(MIN_COST_RATIO * self.mean_cost_usd)
        allowed = action_mask(self.mean_cost_usd, usd[:, 0]) & (observations[:, 2 * k : 3 * k] == 0)
        terms = self.budget_value.considered_terms(observations[:, :k], cost_usd, usd, queries, allowed)
        affordable, price, allowed, among = terms
        if_affordable = torch.where(affordable > 0, price / affordable, 1.0)
        budget_share = cost_usd / usd.clamp(min=1e-30)
        estimates = self.call_value(observations[:, :k], if_affordable, calls, allowed, budget_share, among)
        experts, gain = estimates.experts, estimates.gain
        closed = gain <= FORBIDDEN
        gain = (gain * affordable.gather(1, experts)).masked_fill(closed, FORBIDDEN)
        price = price.gather(1, experts).masked_fill(closed, 0.0)
        to_come = self.budget_value.value_at(queries - 1, usd)
        once = [budget, estimates.stop_value[:, None], (calls.made > 0)[:, None], to_come]
        return torch.cat([observations[:, : 2 * k], *once, experts, gain, price], dim=1)

    def evaluate_digest(self, digest: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K + 1] and value features [B, 33] from `digest`."""
        net = self._net_values(digest)
        return self._call_logits(digest, net), self._call_features(digest, net)

    def forward_actor(self, observations: Tensor) -> Tensor:
        digest = self.digest(observations)
        return self._call_logits(digest, self._net_values(digest))

    def forward_critic(self, observations: Tensor) -> Tensor:
        digest = self.digest(observations)
        return self._call_features(digest, self._net_values(digest))

    def _parts(self, digest: Tensor) -> tuple[Tensor, ...]:
        """The parts of `digest`."""
        k, n = len(self.mean_cost_usd), self.call_value.n_candidates
        return digest.split([2 * k, 2, 1, 1, 1, n, n, n], dim=1)

    def _net_values(self, digest: Tensor) -> Tensor:
        """[B, L], what a call to each candidate is worth less its price."""
        _, budget, *_, gain, price = self._parts(digest)
        return gain - self.price(budget).exp() * price

    def _call_logits(self, digest: Tensor, net: Tensor) -> Tensor:
        _, budget, _, begun, _, experts, *_ = self._parts(digest)
        experts = experts.long()
        call = net / TEMPERATURE + self.bias(budget).gather(1, experts)
        logits = torch.full((len(call), self.latent_dim_pi - 1), FORBIDDEN, device=call.device)
        stop = self.stop_logit(budget).masked_fill(begun == 0, FORBIDDEN)
        return torch.cat([logits.scatter(1, experts, call.clamp(min=FORBIDDEN)), stop], dim=1)

    def _call_features(self, digest: Tensor, net: Tensor) -> Tensor:
        estimates, budget, stop_value, begun, to_come, *_ = self._parts(digest)
        best = net.detach().amax(dim=1, keepdim=True)
        this_query = stop_value + torch.where(begun > 0, best.clamp(min=0), best.clamp(min=-1))
        return torch.cat([self.critic(torch.cat([estimates, budget], dim=1)), to_come + this_query], dim=1)


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
    rules: Rules,
    rows: Tensor,
    estimates: Estimates,
    seed: int = 0,
    answer_model: AnswerModel | None = None,
) -> None:
    """Makes an untrained policy the greedy one with respect to a budget value (and call value) fitted to the training
    queries.

    The budget value is that of one call a query for several calls, too: one from simulated calls scored
    a little less on two tables, and more on a third.

    Args:
        policy: to be trained by the `rules`.
        rules: of training episodes.
        rows: [n], the training queries.
        estimates: of these, out of fold.
        seed: of draws.
        answer_model: fitted to these queries; None: it is fitted here, if several calls need it.
    """
    if isinstance(policy, MultiCallPolicy):
        fitted = (policy.max_calls, seed, rules.evidence[rows], answer_model)
        policy.set_call_value(fit_call_value(rules.table, rows, estimates, *fitted))
    policy.start_from(fit_budget_value(rules.table, rows, estimates, seed))
    if isinstance(policy, MultiCallPolicy):
        choose_later_weight(policy, rules, seed)


@torch.no_grad()
def choose_later_weight(policy: MultiCallPolicy, rules: Rules, seed: int = 0) -> None:
    """Chooses what the gain of later calls counts: as much as scores most in episodes by these rules of training.

    The most promising of many calls is overrated (Smith and Winkler, The optimizer's curse, Management Science, 2006),
    answers may agree for other reasons than being right, and who overrates calls spends too early.
    """
    number = torch.arange(-(-WEIGHING_QUERIES // rules.horizon), device=rules.table.device)
    keys = dynamics.episode_keys(torch.full_like(number, -1 - seed), number)
    state = dynamics.select_episodes(dynamics.sample_episodes(rules, keys), number.repeat(len(LATER_WEIGHTS)))
    call_value, tried = policy.network.call_value, torch.tensor(LATER_WEIGHTS, device=keys.device)
    weight = call_value.later_weight
    call_value.later_weight = tried.repeat_interleave(len(number))[:, None]  # of each episode
    while bool((state.t < rules.horizon).any()):
        actions = policy.log_probabilities(dynamics.observe(rules, state)).argmax(dim=1)
        state, _ = dynamics.step(rules, state, actions)
    score = state.score.view(len(tried), -1).mean(dim=1)
    call_value.later_weight = weight.copy_(tried[score.argmax()])
