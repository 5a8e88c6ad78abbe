"""Turns the token counts that a server reports into disjoint buckets, and the buckets into a cost."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from leeroo_env.errors import InputError

HIDDEN_PROMPT_TOKENS = 8192  # the most that a provider may add to a prompt unseen, such as its own system prompt
MOST_TIMES_MAX_TOKENS = 4  # some providers do not count reasoning against max_tokens
LEAST_COMPLETION_BOUND = 4096

# as OpenAI, Anthropic, Gemini, Ollama and llama.cpp call them
PROMPT_FIELDS = (
    "prompt_tokens",
    "input_tokens",
    "promptTokenCount",
    "prompt_token_count",
    "prompt_eval_count",
    "prompt_n",
    "tokens_evaluated",
)
COMPLETION_FIELDS = (
    "completion_tokens",
    "output_tokens",
    "candidatesTokenCount",
    "candidates_token_count",
    "eval_count",
    "predicted_n",
    "tokens_predicted",
)
CACHE_ON_TOP = {"input_tokens", "prompt_n"}  # Anthropic's and llama.cpp's prompts have no cached tokens in them
THOUGHTS_ON_TOP = {"candidatesTokenCount", "candidates_token_count"}  # nor have Gemini's candidates thoughts
OWNERS = ("usage", "usageMetadata", "usage_metadata", "x_groq.usage", "timings")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """The tokens of one call in buckets that do not overlap.

    Attributes:
        input: tokens of the prompt, without those of the next two.
        cached: tokens of the prompt that were read from a cache.
        cache_write: tokens of the prompt that were written to a cache.
        output: tokens of the answer.
        reasoning: tokens of the reasoning before it.
        source: see `experts.types.Answer.usage`.
    """

    input: int
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    source: Literal["reported", "counted", "assumed"] = "reported"

    @property
    def prompt_tokens(self) -> int:
        return self.input + self.cached + self.cache_write

    @property
    def completion_tokens(self) -> int:
        return self.output + self.reasoning


@dataclass(frozen=True)
class LongContext:
    """What a whole call costs whose prompt has more tokens than `above_tokens`."""

    above_tokens: int
    usd_per_mtok_in: float
    usd_per_mtok_out: float


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens, or dollars per second; seconds beyond `timeout_s` are not billed.

    Attributes:
        usd_per_mtok_cached: None: half of the price in, the largest that the large providers ask.
        usd_per_mtok_cache_write: None: the price in.
        usd_per_mtok_reasoning: None: the price out.
        long_context: of long prompts; the other prices per token change in proportion.
    """

    usd_per_mtok_in: float = 0.0
    usd_per_mtok_out: float = 0.0
    usd_per_second: float = 0.0
    timeout_s: float = 0.0
    usd_per_mtok_cached: float | None = None
    usd_per_mtok_cache_write: float | None = None
    usd_per_mtok_reasoning: float | None = None
    long_context: LongContext | None = None

    def of_prompt(self, prompt_tokens: float) -> Price:
        """The price of a call with a prompt of so many tokens, without a tier."""
        tier = self.long_context
        if tier is None or prompt_tokens <= tier.above_tokens:
            return replace(self, long_context=None)

        def scaled(usd: float | None, base: float, usd_of_tier: float) -> float | None:
            return usd if usd is None or base == 0 else usd * usd_of_tier / base

        per_mtok_in, per_mtok_out = self.usd_per_mtok_in, self.usd_per_mtok_out
        return replace(
            self,
            usd_per_mtok_in=tier.usd_per_mtok_in,
            usd_per_mtok_out=tier.usd_per_mtok_out,
            usd_per_mtok_cached=scaled(self.usd_per_mtok_cached, per_mtok_in, tier.usd_per_mtok_in),
            usd_per_mtok_cache_write=scaled(self.usd_per_mtok_cache_write, per_mtok_in, tier.usd_per_mtok_in),
            usd_per_mtok_reasoning=scaled(self.usd_per_mtok_reasoning, per_mtok_out, tier.usd_per_mtok_out),
            long_context=None,
        )

    def usage_usd(self, usage: Usage, seconds: float) -> float:
        """The cost of one call, in dollars."""
        if self.long_context is not None:
            return self.of_prompt(usage.prompt_tokens).usage_usd(usage, seconds)
        cached, write, reasoning = self.usd_per_mtok_cached, self.usd_per_mtok_cache_write, self.usd_per_mtok_reasoning
        per_mtok = (
            usage.input * self.usd_per_mtok_in
            + usage.cached * (self.usd_per_mtok_in / 2 if cached is None else cached)
            + usage.cache_write * (self.usd_per_mtok_in if write is None else write)
            + usage.output * self.usd_per_mtok_out
            + usage.reasoning * (self.usd_per_mtok_out if reasoning is None else reasoning)
        )
        return per_mtok / 1e6 + min(seconds, self.timeout_s) * self.usd_per_second

    def cost_usd(self, prompt_tokens: int, completion_tokens: int, seconds: float) -> float:
        """The cost of one call without caches and reasoning, in dollars."""
        return self.usage_usd(Usage(prompt_tokens, output=completion_tokens), seconds)

    def worst_usd(self, prompt_tokens: int, max_tokens: int) -> float:
        """The most that a call with this prompt can cost, in dollars: every token in its most expensive bucket."""
        if self.long_context is not None:
            return max(price.worst_usd(prompt_tokens, max_tokens) for price in self._tiers(prompt_tokens))
        prompt = max(self.usd_per_mtok_in, self.usd_per_mtok_cached or 0.0, self.usd_per_mtok_cache_write or 0.0)
        completion = max(self.usd_per_mtok_out, self.usd_per_mtok_reasoning or 0.0)
        return (prompt_tokens * prompt + max_tokens * completion) / 1e6 + self.timeout_s * self.usd_per_second

    def affordable_tokens(self, prompt_tokens: int, max_tokens: int, usd: float) -> int:
        """The largest number of output tokens up to `max_tokens` with a `worst_usd` of at most `usd`; 0 if none has."""
        if self.worst_usd(prompt_tokens, max_tokens) <= usd:
            return max_tokens
        if self.worst_usd(prompt_tokens, 1) > usd:
            return 0
        if self.long_context is not None:
            return min(price.affordable_tokens(prompt_tokens, max_tokens, usd) for price in self._tiers(prompt_tokens))
        usd_per_mtok = max(self.usd_per_mtok_out, self.usd_per_mtok_reasoning or 0.0)
        tokens = min(int((usd - self.worst_usd(prompt_tokens, 0)) * 1e6 / usd_per_mtok) + 1, max_tokens)
        while self.worst_usd(prompt_tokens, tokens) > usd:  # a few times: the quotient is rounded
            tokens -= 1
        return tokens

    def _tiers(self, most_prompt_tokens: int) -> tuple[Price, Price]:
        """The prices that a call may have whose prompt has at most so many tokens."""
        return self.of_prompt(0), self.of_prompt(most_prompt_tokens)


