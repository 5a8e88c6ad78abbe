"""An orchestrator that was loaded with a pool: texts and conversations, one purse for all calls, who would answer."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents import Orchestrator
from experts.pool import load_pool, make_experts
from experts.spending import SpendCap
from experts.types import Query
from leeroo_env import ExpertTable, InputError
from tests.agents.serving.conftest import ROOT
from tests.agents.serving.orchestrators import orchestrator_of
from tests.experts.live.upstream import WORDS, begin, event, part, reset, upstream
from tests.experts.openai_server import OpenAIServer

TINY = ROOT / "experts" / "tiny" / "pool.yaml"
NAMES = ["nano", "calendar", "small", "arithmetic", "large"]
QUESTIONS = ["What is 12 + 30?", "Which day follows Monday?", "What is 3 + 4?"]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def run_dir(tiny: ExpertTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of one call."""
    path = tmp_path_factory.mktemp("runs") / "one"
    orchestrator_of(tiny).save(path)
    return path


@pytest.fixture(scope="module")
def local(run_dir: Path) -> Orchestrator:
    """With the models that ship."""
    return Orchestrator.load(run_dir, pool=TINY, max_usd=1.0)


@pytest.fixture
def served_pool(server: OpenAIServer, tmp_path: Path) -> Path:
    """Experts of these names on a server, where a token costs ten dollars a million; `large` can see."""
    common = {"backend": "openai", "base_url": server.url, "api_key_env": "TEST_KEY", "max_tokens": 50}
    common |= {"usd_per_mtok_in": 10, "usd_per_mtok_out": 10, "max_retries": 2}
    experts = [{"name": name, "model": name, **common} for name in NAMES]
    experts[-1]["can"] = ["vision"]
    path = tmp_path / "pool.yaml"
    path.write_text(yaml.safe_dump({"experts": experts}))
    return path


@pytest.fixture
def served(run_dir: Path, served_pool: Path) -> Orchestrator:
    return Orchestrator.load(run_dir, pool=served_pool, max_usd=1.0)


def test_texts_are_answered_as_by_the_same_experts_asked_directly(local: Orchestrator):
    experts = {e.name: e for e in make_experts(load_pool(TINY), local.experts, SpendCap())}
    assert local.left_usd is not None
    left_usd = local.left_usd
    replies = local.answer(QUESTIONS, remaining_queries=1000)
    known = local.answer(QUESTIONS, experts, left_usd, 1000)
    assert [(r.text, r.expert, r.billed_usd) for r in replies] == [(r.text, r.expert, r.billed_usd) for r in known]
    assert local.left_usd == pytest.approx(left_usd - sum(reply.billed_usd for reply in replies))


def test_a_conversation_is_one_query_that_experts_see_whole(served: Orchestrator, server: OpenAIServer):
    conversation = [user(QUESTIONS[0]), {"role": "assistant", "content": "42"}, user("Are you sure?")]
    (reply,) = served.answer(conversation)
    assert reply.text == "Are you sure?"[::-1]
    assert server.bodies[-1]["messages"] == conversation
    mixed: list[Any] = [QUESTIONS[1], conversation, Query("own", QUESTIONS[2], "calendar")]
    both = served.answer(mixed)
    assert [reply.query.text for reply in both][::2] == QUESTIONS[1:] and both[2].query.query_id == "own"


def test_a_conversation_stays_with_its_expert_unless_another_pays(local: Orchestrator, monkeypatch: pytest.MonkeyPatch):
    conversation = [user(QUESTIONS[0])]
    (reply,) = local.answer(conversation)
    assert reply.text and reply.expert
    conversation += [{"role": "assistant", "content": reply.text}, user("Which day follows Monday?")]
    for gain, stays in ((10.0, True), (-10.0, False)):
        monkeypatch.setattr("agents.serving.outlook.SWITCH_GAIN", gain)
        (route,) = local.route(conversation, 10**6)
        (fresh,) = local.route([user("other"), {"role": "assistant", "content": "x"}, *conversation[2:]], 10**6)
        assert fresh.expert != reply.expert
        assert (route.expert == reply.expert) == stays


def test_a_route_says_who_would_answer_and_why_and_asks_nobody(served: Orchestrator, server: OpenAIServer):
    cheap, dear = served.route(QUESTIONS[0], 10**9)[0], served.route(QUESTIONS[0], 1)[0]
    assert cheap.score is not None and dear.score is not None
    assert cheap.cost_usd.keys() == cheap.score.keys() == set(NAMES)
    assert cheap.usd_price is not None and dear.usd_price is not None and cheap.usd_price > dear.usd_price
    assert cheap.expert in NAMES and cheap.why and "likely to be right" in dear.why
    assert not server.requests and served.left_usd == 1.0


