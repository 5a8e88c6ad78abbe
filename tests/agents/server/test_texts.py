"""With --keep-texts nothing paid is asked again, and no answer waits or fails for it; without, no text stays."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.server import metrics
from experts.collect.feedback import read_feedback
from experts.collect.store import parts_directory, read_parts, stored_answers
from experts.collect.take_in import questions_file
from experts.collect.traffic import KeptAnswer, Rating, TrafficLog, read_traffic
from experts.data.queries import load_queries
from experts.pool import keys_for, load_pool
from experts.types import Query
from leeroo_env import ExpertTable
from leeroo_env.errors import InputError
from tests.agents.server.running import Running, first_key, get_json, serving, serving_process
from tests.experts.collecting import run

MARK = "a question that no file may hold"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def keeping(run_dir: Path, pool: Path, experts_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("keeping")
    database = f"sqlite:///{directory}/leeroo.db"
    with serving(run_dir, pool, database, directory, experts_url, keep_texts=directory / "texts") as running:
        yield running


def texts_of(server: Running) -> Path:
    return server.log.parent / "texts"


def ask(server: Running, secret: str, content: Any = MARK, **fields: Any) -> str:
    """The decision's id."""
    client = server.client(secret)
    body: dict[str, Any] = {"model": "leeroo", "messages": [{"role": "user", "content": content}], **fields}
    if not body.get("stream"):
        return client.chat.completions.create(**body).id
    return [chunk.id for chunk in client.chat.completions.create(**body)][-1]


def counted(outcome: str) -> float:
    return metrics.texts.labels(outcome)._value.get()  # type: ignore[no-any-return]


def wait_for(server: Running, n: int) -> list[Any]:
    """All lines, once there are n."""
    for _ in range(100):
        lines = list(read_traffic(texts_of(server)))
        if len(lines) >= n:
            return lines
        time.sleep(0.05)
    raise AssertionError(f"{len(lines)} lines of {n}")


def test_an_answer_is_kept_under_the_key_of_the_collector(keeping: Running, pool: Path):
    secret = keeping.key("keeps")
    plain = ask(keeping, secret, temperature=0, seed=None, user="me")  # as pool.yaml has it
    streamed = ask(keeping, secret, "streamed", stream=True)
    named = ask(keeping, secret, "named", model="small")
    rate(keeping, secret, named, 0.25)
    lines = wait_for(keeping, 4)
    answers = {line.decision: line for line in lines if isinstance(line, KeptAnswer)}
    assert [answers[one].text for one in (plain, streamed, named)] == [MARK, "streamed", "named"]
    assert [(one.decision, one.expert, one.score) for one in lines if isinstance(one, Rating)] == [
        (named, "small", 0.25)
    ]
    specs = {spec.name: spec for spec in load_pool(pool).experts}
    for one in answers.values():
        assert one.key == keys_for(specs[one.expert])(Query("any", one.text))
        assert one.answer.text and one.answer.cost_usd > 0 and one.answer.finish_reason == "stop"
    (file,) = texts_of(keeping).iterdir()
    assert file.stat().st_mode & 0o077 == 0 and texts_of(keeping).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "fields, outcome",
    [
        ({"messages": [{"role": "user", "content": c} for c in "ab"]}, "conversation"),
        ({"messages": [{"role": "system", "content": "rhyme"}, {"role": "user", "content": "a"}]}, "system message"),
        ({"tools": [TOOL]}, "tools or images"),
        ({"response_format": {"type": "json_object"}}, "tools or images"),
        ({"temperature": 0.7}, "settings"),
        ({"stop": "x"}, "settings"),
        ({"content": " \n"}, "text"),
        ({"max_tokens": 1}, "cut off"),
    ],
)
def test_what_the_collector_would_not_ask_is_left_out_and_counted(keeping: Running, fields: dict, outcome: str):
    before, kept = counted(outcome), counted("kept")
    ask(keeping, keeping.key(f"left out {hash(str(fields))}"), **fields)
    deadline = time.monotonic() + 5
    while counted(outcome) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (counted(outcome), counted("kept")) == (before + 1, kept)


def test_a_client_may_object(keeping: Running):
    lines = len(list(read_traffic(texts_of(keeping))))
    secret = keeping.key("objects")
    ask(keeping, secret, "not this", store=False)
    ask(keeping, secret, "but this", store=True)
    assert [one.text for one in wait_for(keeping, lines + 1)[lines:]] == ["but this"]
    assert b"not this" not in b"".join(file.read_bytes() for file in texts_of(keeping).iterdir())


