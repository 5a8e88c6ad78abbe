"""Whatever a body holds becomes one checked reply, or one error that says what it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.backends.reply import NoCompletion, clean_text, error_in, read_reply
from leeroo_env.cli import printable
from tests.experts.raw_server import completion


def read(body):
    return read_reply(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("ok", "ok", ""),
        (" ok\n", " ok\n", ""),
        (None, "", ""),
        ("  \n", "", ""),
        (7, "7", ""),
        (True, "true", ""),
        ([], "", ""),
        ([{"type": "text", "text": "ok"}], "ok", ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab", ""),
        (["a", "b"], "ab", ""),
        ({"type": "text", "text": "ok"}, "ok", ""),
        ([{"type": "text", "text": {"value": "ok", "annotations": []}}], "ok", ""),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "", ""),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "5"}],
            "5",
            "hm",
        ),
        ("<think>hm</think>5", "5", "hm"),
        ("hm</think>\n5", "5", "hm"),
        ("<think>hm", "", "hm"),
        ("\ud83d ok", "\ufffd ok", ""),
        ("\ud83d\ude00", "\U0001f600", ""),
    ],
)
def test_content_of_every_shape(content, text, reasoning):
    reply = read(completion(content))
    assert (reply.text, reply.reasoning) == (text, reasoning)
    reply.text.encode()


def test_reasoning_in_a_field_of_its_own_and_refusals():
    assert read(completion("5", reasoning_content="hm")).reasoning == "hm"
    assert read(completion("5", reasoning="hm")).reasoning == "hm"
    assert read(completion(None, refusal="I will not")).refusal == "I will not"


def test_completions_without_chat():
    assert read({"choices": [{"text": "ok", "finish_reason": "stop"}]}).text == "ok"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("stop", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("eos", "stop"),
        ("weird\x1b[2J", "weird [2j"),
        (None, None),
        (3, None),
        ("", None),
    ],
)
def test_finish_reasons_in_one_vocabulary(given, reason):
    assert read(completion("ok", finish_reason=given)).finish_reason == reason


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"<html>Please log in</html>",
        b'"<html>"',
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": "no"}',
        b'{"choices": [7]}',
        b'{"choices": [{"message": "no"}]}',
        b"\xff\xfe\x00",
        b'{"a":' * 100_000,
        b"[" * 100_000,
        b'{"choices": [{"message": {"content": "cut',
    ],
)
def test_what_is_no_completion_is_said_in_one_short_line(body):
    with pytest.raises(NoCompletion, match="no chat completion: ") as error:
        read_reply(body)
    assert len(str(error.value)) < 200 and str(error.value).isprintable()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"error": {"message": "upstream rate limited", "code": 429}}, (429, "upstream rate limited")),
        ({"error": {"message": "slow down", "code": "429"}}, (429, "slow down")),
        ({"error": {"message": "x", "code": "rate_limit_exceeded"}}, (429, "x")),
        ({"error": "Rate limit reached"}, (429, "Rate limit reached")),
        ({"error": {"message": "no such model", "code": 404}}, (404, "no such model")),
        ({"error": {"message": "broken"}}, (502, "broken")),
        ({"object": "error", "message": "too long", "code": 400}, (400, "too long")),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, (502, "Overloaded")),
        ({"error": {"message": "x", "code": 429}, "choices": []}, (429, "x")),
        (completion() | {"error": None}, None),
        (completion() | {"error": {"message": "a warning"}}, None),
        ({}, None),
        ([], None),
    ],
)
def test_errors_inside_a_200(body, found):
    assert error_in(json.dumps(body).encode()) == found


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_content_gives_a_reply_that_can_be_written(content):
    reply = read(completion(content, finish_reason=content))
    (reply.text + reply.reasoning + (reply.finish_reason or "")).encode()


def test_text_is_made_safe():
    assert clean_text("a\udc00b") == "a\ufffdb"
    assert printable("a\x1b[31m\r\nb\u202e\x9b") == "a [31m b"
