"""vLLM itself: `pytest -m vllm tests/experts/backends` where the package vllm (or vllm-cpu) is installed."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from experts.backends.huggingface import HuggingFaceExpert
from experts.backends.openai import OpenAIExpert
from experts.backends.vllm import VllmExpert
from experts.specs import HuggingFaceSpec, OpenAISpec, VllmSpec
from experts.spending import NOT_ASKED, SpendCap
from experts.types import Query
from tests.experts.tiny_llama import CHAT_TEMPLATE, make_tiny_llama

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="the package vllm is not installed"),
]
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
PRICE = {"usd_per_mtok_in": 1.0, "usd_per_mtok_out": 2.0}
QUERIES = [Query(f"q{i}", text) for i, text in enumerate(["7+5=", "which is larger, 12 or 9?", "a", "sort: 3 1 2 ->"])]
READY_WITHIN_S = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_llama(tmp_path_factory.mktemp("model"), chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def plain(model):
    """The answers of the transformers backend, greedy."""
    spec = HuggingFaceSpec(backend="huggingface", name="hf", model="tiny", max_tokens=24, dtype="float32", **PRICE)
    return HuggingFaceExpert(spec.model_copy(update={"directory": model}), SpendCap()).answer(QUERIES)


def facts(answers):
    return [(a.text, a.prompt_tokens, a.completion_tokens, a.finish_reason, a.error) for a in answers]


def test_the_offline_engine_says_what_transformers_says(model, plain, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    engine = {"enforce_eager": True, "max_model_len": 128}
    spec = VllmSpec(
        backend="vllm", name="v", model="tiny", max_tokens=24, dtype="float32", engine=engine, batch_size=3, **PRICE
    ).model_copy(update={"directory": model})
    spend_cap = SpendCap()
    expert = VllmExpert(spec, spend_cap)
    answers = expert.answer(QUERIES)
    assert facts(answers) == facts(plain)
    assert spend_cap.spent_usd == pytest.approx(sum(a.cost_usd for a in answers)) and all(
        a.latency_s > 0 for a in answers
    )
    assert "exceed 128" in expert.answer([Query("long", "w" * 120)])[0].error
    limits_usd = [(answer.prompt_tokens + 2 * (1 + 3 * i)) * 1e-6 + 1e-9 for i, answer in enumerate(plain)]
    limited = expert.answer(QUERIES, limits_usd=limits_usd)
    assert [a.completion_tokens for a in limited] == [min(a.completion_tokens, 1 + 3 * i) for i, a in enumerate(plain)]
    spend_cap.max_usd = spend_cap.spent_usd
    assert {a.error for a in expert.answer(QUERIES)} == {NOT_ASKED}


def test_the_server_says_what_transformers_says(model, plain, monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "128"]
    environment = os.environ | ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = tmp_path / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        wait_until_ready(server, f"http://127.0.0.1:{port}/health", log)
        monkeypatch.setenv("VLLM_URL", f"http://127.0.0.1:{port}/v1")
        spec = OpenAISpec(
            backend="openai", name="s", model="tiny", base_url_env="VLLM_URL", api_key_env=None, max_tokens=24, **PRICE
        )
        assert facts(OpenAIExpert(spec, SpendCap()).answer(QUERIES)) == facts(plain)
    finally:
        server.terminate()
        server.wait(60)


def wait_until_ready(server: subprocess.Popen, url: str, log) -> None:
    started = time.monotonic()
    while time.monotonic() - started < READY_WITHIN_S:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"no server after {READY_WITHIN_S} s:\n{log.read_text()[-3000:]}")
