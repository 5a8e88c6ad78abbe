"""Keys of stored answers: what changes them, and that they stay the same from version to version."""

import shutil

import pytest

from experts.pool import keys_for, load_pool
from experts.pool.keys import fingerprint
from experts.specs import ExpertSpec, HuggingFaceSpec, OpenAISpec, VllmSpec
from experts.types import Query
from tests.experts.pool.test_loader import REMOTE, make_model, write

PRICE = {"usd_per_mtok_in": 1.0, "usd_per_mtok_out": 2.0}
REMOTE_FIELDS = {"model": "some/model", "system": "be brief", "prompt": "Q: {text}"}
SAMPLING = {"temperature": 0.5, "seed": 3, "stop": ["x"]}


@pytest.mark.parametrize(
    ("kind", "fields", "key"),
    [
        (
            OpenAISpec,
            {"backend": "openai", "name": "big", **REMOTE_FIELDS, "generation": SAMPLING, **PRICE},
            "61de0fe313eba6cef2d8474e0e71e45547eef2a38fc957e3410aa2fdca12d354",
        ),
        (
            HuggingFaceSpec,
            {"backend": "huggingface", "name": "small", "model": "org/small", "revision": "main", **PRICE},
            "60e7a02f10e65f3bb0688e46d0360e210385cbb34f7045ad874c9b833fed3ab5",
        ),
        (
            VllmSpec,
            {
                "backend": "vllm",
                "name": "v",
                "model": "org/v",
                "engine": {"enforce_eager": True},
                "usd_per_second": 0.1,
            },
            "da713fa0f8b693b6ba9b0d85d039752770a74df19ca69b027eac45350c5571f3",
        ),
    ],
)
def test_keys_never_change(kind: type[ExpertSpec], fields: dict, key: str):
    """Protects: with other keys every answer of an existing store would be asked for, and paid, again."""
    assert keys_for(kind.model_validate(fields))(Query("q1", "What is 12 + 47?")) == key


def test_answer_keys_change_with_what_shapes_an_answer_and_with_nothing_else(tmp_path):
    query = Query("q", "text")

    def key(old: str = "", new: str = "") -> str:
        return keys_for(load_pool(write(tmp_path, REMOTE.replace(old, new, 1))).experts[0])(query)

    base = key()
    extra = "backend: openai\n    "
    for line in (
        "max_tokens: 7",
        "prompt: 'Q {text}'",
        "system: s",
        "chat: false",
        "generation: {temperature: 1}",
        "confidence: true",
    ):
        assert key("backend: openai", extra + line) != base, line
    assert key("some/model", "other/model") != base and key("big", "large") != base
    for line in (
        "concurrency: 3",
        "timeout_s: 5",
        "base_url_env: ELSEWHERE",
        "max_retries: 1",
        "parameters_b: 7",
        "can: [tools, vision, json, logprobs]",
        "context: 8192",
        "long_context: {above_tokens: 1, usd_per_mtok_in: 1, usd_per_mtok_out: 2}",
        "first_token_s: 5",
    ):
        assert key("backend: openai", extra + line) == base, line
    assert key("usd_per_mtok_in: 1", "usd_per_mtok_in: 3") == base
    assert keys_for(load_pool(write(tmp_path, REMOTE)).experts[0])(Query("another id", "text")) == base


def test_a_local_model_is_known_by_its_content(tmp_path):
    one = make_model(tmp_path / "one")
    two = shutil.copytree(one, tmp_path / "two")
    assert fingerprint(one) == fingerprint(two)
    weights = bytearray(300_000)
    weights[200_000] = 1
    (two / "model.safetensors").write_bytes(weights)
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one, samples=3, sample_bytes=1000) == fingerprint(one, samples=3, sample_bytes=1000)
