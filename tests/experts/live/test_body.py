"""What a server is sent of a request and of the settings in pool.yaml, and what is kept of its answer."""

import asyncio

import pytest

from experts.confidence import REQUEST
from experts.live import ChatRequest, UpstreamError, not_passed_on
from experts.live.openai import LiveOpenAI
from tests.experts.live.upstream import (
    USAGE,
    WORDS,
    answered,
    chunk,
    completion,
    failed,
    request,
    send,
    spec,
    streamed,
)

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def sent(server, asked: ChatRequest, stream: bool = False, **fields) -> dict:
    server.behave = streamed(*WORDS) if stream else lambda sock, body: send(sock, completion())
    answered(server.url, asked, stream=stream, **fields)
    return server.bodies[-1]


def test_a_plain_request(server):
    assert sent(server, request()) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Say hello"}],
        "temperature": 0.0,
        "max_tokens": 50,
    }
    assert server.paths == ["/v1/chat/completions"] and "authorization" not in server.headers[0]


def test_the_settings_of_the_request_win(server):
    generation = {"temperature": 0.3, "top_p": 0.9, "seed": 1, "stop": ["a"], "extra": {"top_k": 5, "min_p": 0.1}}
    own = {"temperature": 1.0, "stop": "b", "top_k": 7, "tools": TOOLS, "tool_choice": "auto", "top_p": None}
    body = sent(server, request(**own), generation=generation)
    assert (body["temperature"], body["stop"], body["top_k"]) == (1.0, "b", 7)
    assert (body["top_p"], body["seed"], body["min_p"]) == (0.9, 1, 0.1)
    assert body["tools"] == TOOLS and body["tool_choice"] == "auto"


def test_the_least_of_the_two_limits_counts(server):
    assert sent(server, request(max_tokens=1000))["max_tokens"] == 100
    body = sent(server, request(max_tokens=7), max_tokens_field="max_completion_tokens")
    assert body["max_completion_tokens"] == 7 and "max_tokens" not in body


@pytest.mark.parametrize(
    "setting",
    [
        "n",
        "best_of",
        "max_tokens",
        "model",
        "stream",
        "models",
        "service_tier",
        "web_search_options",
        "plugins",
        "audio",
    ],
)
def test_what_would_cost_more_is_not_passed_on(server, setting):
    assert not_passed_on({setting: 2, "temperature": 0}) == [setting]
    body = (
        sent(server, request(**{setting: 1_000_000}))
        if setting != "max_tokens"
        else sent(server, ChatRequest([{"role": "user", "content": "x"}], {"max_tokens": 10**6}, 50))
    )
    assert body.get(setting) in (None, "m", 50)


def test_system_goes_first_unless_there_is_one(server):
    fields = {"system": "Be brief."}
    assert sent(server, request(), **fields)["messages"][0] == {"role": "system", "content": "Be brief."}
    for role in ("system", "developer"):
        asked = request([{"role": role, "content": "Be long."}, {"role": "user", "content": "x"}])
        assert [m["content"] for m in sent(server, asked, **fields)["messages"]] == ["Be long.", "x"]
        assert server.bodies[-1]["messages"][0]["role"] == "system"


def test_the_last_turn_of_the_user_stands_in_the_template(server):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    tool = {"role": "tool", "tool_call_id": "1", "content": "d"}
    fields = {"prompt": "Q: {text}\nA:"}
    assert [m["content"] for m in sent(server, request(turns), **fields)["messages"]] == ["a", "b", "Q: c\nA:"]
    contents = [m["content"] for m in sent(server, request([*turns, tool]), **fields)["messages"]]
    assert contents == ["a", "b", "Q: c\nA:", "d"]
    one_part = request([{"type": "text", "text": "c"}])
    assert sent(server, one_part, **fields)["messages"][0]["content"] == "Q: c\nA:"
    pictures = [{"type": "text", "text": "c"}, IMAGE]
    assert sent(server, request(pictures), **fields)["messages"][0]["content"] == pictures
    assert turns[-1]["content"] == "c"  # the caller's own is as it was


def test_confidence_is_asked_for_where_it_can_be_taken_out(server):
    server.behave = lambda sock, body: send(sock, completion("42\nConfidence: 80%", usage=USAGE))
    whole, _ = answered(server.url, confidence=True)
    assert server.bodies[-1]["messages"][0]["content"] == "Say hello" + REQUEST
    assert (whole.text, whole.confidence) == ("42", 0.8)
    assert whole.body["choices"][0]["message"]["content"] == "42"
    for asked in (request(tools=TOOLS), request(response_format=SCHEMA)):
        whole, _ = answered(server.url, asked, confidence=True)
        assert server.bodies[-1]["messages"][0]["content"] == "Say hello"
        assert (whole.text, whole.confidence) == ("42\nConfidence: 80%", None)
    assert sent(server, request(), stream=True, confidence=True)["messages"][0]["content"] == "Say hello"


