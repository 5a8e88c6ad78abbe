"""What is billed follows from what a server reports, in any provider's way; what cannot be right is the worst case."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.usage import HIDDEN_PROMPT_TOKENS, Limits, Price, Usage, normalise_usage

PRICES = st.floats(0, 1e4).map(lambda usd: 0.0 if usd < 1e-6 else usd)
LIMITS = Limits("one", prompt_tokens=4000, max_tokens=1000)


def read(reported, reply="ok"):
    return normalise_usage(reported, LIMITS, "a prompt", reply)


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, Usage(10, output=5)),
        ({"prompt_tokens": 10, "completion_tokens": 5}, Usage(10, output=5)),
        ({"prompt_tokens": 10.0, "completion_tokens": 5.0}, Usage(10, output=5)),
        # OpenAI: reasoning and cached tokens are parts of the others
        (
            {
                "prompt_tokens": 2006,
                "completion_tokens": 300,
                "total_tokens": 2306,
                "prompt_tokens_details": {"cached_tokens": 1920},
                "completion_tokens_details": {"reasoning_tokens": 256},
            },
            Usage(86, cached=1920, output=44, reasoning=256),
        ),
        # xAI: reasoning comes on top, the total says so
        (
            {
                "prompt_tokens": 12,
                "completion_tokens": 2,
                "total_tokens": 331,
                "completion_tokens_details": {"reasoning_tokens": 317},
            },
            Usage(12, output=2, reasoning=317),
        ),
        # reasoning larger than the completion can be no part of it, also without a total
        (
            {"prompt_tokens": 12, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 317}},
            Usage(12, output=2, reasoning=317),
        ),
        # Gemini's OpenAI endpoint: thoughts are only in the total
        ({"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 331}, Usage(12, output=2, reasoning=317)),
        # DeepSeek
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 9,
                "total_tokens": 109,
                "prompt_cache_hit_tokens": 64,
                "prompt_cache_miss_tokens": 36,
            },
            Usage(36, cached=64, output=9),
        ),
        # Anthropic: cached tokens come on top of the input tokens
        (
            {
                "input_tokens": 20,
                "output_tokens": 9,
                "cache_read_input_tokens": 1000,
                "cache_creation_input_tokens": 500,
            },
            Usage(20, cached=1000, cache_write=500, output=9),
        ),
        # OpenAI's responses: these names, but cached tokens are a part
        (
            {"input_tokens": 120, "output_tokens": 9, "input_tokens_details": {"cached_tokens": 100}},
            Usage(20, cached=100, output=9),
        ),
        # a proxy that leaves cached tokens out of the prompt tokens
        (
            {
                "prompt_tokens": 20,
                "completion_tokens": 9,
                "total_tokens": 1029,
                "prompt_tokens_details": {"cached_tokens": 1000},
            },
            Usage(20, cached=1000, output=9),
        ),
        # Moonshot
        ({"prompt_tokens": 20, "completion_tokens": 9, "cached_tokens": 16}, Usage(4, cached=16, output=9)),
        ({"prompt_tokens": 20, "completion_tokens": 9, "prompt_tokens_details": None}, Usage(20, output=9)),
        ({"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": None}, Usage(20, output=9)),
        ({"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 3}, Usage(20, output=9)),
    ],
)
def test_each_provider_s_way_of_counting(reported, usage):
    assert read(reported) == usage


@pytest.mark.parametrize(
    "reported",
    [
        None,
        {},
        [],
        "12",
        7,
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": -9, "completion_tokens": -9},
        {"prompt_tokens": "10", "completion_tokens": True},
        {"prompt_tokens": 10**20, "completion_tokens": 10**20},
        {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
        {"prompt_tokens": 10.5, "completion_tokens": 5.5},
        {"prompt_tokens": [10], "completion_tokens": {"n": 5}},
    ],
)
def test_what_cannot_be_right_counts_as_the_worst_case_and_is_marked(reported):
    assert read(reported) == Usage(4000, output=1000, source="assumed")


def test_the_part_that_is_right_is_kept():
    assert read({"prompt_tokens": 9}) == Usage(9, output=1000, source="assumed")
    assert read({"prompt_tokens": 9, "completion_tokens": None}) == Usage(9, output=1000, source="assumed")
    assert read({"prompt_tokens": -1, "completion_tokens": 5}) == Usage(4000, output=5, source="assumed")
    assert read({"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": -4}}) == Usage(
        4000, output=5, source="assumed"
    )


def test_no_tokens_for_no_text_may_be_right():
    assert read({"prompt_tokens": 9, "completion_tokens": 0}, reply="") == Usage(9)


def test_a_tokenizer_counts_what_is_not_reported():
    import experts.tiny as tiny

    nano = tiny.__path__[0] + "/weights/nano"
    usage = normalise_usage({}, Limits("one", 4000, 1000, nano), "12+34=", "46")
    assert usage == Usage(6, output=2, source="counted")


def test_the_price_of_each_bucket():
    price = Price(1.0, 2.0, usd_per_mtok_cached=0.1, usd_per_mtok_cache_write=1.25, usd_per_mtok_reasoning=3.0)
    usage = Usage(100, cached=1000, cache_write=200, output=10, reasoning=20)
    assert price.usage_usd(usage, 0.0) * 1e6 == pytest.approx(100 + 100 + 250 + 20 + 60)
    assert price.worst_usd(100, 10) * 1e6 == pytest.approx(125 + 30)
    half = Price(1.0, 2.0)
    assert half.usage_usd(usage, 0.0) * 1e6 == pytest.approx(100 + 500 + 200 + 20 + 40)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "cached_tokens"]
DETAILS = st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens", "cache_write_tokens"]), json_values)
usages = st.dictionaries(st.sampled_from(NAMES), json_values) | st.fixed_dictionaries(
    {}, optional={"prompt_tokens": json_values, "prompt_tokens_details": DETAILS, "completion_tokens_details": DETAILS}
)


@given(usages | json_values, st.sampled_from(["", "a text"]))
def test_whatever_is_reported_the_buckets_are_counts_within_bounds(reported, reply):
    usage = normalise_usage(reported, LIMITS, "a prompt", reply)
    counts = (usage.input, usage.cached, usage.cache_write, usage.output, usage.reasoning)
    assert all(type(count) is int and count >= 0 for count in counts), json.dumps(reported)
    assert 0 < usage.prompt_tokens <= LIMITS.prompt_tokens + HIDDEN_PROMPT_TOKENS
    assert usage.completion_tokens <= 4096 and (usage.completion_tokens > 0 or not reply)
    assert Price(1.0, 2.0).usage_usd(usage, 0.0) > 0


@given(PRICES, PRICES, st.none() | PRICES, st.integers(0, 10**6), st.integers(1, 10**6), st.floats(0, 1e4))
def test_affordable_tokens_are_the_most_that_are_paid_for(usd_in, usd_out, usd_reasoning, prompt, most, usd):
    price = Price(usd_in, usd_out, usd_per_mtok_reasoning=usd_reasoning)
    tokens = price.affordable_tokens(prompt, most, usd)
    assert 0 <= tokens <= most
    assert tokens == 0 or price.worst_usd(prompt, tokens) <= usd
    assert tokens == most or price.worst_usd(prompt, tokens + 1) > usd


@given(st.integers(1, 5000), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_what_costs_a_number_of_tokens_pays_for_as_many(tokens, prompt, usd_out):
    price = Price(1.0, usd_out)
    assert price.affordable_tokens(prompt, 10_000, price.cost_usd(prompt, tokens, 0.0)) == tokens


def test_a_price_by_the_second_has_to_pay_for_the_time_out():
    price = Price(usd_per_second=0.01, timeout_s=60)
    assert [price.affordable_tokens(10, 100, usd) for usd in (0.59, 0.61)] == [0, 100]
