"""Deadlines, bounds on size, and what is billed of attempts that fail, against a real server on loopback."""

import contextvars
import gzip
import time

import pytest

from experts.backends.http import FAILOVER_ATTEMPTS, failover
from experts.backends.openai import OpenAIExpert
from experts.specs import OpenAISpec
from experts.spending import NOT_ASKED, SpendCap
from experts.types import Query
from tests.experts.raw_server import completion, raw_server

QUERY = Query("q", "q")


@pytest.fixture
def server():
    with raw_server() as server:
        yield server


def expert(server, spend_cap, **fields):
    fields = {"usd_per_mtok_in": 1.0, "usd_per_mtok_out": 2.0, "max_tokens": 100, "max_retries": 0} | fields
    spec = {"name": "one", "backend": "openai", "model": "m", "base_url": server.url, "api_key_env": None} | fields
    return OpenAIExpert(OpenAISpec.model_validate(spec), spend_cap)


def ask(server, **fields):
    """The answer to one query, and what was spent in units of the worst case."""
    spend_cap = SpendCap()
    one = expert(server, spend_cap, **fields)
    answer = one.answer([QUERY])[0]
    assert spend_cap.reserved_usd == 0.0
    assert spend_cap.spent_usd == pytest.approx(answer.billed_usd)
    return answer, spend_cap.spent_usd / one.spec.worst_usd(QUERY)


@pytest.mark.parametrize(
    ("status", "billed"),
    [(400, 0), (401, 0), (404, 0), (408, 1), (429, 0), (500, 1), (502, 1), (503, 0), (504, 1), (524, 1), (529, 0)],
)
def test_a_status_that_may_be_billed_counts_at_the_worst_case(server, status, billed):
    server.react = lambda prompt, time: (status, {"error": {"message": "no"}})
    answer, spent = ask(server)
    assert str(status) in answer.error and server.url in answer.error and spent == pytest.approx(billed)


def test_every_attempt_counts(server):
    server.react = lambda prompt, time: (500, {}) if time <= 2 else (200, completion())
    answer, _ = ask(server, max_retries=3)
    assert answer.error is None and answer.cost_usd == pytest.approx(2e-5)
    assert answer.lost_usd == pytest.approx(2 * 4.57e-4) and len(server.prompts) == 3


def test_each_attempt_is_reserved_alone(server):
    """A cap that covers one attempt and not two pays for one."""
    server.react = lambda prompt, time: (500, {})
    spend_cap = SpendCap(6e-4)
    one = expert(server, spend_cap, max_retries=5)
    answer = one.answer([QUERY])[0]
    assert len(server.prompts) == 1 and answer.error not in (None, NOT_ASKED) and answer.lost_usd > 0
    assert one.answer([QUERY])[0].error == NOT_ASKED and len(server.prompts) == 1
    assert spend_cap.spent_usd <= 6e-4


def test_a_cap_holds_while_retries_wait_for_each_other(server):
    server.react = lambda prompt, time: (429, {}) if time <= 2 else (200, completion())
    spend_cap = SpendCap(1e-3)
    answers = expert(server, spend_cap, max_retries=4).answer([Query(str(i), f"q{i}") for i in range(20)])
    assert all(answer.error is None for answer in answers) and spend_cap.spent_usd <= 1e-3


def test_a_reply_that_comes_a_byte_at_a_time_ends_at_the_deadline(server):
    def drip():
        for _ in range(100):
            yield b" "
            time.sleep(0.1)

    server.react = lambda prompt, time: (200, drip())
    started = time.monotonic()
    answer, spent = ask(server, timeout_s=0.5)
    assert "APITimeoutError" in answer.error and spent == pytest.approx(1) and time.monotonic() - started < 5


def test_a_reply_without_end_is_stopped(server):
    sent = []

    def blanks():
        for _ in range(2_000):
            sent.append(1)
            yield b" " * 100_000

    server.react = lambda prompt, time: (200, blanks())
    answer, spent = ask(server)
    assert "longer than" in answer.error and spent == pytest.approx(1) and len(sent) < 500


def test_a_small_reply_that_unpacks_to_a_large_one_is_stopped(server):
    bomb = gzip.compress(b" " * 200_000_000)
    server.react = lambda prompt, time: (200, bomb, {"Content-Encoding": "gzip"})
    answer, spent = ask(server)
    assert "longer than" in answer.error and spent == pytest.approx(1)


