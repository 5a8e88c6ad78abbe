"""PPO in one file, in the manner of CleanRL, on `Leeroo-v0`: a start for algorithms of your own.

python examples/cleanrl_ppo.py --table tiny --total-steps 200000
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import gymnasium
import torch
import tyro
from torch import nn
from torch.distributions import Categorical

import leeroo_env  # noqa: F401 - registers Leeroo-v0


@dataclass
class Args:
    table: str = "tiny"
    """Table directory or name of a built-in table."""
    seed: int = 0
    """Decides everything that is random."""
    total_steps: int = 200_000
    """Queries to route in all."""
    num_envs: int = 128
    """Episodes in lockstep."""
    num_steps: int = 64
    """Steps of each environment between two updates."""
    learning_rate: float = 1e-3
    """Adam's, falling to 0 linearly."""
    gae_lambda: float = 0.8
    """Of generalised advantage estimation; rewards are not discounted."""
    minibatches: int = 8
    """Into which a rollout is cut."""
    epochs: int = 4
    """Passes over a rollout."""
    clip: float = 0.2
    """Of the probability ratio."""
    entropy_weight: float = 0.003
    """Of the entropy bonus."""


def network(inputs: int, outputs: int, last_gain: float) -> nn.Sequential:
    sizes = [(inputs, 64, 2**0.5), (64, 64, 2**0.5), (64, outputs, last_gain)]
    layers: list[nn.Module] = []
    for i, o, gain in sizes:
        layers += [nn.Linear(i, o), nn.Tanh()]
        nn.init.orthogonal_(layers[-2].weight, gain)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1])


def main(args: Args) -> list[float]:
    """Trains; returns the mean score per query of the episodes that ended in each iteration."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    envs = gymnasium.make_vec("Leeroo-v0", num_envs=args.num_envs, table=args.table)
    size, experts = envs.single_observation_space.shape[0], int(envs.single_action_space.n)  # type: ignore
    actor, critic = network(size, experts, 0.01), network(size, 1, 1.0)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=args.learning_rate, eps=1e-5)

    t, b = args.num_steps, args.num_envs
    observations = torch.zeros(t + 1, b, size)
    actions, log_probs = torch.zeros(t, b, dtype=torch.int64), torch.zeros(t, b)
    rewards, ended, values = torch.zeros(t, b), torch.zeros(t, b), torch.zeros(t + 1, b)
    observations[0] = torch.from_numpy(envs.reset(seed=args.seed)[0])
    history: list[float] = []
    iterations = max(1, args.total_steps // (t * b))
    start = time.perf_counter()

    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - iteration / iterations)
        scores = []
        with torch.no_grad():
            for step in range(t):
                policy = Categorical(logits=actor(observations[step]))
                actions[step] = policy.sample()
                log_probs[step] = policy.log_prob(actions[step])
                values[step] = critic(observations[step]).squeeze(1)
                observation, reward, terminated, _, infos = envs.step(actions[step].numpy())
                observations[step + 1] = torch.from_numpy(observation)
                rewards[step], ended[step] = torch.from_numpy(reward), torch.from_numpy(terminated).float()
                if "episode" in infos:
                    scores.extend(infos["episode"]["score"][infos["_episode"]].tolist())
            values[t] = critic(observations[t]).squeeze(1)
            advantages = torch.zeros(t + 1, b)
            for step in reversed(range(t)):
                goes_on = 1 - ended[step]
                delta = rewards[step] + goes_on * values[step + 1] - values[step]
                advantages[step] = delta + args.gae_lambda * goes_on * advantages[step + 1]
        advantages = advantages[:t]
        batch = [x.flatten(0, 1) for x in (observations[:t], actions, log_probs, advantages, advantages + values[:t])]
        for _ in range(args.epochs):
            for rows in torch.randperm(t * b).chunk(args.minibatches):
                x, action, old, advantage, target = (tensor[rows] for tensor in batch)
                policy = Categorical(logits=actor(x))
                ratio = (policy.log_prob(action) - old).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                gain = torch.min(ratio * advantage, ratio.clamp(1 - args.clip, 1 + args.clip) * advantage).mean()
                value_loss = 0.5 * (critic(x).squeeze(1) - target).square().mean()
                loss = value_loss - gain - args.entropy_weight * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
        history.append(sum(scores) / max(1, len(scores)))
        steps_per_s = (iteration + 1) * t * b / (time.perf_counter() - start)
        print(f"step {(iteration + 1) * t * b:>9,}  score per query {history[-1]:.3f}  {steps_per_s:,.0f} steps/s")
    envs.close()
    return history


if __name__ == "__main__":
    main(tyro.cli(Args))
