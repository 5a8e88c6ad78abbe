"""Splits a policy's forward pass into a part that training does not change, computed once a rollout, and the rest."""

from __future__ import annotations

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor


def digest_width(policy: ActorCriticPolicy) -> int:
    """F of the digest that a policy makes of observations; 0 where it makes none."""
    return getattr(policy, "digest_width", 0)


def policy_inputs(policy: ActorCriticPolicy, observations: Tensor) -> Tensor:
    """What training reads of observations [B, D + ...]: their digest [B, F], or the observations themselves."""
    return policy.digest(observations) if digest_width(policy) else observations  # type: ignore[operator]


def evaluate_inputs(policy: ActorCriticPolicy, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K] and values [B] of `policy_inputs`."""
    if digest_width(policy):
        return policy.evaluate_digest(inputs)  # type: ignore[operator]
    features = policy.extract_features(inputs)
    if isinstance(features, tuple):
        latent_pi = policy.mlp_extractor.forward_actor(features[0])
        latent_vf = policy.mlp_extractor.forward_critic(features[1])
    else:
        latent_pi, latent_vf = policy.mlp_extractor(features)
    return policy.action_net(latent_pi), policy.value_net(latent_vf).squeeze(1)