def test_without_it_no_file_has_a_text(run_dir: Path, pool: Path, tmp_path: Path):
    with serving(run_dir, pool, f"sqlite:///{tmp_path}/leeroo.db", tmp_path) as server:
        secret = server.key("private")
        for fields in ({}, {"stream": True}, {"model": "nano"}):
            ask(server, secret, **fields)
        time.sleep(0.5)
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert {".log", ".db"} <= {file.suffix for file in files}
        assert not any(MARK.encode() in file.read_bytes() for file in files)


def test_a_disk_that_fails_costs_no_answer(run_dir: Path, pool: Path, tmp_path: Path):
    texts = tmp_path / "texts"
    with serving(run_dir, pool, f"sqlite:///{tmp_path}/leeroo.db", tmp_path, keep_texts=texts) as server:
        secret, lost = server.key("key"), counted("lost")
        shutil.rmtree(texts)
        texts.write_text("no directory")
        assert ask(server, secret) and ask(server, secret, stream=True)
        deadline = time.monotonic() + 5
        while counted("lost") < lost + 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert counted("lost") == lost + 2
        texts.unlink()
        texts.mkdir()
        ask(server, secret, "again")
        assert [one.text for one in wait_for(server, 1)] == ["again"]


def test_a_torn_line_is_the_loss_of_itself_alone(tmp_path: Path):
    log = TrafficLog(tmp_path / "log", "w")
    rating = Rating(at=1.0, decision="d", expert="e", score=0.5)
    log.append([rating])
    (file,) = log.directory.iterdir()
    with pytest.raises(OSError, match="No space left"):
        file.rename(tmp_path / "aside")
        os.symlink("/dev/full", file)
        log.append([rating])
    file.unlink()
    (tmp_path / "aside").rename(file)
    with file.open("ab") as stream:
        stream.write(b'{"at": 1, "dec')
    log.append([rating])
    assert list(read_traffic(log.directory)) == [rating, None, rating]
    with file.open("ab") as stream:
        stream.write(b'{"at": 1, "dec')  # as a kill leaves it
    assert list(read_traffic(log.directory)) == [rating, None, rating]
    with pytest.raises(InputError, match="cannot be written"):
        TrafficLog(file)


def test_kill_of_two_workers_and_nothing_paid_is_asked_twice(
    run_dir: Path, pool: Path, dear_tiny: Path, experts_url: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    table, out, texts = ExpertTable.load(dear_tiny), tmp_path / "tables" / "live", tmp_path / "texts"
    known = dict(zip(table.queries["text"].to_pylist(), table.queries["reference"].to_pylist(), strict=True))
    questions, began = list(known)[:24], calls(experts_url)
    options = ("--workers", "2", "--keep-texts", str(texts))
    database = f"sqlite:///{tmp_path}/leeroo.db"
    with serving_process(run_dir, pool, database, tmp_path, experts_url, *options) as server:
        secret = server.key("all", 1000.0)
        assert first_key(server)
        rated, _ = [ask(server, secret, questions[0], model="small") for _ in range(2)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda text: ask(server, secret, text), questions[1:]))
        rate(server, secret, rated, 0.25)
        time.sleep(1)
        server.kill()
    paid = calls(experts_url) - began
    assert len(list(texts.iterdir())) <= 2 and paid == 25
    arguments = ["traffic", str(texts), "--out", str(out)]
    assert main(arguments) == 0 and "24 new answers" in capsys.readouterr().out
    assert main(arguments) == 0 and "0 new answers" in capsys.readouterr().out
    file = questions_file(out)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["text"] for row in rows} == set(questions)
    file.write_text("".join(json.dumps({**row, "reference": known[row["text"]]}) + "\n" for row in rows))
    stored = dict(stored_answers(read_parts(parts_directory(out))))
    run(pool, out, load_queries(file))
    assert calls(experts_url) - began == 24 * len(table.experts) + 1  # the question that was asked live twice
    live = ExpertTable.load(out)
    assert len(live) == 24 and live.experts == table.experts
    (key,) = read_feedback(parts_directory(out))
    row = next(i for i, text in enumerate(live.queries["text"].to_pylist()) if text == questions[0])
    k = live.experts.index("small")
    assert live.scores[row, k] == 0.25 and live.costs_usd[row, k].item() == pytest.approx(stored[key].cost_usd)
    same = table.queries["text"].to_pylist().index(questions[1])
    row = live.queries["text"].to_pylist().index(questions[1])
    assert live.scores[row].tolist() == table.scores[same].tolist()


def calls(experts_url: str) -> int:
    return int(get_json(f"{experts_url}/bills")["calls"])


def rate(server: Running, secret: str, decision: str, score: float) -> None:
    body = json.dumps({"decision": decision, "score": score}).encode()
    request = urllib.request.Request(f"{server.url}/v1/feedback", body, {"authorization": f"Bearer {secret}"})
    with urllib.request.urlopen(request) as response:
        assert response.status == 200
