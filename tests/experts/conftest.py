"""A server that speaks OpenAI's protocol, and the key that must never be seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.experts.openai_server import OpenAIServer

KEY = "sk-test-0123456789abcdefghijklmnop"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        monkeypatch.setenv("TEST_URL", server.url)
        monkeypatch.setenv("TEST_KEY", KEY)
        yield server