def test_a_route_without_money_has_no_expert(run_dir: Path, served_pool: Path):
    poor = Orchestrator.load(run_dir, pool=served_pool, max_usd=1e-4)
    (route,) = poor.route("What is 12 + 30?")
    assert route.expert is None and "pays for no expert" in route.why
    (reply,) = poor.answer("What is 12 + 30?")
    assert reply.text is None and reply.stop_reason == "money"


def test_threads_share_one_purse_and_never_overdraw_it(run_dir: Path, served_pool: Path, server: OpenAIServer):
    """A call reserves about 0.004 dollars and costs about 0.0001, so that most have to wait for others."""
    server.delay_s = 0.01
    orchestrator = Orchestrator.load(run_dir, pool=served_pool, max_usd=0.01)
    with ThreadPoolExecutor(12) as threads:
        replies = [
            r for part in threads.map(orchestrator.answer, [[f"What is {i} + 1?"] * 2 for i in range(60)]) for r in part
        ]
    billed_usd = server.answered_tokens * 1e-5
    assert sum(reply.billed_usd for reply in replies) == pytest.approx(billed_usd)
    assert billed_usd <= 0.01 and orchestrator.left_usd == pytest.approx(0.01 - billed_usd)
    assert {reply.stop_reason for reply in replies if reply.text is None} == {"money"}
    assert sum(reply.text is not None for reply in replies) > 40


def test_the_asynchronous_twins_answer_many_at_once(served: Orchestrator, server: OpenAIServer):
    together = threading.Barrier(4, timeout=30)

    def reply(prompt: str) -> str:
        together.wait()
        return prompt[::-1]

    server.reply = reply

    async def all_of() -> tuple[list[Any], list[Any]]:
        asks = [served.aanswer(f"What is {i} + 1?", remaining_queries=1000) for i in range(16)]
        return await asyncio.gather(*asks), await served.aroute(QUESTIONS)

    replies, routes = asyncio.run(all_of())
    assert [reply.text for (reply,) in replies] == [f"What is {i} + 1?"[::-1] for i in range(16)]
    assert len(routes) == 3


def test_what_only_one_expert_can_do_goes_to_it(served: Orchestrator):
    picture = [user([{"type": "text", "text": "What is this?"}, IMAGE])]
    mixed: list[Any] = [picture, QUESTIONS[0]]
    assert served.route(mixed, 10**9)[0].expert == "large"


def test_several_are_asked_about_texts_and_one_about_images(
    tiny: ExpertTable, served_pool: Path, server: OpenAIServer, tmp_path: Path
):
    server.reply = lambda prompt: f"{len(server.bodies)}"  # no two answers agree
    orchestrator_of(tiny, max_calls=3, planned=False).save(tmp_path)
    served_pool.write_text(served_pool.read_text().replace("model: small", "model: small\n  can: [vision]"))
    served = Orchestrator.load(tmp_path, pool=served_pool, max_usd=1.0)
    picture = [user([{"type": "text", "text": QUESTIONS[0]}, IMAGE])]
    mixed: list[Any] = [QUESTIONS[0], picture]
    replies = served.answer(mixed, at_once=1)
    assert [[call.error for call in reply.calls] for reply in replies] == [[None] * 2, [None]]


def test_a_busy_server_is_asked_again_and_a_broken_one_is_not(served: Orchestrator, server: OpenAIServer):
    server.behaviour = lambda prompt, time: 429 if time == 1 else "ok"
    (reply,) = served.answer("What is 12 + 30?")
    assert reply.text and len(reply.calls) == 1 and server.requests["What is 12 + 30?"] == 2
    server.behaviour = lambda prompt, time: 500
    (reply,) = served.answer("What is 1 + 1?")
    assert reply.stop_reason == "failed" and len({call.expert for call in reply.calls}) == len(reply.calls)
    assert server.requests["What is 1 + 1?"] == len(reply.calls)


def test_a_stream_brings_the_text_in_pieces_and_then_the_reply(local: Orchestrator):
    left_usd = local.left_usd
    stream = local.stream("What is 12 + 30?")
    assert "".join(stream) == stream.reply.text  # type: ignore[union-attr]
    assert stream.reply is not None and len(stream.reply.calls) == 1
    assert local.left_usd == pytest.approx((left_usd or 0.0) - stream.reply.billed_usd)


