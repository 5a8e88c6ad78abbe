"""The circuit breaker: who is left alone, for how long, and who tries again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from agents.serving.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S, CircuitBreaker
from experts.spending import not_asked
from experts.types import EMPTY, Answer

GOOD = Answer("7", 1, 1, 0.0, 0.1)


def failed(error: str = "InternalServerError: Error code: 500", latency_s: float = 0.1) -> Answer:
    return Answer("", 0, 0, 0.0, latency_s, error)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_pauses_grow_until_a_call_succeeds():
    clock = Clock()
    breaker = CircuitBreaker(clock)
    assert breaker.admit("a") and not breaker.is_open("a")
    breaker.record("a", [failed()])
    pause_s = FIRST_PAUSE_S
    for _ in range(10):
        assert breaker.is_open("a") and not breaker.admit("a") and breaker.admit("b")
        clock.now += pause_s - 0.01
        assert breaker.is_open("a")
        clock.now += 0.02
        assert not breaker.is_open("a") and breaker.admit("a"), "one call tries it"
        assert breaker.is_open("a") and not breaker.admit("a"), "the others wait for what it brings"
        breaker.record("a", [failed()])
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    clock.now += LONGEST_PAUSE_S
    assert breaker.admit("a")
    breaker.record("a", [GOOD])
    assert not breaker.is_open("a") and breaker.admit("a")
    breaker.record("a", [failed()])
    clock.now += FIRST_PAUSE_S
    assert not breaker.is_open("a"), "it begins anew"


def test_an_expert_that_takes_long_to_fail_is_left_alone_as_long():
    clock = Clock()
    breaker = CircuitBreaker(clock)
    breaker.record("a", [failed("APITimeoutError: Request timed out.", 60.0)])
    clock.now += 59
    assert breaker.is_open("a")


@pytest.mark.parametrize(
    "answers",
    [
        [GOOD],
        [GOOD, failed()],
        [failed(), GOOD],
        [failed(f"{EMPTY} (finish_reason content_filter)")],
        [not_asked()],
        [failed("BadRequestError: Error code: 400 - too long")],
        [],
    ],
)
def test_signs_of_life_and_calls_that_were_not_made_are_no_failures(answers: list[Answer]):
    breaker = CircuitBreaker()
    breaker.record("a", answers)
    assert not breaker.is_open("a")


def test_an_expert_that_refuses_every_request_is_left_alone():
    breaker = CircuitBreaker()
    bad = failed("BadRequestError: Error code: 400 - no such parameter")
    for _ in range(2):
        breaker.record("a", [bad])
        assert not breaker.is_open("a")
    breaker.record("a", [bad])
    assert breaker.is_open("a")


def test_calls_in_flight_when_it_opens_do_not_make_the_pause_longer():
    clock = Clock()
    breaker = CircuitBreaker(clock)
    for _ in range(10):
        breaker.record("a", [failed()])
    clock.now += FIRST_PAUSE_S
    assert breaker.admit("a")


def test_one_of_many_threads_tries_again():
    clock = Clock()
    breaker = CircuitBreaker(clock)
    breaker.record("a", [failed()])
    clock.now += FIRST_PAUSE_S
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: breaker.admit("a"), range(200))) == 1


def test_a_model_that_is_down_is_down_for_all_its_variants():
    clock = Clock()
    breaker = CircuitBreaker(clock)
    breaker.record("a@short", [failed()], "a")
    for name in ("a", "a@short", "a@long"):
        assert breaker.is_open(name, "a") and not breaker.admit(name, "a")
    assert not breaker.is_open("b", "b")
    clock.now += FIRST_PAUSE_S
    assert breaker.admit("a@long", "a") and not breaker.admit("a", "a"), "one call tries it"
    breaker.record("a@long", [GOOD], "a")
    assert breaker.admit("a", "a") and breaker.admit("a@short", "a")


def test_a_variant_whose_requests_are_refused_is_left_alone_alone():
    clock = Clock()
    breaker = CircuitBreaker(clock)
    for _ in range(3):
        breaker.record("a@fast", [failed("BadRequestError: Error code: 400 - no such parameter")], "a")
    for _ in range(2):
        breaker.record("a", [GOOD], "a")
        assert breaker.is_open("a@fast", "a") and not breaker.is_open("a", "a") and not breaker.is_open("a@long", "a")
    clock.now += FIRST_PAUSE_S
    assert breaker.admit("a@fast", "a") and not breaker.admit("a@fast", "a") and breaker.admit("a", "a")


def test_the_entry_itself_may_be_refused_without_its_variants():
    breaker = CircuitBreaker()
    breaker.record("a", [failed("BadRequestError: Error code: 400 - no such parameter")] * 3, "a")
    assert breaker.is_open("a", "a") and not breaker.is_open("a@short", "a")
