"""Answers queries in batches with a model on this machine; shared by the transformers and vLLM backends."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experts.backends.reply import clean_text, printable
from experts.confidence import logprob_without, split_confidence
from experts.conversation import Turn, as_text
from experts.reasoning import split_reasoning
from experts.specs import LocalSpec
from experts.spending import NOT_PAID, SpendCap, ask_affordable
from experts.types import EMPTY, OUT_OF_MONEY, Answer, Conversation, Query
from leeroo_env.errors import InputError

ERROR_CHARS = 300
_OPENED = re.compile(r"<(?:think|thinking|thought|reasoning)>\s*\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """A prompt's token ids, and whether it ends where the model is to reason, as chat templates may."""

    ids: list[int]
    opens_reasoning: bool = False


@dataclass(frozen=True)
class Output:
    """What a model wrote: the text, the number of tokens, "stop" or "length" for why it ended, and text and
    log-probability of each token, empty where these are not known; texts are "" unless a confidence is asked for."""

    text: str
    tokens: int
    finish_reason: str
    logprobs: Sequence[tuple[str, float]] = ()


# From the token ids of a batch of prompts, and the most tokens to write after each.
Generate = Callable[[list[list[int]], list[int]], list[Output]]


@contextlib.contextmanager
def one_line_errors(spec: LocalSpec, problem: str) -> Iterator[None]:
    """Turns what a library raises about a model, which may be any exception, into an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"expert {spec.name!r}: model {spec.model!r} {problem}: {described(error)}") from error


def described(error: Exception) -> str:
    """An exception's message as one line; with its type where the message alone says little."""
    message = printable(clean_text(str(error)))
    if not message or isinstance(error, LookupError | AttributeError | TypeError | AssertionError):
        message = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return message[:ERROR_CHARS]


def make_prompt(tokenizer: Any, spec: LocalSpec, query: Query) -> Prompt:
    """The prompt, in the chat template if the spec asks for it (default: if the tokenizer has one).

    Raises:
        InputError: there is no chat template, or it refuses the messages.
    """
    turns = query.turns if isinstance(query, Conversation) else (("user", spec.render(query)),)
    if spec.system and not isinstance(query, Conversation):
        turns = (("system", spec.system), *turns)
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if not (has_template if spec.chat is None else spec.chat):
        with one_line_errors(spec, "cannot read a prompt"):
            return Prompt(list(tokenizer(as_text(turns))["input_ids"]))
    if not has_template:
        raise InputError(f"expert {spec.name!r}: chat: true, but the tokenizer of {spec.model!r} has no chat template")
    with one_line_errors(spec, "has a chat template that cannot be used"):
        text = _in_template(tokenizer, turns)
        return Prompt(list(tokenizer(text, add_special_tokens=False)["input_ids"]), bool(_OPENED.search(text)))


def _in_template(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """The turns in the chat template; a system text that it refuses or leaves out goes before the next turn's."""

    def render(turns: Sequence[Turn]) -> str:
        conversation = [{"role": role, "content": content} for role, content in turns]
        text: str = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        return text

    (role, system), *others = turns
    if role != "system" or not others:
        return render(turns)
    with contextlib.suppress(Exception):  # a template can raise anything; without the system role it may not
        text = render(turns)
        if system.strip() in text:
            return text
    (role, first), *others = others
    return render([(role, f"{system}\n\n{first}"), *others])


def answer_locally(
    spec: LocalSpec,
    spend_cap: SpendCap,
    prompts: Sequence[Prompt],
    context: int,
    generate: Generate,
    limits_usd: Sequence[float] | None = None,
) -> list[Answer]:
    """Answers prompts in batches of similar length and returns the answers in the order of the prompts.

    The latency of each answer is that of its batch; a price by the second is shared equally within a batch.

    Args:
        context: the model's limit of tokens, prompt and answer together.
        limits_usd: the most that each answer may cost: it gets no more tokens than that pays for. None: any amount.
    """
    answers: list[Answer | None] = [None] * len(prompts)
    limits_usd = [math.inf] * len(prompts) if limits_usd is None else limits_usd
    pays = spec.price.affordable_tokens
    most = [pays(len(prompt.ids), spec.max_tokens, usd) for prompt, usd in zip(prompts, limits_usd, strict=True)]
    for i, prompt in enumerate(prompts):
        if not prompt.ids:
            answers[i] = _failed("the prompt has no tokens")
        elif len(prompt.ids) + spec.max_tokens > context:
            answers[i] = _failed(f"{len(prompt.ids)} prompt tokens and max_tokens {spec.max_tokens} exceed {context}")
        elif not most[i]:
            answers[i] = _failed(NOT_PAID)
    order = sorted((i for i, answer in enumerate(answers) if answer is None), key=lambda i: len(prompts[i].ids))
    worst_usd = [spec.price.worst_usd(len(prompts[i].ids), most[i]) for i in order]

    def ask(part: slice) -> list[Answer]:
        return _ask_batch(spec, [prompts[i] for i in order[part]], [most[i] for i in order[part]], generate)

    for i, answer in zip(order, ask_affordable(spend_cap, worst_usd, ask, spec.batch_size), strict=True):
        answers[i] = answer
    return [answer for answer in answers if answer is not None]


def _ask_batch(spec: LocalSpec, prompts: list[Prompt], most_tokens: list[int], generate: Generate) -> list[Answer]:
    started = time.perf_counter()
    try:
        outputs = generate([prompt.ids for prompt in prompts], most_tokens)
    except Exception as error:  # such as out of memory; the other batches must get their answers
        seconds = time.perf_counter() - started
        lost_usd = spec.price.cost_usd(0, 0, seconds / len(prompts))
        return [_failed(f"{type(error).__name__}: {described(error)}", seconds, lost_usd) for _ in prompts]
    seconds = time.perf_counter() - started
    share_s = seconds / len(prompts)
    calls = zip(prompts, most_tokens, outputs, strict=True)
    return [_answer(spec, *call, share_s, seconds) for call in calls]


def _answer(spec: LocalSpec, prompt: Prompt, max_tokens: int, output: Output, share_s: float, seconds: float) -> Answer:
    """The answer in an output, or the error of one that has none: it may be cut off while the model reasons."""
    reasoning, text = split_reasoning(("<think>" if prompt.opens_reasoning else "") + output.text)
    cost_usd = spec.price.cost_usd(len(prompt.ids), output.tokens, share_s)
    whole = text
    text, confidence = split_confidence(text) if spec.confidence else (text, None)
    empty = not text.strip()
    out_of_money = output.finish_reason == "length" and max_tokens < spec.max_tokens
    finish_reason = OUT_OF_MONEY if out_of_money else output.finish_reason
    return Answer(
        text="" if empty else text,
        prompt_tokens=len(prompt.ids),
        completion_tokens=output.tokens,
        cost_usd=0.0 if empty else cost_usd,
        latency_s=seconds,
        error=f"{EMPTY} (finish_reason {finish_reason})" if empty else None,
        finish_reason=finish_reason,
        reasoning=reasoning,
        lost_usd=cost_usd if empty else 0.0,
        logprob=logprob_without(output.logprobs, whole, text),
        confidence=confidence,
    )


def _failed(error: str, seconds: float = 0.0, lost_usd: float = 0.0) -> Answer:
    return Answer("", 0, 0, 0.0, seconds, error=error, lost_usd=lost_usd)
