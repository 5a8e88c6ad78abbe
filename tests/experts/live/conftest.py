"""A misbehaving server for the tests of this directory."""

import pytest

from tests.experts.live.upstream import upstream


@pytest.fixture
def server():
    with upstream() as server:
        yield server
