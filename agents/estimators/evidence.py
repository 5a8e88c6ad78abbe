"""Estimates how much the calls themselves tell of their answers: the evidence, in log-odds of being right.

What a call tells is any column `evidence_NAME` of the table (such as the mean log-probability of the answer's tokens,
or a stated confidence), the number of tokens and the cost beside its estimate, whether the output was cut off and
whether there is an answer in it. Numbers count by their place among the expert's own on training queries. A small
network, shared by the experts but for a scale and an offset of each, adds the log-odds of all that to those of the
estimated chance; weight decay holds these together, so that a few hundred queries are enough.

Shapes: N queries in the table, n training queries, K experts, F numbers that a call tells, P places, c calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from agents.estimators.base import Estimates
from leeroo_env.dynamics import MAX_EVIDENCE
from leeroo_env.table import ExpertTable
from leeroo_env.table.schema import EVIDENCE

LOGPROB = "evidence_logprob"
OF_EVERY_CALL = ("log-probability of all tokens", "tokens", "cost / estimate")  # the numbers that follow the columns
N_PLACES = 256
HIDDEN = 24
STEPS = 600
BATCH = 1_024
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.1
MIN_CHANCE = 0.01
CHANCE_WEIGHT = 0.5  # of the evidence in the chance that an answer is right, as evidence and agreement tell in part the
VOTE_WEIGHT = 0.3  # same, and in an expert's vote; by cross-validation on train of two tables


def updated(chance: Tensor, evidence: Tensor, weight: float) -> Tensor:
    """Estimated chances of being right after `weight` x `evidence`, both [...]."""
    log_odds = torch.logit(chance.clamp(MIN_CHANCE, 1 - MIN_CHANCE)) + weight * evidence
    return torch.where(evidence == 0, chance, torch.sigmoid(log_odds))


class EvidenceModel(nn.Module):
    """The evidence of calls to K experts.

    Attributes:
        columns: the names of the evidence columns.
        knots: [K, F, P], what calls of each expert told on training queries, rising; infinite where nothing is known.
    """

    knots: Tensor

    def __init__(self, columns: Sequence[str], n_experts: int):
        super().__init__()
        self.columns = tuple(columns)
        n_numbers = len(self.columns) + len(OF_EVERY_CALL)
        self.register_buffer("knots", torch.full((n_experts, n_numbers, N_PLACES), torch.inf))
        width = 2 * n_numbers + 3
        self.scale = nn.Parameter(torch.zeros(n_experts, width))
        self.offset = nn.Parameter(torch.zeros(n_experts, HIDDEN))
        self.hidden = nn.Linear(width, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)
        self.linear = nn.Linear(width, 1)
        for layer in (self.out, self.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor, experts: Tensor) -> Tensor:
        """The evidence [c] from `inputs` [c, 2F + 3] of calls to `experts` [c]; 0 for those it was not fitted to."""
        scaled = inputs * (1 + self.scale[experts])
        hidden = torch.tanh(self.hidden(scaled) + self.offset[experts])
        evidence = (self.out(hidden) + self.linear(scaled)).squeeze(-1).clamp(-MAX_EVIDENCE, MAX_EVIDENCE)
        return evidence * self.knots[:, :, -1].isfinite().any(dim=1)[experts]

    def with_expert(self) -> EvidenceModel:
        """The model with one more expert, of whose calls nothing is known."""
        grown = EvidenceModel(self.columns, len(self.knots) + 1).to(self.knots.device).requires_grad_(False)
        for name, value in grown.state_dict().items():
            own = self.state_dict()[name]
            value[: len(own)] = own  # the last expert's remains as it is made
        return grown

    def inputs(self, numbers: Tensor, flags: Tensor, chance: Tensor, experts: Tensor) -> Tensor:
        """What `forward` takes of c calls, [c, 2F + 3].

        Args:
            numbers: [c, F], NaN where unknown.
            flags: [c, 2], whether the output was cut off, and whether it holds no answer.
            chance: [c], estimated before the call.
            experts: [c].
        """
        missing = numbers.isnan() | self.knots[experts, :, -1].isinf()
        places = torch.empty_like(numbers)
        for k in range(len(self.knots)):
            of_expert = (experts == k).nonzero().squeeze(1)
            sorted_numbers = numbers[of_expert].nan_to_num(0.0).T.contiguous()
            below, upto = (torch.searchsorted(self.knots[k], sorted_numbers, right=right) for right in (False, True))
            places[of_expert] = ((below + upto).float() / 2 / N_PLACES).T
        normal = torch.special.ndtri(places.clamp(0.005, 0.995)).masked_fill(missing, 0.0)
        log_odds = torch.logit(chance.clamp(MIN_CHANCE, 1 - MIN_CHANCE))[:, None] / 3
        return torch.cat([normal, missing.float(), flags, log_odds], dim=1)


@torch.no_grad()
def table_evidence(model: EvidenceModel, table: ExpertTable, estimates: Estimates) -> Tensor:
    """The evidence [N, K] of a table's answers to queries that the model was not fitted to, from estimates of all."""
    chance = estimates.reliability()
    experts = torch.arange(chance.shape[1], device=chance.device).expand(len(chance), -1).flatten()
    numbers, flags = (part.flatten(0, 1) for part in told_by(table, model.columns, estimates))
    return model(model.inputs(numbers, flags, chance.flatten(), experts), experts).view_as(chance)


