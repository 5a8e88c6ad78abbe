"""What a call costs, from whatever usage a server reports, and what it can cost at most."""

import json
import math
from dataclasses import replace

import pytest

from experts.live import ChatRequest
from experts.live.openai import LiveOpenAI
from experts.live.types import IMAGE_TOKENS
from experts.usage import LongContext, Price, Usage
from tests.experts.live.upstream import answered, chunk, completion, request, send, spec, streamed

PRICES = {"usd_per_mtok_in": 4.0, "usd_per_mtok_cached": 1.0, "usd_per_mtok_cache_write": 5.0, "usd_per_mtok_out": 8.0}
BOTH = pytest.mark.parametrize("stream", [False, True])
STYLES = {
    "OpenAI": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 40},
            "completion_tokens_details": {"reasoning_tokens": 30},
        },
        Usage(60, 40, 0, 20, 30),
    ),
    "reasoning on top, as xAI has it": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 150,
            "completion_tokens_details": {"reasoning_tokens": 30},
        },
        Usage(100, 0, 0, 20, 30),
    ),
    "DeepSeek": (
        {"prompt_tokens": 100, "completion_tokens": 50, "prompt_cache_hit_tokens": 40, "prompt_cache_miss_tokens": 60},
        Usage(60, 40, 0, 50),
    ),
    "Anthropic": (
        {"input_tokens": 60, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 10, "output_tokens": 50},
        Usage(60, 30, 10, 50),
    ),
    "Gemini": (
        {
            "promptTokenCount": 100,
            "cachedContentTokenCount": 40,
            "candidatesTokenCount": 20,
            "thoughtsTokenCount": 30,
            "totalTokenCount": 150,
        },
        Usage(60, 40, 0, 20, 30),
    ),
    "Gemini without a total": (
        {"promptTokenCount": 100, "candidatesTokenCount": 40, "thoughtsTokenCount": 30},
        Usage(100, 0, 0, 40, 30),
    ),
    "vLLM": ({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}, Usage(100, output=50)),
}


@BOTH
@pytest.mark.parametrize("style", STYLES)
def test_each_token_counts_once_at_its_own_price(server, style, stream):
    reported, usage = STYLES[style]
    if stream:
        server.behave = streamed(chunk("ok"), chunk(finish_reason="stop"), chunk(usage=reported))
    else:
        server.behave = lambda sock, body: send(sock, completion(usage=reported))
    whole, _ = answered(server.url, stream=stream, **PRICES)
    assert whole.usage == usage
    dollars = usage.input * 4 + usage.cached * 1 + usage.cache_write * 5 + (usage.output + usage.reasoning) * 8
    assert whole.cost_usd == pytest.approx(dollars / 1e6)
    assert whole.body["usage"]["completion_tokens"] == usage.output + usage.reasoning
    assert whole.body["usage"]["prompt_tokens_details"] == {"cached_tokens": usage.cached}


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 50, "totalTokenCount": 150}},
        {"x_groq": {"usage": {"prompt_tokens": 100, "completion_tokens": 50}}},
        {"timings": {"cache_n": 0, "prompt_n": 100, "predicted_n": 50, "predicted_ms": 1.5}},
        {"prompt_eval_count": 100, "eval_count": 50},
        {"tokens_evaluated": 100, "tokens_predicted": 50},
    ],
)
@BOTH
def test_usage_that_stands_elsewhere(server, elsewhere, stream):
    if stream:
        server.behave = streamed(chunk("ok"), chunk(finish_reason="stop") | elsewhere)
    else:
        body = completion() | elsewhere
        del body["usage"]
        server.behave = lambda sock, _: send(sock, body)
    whole, chunks = answered(server.url, stream=stream)
    assert whole.usage == Usage(100, output=50)
    assert not any(name in one for one in chunks for name in elsewhere)


@BOTH
@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        "many",
        {"prompt_tokens": -5, "completion_tokens": -5},
        {"prompt_tokens": 10**12, "completion_tokens": 10**12},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": True, "completion_tokens": "7"},
        {"prompt_tokens": 1.5, "completion_tokens": [1]},
    ],
)
def test_absurd_or_missing_usage_counts_as_the_most_that_it_can_be(server, usage, stream):
    if stream:
        parts = [] if usage is None else [{"choices": [], "usage": usage}]
        server.behave = streamed(chunk("ok"), chunk(finish_reason="stop"), *parts)
    else:
        server.behave = lambda sock, body: send(sock, completion(usage=usage))
    whole, _ = answered(server.url, stream=stream)
    assert whole.usage.source == "assumed" and whole.usage.output == 50
    assert whole.cost_usd == pytest.approx(LiveOpenAI(spec(server.url)).worst_usd(request()))


@BOTH
def test_a_tokenizer_counts_where_the_server_does_not(server, stream):
    from pathlib import Path

    import experts.tiny

    tokenizer = str(Path(experts.tiny.__file__).parent / "weights" / "nano")
    server.behave = (
        streamed(chunk("ok 12"), chunk(finish_reason="stop"))
        if stream
        else lambda sock, body: send(sock, completion("ok 12", usage=None))
    )
    whole, _ = answered(server.url, stream=stream, tokenizer=tokenizer)
    assert whole.usage.source == "counted" and whole.usage == Usage(9, output=5, source="counted")


