"""What the backends that run a model on this machine have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from experts.spending import SpendCap, ask_affordable
from experts.types import Answer, Query

if TYPE_CHECKING:
    from experts.pool import LocalSpec

# token ids of a batch of prompts -> the text and the number of new tokens of each
Generate = Callable[[list[list[int]]], list[tuple[str, int]]]


def prompt_ids(tokenizer: Any, spec: LocalSpec, query: Query) -> list[int]:
    """The prompt's token ids, through the tokenizer's chat template where the spec or the tokenizer asks for one."""
    prompt = spec.render(query)
    if spec.chat if spec.chat is not None else tokenizer.chat_template is not None:
        messages = [{"role": "system", "content": spec.system}] if spec.system else []
        messages.append({"role": "user", "content": prompt})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer(f"{spec.system}\n\n{prompt}" if spec.system else prompt)["input_ids"]


def answer_locally(
    spec: LocalSpec, spend_cap: SpendCap, ids: Sequence[list[int]], context: int, generate: Generate
) -> list[Answer]:
    """Answers prompts in batches of like length and returns the answers in the order of the prompts.

    A batch's seconds are every answer's latency; a price by the second is shared equally among the batch.

    Args:
        ids: the prompts' token ids.
        context: the most tokens, prompt and answer together, that the model takes.
    """
    answers: list[Answer | None] = [None] * len(ids)
    for i, prompt in enumerate(ids):
        if not prompt:
            answers[i] = _failed("the prompt has no tokens")
        elif len(prompt) + spec.max_tokens > context:
            answers[i] = _failed(f"{len(prompt)} prompt tokens and max_tokens {spec.max_tokens} exceed {context}")
    order = sorted((i for i, answer in enumerate(answers) if answer is None), key=lambda i: len(ids[i]))
    worst_usd = [spec.price.worst_usd(len(ids[i]), spec.max_tokens) for i in order]

    def ask(part: slice) -> list[Answer]:
        return _ask_batch(spec, [ids[i] for i in order[part]], generate)

    for i, answer in zip(order, ask_affordable(spend_cap, worst_usd, ask, spec.batch_size), strict=True):
        answers[i] = answer
    return [answer for answer in answers if answer is not None]


def _ask_batch(spec: LocalSpec, prompts: list[list[int]], generate: Generate) -> list[Answer]:
    started = time.perf_counter()
    try:
        outputs = generate(prompts)
    except Exception as error:  # out of memory, for one: the other batches must get their answers
        seconds = time.perf_counter() - started
        return [_failed(" ".join(f"{type(error).__name__}: {error}".split())[:300], seconds) for _ in prompts]
    seconds = time.perf_counter() - started
    answers = []
    for prompt, (text, new_tokens) in zip(prompts, outputs, strict=True):
        cost_usd = spec.price.cost_usd(len(prompt), new_tokens, seconds / len(prompts))
        answers.append(Answer(text, len(prompt), new_tokens, cost_usd, seconds))
    return answers


def _failed(error: str, seconds: float = 0.0) -> Answer:
    return Answer("", 0, 0, 0.0, seconds, error=error)
