"""Asks experts concurrently, and turns whatever they return into checked answers."""

from __future__ import annotations

import contextvars
import inspect
import math
import numbers
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from experts.backends.http import FAILOVER_ATTEMPTS, failover
from experts.live.types import Completion, UpstreamError
from experts.reasoning import split_reasoning
from experts.specs import ExpertSpec, LocalSpec
from experts.types import EMPTY, OUT_OF_MONEY, Answer, Expert, Query

ERROR_CHARS = 300


def is_limited(expert: Expert) -> bool:
    """Whether it is an `experts.types.LimitedExpert`, which can be held to a budget."""
    try:
        takes_limits = "limits_usd" in inspect.signature(expert.answer).parameters
    except (TypeError, ValueError):  # of a callable that Python cannot look into
        takes_limits = False
    return takes_limits and isinstance(getattr(expert, "spec", None), ExpertSpec)


def most_attempts(expert: Expert) -> int:
    """How many attempts of a call may be billed."""
    spec: Any = getattr(expert, "spec", None)
    return min(spec.attempts, FAILOVER_ATTEMPTS) if isinstance(spec, ExpertSpec) else 1


def worst_attempt_usd(expert: Expert, mean_cost_usd: float, query: Query) -> float:
    """The most that one attempt of a call can cost; of an expert without a `spec`, its mean cost."""
    spec: Any = getattr(expert, "spec", None)
    return float(spec.worst_usd(query)) if isinstance(spec, ExpertSpec) else mean_cost_usd


def can_take(expert: Expert, query: Query) -> bool:
    """Whether an expert can do what a query needs, as far as its `spec` says."""
    spec: Any = getattr(expert, "spec", None)
    return not isinstance(spec, ExpertSpec) or spec.can_take(query)


def as_answer(completion: Completion, cut_off: bool) -> Answer:
    """A completion as the policy's comparison of answers takes it; `cut_off`: because the money ended."""
    return Answer(
        text=completion.text,
        prompt_tokens=completion.usage.prompt_tokens,
        completion_tokens=completion.usage.completion_tokens,
        cost_usd=completion.cost_usd,
        latency_s=completion.latency_s,
        finish_reason=OUT_OF_MONEY if cut_off else completion.finish_reason,
        reasoning=completion.reasoning,
        logprob=completion.logprob,
        confidence=completion.confidence,
        cached_tokens=completion.usage.cached,
        cache_write_tokens=completion.usage.cache_write,
        reasoning_tokens=completion.usage.reasoning,
        usage=completion.usage.source,
    )


def as_failure(error: UpstreamError, seconds: float) -> Answer:
    """A live call that failed, as an answer."""
    if error.kind == "empty":
        message = error.message.removeprefix("an ")
        reason = message if message.startswith(EMPTY) else f"{EMPTY}: {message}"
    else:
        number = error.status or (400 if error.kind == "bad request" else None)  # also where it was not even sent
        status = f"Error code: {number} - " if number else ""
        reason = f"{status}{error.kind}: {error.message}"
    return Answer("", 0, 0, 0.0, seconds, reason, lost_usd=error.cost_usd)


def ask_experts(
    experts: Sequence[Expert], queries: Mapping[int, Sequence[Query]], limits_usd: Mapping[int, Sequence[float]]
) -> dict[int, list[Answer]]:
    """Asks each expert its queries in one batch: servers concurrently, local models one after the other.

    Args:
        experts: the K experts.
        queries: by the number of the expert.
        limits_usd: the most that each of these calls may be billed.

    Returns:
        By expert the answers to its queries, of which nothing has to be checked any more. An exception becomes failed
        calls, so that other experts' answers are not lost.
    """
    local = [k for k in queries if isinstance(getattr(experts[k], "spec", None), LocalSpec)]
    with ThreadPoolExecutor(max(len(queries), 1)) as pool:
        served = {k: pool.submit(_answers, experts[k], queries[k], limits_usd[k]) for k in queries if k not in local}
        answers = {k: _answers(experts[k], queries[k], limits_usd[k]) for k in local}
    return answers | {k: future.result() for k, future in served.items()}


def _answers(expert: Expert, queries: Sequence[Query], limits_usd: Sequence[float]) -> list[Answer]:
    """The expert's answers, checked; where there are none to be had, each call may have cost its limit."""
    context = contextvars.copy_context()
    context.run(failover.set, True)
    try:
        limits: dict[str, Any] = {"limits_usd": limits_usd} if is_limited(expert) else {}
        answers: list[Any] = list(context.run(expert.answer, queries, **limits))
        if len(answers) != len(queries):
            raise ValueError(f"{len(answers)} answers to {len(queries)} queries")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:ERROR_CHARS]
        return [Answer("", 0, 0, 0.0, 0.0, reason, lost_usd=usd) for usd in limits_usd]
    return [checked_answer(*pair) for pair in zip(answers, limits_usd, strict=True)]


def checked_answer(answer: Any, limit_usd: float) -> Answer:
    """An `Answer` with a text or an error, without reasoning in the text, and with costs that are numbers from 0.

    Other costs count as the limit; an empty text is an error; a confidence that is no probability is none.
    """
    if not isinstance(answer, Answer):
        return Answer("", 0, 0, 0.0, 0.0, f"returned {type(answer).__name__}, not Answer", lost_usd=limit_usd)
    failed = answer.error is not None
    costs: dict[str, Any] = {"cost_usd": answer.cost_usd, "lost_usd": answer.lost_usd}
    if not all(map(_is_amount, costs.values())):
        costs = {"cost_usd": 0.0, "lost_usd": limit_usd} if failed else {"cost_usd": limit_usd, "lost_usd": 0.0}
    confidence: Any = answer.confidence
    counts: dict[str, Any] = {
        "latency_s": answer.latency_s if _is_amount(answer.latency_s) else 0.0,
        "confidence": confidence if _is_amount(confidence) and confidence <= 1 else None,
        **{name: _count(getattr(answer, name)) for name in ("prompt_tokens", "completion_tokens")},
    }
    answer = replace(answer, **costs, **counts)
    if failed:
        return replace(answer, text="", error=str(answer.error), cost_usd=0.0, lost_usd=answer.billed_usd)
    if not isinstance(answer.text, str):
        reason = f"returned a text of type {type(answer.text).__name__}"
        return replace(answer, text="", error=reason, cost_usd=0.0, lost_usd=answer.billed_usd)
    reasoning, text = split_reasoning(answer.text)
    if not text.strip():
        reason = f"{EMPTY} (finish_reason {answer.finish_reason})"
        return replace(answer, text="", error=reason, cost_usd=0.0, lost_usd=answer.billed_usd)
    return replace(answer, text=text, reasoning=answer.reasoning or reasoning)


def _is_amount(value: Any) -> bool:
    return isinstance(value, numbers.Real) and 0 <= float(value) < math.inf


def _count(value: Any) -> int:
    return int(value) if _is_amount(value) else 0