@dataclass(frozen=True)
class Limits:
    """The most tokens that a call can take, as far as its sender knows, and how to count them where none is reported.

    Attributes:
        expert: its name, for warnings.
        prompt_tokens: of the prompt.
        max_tokens: of the reply.
        tokenizer: the name or directory of a tokenizer; None: the most that the call can take is assumed.
    """

    expert: str
    prompt_tokens: int
    max_tokens: int
    tokenizer: str | None = None


def normalise_usage(reported: object, limits: Limits, prompt: str, reply: str) -> Usage:
    """The usage of a call, from what the server reports of it.

    Providers differ: reasoning may be part of the completion tokens (OpenAI) or come on top (xAI, Gemini), cached
    tokens part of the prompt tokens (OpenAI, DeepSeek) or come on top (Anthropic). `total_tokens` decides where it is
    given. A count counts as not reported if it is no whole number, negative, larger than the call can be, or zero where
    there is text.

    Args:
        reported: the reply's field `usage`, whatever it holds.
        limits: of the call.
        prompt: all that was sent.
        reply: all that was written, reasoning included.
    """
    counts = _Counts(reported if isinstance(reported, dict) else {})
    usage = _buckets(counts)
    most_out = max(MOST_TIMES_MAX_TOKENS * limits.max_tokens, LEAST_COMPLETION_BOUND)
    prompt_known = 0 < usage.prompt_tokens <= limits.prompt_tokens + HIDDEN_PROMPT_TOKENS and not counts.broken_prompt
    reply_known = usage.completion_tokens <= most_out and not counts.broken_completion
    reply_known = reply_known and (usage.completion_tokens > 0 or (not reply and counts.has_completion))
    if prompt_known and reply_known:
        return usage
    _warn_once(limits.expert, bool(counts.fields), limits.tokenizer is not None)
    if not prompt_known:
        usage = replace(usage, input=_own_count(limits, prompt, limits.prompt_tokens), cached=0, cache_write=0)
    if not reply_known:
        usage = replace(usage, output=_own_count(limits, reply, limits.max_tokens), reasoning=0)
    return replace(usage, source="counted" if limits.tokenizer is not None else "assumed")


