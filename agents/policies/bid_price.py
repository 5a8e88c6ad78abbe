"""The policy for one call a query: expected score less the opportunity cost of the call's money (a bid-price control).

It starts as the solution of the dynamic program in `budget_value`, for every budget and every number of queries left,
and is trained from there. Its features are estimates of scores and costs, not embeddings, so a rollout needs no wide
matrix product.

Shapes: B observations, K experts, F = 4K + 3 features of a digest.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from agents.estimators.base import Estimates
from agents.policies.budget_value import N_BUDGETS, N_COST_RATIOS, N_QUERIES, BudgetValue
from leeroo_env.cost_scale import CostScale
from leeroo_env.dynamics import action_mask

TEMPERATURE = 0.02
HIDDEN = 32
NARROW = 16  # units of the networks that see the budget alone
FORBIDDEN = -1e4


def estimate_features(estimates: Estimates, scale: CostScale) -> Tensor:
    """[B, 2K], estimated scores, then estimated costs in units of the most expensive expert's mean cost."""
    return torch.cat([estimates.score, estimates.cost_usd / scale.high_usd], dim=1)


class BidPriceNetwork(nn.Module):
    """Observations [B, 2K + 2] (estimate features, budget features) to logits [B, K] and value features [B, 33].

    Logits are (score x chance that the call is affordable - price x opportunity cost) / temperature + bias. The factor
    `price` and the experts' biases depend on the budget alone, so that they generalise from the training queries to
    others; they start as 1 and 0. The last value feature is the budget value.
    """

    value: Tensor
    cost_ratios: Tensor
    mean_cost_usd: Tensor

    def __init__(self, mean_cost_usd: list[float], price_range_usd: list[float], horizon: int):
        super().__init__()
        k = len(mean_cost_usd)
        self.latent_dim_pi, self.latent_dim_vf = k, HIDDEN + 1
        self.low_usd, self.high_usd = price_range_usd
        self.max_length = math.log2(horizon) / 10
        self.register_buffer("mean_cost_usd", torch.tensor(mean_cost_usd), persistent=False)
        self.register_buffer("value", torch.zeros(N_QUERIES + 1, N_BUDGETS))
        self.register_buffer("cost_ratios", torch.ones(N_COST_RATIOS, k))
        self.price = nn.Sequential(nn.Linear(2, NARROW), nn.Tanh(), nn.Linear(NARROW, 1))
        self.bias = nn.Sequential(nn.Linear(2, NARROW), nn.Tanh(), nn.Linear(NARROW, k))
        self.critic = nn.Sequential(nn.Linear(2 * k + 2, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())

    @property
    def cost_scale(self) -> CostScale:
        return CostScale(self.mean_cost_usd, self.low_usd, self.high_usd)

    @property
    def budget_value(self) -> BudgetValue:
        return BudgetValue(self.value, self.cost_ratios, self.cost_scale)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.evaluate_digest(self.digest(observations))

    def forward_actor(self, observations: Tensor) -> Tensor:
        return self._logits(self.digest(observations))

    def forward_critic(self, observations: Tensor) -> Tensor:
        return self._value_features(self.digest(observations))

    @property
    def digest_width(self) -> int:
        """F of `digest`."""
        return 4 * len(self.mean_cost_usd) + 3

    def digest(self, observations: Tensor) -> Tensor:
        """The part of the forward pass without learnable parameters, [B, 4K + 3]: score x chance that the call is
        affordable, very low where it is not allowed, [K]; opportunity costs [K]; estimates [2K]; budget features [2];
        budget value [1]."""
        k = len(self.mean_cost_usd)
        score, cost = observations[:, :k], observations[:, k : 2 * k]
        budget, usd, queries = self._budget(observations)
        allowed = action_mask(self.mean_cost_usd, usd[:, 0])
        terms = self.budget_value.considered_terms(score, cost * self.high_usd, usd, queries, allowed)
        affordable, price, allowed, _ = terms
        gain = torch.where(allowed, score * affordable, FORBIDDEN * TEMPERATURE)
        value = self.budget_value.value_at(queries, usd)
        return torch.cat([gain, price, observations[:, : 2 * k], budget, value], dim=1)

    def evaluate_digest(self, digest: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and value features [B, 33] from `digest` [B, 4K + 3]."""
        return self._logits(digest), self._value_features(digest)

    def _logits(self, digest: Tensor) -> Tensor:
        gain, price = digest[:, : 2 * len(self.mean_cost_usd)].chunk(2, dim=1)
        budget = digest[:, -3:-1]
        return (gain - self.price(budget).exp() * price) / TEMPERATURE + self.bias(budget)

    def _value_features(self, digest: Tensor) -> Tensor:
        return torch.cat([self.critic(digest[:, 2 * len(self.mean_cost_usd) : -1]), digest[:, -1:]], dim=1)

    def _budget(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Budget features [B, 2] for the networks, with the length clamped to that of training episodes; dollars and
        queries left, [B, 1], for the budget value, which knows longer ones."""
        budget, length = observations[:, -2:-1], observations[:, -1:]
        queries = torch.exp2(10 * length).round()
        usd = (budget * self.cost_scale.log_range).exp() * self.low_usd * queries
        return torch.cat([budget, length.clamp(max=self.max_length)], dim=1), usd, queries


class BidPricePolicy(ActorCriticPolicy):
    """`BidPriceNetwork` as a policy of stable-baselines3.

    Args:
        args: of `ActorCriticPolicy`.
        mean_cost_usd: [K], of the rules that it is trained by, as the other two.
        price_range_usd: lowest and highest of these.
        horizon: queries of an episode.
        kwargs: of `ActorCriticPolicy`.
    """

    def __init__(
        self, *args: Any, mean_cost_usd: list[float], price_range_usd: list[float], horizon: int, **kwargs: Any
    ):
        self._network_arguments = mean_cost_usd, price_range_usd, horizon
        super().__init__(*args, **{"ortho_init": False, **kwargs})

    @property
    def network(self) -> BidPriceNetwork:
        assert isinstance(self.mlp_extractor, BidPriceNetwork)
        return self.mlp_extractor

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = BidPriceNetwork(*self._network_arguments)  # type: ignore[assignment]

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # the network's logits are the policy's
        for layer in (*(part[-1] for part in self._actor()), self.value_net):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.value_net.weight[0, -1] = 1.0  # of the budget value
        optimizer_class: Any = self.optimizer_class
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    @property
    def digest_width(self) -> int:
        """F of `digest`; 0 for a policy without one."""
        return self.network.digest_width

    def digest(self, observations: Tensor) -> Tensor:
        """The part of the forward pass that training does not change, [B, F]: PPO computes it once an iteration."""
        return self.network.digest(self.extract_features(observations))  # type: ignore[arg-type]

    def evaluate_digest(self, digest: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and values [B] from `digest` [B, F]."""
        logits, features = self.network.evaluate_digest(digest)
        return logits, self.value_net(features).squeeze(1)

    def log_probabilities(self, observations: Tensor) -> Tensor:
        """Those of `get_distribution`, [B, actions], without the distribution."""
        logits = self.network.forward_actor(self.extract_features(observations))  # type: ignore[arg-type]
        return logits - logits.logsumexp(dim=1, keepdim=True)

    def start_from(self, budget_value: BudgetValue) -> None:
        """Makes an untrained policy the greedy one with respect to a budget value."""
        self.network.value.copy_(budget_value.value)
        self.network.cost_ratios.copy_(budget_value.cost_ratios)

    def train_actor(self, on: bool) -> None:
        """Lets training change the choice and the value, or the value alone.

        The advantages of an untrained value are noise, which would make a good initial choice worse.
        """
        for part in self._actor():
            part.requires_grad_(on)

    def _actor(self) -> tuple[nn.Sequential, ...]:
        """The parts that learn the choice; they start without effect."""
        return self.network.price, self.network.bias
