"""A key leaves in no form in which a server may echo it."""

import base64
from urllib.parse import quote

import pytest

from experts.backends.secrets import LEAST_CHARS, redact, secret_forms, secrets_of_url, shown_url

KEY = "sk-test/+0123456789abcdef"


@pytest.mark.parametrize("before", ["", "a", "ab", "Bearer ", "user:", "xyz"])
@pytest.mark.parametrize("after", ["", "a", "ab", "abc"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_at_every_alignment(before, after, encode):
    echoed = encode(f"{before}{KEY}{after}".encode()).decode()
    text = redact(f"you sent {echoed}", secret_forms([KEY]))
    assert "[redacted]" in text
    assert len(text.removeprefix("you sent ").replace("[redacted]", "")) <= 4 * (len(before + after) // 3 + 2)


def test_plain_and_percent_encoded():
    forms = secret_forms([KEY])
    assert redact(f"{KEY} {quote(KEY, safe='')}", forms) == "[redacted] [redacted]"


def test_a_short_secret_does_not_destroy_answers():
    assert redact("a cat", secret_forms(["a"]), LEAST_CHARS) == "a cat"


def test_secrets_of_an_address():
    url = "https://me:pass-word@host:8000/v1?api_key=abcdefgh&x="
    assert secrets_of_url(url) == ["pass-word", "abcdefgh"]
    assert shown_url(url) == "https://host:8000/v1" and secrets_of_url(None) == []
