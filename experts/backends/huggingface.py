"""Answers queries with a causal language model of the transformers library, in this process."""

from __future__ import annotations

import copy
import functools
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experts.backends.local import Output, Prompt, answer_locally, make_prompt, one_line_errors
from experts.specs import HuggingFaceSpec
from experts.spending import SpendCap
from experts.types import Answer, Query
from leeroo_env.errors import InputError

if TYPE_CHECKING:
    from transformers import GenerationConfig

GREEDY_BELOW = 1e-5  # temperature, as in vLLM: dividing by less overflows


class HuggingFaceExpert:
    """A causal language model that is loaded at the first query and answers one batch at a time."""

    def __init__(self, spec: HuggingFaceSpec, spend_cap: SpendCap) -> None:
        self.name = spec.name
        self.spec = spec
        self._spend_cap = spend_cap
        self._lock = threading.Lock()
        self._loaded = functools.cache(functools.partial(_load, spec))  # one for all copies, which are variants

    def answer(self, queries: Sequence[Query], limits_usd: Sequence[float] | None = None) -> list[Answer]:
        """Generates in batches of similar length, padded on the left; a batch that fails gives answers with `error`.

        An answer gets no more tokens than its limit pays for.

        Raises:
            InputError: the model cannot be loaded, or its tokenizer cannot be used.
        """
        with self._lock:
            tokenizer, model = self._loaded()
            prompts = [make_prompt(tokenizer, self.spec, query) for query in queries]
            with one_line_errors(self.spec, "cannot be used"):
                _check_vocabulary(model, prompts)
                settings = _settings(self.spec, tokenizer, model.generation_config.eos_token_id or [])
                context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
            generate = functools.partial(self._generate, settings)
            return answer_locally(self.spec, self._spend_cap, prompts, int(context), generate, limits_usd)

    def _generate(self, settings: GenerationConfig, prompts: list[list[int]], most_tokens: list[int]) -> list[Output]:
        tokenizer, model = self._loaded()
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[settings.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        stop = self.spec.generation.stop
        settings = copy.copy(settings)
        settings.max_new_tokens = max(most_tokens)
        record = _LogProbs()
        with torch.random.fork_rng(), torch.inference_mode():
            if self.spec.generation.seed is not None:
                torch.manual_seed(self.spec.generation.seed)
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                logits_processor=[record],
                **({"tokenizer": tokenizer} if stop else {}),
            )
        ends, rows = settings.eos_token_id or [], output[:, width:].tolist()
        outputs = [_read(tokenizer, row[:most], ends, stop, most) for row, most in zip(rows, most_tokens, strict=True)]
        chosen = record.of_chosen(output)
        texts = [
            tokenizer.batch_decode([[token] for token in row]) if self.spec.confidence else [""] * len(row)
            for row in rows
        ]
        parts = zip(outputs, texts, chosen.tolist(), strict=True)
        return [replace(one, logprobs=tuple(zip(words, row, strict=True))[: one.tokens]) for one, words, row in parts]


class _LogProbs:
    """A logits processor that changes nothing and records the log-probability of each token that is chosen."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        self.last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._add(input_ids)
        self.last = scores.float().log_softmax(dim=1)
        return scores

    def of_chosen(self, output: Tensor) -> Tensor:
        """[B, T] of the T tokens written, from the ids of prompts and tokens [B, W + T]."""
        self._add(output)
        return torch.cat(self.steps, dim=1).cpu()

    def _add(self, ids: Tensor) -> None:
        if self.last is not None:
            self.steps.append(self.last.gather(1, ids[:, -1:]))


def _load(spec: HuggingFaceSpec) -> tuple[Any, Any]:
    """Tokenizer and model; of the model's own generation settings only the end tokens are kept."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    dtype = spec.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)
    with one_line_errors(spec, "cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(spec.model_path, **source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            spec.model_path, dtype=dtype, generation_config=GenerationConfig(), output_loading_info=True, **source
        )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise InputError(
                f"expert {spec.name!r}: model {spec.model!r} cannot be loaded: its files lack {len(missing)} "
                f"weights, such as {missing[0]}"
            )
        model.generation_config = GenerationConfig(eos_token_id=_end_tokens(spec, tokenizer, model) or None)
        return tokenizer, model.to(spec.device).eval()


def _end_tokens(spec: HuggingFaceSpec, tokenizer: Any, model: Any) -> list[int]:
    """The tokens that end an answer: those of generation_config.json, else config.json, and the tokenizer's."""
    ends = _own_settings(spec).get("eos_token_id")
    if ends is None:
        ends = getattr(model.config.get_text_config(), "eos_token_id", None)
    listed = [*(ends if isinstance(ends, list | tuple) else [ends]), tokenizer.eos_token_id]
    tokens = [token for token in listed if token is not None]
    for token in tokens:
        if type(token) is not int or token < 0:
            raise ValueError(f"eos_token_id {token!r} is no token")
    return list(dict.fromkeys(tokens))


def _own_settings(spec: HuggingFaceSpec) -> dict[str, Any]:
    """What the model's generation_config.json says; empty if it has none."""
    from transformers.utils import cached_file

    file = cached_file(
        spec.model_path,
        "generation_config.json",
        revision=spec.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    settings = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    if not isinstance(settings, dict):
        raise ValueError("generation_config.json is not a JSON object")
    return settings


def _settings(spec: HuggingFaceSpec, tokenizer: Any, ends: list[int]) -> GenerationConfig:
    """All generation settings; without `temperature` greedy decoding."""
    from transformers import GenerationConfig

    sampling = spec.generation
    samples = (sampling.temperature or 0.0) >= GREEDY_BELOW
    settings: dict[str, Any] = {
        "do_sample": samples,
        "max_new_tokens": spec.max_tokens,
        "eos_token_id": ends or None,
        "pad_token_id": next(token for token in (tokenizer.pad_token_id, *ends, 0) if token is not None),
        "bos_token_id": tokenizer.bos_token_id,
    }
    if samples:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p or 1.0, "top_k": 0}
    if sampling.stop:
        settings["stop_strings"] = list(sampling.stop)
    return GenerationConfig(**settings | sampling.extra)


def _check_vocabulary(model: Any, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError for a token without an embedding, which on a GPU would end the process."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    largest = max((max(prompt.ids) for prompt in prompts if prompt.ids), default=0)
    if rows is not None and largest >= rows:
        raise ValueError(f"the tokenizer has a token {largest}, the model embeds only {rows}")


def _read(tokenizer: Any, row: list[int], ends: Sequence[int], stop: Sequence[str], max_tokens: int) -> Output:
    """The text before the first end token or stop string; both count among the tokens."""
    end = next((i for i, token in enumerate(row) if token in ends), None)
    length = len(row) if end is None else end + 1
    text = tokenizer.decode(row[:end], skip_special_tokens=True)
    cut = min((text.find(s) for s in stop if s in text), default=None)
    if cut is None:
        return Output(text, length, "length" if end is None and length >= max_tokens else "stop")
    while length > 1 and any(s in tokenizer.decode(row[: length - 1], skip_special_tokens=True) for s in stop):
        length -= 1
    return Output(text[:cut], length, "stop")
