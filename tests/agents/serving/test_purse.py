"""The purse never promises more than it holds, and calls that wait go on when others are settled."""

from __future__ import annotations

import threading
import time

import pytest

from agents.serving.purse import Purse


def test_a_call_gets_what_is_free_or_waits_for_others():
    purse = Purse(1.0)
    assert purse.reserve(0.25, 0.5) == 0.5
    assert purse.reserve(0.25, 0.75) == 0.5
    assert purse.reserve(0.25, 0.25) is None and purse.left_usd == 1.0
    purse.settle([0.5], [0.125])
    assert purse.left_usd == 0.875 and purse.reserve(0.25, 1.0) == 0.375


def test_a_call_that_cost_more_than_it_reserved_is_taken_off():
    purse = Purse(1.0)
    assert purse.reserve(0.5, 0.5) == 0.5 and purse.reserve(0.25, 0.25) == 0.25
    purse.settle([0.5], [0.9])
    assert purse.left_usd == pytest.approx(0.1) and purse.reserve(0.01, 0.01) is None
    purse.settle([0.25], [0.25])
    assert purse.left_usd == 0.0


def test_what_is_left_is_the_most_that_a_call_gets():
    purse = Purse(0.5)
    assert purse.reserve(1.0, 2.0) == 0.5


def test_waiting_ends_when_a_call_is_settled():
    purse = Purse(1.0)
    purse.wait()  # for nothing
    assert purse.reserve(1.0, 1.0) == 1.0
    threading.Timer(0.05, purse.settle, [[1.0], [0.5]]).start()
    began = time.monotonic()
    purse.wait()
    assert time.monotonic() - began < 0.9 and purse.left_usd == 0.5
