"""Whatever a server sends, a call soon brings a completion or an error of a known kind, and what can be sent on."""

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from experts.live import Completion, UpstreamError
from experts.live.openai import LiveOpenAI
from tests.experts.live.upstream import USAGE, begin, completion, end, event, part, request, send, spec, upstream

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**12)
    | st.floats()
    | st.sampled_from(["", "x", "stop", "<think>a", "\ud83d", "\ude00\ud83d"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["index", "id", "type", "text", "function", "name", "arguments", "token", "logprob"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
NAMES = ["content", "tool_calls", "function_call", "reasoning_content", "refusal", "role", "reasoning"]
DELTAS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3) | VALUES
LOGPROBS = VALUES | st.dictionaries(st.sampled_from(["content", "token_logprobs", "tokens"]), VALUES, max_size=3)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "delta": DELTAS,
        "message": DELTAS,
        "text": VALUES,
        "finish_reason": VALUES,
        "logprobs": LOGPROBS,
        "index": VALUES,
    },
)
PARTS = st.fixed_dictionaries(
    {"choices": st.lists(CHOICES, max_size=2) | VALUES},
    optional={"id": VALUES, "created": VALUES, "usage": VALUES, "error": VALUES, "timings": VALUES},
)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def sendable(value) -> bool:
    return bool(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())


@pytest.fixture(scope="module")
def calls():
    """A function from what the server does to the outcome of a call, on one loop, expert and server."""
    with upstream() as server, asyncio.Runner() if hasattr(asyncio, "Runner") else _Runner() as runner:
        expert = LiveOpenAI(spec(server.url))

        async def call(stream: bool) -> Completion | UpstreamError:
            asked = request(logprobs=True)
            try:
                if not stream:
                    return await expert.complete(asked, 5)
                reply = expert.stream(asked, 5, 5)
                async for chunk in reply:
                    assert sendable(chunk.data) and ChatCompletionChunk.model_validate(chunk.data)
                return await reply.finish()
            except UpstreamError as error:
                return error

        def outcome(behave, stream: bool):
            server.behave = behave
            found = runner.run(asyncio.wait_for(call(stream), 8))
            assert isinstance(found, Completion) or found.kind in (
                "unreadable",
                "interrupted",
                "empty",
                "server",
                "rate limit",
                "bad request",
                "timeout",
            )
            assert found.cost_usd >= 0 and (isinstance(found, Completion) or found.may_be_billed or found.cost_usd == 0)
            if isinstance(found, Completion):
                assert sendable(found.body) and ChatCompletion.model_validate(found.body)
            return found

        yield outcome
        runner.run(expert.close())


class _Runner:
    """asyncio.Runner for Python 3.10."""

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        return self

    def __exit__(self, *_):
        self._loop.close()

    def run(self, coroutine):
        return self._loop.run_until_complete(coroutine)


@FAST
@given(parts=st.lists(PARTS, max_size=4), done=st.booleans())
def test_parts_of_any_shape(calls, parts, done):
    def behave(sock, body):
        begin(sock)
        for value in parts:
            part(sock, event(value))
        if done:
            part(sock, event(b"[DONE]"))
        end(sock)

    calls(behave, stream=True)


@FAST
@given(body=PARTS)
def test_replies_of_any_shape(calls, body):
    calls(lambda sock, _: send(sock, body), stream=False)
    calls(lambda sock, _: send(sock, completion() | body | {"usage": USAGE}), stream=False)


@FAST
@given(data=st.binary(max_size=200), stream=st.booleans())
def test_bytes_of_any_kind(calls, data, stream):
    def behave(sock, body):
        begin(sock)
        part(sock, data or b"\n")
        end(sock)

    found = calls(behave, stream)
    assert isinstance(found, UpstreamError)


@FAST
@given(data=st.binary(max_size=100))
def test_bytes_that_are_no_http(calls, data):
    found = calls(lambda sock, body: (sock.sendall(data), sock.shutdown(2)), stream=False)
    assert isinstance(found, UpstreamError)


SHAPES = [
    {"delta": {"role": 5, "content": {"a": 1}}},
    {"delta": {"tool_calls": [{"index": "x", "id": 7, "function": {"name": None, "arguments": {"a": 1}}}, 3]}},
    {"delta": {"content": "x", "function_call": "f", "tool_calls": "g"}, "finish_reason": "eos!"},
    {"delta": {"content": "x"}, "logprobs": {"content": [{"token": 1}, {"token": "a", "logprob": "b"}, 5]}},
    {"text": "x", "logprobs": {"tokens": 5, "token_logprobs": [1]}},
]


@pytest.mark.parametrize("choice", SHAPES)
def test_what_is_passed_on_has_the_shape_of_openais_api(calls, choice):
    def behave(sock, body):
        begin(sock)
        part(sock, event({"id": 5, "created": True, "choices": [{"delta": {"content": "a"}}]}))
        part(sock, event({"choices": [choice]}))
        part(sock, event(b"[DONE]"))
        end(sock)

    assert isinstance(calls(behave, stream=True), Completion)
    calls(lambda sock, _: send(sock, {"choices": [choice]}), stream=False)