def told_by(table: ExpertTable, columns: Sequence[str], estimates: Estimates) -> tuple[Tensor, Tensor]:
    """What calls tell of all N queries: numbers [N, K, F], NaN where unknown, and flags [N, K, 2]."""
    tokens = table.answer_column("completion_tokens")
    told = [table.answer_column(name) for name in columns]
    logprob = told[columns.index(LOGPROB)] if LOGPROB in columns else torch.full_like(tokens, torch.nan)
    numbers = [*told, logprob * tokens, tokens, table.costs_usd / estimates.cost_usd.clamp(min=1e-30)]
    cut_off = torch.zeros_like(tokens)
    if "finish_reason" in table.answers.column_names:
        is_length = pc.equal(table.answers["finish_reason"], "length")
        cut_off = table.answer_column(is_length).nan_to_num(0.0)
    return torch.stack(numbers, dim=-1), torch.stack([cut_off, (table.answer_ids < 0).float()], dim=-1)


def fit_evidence(
    table: ExpertTable, rows: Tensor, estimates: Estimates, seed: int = 0
) -> tuple[EvidenceModel, Tensor] | None:
    """The model, and the evidence [N, K] of all of a table's answers: of training queries by models that did not see
    them. None where the table does not tell, or where these predict no better than without.

    Args:
        table: with rows of answers.
        rows: [n], the training queries.
        estimates: of all N queries, those of the training queries out of fold.
        seed: of draws, folds and initial weights.
    """
    if len(table.answers) == 0:
        return None
    columns = sorted(name for name in table.answers.column_names if name.startswith(EVIDENCE))
    numbers, flags = told_by(table, columns, estimates)
    chance = estimates.reliability()
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(rows.device)]
    evidence = torch.zeros_like(chance)
    for fold in range(2):
        model, inputs = _fit(table, columns, shuffled[1 - fold :: 2], numbers, flags, chance, seed)
        out = shuffled[fold::2]
        evidence[out] = _evidence(model, inputs, out)
    log_odds, scores = torch.logit(chance[rows].clamp(MIN_CHANCE, 1 - MIN_CHANCE)), table.scores[rows].float()
    before, after = (
        binary_cross_entropy_with_logits(log_odds + shift, scores) for shift in (0 * evidence[rows], evidence[rows])
    )
    if after >= before:
        return None
    model, inputs = _fit(table, columns, rows, numbers, flags, chance, seed)
    others = torch.ones(len(table), dtype=torch.bool, device=rows.device)
    others[rows] = False
    others = others.nonzero().squeeze(1)
    evidence[others] = _evidence(model, inputs, others)
    return model, evidence


def _fit(
    table: ExpertTable, columns: Sequence[str], rows: Tensor, numbers: Tensor, flags: Tensor, chance: Tensor, seed: int
) -> tuple[EvidenceModel, Tensor]:
    """A model fitted to the training queries `rows`, and its inputs of all queries [N, K, 2F + 3]."""
    n, k = chance.shape
    device = chance.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EvidenceModel(columns, k).to(device)
    levels = (torch.arange(N_PLACES, device=device) + 0.5) / N_PLACES
    for expert in range(k):  # of all at once there may be too many numbers for torch
        known = numbers[rows, expert].nanquantile(levels, dim=0).T  # NaN where the expert tells nothing
        model.knots[expert] = known.nan_to_num(torch.inf)
    experts = torch.arange(k, device=device).expand(n, -1)
    pairs = (numbers.flatten(0, 1), flags.flatten(0, 1), chance.flatten(), experts.flatten())
    inputs = model.inputs(*pairs).unflatten(0, (n, k))
    generator = torch.Generator(device).manual_seed(seed)
    log_odds, scores = torch.logit(chance.clamp(MIN_CHANCE, 1 - MIN_CHANCE)), table.scores.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    size = -(-BATCH // k)
    for _ in range(STEPS):
        batch = rows[torch.randint(len(rows), (size,), generator=generator, device=device)]
        shift = model(inputs[batch].flatten(0, 1), experts[batch].flatten())
        loss = binary_cross_entropy_with_logits(log_odds[batch].flatten() + shift, scores[batch].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False), inputs


def _evidence(model: EvidenceModel, inputs: Tensor, rows: Tensor) -> Tensor:
    """[m, K], the evidence of all answers to the queries `rows` [m]."""
    k = inputs.shape[1]
    experts = torch.arange(k, device=rows.device).repeat(len(rows))
    return model(inputs[rows].flatten(0, 1), experts).view(-1, k)


def expected_calibration_error(chance: Tensor, scores: Tensor, bins: int = 15) -> float:
    """How far estimated chances are from the share that is right, both [...], in mean over equally full bins (Naeini,
    Cooper and Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, 2015)."""
    order = chance.flatten().argsort()
    parts = np.array_split(order.cpu().numpy(), bins)
    gaps = [
        abs(float((chance.flatten()[part] - scores.flatten()[part]).mean())) * len(part) for part in parts if len(part)
    ]
    return sum(gaps) / len(order)