def test_a_packed_reply_is_read_and_one_packed_in_another_way_is_refused(server):
    import json

    body = gzip.compress(json.dumps(completion()).encode())
    server.react = lambda prompt, time: (200, body, {"Content-Encoding": "gzip"})
    assert ask(server)[0].text == "ok"
    server.react = lambda prompt, time: (200, body, {"Content-Encoding": "zstd"})
    assert "zstd" in ask(server)[0].error


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_does_not_carry_the_prompt_elsewhere(server, status):
    with raw_server() as other:
        server.react = lambda prompt, time: (status, {}, {"Location": f"{other.url}/chat/completions"})
        answer, spent = ask(server, max_retries=2)
        assert "redirect" in answer.error and other.prompts == [] and spent == 0


def test_an_error_inside_a_200_has_its_own_words_and_status(server):
    server.react = lambda prompt, time: (200, {"error": {"message": "upstream rate limited", "code": 429}})
    answer, spent = ask(server)
    assert "upstream rate limited" in answer.error and "429" in answer.error and spent == 0
    server.react = lambda prompt, time: (
        (200, {"error": {"message": "busy", "code": 429}}) if time < 4 else (200, completion())
    )
    assert ask(server, max_retries=3)[0].error is None


def test_a_server_that_bills_more_than_it_may_is_reserved_for_more(server):
    """It may exceed the cap by the calls in flight at its first overrun, not by every call."""
    usage = {"prompt_tokens": 5, "completion_tokens": 1000, "total_tokens": 1005}
    server.react = lambda prompt, time: (200, completion(usage=usage))
    spend_cap = SpendCap(0.01)
    one = expert(server, spend_cap, concurrency=1)
    answers = one.answer([Query(str(i), f"q{i}") for i in range(20)])
    billed = len(server.prompts) * 2005e-6
    assert billed == pytest.approx(spend_cap.spent_usd) and billed <= 0.01
    assert answers[-1].error == NOT_ASKED


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -(10**9), "completion_tokens": -5}, {"completion_tokens": -5}, None]
)
def test_lies_do_not_lift_the_cap(server, usage):
    server.react = lambda prompt, time: (200, completion(usage=usage))
    spend_cap = SpendCap(0.002)
    expert(server, spend_cap, concurrency=2).answer([Query(str(i), f"q{i}") for i in range(20)])
    assert len(server.prompts) <= 0.002 / 4.57e-4 and 0 < spend_cap.spent_usd <= 0.002


@pytest.mark.parametrize("in_failover", [False, True])
@pytest.mark.parametrize(
    ("attempts_paid", "status", "sent"),
    [(1.0, 500, 1), (1.9, 500, 1), (2.0, 500, 2), (3.5, 500, 3), (1.0, 503, 6), (1.0, 429, 6), (0.999, 500, 1)],
)
def test_an_attempt_is_repeated_only_if_the_limit_pays_for_it(server, attempts_paid, status, sent, in_failover):
    """Those with a status that is not billed cost nothing."""
    server.react = lambda prompt, time: (status, {})
    spend_cap = SpendCap()
    one = expert(server, spend_cap, max_retries=5)
    limit_usd = attempts_paid * one.spec.worst_usd(QUERY) * (1 + 1e-12)
    context = contextvars.copy_context()
    context.run(failover.set, in_failover)
    (answer,) = context.run(one.answer, [QUERY], limits_usd=[limit_usd])
    most = FAILOVER_ATTEMPTS if in_failover and status != 429 else 6
    assert len(server.prompts) == min(sent, most) and answer.error
    assert answer.billed_usd == spend_cap.spent_usd <= limit_usd


@pytest.mark.parametrize(("attempts_paid", "sent"), [(1.0, 1), (1.98, 2)])
def test_an_empty_reply_is_asked_for_again_only_if_the_limit_pays(server, attempts_paid, sent):
    server.react = lambda prompt, time: (200, completion(""))
    one = expert(server, SpendCap(), max_retries=5)
    limit_usd = attempts_paid * one.spec.worst_usd(QUERY)
    (answer,) = one.answer([QUERY], limits_usd=[limit_usd])
    assert len(server.prompts) == sent and answer.is_empty and answer.billed_usd <= limit_usd


def test_a_reply_that_takes_too_long_is_not_asked_for_again_without_money(server):
    def slow(prompt, number):
        time.sleep(1)
        return 200, completion()

    server.react = slow
    one = expert(server, SpendCap(), max_retries=5, timeout_s=0.3)
    limit_usd = 1.5 * one.spec.worst_usd(QUERY)
    (answer,) = one.answer([QUERY], limits_usd=[limit_usd])
    assert len(server.prompts) == 1 and 0 < answer.billed_usd <= limit_usd