@pytest.mark.parametrize(
    "queries, message",
    [
        ([[]], r"queries\[0\]: must be a text"),
        ([{"role": "user"}], r"queries\[0\]\[0\]: content"),
        ([{"role": "robot", "content": "x"}], r"queries\[0\]\[0\]: role 'robot'"),
        (["a", [user("b"), user([{"type": "file", "file": {}}])]], r"queries\[1\]\[1\]: content"),
        ([user(" ")], r"queries\[0\]: is empty"),
        ([user("a"), {"role": "assistant", "content": None, "tool_calls": [object()]}], "cannot be written as JSON"),
        ([user("a" * 1_000_000)], None),
        (["a", [user([IMAGE]), {"role": "tool", "tool_call_id": "1", "content": "x"}]], "tools, vision"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(
    served: Orchestrator, server: OpenAIServer, queries: Any, message: str | None
):
    if message is None:  # too long to be paid
        assert served.answer(queries)[0].stop_reason == "money"
    else:
        with pytest.raises(InputError, match=message) as error:
            served.answer(queries)
        assert "\n" not in str(error.value)
    assert not server.requests


def test_experts_and_money_come_together(run_dir: Path, served_pool: Path, served: Orchestrator, tmp_path: Path):
    bare = Orchestrator.load(run_dir)
    assert bare.left_usd is None
    for call in (bare.answer, bare.route, bare.stream):
        with pytest.raises(InputError, match="pool=, max_usd="):
            call("What is 12 + 30?")
    with pytest.raises(InputError, match="goes with experts"):
        served.answer("What is 12 + 30?", remaining_usd=1.0)
    experts = {e.name: e for e in make_experts(load_pool(TINY), bare.experts, SpendCap())}
    with pytest.raises(InputError, match="conversations need"):
        bare.answer([user("What is 12 + 30?")], experts, 1.0)
    for kwargs in ({"pool": served_pool}, {"max_usd": 1.0}, {"pool": served_pool, "max_usd": -1.0}):
        with pytest.raises(InputError, match="give both"):
            Orchestrator.load(run_dir, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no expert named"):
        (tmp_path / "other.yaml").write_text(served_pool.read_text().replace("name: nano", "name: other"))
        Orchestrator.load(run_dir, pool=tmp_path / "other.yaml", max_usd=1.0)


def test_an_expert_that_is_added_comes_from_the_pool_too(run_dir: Path, served_pool: Path, tiny: ExpertTable):
    pool = yaml.safe_load(served_pool.read_text())
    pool["experts"].append({**pool["experts"][0], "name": "new", "model": "new"})
    served_pool.write_text(yaml.safe_dump(pool))
    served = Orchestrator.load(run_dir, pool=served_pool, max_usd=1.0)
    rows = tiny.rows("train")[:50]
    texts = tiny.queries["text"].take(rows.numpy()).to_pylist()
    served.add_expert("new", tiny.embeddings[rows], [1.0] * 50, [1e-6] * 50, texts)
    (reply,) = served.answer("What is 12 + 30?")
    assert reply.expert == "new"


def test_a_stream_that_breaks_off_keeps_what_came(run_dir: Path, served_pool: Path, server: OpenAIServer):
    def behave(sock: socket.socket, body: dict) -> None:
        begin(sock)
        part(sock, event(WORDS[1]))
        time.sleep(0.05)
        reset(sock)

    with upstream() as broken:
        broken.behave = behave
        served_pool.write_text(served_pool.read_text().replace(server.url, broken.url))
        served = Orchestrator.load(run_dir, pool=served_pool, max_usd=1.0)
        stream = served.stream("What is 12 + 30?")
        assert list(stream) == ["Hello"] and len(broken.bodies) == 1
    assert stream.reply is not None and stream.reply.text == "Hello"
    (call,) = stream.reply.calls
    assert call.finish_reason == "interrupted" and call.billed_usd > call.cost_usd > 0
    assert served.left_usd == pytest.approx(1.0 - call.billed_usd)


def test_queries_are_paced_by_what_the_report_recommends(run_dir: Path, served_pool: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "policy").symlink_to(run_dir / "policy")
    (tmp_path / "run" / "evaluation.json").write_text('{"decision": {"budget_usd_per_1000_queries": 0.005}}')
    paced = Orchestrator.load(tmp_path / "run", pool=served_pool, max_usd=1.0)
    assert paced.route(QUESTIONS) == paced.route(QUESTIONS, 200_000)
    free = Orchestrator.load(run_dir, pool=served_pool, max_usd=1.0)
    assert free.route(QUESTIONS) == free.route(QUESTIONS, 3)


def test_the_libraries_of_the_server_are_not_imported():
    program = (
        "import sys; from agents import Orchestrator; sys.exit(bool({'fastapi', 'sqlalchemy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
