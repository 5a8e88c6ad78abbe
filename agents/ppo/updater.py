"""Updates a policy on minibatches of a rollout: gradients of PPO's loss, clipped to a norm, and a step of Adam."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.optim import Adam

from agents.distributed import ALONE, Processes
from agents.ppo.cuda_graph import Captures
from agents.ppo.loss import STATISTICS, LossWeights, loss_gradients
from agents.ppo.policy_inputs import evaluate_inputs
from agents.ppo.storage import Minibatch, RolloutStorage
from leeroo_env import InputError


@dataclass(frozen=True)
class UpdateSettings:
    """PPO's settings of an update, named as in stable-baselines3."""

    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    normalize_advantage: bool
    target_kl: float | None


class Updater:
    """Updates `policy` on `storage`: `start` in each iteration, then `update` for each minibatch.

    Several processes update theirs alike, each on a storage of its own: as one would on their minibatches joined.

    Attributes:
        weights: of the loss.
        parameters: those that learn in this iteration.
        statistics: [6], sums of `STATISTICS` over the updates of this iteration.
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        storage: RolloutStorage,
        settings: UpdateSettings,
        processes: Processes = ALONE,
    ):
        device, self.processes = storage.values.device, processes
        self.policy, self.storage, self.settings = policy, storage, settings
        self.weights = LossWeights(torch.zeros(2, device=device), settings.ent_coef, settings.vf_coef)
        self.parameters: list[Tensor] = []
        self.statistics = torch.zeros(len(STATISTICS), device=device)
        self._indices: dict[int, Tensor] = {}  # by size of the minibatch
        self._captures = Captures(device)

    def start(self, clip: float, clip_vf: float) -> None:
        """Sets the clips of this iteration and finds the parameters that learn, with Adam's state made for new ones."""
        self.weights.clips.copy_(torch.tensor([clip, clip_vf]))
        self.statistics.zero_()
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        for p in self.parameters:
            if not optimizer.state[p]:
                zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                optimizer.state[p] |= {"step": torch.zeros((), device=p.device), **zeros}
        states = [optimizer.state[p] for p in self.parameters]
        moments = [state[name] for name in ("exp_avg", "exp_avg_sq", "step") for state in states]
        self._changed = [self.statistics, *self.parameters, *moments]
        rate = optimizer.param_groups[0]["lr"]
        read = [*self._changed, rate] if isinstance(rate, Tensor) else self._changed
        self._addresses = tuple(tensor.data_ptr() for tensor in read)  # loading replaces tensors that graphs have read

    def update(self, indices: Tensor) -> bool:
        """One minibatch, `indices` [n]; False, and no change, where the policy has moved too far for `target_kl`."""
        n = len(indices)
        own = self._indices.setdefault(n, torch.empty_like(indices))
        own.copy_(indices)
        if self.settings.target_kl is not None or self.processes.world > 1:  # nothing that waits is captured
            gradients, statistics = self.gradients(own)
            most = self.settings.target_kl
            if most is not None and float(statistics[STATISTICS.index("approx_kl")]) > 1.5 * most:
                return False
            self._descend(gradients, statistics)
            return True
        self._captures.get((n, self._addresses), lambda: self._descend(*self.gradients(own)), self._changed)()
        return True

    def gradients(self, indices: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Clipped gradients of the loss in `parameters`, and `STATISTICS`; of the minibatches of all processes."""
        batch = self.minibatch(indices)
        outputs = evaluate_inputs(self.policy, batch.inputs)
        logits, values = (output.detach() for output in outputs)
        by_outputs, statistics = loss_gradients(logits, values, batch, self.weights)
        trainable = [(o, g) for o, g in zip(outputs, by_outputs, strict=True) if o.requires_grad]
        own = torch.autograd.grad([o for o, _ in trainable], self.parameters, [g for _, g in trainable])
        *means, statistics = self.processes.mean([*own, statistics])
        gradients = tuple(means)
        self.clip(gradients)
        return gradients, statistics

    def minibatch(self, indices: Tensor) -> Minibatch:
        """Steps of the rollout, their advantages normalised if so set."""
        batch = self.storage.minibatch(indices)
        advantages = batch.advantages
        if self.settings.normalize_advantage and len(advantages) * self.processes.world > 1:
            mean, deviation = self.processes.moments(advantages)
            return replace(batch, advantages=(advantages - mean) / (deviation + 1e-8))
        return batch

    def clip(self, gradients: tuple[Tensor, ...]) -> None:
        """Scales gradients down, in place, to a norm of at most `max_grad_norm`."""
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (self.settings.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))

    @torch.no_grad()
    def _descend(self, gradients: tuple[Tensor, ...], statistics: Tensor) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.policy.optimizer.step()
        self.statistics += statistics


def prepare_optimizer(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Sets plain Adam to its fused kernel and, on a GPU, to a learning rate that captured steps see change: a tensor.

    Raises:
        InputError: another optimizer, whose state `Updater.start` would not know how to make.
    """
    group, *more = optimizer.param_groups
    if type(optimizer) is not Adam or more or group["amsgrad"] or group["maximize"]:
        name = type(optimizer).__name__
        raise InputError(f"optimizer {name}: DevicePPO learns by plain torch.optim.Adam with one parameter group")
    group["fused"] = True
    if device.type == "cuda" and not isinstance(group["lr"], Tensor):
        group |= {"capturable": True, "lr": torch.tensor(float(group["lr"]), device=device)}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """In place where it is a tensor."""
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