def reported_usage(body: Mapping[str, Any]) -> Any:
    """What a reply, or one part of a stream, says of its usage, wherever servers put it; None if it does not."""
    for owner in OWNERS:
        value: Any = body
        for part in owner.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value:
            return value
    return body if "prompt_eval_count" in body or "tokens_evaluated" in body else None


def _own_count(limits: Limits, text: str, most: int) -> int:
    """The tokens of a text by the tokenizer of `limits`; the `most` that there can be without one."""
    return most if limits.tokenizer is None else count_tokens(limits.tokenizer, text)


@functools.cache
def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # of many kinds, from the hub, the file system and the tokenizers library
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"tokenizer {name!r} cannot be loaded: {reason}") from None


def count_tokens(tokenizer: str, text: str) -> int:
    """The number of tokens of a text. Raises InputError where the tokenizer cannot be loaded."""
    return len(_tokenizer(tokenizer)(text, add_special_tokens=False)["input_ids"])


class _Counts:
    """The counts in a reported usage by field; a field that holds anything but a whole number from 0 is broken."""

    def __init__(self, fields: dict[str, Any]):
        self.fields = fields
        self.broken_prompt = self.broken_completion = False
        self.has_completion = False

    def of(self, *names: str, of_prompt: bool = False, of_completion: bool = False) -> int | None:
        """The first of some fields that is there; a name with a dot is a field of a field."""
        for name in names:
            value: Any = self.fields
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is None:
                continue
            if isinstance(value, float) and math.isfinite(value) and value == int(value):
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                self.has_completion |= of_completion
                return value
            self.broken_prompt |= of_prompt
            self.broken_completion |= of_completion
            return None
        return None


def _buckets(counts: _Counts) -> Usage:
    """The buckets as the counts have them; zeros where there are none."""
    prompt = counts.of(*PROMPT_FIELDS, of_prompt=True) or 0
    completion = counts.of(*COMPLETION_FIELDS, of_completion=True) or 0
    cached = counts.of(
        "prompt_tokens_details.cached_tokens",
        "input_tokens_details.cached_tokens",
        "cache_read_input_tokens",
        "prompt_cache_hit_tokens",
        "cached_tokens",
        "cachedContentTokenCount",
        "cached_content_token_count",
        "cache_n",
        of_prompt=True,
    )
    write = counts.of(
        "prompt_tokens_details.cache_write_tokens",
        "prompt_tokens_details.cache_creation_tokens",
        "input_tokens_details.cache_write_tokens",
        "cache_creation_input_tokens",
        of_prompt=True,
    )
    reasoning = counts.of(
        "completion_tokens_details.reasoning_tokens",
        "output_tokens_details.reasoning_tokens",
        "reasoning_tokens",
        "thoughtsTokenCount",
        "thoughts_token_count",
        of_completion=True,
    )
    cached, write, reasoning = cached or 0, write or 0, reasoning or 0
    total = counts.of("total_tokens", "totalTokenCount", "total_token_count") or 0
    beyond = max(0, total - prompt - completion)
    on_top = bool(CACHE_ON_TOP & counts.fields.keys()) and "input_tokens_details" not in counts.fields
    if cached + write and (cached + write > prompt or (beyond == cached + write if beyond else on_top)):
        prompt += cached + write
        beyond = max(0, beyond - cached - write)
    if reasoning > completion or (reasoning and (beyond >= reasoning or THOUGHTS_ON_TOP & counts.fields.keys())):
        completion += reasoning
        beyond = max(0, beyond - reasoning)
    if completion:  # what the total has beyond both was written unseen
        completion, reasoning = completion + beyond, reasoning + beyond
    return Usage(prompt - cached - write, cached, write, completion - reasoning, reasoning)


@functools.cache
def _warn_once(expert: str, reported: bool, counted: bool) -> None:
    what = "reports token counts that cannot be right" if reported else "reports no token usage"
    how = "they are counted with its tokenizer" if counted else "the most that a call can take is recorded"
    hint = "" if counted else "; `tokenizer` in pool.yaml counts them"
    log.warning("%s: the server %s; %s%s", expert, what, how, hint)
