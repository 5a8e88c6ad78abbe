"""What live calls tell of their answers, as the model of the evidence was fitted to a table's."""

from __future__ import annotations

import torch
from torch import Tensor

from agents.estimators.evidence import LOGPROB, EvidenceModel
from experts.types import CUT_OFF, Answer

CONFIDENCE = "evidence_verbal"


@torch.no_grad()
def evidence_of(
    model: EvidenceModel, expert: int, answer: Answer, has_answer: bool, chance: Tensor, cost_usd: Tensor
) -> float:
    """The evidence of one call, in log-odds of its answer being right.

    Args:
        model: as fitted.
        expert: that was called.
        answer: what it returned.
        has_answer: whether there is an answer in its output, to be compared with others.
        chance: [K], estimated before the call, that experts are right.
        cost_usd: [K], estimated.
    """
    known = {LOGPROB: answer.logprob, CONFIDENCE: answer.confidence}
    columns = [known.get(name) for name in model.columns]
    told = [torch.nan if value is None else value for value in columns]
    tokens = float(answer.completion_tokens)
    logprob = torch.nan if answer.logprob is None else answer.logprob * tokens
    ratio = answer.cost_usd / max(float(cost_usd[expert]), 1e-30)
    numbers = torch.tensor([[*told, logprob, tokens, ratio]], device=chance.device)
    flags = torch.tensor([[float(answer.finish_reason == CUT_OFF), float(not has_answer)]], device=chance.device)
    experts = torch.tensor([expert], device=chance.device)
    return float(model(model.inputs(numbers, flags, chance[experts], experts), experts))