def test_log_probabilities_are_kept_for_those_who_asked(server):
    reply = completion(usage=USAGE)
    reply["choices"][0]["logprobs"] = {"content": [{"token": "o", "logprob": -0.25}]}
    server.behave = lambda sock, body: send(sock, reply)
    whole, _ = answered(server.url, logprobs=True)
    assert server.bodies[-1]["logprobs"] is True
    assert whole.logprob == -0.25 and whole.body["choices"][0]["logprobs"] is None
    whole, _ = answered(server.url, request(logprobs=True, top_logprobs=2))
    assert server.bodies[-1]["top_logprobs"] == 2 and whole.body["choices"][0]["logprobs"]["content"]


def test_a_model_that_only_completes_texts(server):
    server.behave = lambda sock, body: send(
        sock,
        {
            "choices": [
                {"text": "ok", "finish_reason": "length", "logprobs": {"tokens": ["ok"], "token_logprobs": [-0.5]}}
            ],
            "usage": USAGE,
        },
    )
    fields = {"chat": False, "system": "Sys", "logprobs": True}
    asked = request(tools=TOOLS, logprobs=True, response_format=SCHEMA)
    whole, _ = answered(server.url, asked, **fields)
    assert server.bodies[-1] == {
        "model": "m",
        "prompt": "Sys\n\nSay hello",
        "temperature": 0.0,
        "logprobs": 0,
        "max_tokens": 50,
    }
    assert (whole.text, whole.finish_reason, whole.logprob) == ("ok", "length", -0.5)
    assert whole.body["choices"][0]["logprobs"]["content"][0]["token"] == "ok"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    answered(server.url, request(turns), **fields)
    assert server.bodies[-1]["prompt"] == "Sys\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant:"
    assert server.bodies[-1]["stop"] == ["\nUser:"]


def test_a_setting_that_a_server_names_as_unknown_is_left_out(server):
    """A client's temperature must not fail each call to a model that takes none."""

    def behave(sock, body):
        if "temperature" in body:
            error = {"message": "Unsupported value", "param": "temperature", "code": "unsupported_value"}
            send(sock, {"error": error}, 400)
        else:
            send(sock, completion())

    server.behave = behave

    async def run():
        expert = LiveOpenAI(spec(server.url))
        for _ in range(2):
            assert (await expert.complete(request(temperature=0.5), 5)).text == "ok"
        await expert.close()

    asyncio.run(run())
    assert len(server.bodies) == 3
    server.behave = lambda sock, body: send(sock, {"error": {"message": "no", "param": "tools"}}, 400)
    assert failed(server.url, request(tools=TOOLS))[0].kind == "bad request" and len(server.bodies) == 4


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        ({"message": "too hot", "param": "temperature", "code": "decimal_above_max_value"}, request(temperature=99)),
        ({"message": "cannot read 'no stream_options, please'"}, request("no stream_options, please")),
    ],
)
def test_no_request_makes_others_lose_their_settings(server, error, asked):
    server.behave = lambda sock, body: send(sock, {"error": error}, 400)

    async def run():
        expert = LiveOpenAI(spec(server.url))
        with pytest.raises(UpstreamError):
            await expert.stream(asked, 5, 5).finish()
        server.behave = streamed(*WORDS)
        await expert.stream(request(), 5, 5).finish()
        await expert.close()

    asyncio.run(run())
    assert len(server.bodies) == 2
    assert "stream_options" in server.bodies[1] and server.bodies[1]["temperature"] == 0.0


def test_text_that_cannot_be_encoded_is_sent_all_the_same(server):
    assert sent(server, request("half a pair \ud800, \u00e9\U0001f600"))["messages"][0]["content"].endswith(
        "\u00e9\U0001f600"
    )


def test_the_address(server, monkeypatch):
    monkeypatch.setenv("GATEWAY", server.url.replace("//", "//user:secret-password@") + "/?version=2")
    server.behave = lambda sock, body: send(sock, completion("secret-password"))
    whole, _ = answered("", base_url=None, base_url_env="GATEWAY")
    assert server.paths == ["/v1/chat/completions?version=2"] and whole.text == "[redacted]"
    assert server.headers[0]["authorization"].startswith("Basic ")


def test_reasoning_stands_apart(server):
    server.behave = lambda sock, body: send(sock, completion("<think>hm</think>4", usage=USAGE))
    whole, _ = answered(server.url)
    assert (whole.text, whole.reasoning) == ("4", "hm")
    server.behave = lambda sock, body: send(sock, completion("4", usage=USAGE, reasoning_content="hm"))
    whole, _ = answered(server.url)
    assert (whole.text, whole.reasoning) == ("4", "hm")
    assert whole.body["choices"][0]["message"]["reasoning_content"] == "hm"
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "4"}]
    server.behave = streamed(chunk(parts), chunk(finish_reason="stop"))
    whole, chunks = answered(server.url, stream=True)
    assert (whole.text, whole.reasoning) == ("4", "hm")
    assert chunks[0]["choices"][0]["delta"] == {"content": "4", "reasoning_content": "hm"}


def test_a_refusal_is_an_answer(server):
    server.behave = lambda sock, body: send(sock, completion(None, usage=USAGE, refusal="I will not"))
    whole, _ = answered(server.url)
    assert whole.text == "" and whole.body["choices"][0]["message"]["refusal"] == "I will not"
