"""Streamed answers: how their bytes are read, what is passed on, and what is known when the reader stops early."""

import asyncio
import json

import pytest

from experts.live.events import EventReader
from experts.live.openai import LiveOpenAI
from tests.experts.live.upstream import (
    COST_USD,
    DONE,
    USAGE,
    WORDS,
    answered,
    begin,
    chunk,
    completion,
    end,
    event,
    part,
    request,
    send,
    spec,
    streamed,
)

STREAM = (
    '\ufeff: hello\r\n\r\ndata: {"a":\r\ndata:  "\u00e9\U0001f600"}\r\nid: 7\r\n\r\n'
    "event: error\rdata:no blank\r\rdata: z"
)


@pytest.mark.parametrize("ends", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_events_are_the_same_however_the_stream_is_cut(ends, size):
    data = STREAM.replace("\r\n", "\n").replace("\r", "\n").replace("\n", ends).encode()
    reader, events = EventReader(), []
    for start in range(0, len(data), size):
        events += reader.feed(data[start : start + size])
    events += reader.end()
    assert [(e.name, e.data.decode()) for e in events] == [
        (b"", '{"a":\n "\u00e9\U0001f600"}'),
        (b"error", "no blank"),
        (b"", "z"),
    ]


def test_chunks_are_passed_on_and_add_up(server):
    server.behave = streamed(*WORDS, chunk(usage=USAGE))
    whole, chunks = answered(server.url, stream=True)
    assert server.bodies[0]["stream"] is True and server.bodies[0]["stream_options"] == {"include_usage": True}
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "Hello", " ", "world", None]
    assert all(c["model"] == "one" and "usage" not in c and c["id"] == "c1" and c["created"] == 7 for c in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert (whole.text, whole.finish_reason, whole.usage.source) == ("Hello world", "stop", "reported")
    assert whole.cost_usd == pytest.approx(COST_USD) and whole.body["usage"]["total_tokens"] == 15
    assert whole.body["choices"][0]["message"] == {"role": "assistant", "content": "Hello world"}
    assert whole.body["object"] == "chat.completion" and whole.body["model"] == "one"


def test_usage_in_every_chunk_and_in_the_last_with_content(server):
    values = [value | {"usage": {"prompt_tokens": 10, "completion_tokens": i}} for i, value in enumerate(WORDS)]
    server.behave = streamed(*values[:-1], values[-1] | {"usage": USAGE}, done=False)
    whole, chunks = answered(server.url, stream=True)
    assert whole.cost_usd == pytest.approx(COST_USD) and not any("usage" in c for c in chunks)


def test_bytes_in_any_parts_and_line_ends(server):
    data = b": ping\n\n" + b"".join(event(value) for value in [*WORDS, chunk("\u00e9\U0001f600"), chunk(usage=USAGE)])
    data = (data.decode().replace("\\u00e9\\ud83d\\ude00", "\u00e9\U0001f600").encode() + DONE).replace(b"\n", b"\r\n")

    def behave(sock, body):
        begin(sock, "text/event-stream; charset=utf-8")
        for i in range(0, len(data), 7):
            part(sock, data[i : i + 7])
        end(sock)

    server.behave = behave
    whole, chunks = answered(server.url, stream=True)
    assert whole.text == "Hello world\u00e9\U0001f600" and whole.usage.source == "reported" and len(chunks) == 6


def test_tool_calls_and_log_probabilities_add_up(server):
    def call(index, arguments, **fields):
        function = {"arguments": arguments} | ({"name": "add"} if fields else {})
        return chunk(tool_calls=[{"index": index, "function": function, **fields}])

    parts = [call(0, "", id="a", type="function"), call(0, '{"x"'), call(0, ": 1}"), call(1, "{}", id="b")]
    parts[1]["choices"][0]["logprobs"] = {"content": [{"token": "x", "logprob": -0.5}]}
    parts[2]["choices"][0]["logprobs"] = {"content": [{"token": "y", "logprob": -1.5}]}
    server.behave = streamed(WORDS[0], *parts, chunk(finish_reason="tool_calls"), chunk(usage=USAGE))
    whole, chunks = answered(server.url, request(logprobs=True, tools=[{"type": "function"}]), stream=True)
    assert whole.tool_calls and whole.text == "" and whole.finish_reason == "tool_calls"
    calls = whole.body["choices"][0]["message"]["tool_calls"]
    assert [(c["id"], c["function"]) for c in calls] == [
        ("a", {"name": "add", "arguments": '{"x": 1}'}),
        ("b", {"name": "add", "arguments": "{}"}),
    ]
    assert whole.logprob == pytest.approx(-1.0) and len(whole.body["choices"][0]["logprobs"]["content"]) == 2
    assert chunks[2]["choices"][0]["logprobs"]["content"][0]["token"] == "x"


def test_tool_calls_without_index_or_with_one_for_all(server):
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    for parts in ([chunk(tool_calls=calls)], [chunk(tool_calls=[one | {"index": 0}]) for one in calls]):
        server.behave = streamed(*parts, chunk(finish_reason="tool_calls"))
        whole, chunks = answered(server.url, stream=True)
        assert [c["id"] for c in whole.body["choices"][0]["message"]["tool_calls"]] == ["a", "b"]
        sent = [call["index"] for c in chunks for call in c["choices"][0]["delta"].get("tool_calls", [])]
        assert sent == [0, 1]


def test_a_server_that_refuses_stream_options_is_asked_without(server):
    def behave(sock, body):
        if "stream_options" in body:
            send(sock, {"error": {"message": "Unrecognized request argument supplied: stream_options"}}, 400)
        else:
            streamed(*WORDS)(sock, body)

    server.behave = behave

    async def run():
        expert = LiveOpenAI(spec(server.url))
        for _ in range(2):
            stream = expert.stream(request(), 5, 5)
            async for _ in stream:
                pass
            whole = await stream.finish()
            assert whole.text == "Hello world" and whole.usage.source == "assumed"
        await expert.close()

    asyncio.run(run())
    assert len(server.bodies) == 3  # it is remembered


def test_a_server_that_does_not_stream_and_one_of_completions(server):
    server.behave = lambda sock, body: send(sock, completion("whole", usage=USAGE))
    whole, chunks = answered(server.url, stream=True)
    assert whole.text == "whole" and len(chunks) == 1 and chunks[0]["choices"][0]["delta"]["content"] == "whole"
    assert whole.cost_usd == pytest.approx(COST_USD)
    texts = [
        {"id": "x", "choices": [{"text": text, "finish_reason": reason}]}
        for text, reason in [("a", None), ("b", "eos")]
    ]
    server.behave = streamed(*texts)
    whole, chunks = answered(server.url, stream=True, chat=False)
    assert server.paths[-1] == "/v1/completions" and server.bodies[-1]["prompt"] == "Say hello"
    assert whole.text == "ab" and whole.finish_reason == "stop" and chunks[0]["choices"][0]["delta"] == {"content": "a"}


@pytest.mark.parametrize("how", ["finish", "cancel", "never read"])
def test_a_reader_that_stops_early_knows_the_cost(server, how):
    """The stream is read on without it, so that the server says what it bills."""

    def behave(sock, body):
        begin(sock)
        for value in [*WORDS, chunk(usage=USAGE)]:
            server.closing.wait(0.03)
            part(sock, event(value))
        part(sock, DONE)
        end(sock)

    server.behave = behave

    async def run():
        expert = LiveOpenAI(spec(server.url))
        stream = expert.stream(request(), 5, 5)

        async def read():
            async for _ in stream:
                if how == "finish":
                    return

        if how != "never read":
            reader = asyncio.create_task(read())
            await asyncio.sleep(0.08)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        settling = asyncio.create_task(stream.finish())
        await asyncio.sleep(0)
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        first, second = await asyncio.gather(stream.finish(), stream.finish())
        assert [c async for c in stream] == []
        await expert.close()
        assert first is second
        return first

    whole = asyncio.run(run())
    assert whole.cost_usd == pytest.approx(COST_USD) and whole.text == "Hello world"


def test_reading_on_is_bounded(server, monkeypatch):
    monkeypatch.setattr("experts.live.stream.DRAIN_S", 0.3)

    def behave(sock, body):
        begin(sock)
        while not server.closing.wait(0.02):
            part(sock, event(chunk("on and ")))

    server.behave = behave

    async def run():
        expert = LiveOpenAI(spec(server.url))
        stream = expert.stream(request(), 60, 60)
        async for _ in stream:
            break
        outcome = (await asyncio.gather(stream.finish(), return_exceptions=True))[0]
        await expert.close()
        return outcome

    error = asyncio.run(asyncio.wait_for(run(), 5))
    assert error.kind == "timeout" and error.may_be_billed and 0 < error.delivered_usd < error.cost_usd


def test_a_slow_reader_gets_everything(server):
    server.behave = streamed(*[chunk(str(i)) for i in range(200)], chunk(finish_reason="stop"), chunk(usage=USAGE))

    async def run():
        expert = LiveOpenAI(spec(server.url))
        stream = expert.stream(request(), 5, 5)
        await asyncio.sleep(0.3)
        texts = [c.data["choices"][0]["delta"].get("content") or "" async for c in stream]
        whole = await stream.finish()
        await expert.close()
        return texts, whole

    texts, whole = asyncio.run(run())
    assert "".join(texts) == whole.text == "".join(map(str, range(200)))
    assert json.dumps(whole.body)


@pytest.mark.parametrize("half", ["\ud83d", "\ude00 a"])
def test_half_a_character_can_be_sent_on(server, half):
    """Some servers cut between the halves of a surrogate pair."""
    server.behave = streamed(chunk(f"ok \U0001f600 \uae00 {half}"), chunk(finish_reason="stop"))
    whole, chunks = answered(server.url, stream=True)
    assert whole.text.startswith("ok \U0001f600 \uae00 \ufffd") and whole.text.encode()
    assert json.dumps(chunks, ensure_ascii=False).encode() and json.dumps(whole.body, ensure_ascii=False).encode()


def test_what_is_passed_on_has_the_types_of_openais_library(server):
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = chunk(tool_calls=[call], finish_reason="tool_calls")
    sure = chunk("ok") | {
        "choices": [{"delta": {"content": "ok"}, "logprobs": {"tokens": ["o"], "token_logprobs": [-1]}}]
    }
    for values in (
        [*WORDS, chunk(usage=USAGE)],
        [called],
        [{"choices": [{"text": "ok"}]}, WORDS[-1]],
        [sure, WORDS[-1]],
    ):
        server.behave = streamed(*values)
        whole, chunks = answered(server.url, request(logprobs=True), stream=True)
        for one in chunks:
            ChatCompletionChunk.model_validate(one)
        ChatCompletion.model_validate(whole.body)
    server.behave = lambda sock, body: send(sock, completion(None, tool_calls=[call]))
    ChatCompletion.model_validate(answered(server.url)[0].body)
