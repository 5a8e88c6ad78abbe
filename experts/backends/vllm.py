"""Answers queries with vLLM's offline engine."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

from experts.backends.local import answer_locally, prompt_ids
from experts.specs import VllmSpec
from experts.spending import SpendCap
from experts.types import Answer, Query
from leeroo_env.errors import InputError


class VllmExpert:
    """A model in an engine of its own, which starts at the first query and answers one batch at a time."""

    def __init__(self, spec: VllmSpec, spend_cap: SpendCap) -> None:
        self.name = spec.name
        self.spec = spec
        self._spend_cap = spend_cap
        self._lock = threading.Lock()

    @functools.cached_property
    def _engine(self) -> Any:
        try:
            import vllm
        except ImportError as error:
            raise InputError(f"expert {self.name!r}: backend vllm needs the package vllm: {error}") from error

        spec = self.spec
        try:
            return vllm.LLM(model=spec.model_path, revision=spec.revision, dtype=spec.dtype, **spec.engine)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"expert {self.name!r}: vLLM cannot load {spec.model!r}: {reason}") from error

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """Generates in batches; a batch that fails gives answers with `error`.

        Raises:
            InputError: vLLM is not installed or cannot load the model.
        """
        with self._lock:
            tokenizer = self._engine.get_tokenizer()
            ids = [prompt_ids(tokenizer, self.spec, query) for query in queries]
            context = self._engine.llm_engine.model_config.max_model_len
            return answer_locally(self.spec, self._spend_cap, ids, context, self._generate)

    def _generate(self, prompts: list[list[int]]) -> list[tuple[str, int]]:
        from vllm import SamplingParams

        sampling = self.spec.generation
        params = SamplingParams(
            temperature=sampling.temperature or 0.0,
            top_p=sampling.top_p or 1.0,
            seed=sampling.seed,
            stop=list(sampling.stop) or None,
            max_tokens=self.spec.max_tokens,
            **sampling.extra,
        )
        outputs = self._engine.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [(output.outputs[0].text, len(output.outputs[0].token_ids)) for output in outputs]
