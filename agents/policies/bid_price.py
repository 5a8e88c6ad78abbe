"""The bid-price policy: what an answer is estimated to be worth, less what its cost would buy later.

It begins as the plan of `budget_value`, which serves every budget and every number of queries left, and is trained on
from there. Its features are estimates, not embeddings, so a rollout needs no wide matrix product.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from agents.policies.budget_value import POINTS, QUERIES, RATIOS, BudgetValue
from leeroo_env.dynamics import action_mask
from leeroo_env.table import ExpertTable

TEMPERATURE = 0.02
HIDDEN = 32
NARROW = 16  # of what depends on the budget alone
FORBIDDEN = -1e4


def table_of_estimates(table: ExpertTable, estimates: Tensor, dearest_usd: float) -> ExpertTable:
    """The same table with `estimate_features` of `estimates` [N, 2K] in place of the embeddings."""
    return replace(table, embeddings=estimate_features(estimates, dearest_usd))


def estimate_features(estimates: Tensor, dearest_usd: float) -> Tensor:
    """Estimated scores, then estimated costs in units of the dearest expert's mean cost; [B, 2K] from dollars."""
    score, cost_usd = estimates.chunk(2, dim=1)
    return torch.cat([score, cost_usd / dearest_usd], dim=1)


class BidPriceNetwork(nn.Module):
    """Observations [B, 2K + 2] (estimate features, budget features) to logits [B, K] and features of the value [B, 65].

    Logits are (score x chance of an answer - price x what the plan says the money is worth) / temperature + bias. Price
    and the experts' biases depend on the budget alone, so that what is learnt of the training queries holds for others;
    they begin as 1 and 0. The last feature of the value is the plan's.
    """

    value: Tensor
    cost_ratios: Tensor
    mean_cost_usd: Tensor

    def __init__(self, mean_cost_usd: list[float], price_range_usd: list[float], horizon: int):
        super().__init__()
        k = len(mean_cost_usd)
        self.latent_dim_pi, self.latent_dim_vf = k, HIDDEN + 1
        self.low_usd, self.dearest_usd = price_range_usd
        self.longest = math.log2(horizon) / 10
        self.spread = max(math.log(price_range_usd[1] / price_range_usd[0]), math.log(2))
        self.register_buffer("mean_cost_usd", torch.tensor(mean_cost_usd), persistent=False)
        self.register_buffer("value", torch.zeros(QUERIES + 1, POINTS))
        self.register_buffer("cost_ratios", torch.ones(RATIOS, k))
        self.price = nn.Sequential(nn.Linear(2, NARROW), nn.Tanh(), nn.Linear(NARROW, 1))
        self.bias = nn.Sequential(nn.Linear(2, NARROW), nn.Tanh(), nn.Linear(NARROW, k))
        self.critic = nn.Sequential(nn.Linear(2 * k + 2, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())

    @property
    def budget_value(self) -> BudgetValue:
        return BudgetValue(self.value, self.cost_ratios, self.mean_cost_usd, self.low_usd, self.spread)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.decide(self.digest(observations))

    def forward_actor(self, observations: Tensor) -> Tensor:
        return self._logits(self.digest(observations))

    def forward_critic(self, observations: Tensor) -> Tensor:
        return self._value_features(self.digest(observations))

    def digest(self, observations: Tensor) -> Tensor:
        """What learning does not change, [B, 4K + 3]: each expert's score x chance of an answer, far below 0 where
        it is too dear, and what its money is worth; then the estimates, the budget, and what the plan says of both."""
        k = len(self.mean_cost_usd)
        score, cost = observations[:, :k], observations[:, k : 2 * k]
        budget, usd, queries = self._budget(observations)
        answered, price = self.budget_value.call_terms(cost * self.dearest_usd, usd, queries)
        allowed = action_mask(self.mean_cost_usd, usd[:, 0])
        gain = torch.where(allowed, score * answered, FORBIDDEN * TEMPERATURE)
        return torch.cat(
            [gain, price, observations[:, : 2 * k], budget, self.budget_value.value_at(queries, usd)], dim=1
        )

    def decide(self, digest: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and value features from `digest` [B, 4K + 3]."""
        return self._logits(digest), self._value_features(digest)

    def _logits(self, digest: Tensor) -> Tensor:
        gain, price = digest[:, : 2 * len(self.mean_cost_usd)].chunk(2, dim=1)
        budget = digest[:, -3:-1]
        return (gain - self.price(budget).exp() * price) / TEMPERATURE + self.bias(budget)

    def _value_features(self, digest: Tensor) -> Tensor:
        return torch.cat([self.critic(digest[:, 2 * len(self.mean_cost_usd) : -1]), digest[:, -1:]], dim=1)

    def _budget(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Budget features as the networks see them, [B, 2]; dollars and queries left, [B, 1]. Networks see no longer
        episodes than those they were trained on: beyond, only the plan knows."""
        pace, length = observations[:, -2:-1], observations[:, -1:]
        queries = torch.exp2(10 * length).round()
        usd = (pace * self.spread).exp() * self.low_usd * queries
        return torch.cat([pace, length.clamp(max=self.longest)], dim=1), usd, queries


class BidPricePolicy(ActorCriticPolicy):
    """An SB3 policy around `BidPriceNetwork`; `mean_cost_usd` [K], `price_range_usd` and `horizon` are those of the
    rules it is trained by."""

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
            self.value_net.weight[0, -1] = 1.0  # the plan's value
        optimizer_class: Any = self.optimizer_class
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    @property
    def digest_width(self) -> int:
        """F of `digest`; 0 where learning changes all of the forward pass."""
        return 4 * len(self.network.mean_cost_usd) + 3

    def digest(self, observations: Tensor) -> Tensor:
        """What of the forward pass learning does not change, [B, F], computed once for all epochs of an iteration."""
        return self.network.digest(self.extract_features(observations))  # type: ignore[arg-type]

    def evaluate_digest(self, digest: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and values [B] from `digest` [B, F]."""
        logits, features = self.network.decide(digest)
        return logits, self.value_net(features).squeeze(1)

    def start_from(self, plan: BudgetValue) -> None:
        """Makes the policy that of the plan, but for what its networks add."""
        self.network.value.copy_(plan.value)
        self.network.cost_ratios.copy_(plan.cost_ratios)

    def train_actor(self, on: bool) -> None:
        """Lets learning change the choice, or only the estimate of the value.

        A value network that knows nothing yet would teach the actor noise, and the actor has something to lose.
        """
        for part in self._actor():
            part.requires_grad_(on)

    def _actor(self) -> tuple[nn.Sequential, ...]:
        """What learning changes of the choice; it has no effect at first."""
        return self.network.price, self.network.bias