def test_seconds_are_billed_from_the_sending_on(server):
    whole, _ = answered(server.url, usd_per_mtok_in=None, usd_per_mtok_out=None, usd_per_second=1.0, timeout_s=7)
    assert 0 < whole.cost_usd <= whole.latency_s < 2
    fields = {"usd_per_mtok_in": None, "usd_per_mtok_out": None, "usd_per_second": 1.0, "timeout_s": 7}
    assert LiveOpenAI(spec(server.url, **fields)).worst_usd(request()) == 7.0


def bound(asked: ChatRequest, **fields) -> float:
    """The most prompt tokens, from the worst cost."""
    prices = {"usd_per_mtok_in": 1e6, "usd_per_mtok_out": 0.0}
    return LiveOpenAI(spec("http://localhost:1/v1", **prices | fields)).worst_usd(asked)


def test_the_worst_case_covers_all_that_is_sent():
    text = "\u00e9" * 1000
    base = bound(request("x"))
    assert bound(request(text)) >= base + 2000 - 1
    assert bound(request([{"role": "user", "name": "n" * 500, "content": "x"}])) >= base + 500
    assert bound(request("x"), system="s" * 100) >= base + 100
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 1000}}]
    assert bound(request("x", tools=tools)) >= base + len(json.dumps(tools, indent=4))
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "description": "d" * 1000}}}
    assert bound(request("x", response_format=schema)) >= base + 1000
    calls = [{"id": "1", "function": {"name": "f", "arguments": "a" * 700}}]
    assert bound(request([{"role": "assistant", "content": None, "tool_calls": calls}])) >= base + 700
    assert bound(request("x"), usd_per_mtok_cache_write=2e6) == pytest.approx(2 * base)


def test_an_image_counts_as_the_most_that_an_image_can():
    url = "data:image/png;base64," + "A" * 1_000_000
    image = {"type": "image_url", "image_url": {"url": url}}
    base, one = bound(request([{"type": "text", "text": "x"}])), bound(request([{"type": "text", "text": "x"}, image]))
    assert IMAGE_TOKENS <= one - base <= IMAGE_TOKENS + 10
    assert bound(request([image, image, {"type": "text", "text": "x"}])) - base >= 2 * IMAGE_TOKENS
    for other in ({"type": "input_audio"}, {"type": "file"}, {"type": "video_url"}, {}):
        assert math.isinf(bound(request([other])))


TIER = {"above_tokens": 1000, "usd_per_mtok_in": 8.0, "usd_per_mtok_out": 16.0}


def test_long_prompts_have_their_own_price(server):
    for prompt, factor in [(1000, 1), (1001, 2)]:
        usage = {"prompt_tokens": prompt, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 500}}
        server.behave = lambda sock, body, usage=usage: send(sock, completion(usage=usage))
        whole, _ = answered(server.url, long_context=TIER, **PRICES)
        assert whole.cost_usd == pytest.approx(factor * ((prompt - 500) * 4 + 500 * 1 + 10 * 8) / 1e6)
    short, long = request("x"), request("x" * 2000)
    expert, plain = (LiveOpenAI(spec(server.url, **PRICES, **more)) for more in ({"long_context": TIER}, {}))
    assert expert.worst_usd(short) == plain.worst_usd(short)
    assert expert.worst_usd(long) == pytest.approx(2 * plain.worst_usd(long))


@pytest.mark.parametrize(
    "tier", [LongContext(1000, 8.0, 16.0), LongContext(1000, 1.0, 2.0), LongContext(1000, 8.0, 2.0)]
)
def test_no_call_costs_more_than_the_worst_and_affordable_tokens_fit(tier):
    price = Price(4.0, 8.0, usd_per_mtok_cached=1.0, usd_per_mtok_cache_write=5.0, long_context=tier)
    for most in (10, 1000, 1001, 5000):
        worst = price.worst_usd(most, 100)
        usages = [Usage(n, output=100) for n in (1, 999, 1000, 1001, 5000) if n <= most]
        usages += [Usage(0, 0, n, 0, 100) for n in (1, 1000, 1001, 5000) if n <= most]
        assert max(price.usage_usd(usage, 0.0) for usage in usages) <= worst + 1e-12
        for share in (0.3, 0.7, 0.999, 1.0):
            tokens = price.affordable_tokens(most, 100, share * worst)
            assert tokens == 0 or price.worst_usd(most, tokens) <= share * worst
            assert tokens == 100 or price.worst_usd(most, tokens + 1) > share * worst


def test_the_size_of_a_request_is_found_once(monkeypatch):
    asked = request("x" * 1000)
    most = asked.most_prompt_tokens
    monkeypatch.setattr("experts.live.types.json_bytes", lambda value: 5)
    assert replace(asked, max_tokens=3).most_prompt_tokens == most == asked.most_prompt_tokens
    assert replace(asked, messages=[{"role": "user", "content": "x" * 1000}]).most_prompt_tokens == 5
