"""Answers queries with vLLM's offline engine."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

from experts.backends.local import Output, answer_locally, make_prompt, one_line_errors
from experts.specs import VllmSpec
from experts.spending import SpendCap
from experts.types import Answer, Query


class VllmExpert:
    """A model in an engine of its own, which starts at the first query and answers one batch at a time."""

    def __init__(self, spec: VllmSpec, spend_cap: SpendCap) -> None:
        self.name = spec.name
        self.spec = spec
        self._spend_cap = spend_cap
        self._lock = threading.Lock()
        self._engine = functools.cache(functools.partial(_start, spec))  # one for all copies, which are variants

    def answer(self, queries: Sequence[Query], limits_usd: Sequence[float] | None = None) -> list[Answer]:
        """Generates in batches, no more tokens than limits pay for; a batch that fails gives answers with `error`.

        Raises:
            InputError: vLLM is not installed or cannot load the model.
        """
        with self._lock:
            engine = self._engine()
            with one_line_errors(self.spec, "cannot be used"):
                tokenizer = engine.get_tokenizer()
                context = engine.llm_engine.model_config.max_model_len
            prompts = [make_prompt(tokenizer, self.spec, query) for query in queries]
            return answer_locally(self.spec, self._spend_cap, prompts, context, self._generate, limits_usd)

    def _generate(self, prompts: list[list[int]], most_tokens: list[int]) -> list[Output]:
        from vllm import SamplingParams

        sampling = self.spec.generation
        params = [
            SamplingParams(
                temperature=sampling.temperature or 0.0,
                top_p=sampling.top_p or 1.0,
                seed=sampling.seed,
                stop=list(sampling.stop) or None,
                max_tokens=most,
                logprobs=0,  # of the chosen tokens alone
                **sampling.extra,
            )
            for most in most_tokens
        ]
        outputs = self._engine().generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        completions = [output.outputs[0] for output in outputs]
        return [_output(one) for one in completions]


def _start(spec: VllmSpec) -> Any:
    """The engine with the model."""
    with one_line_errors(spec, "needs the package vllm"):
        import vllm

    fields = {"revision": spec.revision, "dtype": spec.dtype, "trust_remote_code": spec.trust_remote_code}
    with one_line_errors(spec, "cannot be loaded by vLLM"):
        return vllm.LLM(model=spec.model_path, **fields, **spec.engine)


def _output(completion: Any) -> Output:
    listed = completion.logprobs or []
    chosen = [by_id.get(token) for by_id, token in zip(listed, completion.token_ids, strict=False)]
    logprobs = [(one.decoded_token or "", one.logprob) for one in chosen if one is not None]
    logprobs = logprobs if len(logprobs) == len(completion.token_ids) else []
    return Output(completion.text, len(completion.token_ids), completion.finish_reason or "stop", logprobs)
