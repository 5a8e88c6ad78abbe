"""The bid-price policy: what an answer is estimated to be worth, minus a price on what it is estimated to cost.

The price is a small network of the budget features, so one policy serves every budget and every number of queries left.
It begins as the paced rule of `agents.routers.PacedPrice` and is trained on from there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from agents.predictor import Predictor, split_estimates
from agents.routers import PacedPrice
from leeroo_env.dynamics import Rules
from leeroo_env.table import ExpertTable

TEMPERATURE = 0.05
HIDDEN = 64
FORBIDDEN = -1e4
LEAST_PRICE = 1e-3
PRICE_POINTS = 1024


def table_of_estimates(table: ExpertTable, predictor: Predictor) -> ExpertTable:
    """The same table with `estimate_features` in place of the embeddings, [N, 2K].

    Estimates of training queries come from models that did not see them.
    """
    dearest_usd = float(table.mean_cost_usd().max())
    features = torch.cat([estimate_features(predictor, part, dearest_usd) for part in table.embeddings.split(8192)])
    features[predictor.rows] = _features(*split_estimates(predictor.out_of_fold), dearest_usd)
    return replace(table, embeddings=features)


def estimate_features(predictor: Predictor, embeddings: Tensor, dearest_usd: float) -> Tensor:
    """Estimated scores, then estimated costs in units of the dearest expert's mean cost; [B, D] -> [B, 2K]."""
    return _features(*predictor.predict(embeddings), dearest_usd)


def _features(score: Tensor, cost_usd: Tensor, dearest_usd: float) -> Tensor:
    return torch.cat([score, cost_usd / max(dearest_usd, 1e-30)], dim=1)


class BidPriceNetwork(nn.Module):
    """Observations [B, 2K + 2] (estimate features, budget features) to logits [B, K] and features of the value [B, 64].

    Logits are (score - price x cost) / temperature plus a correction that begins at zero. An expert is ruled out where
    paying its mean cost would leave less than the rest of the queries need at the cheapest.
    """

    relative_cost: Tensor
    paced_price: Tensor

    def __init__(self, mean_cost_usd: list[float], price_range_usd: list[float]):
        super().__init__()
        k = len(mean_cost_usd)
        self.latent_dim_pi, self.latent_dim_vf = k, HIDDEN
        low, high = price_range_usd
        self.spread = max(math.log(high / low), math.log(2))
        self.register_buffer("relative_cost", torch.tensor(mean_cost_usd) / low, persistent=False)
        self.register_buffer("paced_price", torch.zeros(PRICE_POINTS))  # logarithms, over the first budget feature
        self.price = nn.Sequential(nn.Linear(2, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
        self.correction = nn.Sequential(nn.Linear(2 * k + 2, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, k))
        self.value = nn.Sequential(nn.Linear(2 * k + 2, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(observations), self.forward_critic(observations)

    def forward_actor(self, observations: Tensor) -> Tensor:
        k = self.latent_dim_pi
        score, cost, budget = observations.split([k, k, 2], dim=1)
        logits = (score - self._price(budget) * cost) / TEMPERATURE + self.correction(observations)
        return logits.masked_fill(~self._keeps_reserve(budget), FORBIDDEN)

    def forward_critic(self, observations: Tensor) -> Tensor:
        return self.value(observations)

    def _price(self, budget: Tensor) -> Tensor:
        """[B, 1], score for as many dollars as a call of the dearest expert costs: the paced rule's, corrected."""
        place = (budget[:, :1] + 1) / 3 * (PRICE_POINTS - 1)
        below = place.long().clamp(0, PRICE_POINTS - 2)
        low, high = self.paced_price[below], self.paced_price[below + 1]
        return (low + (place - below) * (high - low) + self.price(budget)).exp()

    def _keeps_reserve(self, budget: Tensor) -> Tensor:
        """[B, K] bool, from the budget features alone; the cheapest is always allowed."""
        queries = torch.exp2(10 * budget[:, 1:])
        left = (budget[:, :1] * self.spread).exp() * queries
        cheapest = self.relative_cost.argmin()
        allowed = left - self.relative_cost >= (queries - 1) * self.relative_cost[cheapest]
        allowed[:, cheapest] = True
        return allowed


class BidPricePolicy(ActorCriticPolicy):
    """An SB3 policy around `BidPriceNetwork`; `mean_cost_usd` [K] and `price_range_usd` are those of the rules."""

    def __init__(self, *args: Any, mean_cost_usd: list[float], price_range_usd: list[float], **kwargs: Any):
        self._network_arguments = mean_cost_usd, price_range_usd
        super().__init__(*args, **{"ortho_init": False, **kwargs})

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = BidPriceNetwork(*self._network_arguments)  # type: ignore[assignment]

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # the network's logits are the policy's
        for part in (self.mlp_extractor.price, self.mlp_extractor.correction):
            for parameter in part[-1].parameters():  # type: ignore[index, union-attr]
                nn.init.zeros_(parameter)
        optimizer_class: Any = self.optimizer_class
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


def start_as_paced(policy: BidPricePolicy, rules: Rules, paced: PacedPrice) -> None:
    """Sets the price to that of the paced rule; `rules` are those the policy plays by."""
    network = _network(policy)
    usd_per_query = rules.price_range_usd[0] * np.exp(np.linspace(-1, 2, PRICE_POINTS) * network.spread)
    price = paced.price(usd_per_query) * float(rules.mean_cost_usd.max())
    network.paced_price.copy_(torch.from_numpy(price).clamp(min=LEAST_PRICE).log())


def train_actor(policy: BidPricePolicy, on: bool) -> None:
    """Lets learning change the choice, or only the estimate of the value.

    A value network that knows nothing yet would teach the actor noise, and the actor has something to lose.
    """
    network = _network(policy)
    for parameter in (*network.price.parameters(), *network.correction.parameters()):
        parameter.requires_grad_(on)


def _network(policy: BidPricePolicy) -> BidPriceNetwork:
    assert isinstance(policy.mlp_extractor, BidPriceNetwork)
    return policy.mlp_extractor
