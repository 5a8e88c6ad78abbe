"""Trains an encoder, and a linear head on it, to predict every expert's score from a query's text.

The head is first fitted to the untuned embeddings, then both are trained together: with a random head the first steps
would distort the pretrained features (Kumar et al. 2022, arXiv 2202.10054).

n queries tuned on, K experts, D embedding, B queries a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from agents.estimators.base import sample_rows
from agents.finetune.config import Config
from experts.encoder import Encoder
from leeroo_env import ExpertTable, InputError

EVALUATIONS = 5  # of the val loss, after the one before the first step
MAX_VAL_QUERIES = 2_000
LEARNING_RATE, LORA_LEARNING_RATE = 5e-5, 5e-4
HEAD_RATE = 100  # learning rate of the head over the encoder's: its inputs have length 1
WARMUP = 0.1  # share of the steps
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class LabelledTokens:
    """Tokenised queries and their targets.

    Attributes:
        tokens: n lists of token ids.
        scores: [n, K] in [0, 1], the targets.
    """

    tokens: list[list[int]]
    scores: Tensor


@dataclass
class History:
    """The course of the val loss, and the weights at its lowest.

    Attributes:
        val_loss: mean in nats per expert, by optimiser step.
        best: copies of the trained parameters at the best step.
    """

    val_loss: dict[int, float] = field(default_factory=dict)
    best: list[Tensor] = field(default_factory=list)

    @property
    def best_step(self) -> int:
        return min(self.val_loss, key=lambda step: self.val_loss[step])

    def add(self, step: int, loss: float, parameters: Sequence[Tensor]) -> None:
        """Keeps the weights if the loss is the lowest so far; NaN counts as infinite."""
        self.val_loss[step] = loss if np.isfinite(loss) else float("inf")
        if self.best_step == step:
            self.best = [parameter.detach().clone() for parameter in parameters]


def tune(encoder: Encoder, table: ExpertTable, rows: Tensor, config: Config) -> History:
    """Trains the encoder in place on the table's `rows` [n] and restores the weights of the lowest val loss."""
    val_rows = sample_rows(table.rows("val"), MAX_VAL_QUERIES, config.seed)
    train, val = label(table, rows, encoder), label(table, val_rows, encoder)
    head = fit_head(torch.from_numpy(encoder.encode(query_texts(table, rows))), table.scores[rows]).to(encoder.device)
    adapted = add_lora(encoder.network, config.lora_rank) if config.lora_rank else None
    optimizer, schedule = make_optimizer(encoder, head, config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    history = History()
    history.add(0, val_loss(encoder, head, val, config.batch_size), parameters)
    evaluated_at = {config.steps * (i + 1) // EVALUATIONS for i in range(EVALUATIONS)}
    bar = tqdm(zip(range(1, config.steps + 1), batches(len(rows), config), strict=False), "tuning", config.steps)
    for step, batch in bar:
        encoder.network.train()
        loss = loss_of(encoder, head, train, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step in evaluated_at:
            history.add(step, val_loss(encoder, head, val, config.batch_size), parameters)
            bar.set_postfix(train_loss=f"{loss.item():.4f}", val_loss=f"{history.val_loss[step]:.4f}")
    with torch.no_grad():
        for parameter, best in zip(parameters, history.best, strict=True):
            parameter.copy_(best)
    if adapted is not None:
        adapted.merge_and_unload()
    encoder.network.eval()
    return history


def make_optimizer(
    encoder: Encoder, head: torch.nn.Linear, config: Config
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW on the encoder's trainable parameters, then the head's, and their learning-rate schedule."""
    rate = config.learning_rate or (LORA_LEARNING_RATE if config.lora_rank else LEARNING_RATE)
    tuned = [p for p in encoder.network.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": tuned, "lr": rate},
        {"params": list(head.parameters()), "lr": rate * HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, config.steps))


def query_texts(table: ExpertTable, rows: Tensor) -> list[str]:
    return table.queries["text"].take(pa.array(rows.numpy())).to_pylist()


def label(table: ExpertTable, rows: Tensor, encoder: Encoder) -> LabelledTokens:
    return LabelledTokens(encoder.tokens(query_texts(table, rows)), table.scores[rows].to(encoder.device))


def fit_head(embeddings: Tensor, scores: Tensor) -> torch.nn.Linear:
    """Logistic regression of scores [n, K] in [0, 1] on embeddings [n, D], with a unit Gaussian prior on the slopes."""
    head = torch.nn.Linear(embeddings.shape[1], scores.shape[1])
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(head(embeddings), scores, reduction="sum")
        loss = (loss + head.weight.square().sum() / 2) / len(scores)
        loss.backward()
        return loss

    optimizer.step(objective)  # type: ignore[arg-type]
    return head


def add_lora(network: torch.nn.Module, rank: int) -> Any:
    """Adds LoRA to the network's linear layers in place, its only trainable parameters; returns peft's wrapper.

    Raises:
        InputError: peft is not installed, or finds no linear layers.
    """
    peft = load_peft()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
            settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
            return peft.get_peft_model(network, settings)
    except ValueError as error:
        raise InputError(f"lora_rank: peft cannot adapt this encoder: {str(error).splitlines()[0]}") from error


def load_peft() -> Any:
    """The optional package peft. Raises InputError where it is not installed."""
    try:
        import peft
    except ImportError:
        raise InputError("lora_rank: needs the package peft; pip install -e '.[finetune]' brings it") from None
    return peft


def rate_factor(step: int, steps: int) -> float:
    """Factor of the learning rate at a step: linear warm-up to 1, then linear decay to 0."""
    warmup = max(1, round(WARMUP * steps))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def batches(n: int, config: Config) -> Iterator[list[int]]:
    """Endless batches of indices [B] into the n queries: epoch after epoch, each in a new random order."""
    rng = np.random.default_rng(config.seed)
    pending: list[int] = []
    while True:
        while len(pending) < config.batch_size:
            pending += rng.permutation(n).tolist()
        yield pending[: config.batch_size]
        pending = pending[config.batch_size :]


def loss_of(encoder: Encoder, head: torch.nn.Module, data: LabelledTokens, batch: list[int]) -> Tensor:
    """Mean binary cross-entropy of the batch, in nats per expert."""
    logits = head(encoder.forward([data.tokens[i] for i in batch]))
    return F.binary_cross_entropy_with_logits(logits, data.scores[batch])


@torch.no_grad()
def val_loss(encoder: Encoder, head: torch.nn.Module, val: LabelledTokens, batch_size: int) -> float:
    """Mean loss over `val`, in nats per expert; batches of similar length need little padding."""
    encoder.network.eval()
    order = sorted(range(len(val.tokens)), key=lambda i: len(val.tokens[i]))
    parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return sum(loss_of(encoder, head, val, part).item() * len(part) for part in parts) / len(order)
