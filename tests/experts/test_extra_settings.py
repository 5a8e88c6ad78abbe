"""What pool.yaml passes on to a backend can neither run code nor lift a limit."""

from typing import Any

import pydantic
import pytest

from experts.specs import ExpertSpec, HuggingFaceSpec, OpenAISpec, VllmSpec

SPECS: dict[str, type[ExpertSpec]] = {"openai": OpenAISpec, "huggingface": HuggingFaceSpec, "vllm": VllmSpec}

TRANSFORMERS = """
    custom_generate assistant_model logits_processor stopping_criteria streamer penalty_alpha
    prefix_allowed_tokens_fn dola_layers constraints trust_remote_code generation_config tokenizer max_time
    eos_token_id do_sample temperature cache_implementation use_model_defaults _x
"""
ENGINE = """
    trust_remote_code hf_overrides worker_cls worker_extension_cls model_loader_extra_config model load_format
    compilation_config logits_processors speculative_config distributed_executor_backend kv_transfer_config
    hf_config_path config_format model_impl tokenizer_mode skip_tokenizer_init override_generation_config
    generation_config io_processor_plugin scheduler_cls download_dir
"""
SERVER = """
    n_predict num_predict max_output_tokens options extra_body models fallbacks plugins tools
    web_search_options audio modalities prediction chat_template documents echo
"""


def make(backend: str, **fields: Any) -> ExpertSpec:
    price = {"usd_per_mtok_in": 1.0, "usd_per_mtok_out": 1.0}
    return SPECS[backend].model_validate({"backend": backend, "name": "one", "model": "m"} | price | fields)


def refusal(backend: str, **fields: Any) -> str:
    with pytest.raises(pydantic.ValidationError) as caught:
        make(backend, **fields)
    return str(caught.value.errors()[0]["msg"])


@pytest.mark.parametrize("backend", SPECS)
@pytest.mark.parametrize(
    "name", ["n", "max_tokens", "max_new_tokens", "max_completion_tokens", "best_of", "num_beams", "model", "stream"]
)
def test_limits_cannot_be_set(backend: str, name: str):
    assert f"{name} cannot be set here, the spend cap relies on it" in refusal(backend, generation={"extra": {name: 9}})


@pytest.mark.parametrize("name", TRANSFORMERS.split())
def test_what_transformers_may_not_be_given(name: str):
    assert f"extra: {name} cannot be set here" in refusal("huggingface", generation={"extra": {name: 1}})


@pytest.mark.parametrize(
    "name",
    ["logits_processors", "extra_args", "temperature", "output_kind", "detokenize", "structured_outputs", "seed"],
)
def test_what_vllm_may_not_be_given_for_sampling(name: str):
    assert f"extra: {name} cannot be set here" in refusal("vllm", generation={"extra": {name: 1}})


@pytest.mark.parametrize("name", ENGINE.split())
def test_what_the_engine_may_not_be_given(name: str):
    assert f"{name} cannot be set here" in refusal("vllm", engine={name: "x"})


def test_the_reason_is_told():
    assert "it can run code" in refusal("huggingface", generation={"extra": {"custom_generate": "x"}})
    assert "it can run code" in refusal("vllm", engine={"worker_cls": "x"})
    assert "the field generation.temperature does" in refusal("huggingface", generation={"extra": {"temperature": 1}})
    assert "the field trust_remote_code does" in refusal("vllm", engine={"trust_remote_code": True})
    assert "did you mean max_model_len?" in refusal("vllm", engine={"max_model_length": 9})
    assert "did you mean top_k?" in refusal("huggingface", generation={"extra": {"topk": 9}})
    assert "these can: bad_words_ids, " in refusal("huggingface", generation={"extra": {"x": 9}})


@pytest.mark.parametrize("name", SERVER.split())
def test_what_a_server_may_not_be_sent(name: str):
    assert f"extra: {name} cannot be set here" in refusal("openai", generation={"extra": {name: 1}})


def test_what_is_allowed():
    extra = {"reasoning_effort": "low", "response_format": {"type": "json_object"}, "provider": {"order": ["x"]}}
    extra |= {"chat_template_kwargs": {"enable_thinking": False}, "thinking": {"type": "disabled"}, "top_k": 1}
    assert make("openai", generation={"extra": extra}).generation.extra == extra
    sampling = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
    assert make("huggingface", generation={"extra": sampling | {"suppress_tokens": [1]}})
    assert make("vllm", generation={"extra": sampling | {"presence_penalty": 1.0}})
    engine = {"max_model_len": 128, "gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "quantization": "awq"}
    assert make("vllm", engine=engine | {"enforce_eager": True})


@pytest.mark.parametrize(
    "fields",
    [
        {"generation": {"stop": [""]}},
        {"generation": {"seed": 2**64}},
        {"generation": {"temperature": float("inf")}},
        {"generation": {"temperature": float("nan")}},
        {"timeout_s": float("inf")},
        {"name": " "},
        {"name": "\ud800"},
        {"usd_per_mtok_in": float("nan")},
    ],
)
def test_values_that_nothing_can_use(fields: dict[str, Any]):
    assert refusal("openai", **fields)
