"""Lists the settings that pool.yaml may pass on to a backend: none that run code, lift a limit or cost extra.

For local models these are lists of what is allowed, since a new version may bring settings that load code. For servers,
which nobody can list, they are lists of what is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

LIMITS = {"max_tokens", "max_completion_tokens", "max_new_tokens", "max_length", "n", "best_of", "num_return_sequences"}
SET_ELSEWHERE = LIMITS | {"num_beams", "use_beam_search", "stream", "messages", "prompt", "model"}
OWN_FIELDS = {  # the field of pool.yaml for a setting
    "temperature": "generation.temperature",
    "top_p": "generation.top_p",
    "seed": "generation.seed",
    "stop": "generation.stop",
    "stop_strings": "generation.stop",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "model": "model",
    "revision": "revision",
    "device": "device",
    "trust_remote_code": "trust_remote_code",
}
RUN_CODE = {
    "assistant_model",
    "assistant_tokenizer",
    "constraints",
    "custom_generate",
    "dola_layers",
    "hf_overrides",
    "logits_processor",
    "logits_processor_pattern",
    "logits_processors",
    "model_class_overrides",
    "model_loader_extra_config",
    "penalty_alpha",
    "prefix_allowed_tokens_fn",
    "quantization_config",
    "stopping_criteria",
    "streamer",
    "worker_cls",
    "worker_extension_cls",
    "extra_args",
    "vllm_xargs",
    "load_format",
    "compilation_config",
    "kv_transfer_config",
    "additional_config",
}
HUGGINGFACE = {
    "begin_suppress_tokens",
    "bad_words_ids",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "remove_invalid_values",
    "renormalize_logits",
    "repetition_penalty",
    "sequence_bias",
    "suppress_tokens",
    "top_h",
    "top_k",
    "typical_p",
}
VLLM_SAMPLING = {
    "allowed_token_ids",
    "bad_words",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "repetition_penalty",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop_token_ids",
    "top_k",
}
VLLM_ENGINE = {
    "block_size",
    "calculate_kv_scales",
    "cpu_offload_gb",
    "disable_custom_all_reduce",
    "disable_log_stats",
    "disable_sliding_window",
    "enable_chunked_prefill",
    "enable_expert_parallel",
    "enable_prefix_caching",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "kv_cache_memory_bytes",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "max_seq_len_to_capture",
    "num_gpu_blocks_override",
    "pipeline_parallel_size",
    "quantization",
    "seed",
    "swap_space",
    "tensor_parallel_size",
    "tokenizer",
    "tokenizer_revision",
}
SERVER_REFUSED = {  # another name of a limit, another model or text, or what providers bill on top
    "audio",
    "background",
    "chat_template",
    "documents",
    "echo",
    "extra_body",
    "fallbacks",
    "functions",
    "function_call",
    "generation_config",
    "generationConfig",
    "input",
    "max_output_tokens",
    "max_tokens_to_sample",
    "modalities",
    "models",
    "n_predict",
    "num_predict",
    "options",
    "parameters",
    "plugins",
    "prediction",
    "route",
    "suffix",
    "system",
    "tools",
    "tool_choice",
    "web_search_options",
}


def check_limits(extra: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting on which the spend cap relies, of any backend."""
    for name in extra:
        if name in SET_ELSEWHERE:
            raise ValueError(f"{name} cannot be set here, the spend cap relies on it")


def check_server_settings(extra: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that no server may be sent."""
    for name in extra:
        if name in SERVER_REFUSED:
            raise ValueError(f"extra: {name} cannot be set here, it can change what is asked, or what it costs")


def check_allowed(given: Mapping[str, Any], allowed: set[str], where: str) -> None:
    """Raises ValueError for a setting that is not in the list."""
    for name in given:
        if name in allowed:
            continue
        if name in OWN_FIELDS:
            raise ValueError(f"{where}{name} cannot be set here, the field {OWN_FIELDS[name]} does")
        if name in RUN_CODE:
            raise ValueError(f"{where}{name} cannot be set here, it can run code")
        close = difflib.get_close_matches(name, allowed, n=1)
        hint = f"did you mean {close[0]}?" if close else f"these can: {', '.join(sorted(allowed))}"
        raise ValueError(f"{where}{name} cannot be set here; {hint}")
