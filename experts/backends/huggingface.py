"""Answers queries with a causal language model of the transformers library, in this process."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

from experts.backends.local import answer_locally, prompt_ids
from experts.specs import HuggingFaceSpec
from experts.spending import SpendCap
from experts.types import Answer, Query
from leeroo_env.errors import InputError


class HuggingFaceExpert:
    """A causal language model that is loaded at the first query and answers one batch at a time."""

    def __init__(self, spec: HuggingFaceSpec, spend_cap: SpendCap) -> None:
        self.name = spec.name
        self.spec = spec
        self._spend_cap = spend_cap
        self._lock = threading.Lock()

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()

        path, revision = self.spec.model_path, self.spec.revision
        dtype = self.spec.dtype if self.spec.dtype == "auto" else getattr(torch, self.spec.dtype)
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
            model: Any = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=dtype)
            return tokenizer, model.to(self.spec.device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"expert {self.name!r}: model {self.spec.model!r} cannot be loaded: {reason}") from error

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Generates in batches of similar length, padded on the left; a batch that fails gives answers with `error`.

        Raises:
            InputError: the model cannot be loaded.
        """
        with self._lock:
            tokenizer, model = self._loaded
            ids = [prompt_ids(tokenizer, self.spec, query) for query in queries]
            context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
            return answer_locally(self.spec, self._spend_cap, ids, context, self._generate)

    def _generate(self, prompts: list[list[int]]) -> list[tuple[str, int]]:
        import torch

        tokenizer, model = self._loaded
        ends = end_tokens(tokenizer, model)
        padding = next(token for token in (tokenizer.pad_token_id, *ends, 0) if token is not None)
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.random.fork_rng(), torch.inference_mode():
            if self.spec.generation.seed is not None:
                torch.manual_seed(self.spec.generation.seed)
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                pad_token_id=padding,
                eos_token_id=list(ends) or None,
                max_new_tokens=self.spec.max_tokens,
                **_settings(self.spec, tokenizer),
            )
        return [_read(tokenizer, row, ends, self.spec.generation.stop) for row in output[:, width:].tolist()]


def end_tokens(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    return tuple(dict.fromkeys(token for token in (*ends, tokenizer.eos_token_id) if token is not None))


def _settings(spec: HuggingFaceSpec, tokenizer: Any) -> dict[str, Any]:
    sampling = spec.generation
    settings: dict[str, Any] = {"do_sample": bool(sampling.temperature)}
    if sampling.temperature:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p or 1.0, "top_k": 0}
    if sampling.stop:
        settings |= {"stop_strings": list(sampling.stop), "tokenizer": tokenizer}
    return settings | sampling.extra


def _read(tokenizer: Any, row: list[int], ends: Sequence[int], stop: Sequence[str]) -> tuple[str, int]:
    """Text and number of tokens up to and including the first end token, or up to the first stop string."""
    length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
    text = tokenizer.decode(row[:length], skip_special_tokens=True)
    cut = min((text.find(s) for s in stop if s in text), default=None)
    if cut is None:
        return text, length
    while length > 1 and any(s in tokenizer.decode(row[: length - 1], skip_special_tokens=True) for s in stop):
        length -= 1
    return text[:cut], length
