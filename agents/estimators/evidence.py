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
from experts.types import CUT_OFF
from leeroo_env.dynamics import MAX_EVIDENCE
from leeroo_env.table import ExpertTable
from leeroo_env.table.schema import EVIDENCE

LOGPROB = "evidence_logprob"
OF_EVERY_CALL = ("log-probability of all tokens", "tokens", "cost / estimate")  # the numbers that follow the columns
N_PLACES = 256
HIDDEN = 24
STEPS = 600
BATCH = 1_024
LEARNING_RATE = 0.02
WEIGHT_DECAY = 0.1
MIN_CHANCE = 0.01
CHANCE_WEIGHT = 0.5  # of the evidence in the chance that an answer is right, as evidence and agreement tell in part the
VOTE_WEIGHT = 0.3  # same, and in an expert's vote; by cross-validation on train of two tables


def log_odds_of(chance: Tensor) -> Tensor:
    """The log-odds of chances [...], which are clamped to `MIN_CHANCE` and 1 less this."""
    return torch.logit(chance.clamp(MIN_CHANCE, 1 - MIN_CHANCE))


def updated(chance: Tensor, evidence: Tensor, weight: float) -> Tensor:
    """Estimated chances of being right after `weight` x `evidence`, both [...]."""
    return updated_each(chance, evidence, weight)[0]


def updated_each(chance: Tensor, evidence: Tensor, *weights: float) -> list[Tensor]:
    """`updated` by each of the weights."""
    log_odds, silent = log_odds_of(chance), evidence == 0
    return [torch.where(silent, chance, torch.sigmoid(log_odds + weight * evidence)) for weight in weights]


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
        return torch.cat([normal, missing.float(), flags, log_odds_of(chance)[:, None] / 3], dim=1)


@torch.no_grad()
def table_evidence(model: EvidenceModel, table: ExpertTable, estimates: Estimates) -> Tensor:
    """The evidence [N, K] of a table's answers to queries that the model was not fitted to, from estimates of all."""
    return model(*_of_all_experts(model, *told_by(table, model.columns, estimates), estimates.reliability())).view(
        len(table), -1
    )


def _of_all_experts(model: EvidenceModel, numbers: Tensor, flags: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """The model's inputs for calls to all K experts about m queries, [m * K, 2F + 3], and these experts, [m * K]."""
    experts = torch.arange(chance.shape[1], device=chance.device).repeat(len(chance))
    return model.inputs(numbers.flatten(0, 1), flags.flatten(0, 1), chance.flatten(), experts), experts


def told_by(table: ExpertTable, columns: Sequence[str], estimates: Estimates) -> tuple[Tensor, Tensor]:
    """What calls tell of all N queries: numbers [N, K, F], NaN where unknown, and flags [N, K, 2]."""
    tokens = table.answer_column("completion_tokens")
    told = [table.answer_column(name) for name in columns]
    logprob = told[columns.index(LOGPROB)] if LOGPROB in columns else torch.full_like(tokens, torch.nan)
    numbers = [*told, logprob * tokens, tokens, table.costs_usd / estimates.cost_usd.clamp(min=1e-30)]
    cut_off = torch.zeros_like(tokens)
    if "finish_reason" in table.answers.column_names:
        is_length = pc.equal(table.answers["finish_reason"], CUT_OFF)
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
    told = *told_by(table, columns, estimates), estimates.reliability()
    chance = told[2]
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(rows.device)]
    evidence = torch.zeros_like(chance)
    for fold in range(2):
        model = _fit(table, columns, shuffled[1 - fold :: 2], told, seed)
        out = shuffled[fold::2]
        evidence[out] = model(*_of_all_experts(model, *(part[out] for part in told))).view(len(out), -1)
    log_odds, scores = log_odds_of(chance[rows]), table.scores[rows].float()
    before, after = (
        binary_cross_entropy_with_logits(log_odds + shift, scores) for shift in (0 * evidence[rows], evidence[rows])
    )
    if after >= before:
        return None
    model = _fit(table, columns, rows, told, seed)
    others = torch.ones(len(table), dtype=torch.bool, device=rows.device)
    others[rows] = False
    others = others.nonzero().squeeze(1)
    evidence[others] = model(*_of_all_experts(model, *(part[others] for part in told))).view(len(others), -1)
    return model, evidence


def _fit(
    table: ExpertTable, columns: Sequence[str], rows: Tensor, told: tuple[Tensor, Tensor, Tensor], seed: int
) -> EvidenceModel:
    """A model fitted to the training queries `rows` [n], from the numbers, flags and chances of all queries."""
    numbers, flags, chance = (part[rows] for part in told)
    (n, k), device = chance.shape, chance.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EvidenceModel(columns, k).to(device)
    levels = (torch.arange(N_PLACES, device=device) + 0.5) / N_PLACES
    for expert in range(k):  # of all at once there may be too many numbers for torch
        known = numbers[:, expert].nanquantile(levels, dim=0).T  # NaN where the expert tells nothing
        model.knots[expert] = known.nan_to_num(torch.inf)
    inputs, experts = (part.unflatten(0, (n, k)) for part in _of_all_experts(model, numbers, flags, chance))
    generator = torch.Generator(device).manual_seed(seed)
    log_odds, scores = log_odds_of(chance), table.scores[rows].float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    size = -(-BATCH // k)
    for _ in range(STEPS):
        batch = torch.randint(n, (size,), generator=generator, device=device)
        shift = model(inputs[batch].flatten(0, 1), experts[batch].flatten())
        loss = binary_cross_entropy_with_logits(log_odds[batch].flatten() + shift, scores[batch].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.requires_grad_(False)


def expected_calibration_error(chance: Tensor, scores: Tensor, bins: int = 15) -> float:
    """How far estimated chances are from the share that is right, both [...], in mean over equally full bins (Naeini,
    Cooper and Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, 2015)."""
    order = chance.flatten().argsort()
    parts = np.array_split(order.cpu().numpy(), bins)
    gaps = [
        abs(float((chance.flatten()[part] - scores.flatten()[part]).mean())) * len(part) for part in parts if len(part)
    ]
    return sum(gaps) / len(order)
