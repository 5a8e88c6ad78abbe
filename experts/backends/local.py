"""Answers queries in batches with a model on this machine; shared by the transformers and vLLM backends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from experts.specs import LocalSpec
from experts.spending import SpendCap, ask_affordable
from experts.types import Answer, Query

# From the token ids of a batch of prompts to the text and the number of new tokens of each
Generate = Callable[[list[list[int]]], list[tuple[str, int]]]
ERROR_CHARS = 300


def prompt_ids(tokenizer: Any, spec: LocalSpec, query: Query) -> list[int]:
    """The prompt's token ids, in the chat template if the spec asks for it (default: if the tokenizer has one)."""
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
    """Answers prompts in batches of similar length and returns the answers in the order of the prompts.

    The latency of each answer is that of its batch; a price by the second is shared equally within a batch.

    Args:
        ids: the prompts' token ids.
        context: the model's limit of tokens, prompt and answer together.
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
    except Exception as error:  # such as out of memory; the other batches must get their answers
        seconds = time.perf_counter() - started
        return [_failed(" ".join(f"{type(error).__name__}: {error}".split())[:ERROR_CHARS], seconds) for _ in prompts]
    seconds = time.perf_counter() - started
    answers = []
    for prompt, (text, new_tokens) in zip(prompts, outputs, strict=True):
        cost_usd = spec.price.cost_usd(len(prompt), new_tokens, seconds / len(prompts))
        answers.append(Answer(text, len(prompt), new_tokens, cost_usd, seconds))
    return answers


def _failed(error: str, seconds: float = 0.0) -> Answer:
    return Answer("", 0, 0, 0.0, seconds, error=error)
