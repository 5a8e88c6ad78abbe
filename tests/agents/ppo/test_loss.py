"""PPO's loss, its closed-form gradients and its statistics agree with each other and with torch.distributions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.ppo.loss import LossWeights, loss_gradients, ppo_loss
from agents.ppo.storage import Minibatch


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), ent_coef=st.sampled_from([0.0, 0.03]), clip_vf=st.sampled_from([0.1, torch.inf]))
def test_the_closed_form_is_the_gradient_of_the_loss(seed: int, ent_coef: float, clip_vf: float):
    generator = torch.Generator().manual_seed(seed)
    n, k, vf_coef, clip = 32, 5, 0.4, 0.2

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    logits = (2 * normal(n, k)).masked_fill(normal(n, k) > 0.7, -1e4)
    actions = logits.argmax(dim=1)
    logits, values = logits.requires_grad_(), normal(n).requires_grad_()
    distribution = torch.distributions.Categorical(logits=logits)
    log_probs = distribution.log_prob(actions)
    old_log_probs, old_values = log_probs.detach() + 0.3 * normal(n), values.detach() + 0.2 * normal(n)
    advantages, returns = normal(n) * (normal(n) > -0.5), normal(n)
    ratio = (log_probs - old_log_probs).exp()
    policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    value_loss = (returns - old_values - (values - old_values).clamp(-clip_vf, clip_vf)).square().mean()
    loss = policy_loss - ent_coef * distribution.entropy().mean() + vf_coef * value_loss
    kl, outside = (ratio - 1 - ratio.log()).mean(), ((ratio - 1).abs() > clip).double().mean()
    expected = torch.stack([policy_loss, value_loss, -distribution.entropy().mean(), kl, outside, loss]).detach()
    clips = torch.tensor([clip, clip_vf], dtype=torch.float64)
    batch = Minibatch(torch.empty(n, 0), actions, old_log_probs, old_values, advantages, returns)
    weights = LossWeights(clips, ent_coef, vf_coef)
    ours, statistics = ppo_loss(logits, values, batch, weights)
    torch.testing.assert_close(ours, loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(statistics, expected, rtol=1e-6, atol=1e-9)
    closed_form, statistics = loss_gradients(logits.detach(), values.detach(), batch, weights)
    torch.testing.assert_close(closed_form, torch.autograd.grad(ours, [logits, values]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(statistics, expected, rtol=1e-6, atol=1e-9)
