"""OpenAI's clients talk to the server unchanged, and what it refuses it refuses in OpenAI's words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from leeroo_env import ExpertTable
from tests.agents.server.running import Running, get_json

TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
IMAGE: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.client(server.key("api"))


@pytest.fixture(scope="module")
def questions(dear_tiny: Path) -> list[str]:
    return ExpertTable.load(dear_tiny).queries["text"].to_pylist()


def ask(client: openai.OpenAI, text: str, **kwargs: Any) -> Any:
    return client.chat.completions.create(model="leeroo", messages=[{"role": "user", "content": text}], **kwargs)


def test_a_plain_answer_says_who_gave_it_and_what_it_cost(client: openai.OpenAI, server: Running, questions: list[str]):
    before = sum(server.billed().values())
    raw = client.chat.completions.with_raw_response.create(
        model="leeroo", messages=[{"role": "user", "content": questions[3]}]
    )
    answer = raw.parse()
    assert answer.choices[0].message.content and answer.usage is not None
    assert raw.headers["leeroo-expert"] == answer.model
    assert round(float(raw.headers["leeroo-cost-usd"]) * 1e6) == sum(server.billed().values()) - before
    assert raw.headers["leeroo-decision"] == answer.id and raw.headers["leeroo-calls"] == "1"


def test_a_stream_brings_the_same_text_and_its_usage(client: openai.OpenAI, questions: list[str]):
    whole = ask(client, questions[4])
    chunks = list(ask(client, questions[4], stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert chunks[-1].leeroo["cost_usd"] > 0  # type: ignore[attr-defined]


def test_the_asynchronous_client_asks_many_at_once(server: Running, questions: list[str]):
    secret = server.key("async")

    async def all_of() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client:
            asks = [
                client.chat.completions.create(model="leeroo", messages=[{"role": "user", "content": text}])
                for text in questions[:40]
            ]
            return await asyncio.gather(*asks)

    answers = asyncio.run(all_of())
    assert all(answer.choices[0].message.content for answer in answers) and len({a.id for a in answers}) == 40


def test_an_expert_is_asked_by_its_name(client: openai.OpenAI, questions: list[str]):
    answer = client.chat.completions.create(model="small", messages=[{"role": "user", "content": questions[0]}])
    assert answer.model == "small"


def test_models_are_the_experts_and_leeroo(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [
        "leeroo",
        "nano",
        "calendar",
        "small",
        "arithmetic",
        "large",
    ]
    assert client.models.retrieve("large").id == "large"


def test_what_only_one_expert_can_do_goes_to_that_one_with_all_its_settings(client: openai.OpenAI, server: Running):
    answer = ask(client, "Add 2 and 2", tools=[TOOL], tool_choice="auto", seed=7, stop=["END"], temperature=0.5)
    sent = get_json(f"{server.experts_url}/last")
    assert answer.model == "large"
    assert sent["tools"] == [TOOL] and sent["tool_choice"] == "auto"
    assert (sent["seed"], sent["stop"], sent["temperature"]) == (7, ["END"], 0.5)


def test_what_none_can_do_is_refused_by_name(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="vision"):
        client.chat.completions.create(model="leeroo", messages=[{"role": "user", "content": [IMAGE]}])


def test_a_conversation_too_long_for_an_expert_goes_to_another(client: openai.OpenAI):
    assert ask(client, "word " * 400).model != "nano"


def test_tool_rounds_stay_with_the_expert_that_began_them(client: openai.OpenAI):
    call: Any = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages: Any = [
        {"role": "user", "content": "Add 2 and 2"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "4"},
    ]
    assert client.chat.completions.create(model="leeroo", messages=messages, tools=[TOOL]).model == "large"


def test_a_conversation_stays_where_it_was(client: openai.OpenAI, questions: list[str]):
    """A follow-up that means nothing by itself is not sent to the cheapest model."""
    hard = next(text for text in questions if ask(client, text).model == "large")
    messages: list[Any] = [{"role": "user", "content": hard}]
    for follow_up in ("commit it", "go on", "thanks, and now the rest"):
        answer = client.chat.completions.create(model="leeroo", messages=messages)
        assert answer.model == "large"
        reply = {"role": "assistant", "content": answer.choices[0].message.content}
        messages += [reply, {"role": "user", "content": follow_up}]


def test_a_route_is_a_decision_that_costs_nothing(server: Running, questions: list[str]):
    client = server.client(server.key("route"))
    before = server.billed()
    body = {"model": "leeroo", "messages": [{"role": "user", "content": questions[5]}]}
    decision = client.post("/route", body=body, cast_to=dict[str, Any])
    assert server.billed() == before
    assert decision["expert"] == ask(client, questions[5]).model
    assert set(decision["experts"]) == {"nano", "calendar", "small", "arithmetic", "large"}
    assert all(0 <= one["score"] <= 1 and one["cost_usd"] > 0 for one in decision["experts"].values())
    assert decision["usd_price"] >= 0 and decision["why"]


def test_feedback_belongs_to_a_decision_of_the_same_key(server: Running, questions: list[str]):
    client, other = server.client(server.key("pleased")), server.client(server.key("stranger"))
    decision = ask(client, questions[6]).id
    said = client.post("/feedback", body={"decision": decision, "score": 1.0}, cast_to=dict[str, Any])
    assert said == {"decision": decision, "score": 1.0}
    with pytest.raises(openai.NotFoundError):
        other.post("/feedback", body={"decision": decision, "score": 0.0}, cast_to=dict[str, Any])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n": 2}, "n: "),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"messages": "hello"}, "messages: "),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"provider": {"only": ["x"]}}, "provider"),
        ({"stream": "yes"}, "stream"),
        ({"tools": {"a": 1}}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(client: openai.OpenAI, change: dict[str, Any], message: str):
    body = {"model": "leeroo", "messages": [{"role": "user", "content": "x"}], **change}
    with pytest.raises(openai.BadRequestError, match=message):
        client.post("/chat/completions", body=body, cast_to=dict[str, Any])


def test_without_a_key_there_is_no_answer(server: Running):
    for secret in ("lr-" + "x" * 43, "sk-other", "", "é"):
        with pytest.raises((openai.AuthenticationError, UnicodeEncodeError, openai.APIConnectionError)):
            ask(server.client(secret or " "), "x")


def test_a_revoked_key_is_refused_within_seconds(server: Running):
    from agents.server.money import Ledger

    client = server.client(server.key("revoked"))
    ask(client, "x")
    ledger = Ledger.open(server.database)
    ledger.revoke("revoked")
    ledger.close()
    deadline = time.monotonic() + 10
    with pytest.raises(openai.AuthenticationError):
        while time.monotonic() < deadline:
            ask(client, "x")
            time.sleep(0.2)


def test_an_unknown_model_is_not_found(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])


def test_more_requests_than_the_rate_wait(server: Running):
    client = server.client(server.key("slow", requests_per_minute=3))
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(5):
            ask(client, "x")
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_a_body_that_is_no_json_or_too_large_is_refused(server: Running):
    secret = server.key("bodies")
    for body, status in [
        (b"{", 400),
        (b"[1]", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 60 + b"1" + b"}" * 60, 400),
        (b'{"temperature": NaN}', 400),
        (b" " * (17 << 20), 413),
    ]:
        assert _post(server, secret, body) == status


def _post(server: Running, secret: str, body: bytes) -> int:
    """The status of a request with this body; the server may answer before it has read all of it."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\nconnection: close\r\n"
        )
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode())
        with contextlib.suppress(OSError):
            connection.sendall(body)
        return int(connection.recv(64).split()[1])


def test_the_log_has_neither_keys_nor_prompts(server: Running):
    secret = server.key("secretive")
    ask(server.client(secret), "the word xyzzy must not be logged")
    time.sleep(0.2)
    log = server.log.read_text()
    assert secret not in log and "xyzzy" not in log
    line = json.loads(log.strip().splitlines()[-1])
    assert line["key"] == "secretive" and line["status"] == 200 and line["micro_usd"] > 0
