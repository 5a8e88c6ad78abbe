"""Pool and run are read again under load, in all workers; what is broken changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml

from agents.server.config import ServerConfig
from agents.server.journal import Journal
from agents.server.money import Ledger
from agents.server.service import load
from agents.server.versions import Versions
from experts.types import Answer
from leeroo_env import ExpertTable
from tests.agents.server.running import ADMIN, Running, serving, serving_process, write_pool
from tests.experts.live.upstream import WORDS, begin, chunk, completion, event, part, send, upstream

QUESTION: Any = [{"role": "user", "content": "What is 12 + 30?"}]
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
DOWN = Answer("", 0, 0, 0.0, 0.1, error="server error: 500")
SLOW_S, CLIENTS = 1.5, 3


def behave(text: str, slow_s: float = 0.0) -> Callable[[socket.socket, dict[str, Any]], None]:
    """Answers with a text; a stream takes so long."""

    def answer(sock: socket.socket, body: dict[str, Any]) -> None:
        if not body.get("stream"):
            return send(sock, completion(text) | {"usage": USAGE})
        begin(sock)
        for value in [*WORDS, chunk(usage=USAGE)]:
            part(sock, event(value))
            time.sleep(slow_s / len(WORDS))
        part(sock, b"data: [DONE]\n\n")
        part(sock, b"")

    return answer


@contextlib.contextmanager
def asking(running: Running, secret: str) -> Iterator[Counter[str]]:
    """Asks all the time from `CLIENTS`, each one call at a time; gives what came, by text or error."""
    came, stop = Counter[str](), threading.Event()

    def ask() -> None:
        with running.client(secret) as client:
            while not stop.is_set():
                try:
                    answer = client.chat.completions.create(model="leeroo", messages=QUESTION)
                    came[str(answer.choices[0].message.content)] += 1
                except openai.OpenAIError as error:
                    came[f"{type(error).__name__}: {error}"] += 1
                time.sleep(0.02)

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield came
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def reload(running: Running, password: str = ADMIN) -> httpx2.Response:
    headers = {"authorization": f"Bearer {password}"}
    return httpx2.post(f"{running.url}/admin/reload", headers=headers, timeout=60)


def until(true: Callable[[], Any], what: str, most_s: float = 30) -> Any:
    deadline = time.monotonic() + most_s
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


@pytest.fixture
def names(dear_tiny: Path) -> list[str]:
    return list(ExpertTable.load(dear_tiny).experts)


def events(running: Running, kind: str = "reload") -> list[dict[str, Any]]:
    """What the log says of reloads, or of another kind."""
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == kind]


def test_no_request_is_dropped(run_dir: Path, names: list[str], tmp_path: Path):
    with upstream() as before, upstream() as after:
        before.behave, after.behave = behave("before", SLOW_S), behave("after")
        pool = write_pool(tmp_path / "pool.yaml", [*names, "extra"], before.url.removesuffix("/v1"))
        with serving(run_dir, pool, f"sqlite:///{tmp_path}/leeroo.db", tmp_path) as running:
            secret = running.key("steady")
            client = running.client(secret)
            stream = client.chat.completions.create(model="extra", messages=QUESTION, stream=True)
            first = next(iter(stream))
            with asking(running, secret) as came:
                until(lambda: came["before"] > 5, "no answers")
                write_pool(pool, [*names, "new"], after.url.removesuffix("/v1"))
                answer = reload(running)
                told = answer.json()
                assert answer.status_code == 200, told
                assert (told["status"], told["version"], told["workers"], told["waiting"]) == ("reloaded", 2, 1, 0)
                assert (told["added"], told["changed"], told["removed"]) == (["new"], names, ["extra"])
                assert told["policies"] == [run_dir.name]
                at_reload = came["before"]
                until(lambda: came["after"] > 5, "no answers of the new pool")
            assert set(came) == {"before", "after"} and came["before"] <= at_reload + CLIENTS
            words = [first, *stream]  # it goes on with the expert that is gone
            assert "".join(one.choices[0].delta.content or "" for one in words if one.choices) == "Hello world"
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="extra", messages=QUESTION)
            until(lambda: running.spent("steady") == 5 * (sum(came.values()) + 1), "not all is settled")
            until(lambda: not before.connections, "connections to the experts of before are open")
            assert [line["status"] for line in events(running)] == ["done"]
            assert "extra" in events(running)[0]["removed"]


def test_what_is_broken_changes_nothing(run_dir: Path, names: list[str], tmp_path: Path):
    own = shutil.copytree(run_dir, tmp_path / "run")
    with upstream() as expert:
        expert.behave = behave("fine")
        pool = write_pool(tmp_path / "pool.yaml", names, expert.url.removesuffix("/v1"))
        good = pool.read_text()
        without, locked = yaml.safe_load(good), yaml.safe_load(good)
        gone = without["experts"].pop()["name"]
        locked["experts"][0]["api_key_env"] = "A_KEY_THAT_IS_NOT_SET"
        with serving(own, pool, f"sqlite:///{tmp_path}/leeroo.db", tmp_path) as running:
            client = running.client(running.key("steady"))

            def page() -> str:
                headers = {"authorization": f"Bearer {ADMIN}"}
                return httpx2.get(running.url, headers=headers).text

            def refused(*words: str) -> None:
                answer = reload(running)
                error = answer.json()["error"]
                assert answer.status_code == 409 and error["code"] == "reload_refused", error
                assert all(word in error["message"] for word in (*words, "the version before stays in force")), error
                assert "\n" not in error["message"] and "/versions" not in error["message"]
                assert events(running)[-1] == events(running)[-1] | {"status": "refused", "message": error["message"]}
                assert httpx2.get(f"{running.url}/ready").json()["reload"] == "the last one was refused"
                assert "The last reload was refused" in page() and words[-1].split("'")[0] in page()
                assert client.chat.completions.create(model="leeroo", messages=QUESTION).choices[0].message.content

            for text, words in [
                ("experts: [", (str(pool), "invalid YAML")),
                ("experts: []", (str(pool), "experts")),
                (yaml.safe_dump(without), (str(pool), str(own), gone)),
                (yaml.safe_dump(locked), ("A_KEY_THAT_IS_NOT_SET",)),
            ]:
                pool.write_text(text)
                refused(*words)
            pool.unlink()
            refused(str(pool), "cannot be read")
            pool.write_text(good)
            description = own / "policy" / "policy.json"
            description.write_text(description.read_text()[:-20])
            refused(str(description))
            shutil.rmtree(own / "policy")
            refused(str(own), "holds no policy/")
            shutil.copytree(run_dir / "policy", own / "policy")
            assert reload(running).json()["changed"] == []
            assert "reload" not in httpx2.get(f"{running.url}/ready").json() and "was refused" not in page()
            assert len(events(running)) == 8


def test_only_the_admin_key_reloads(server: Running):
    for password in ("none", "wrong", server.key("curious too")):
        assert reload(server, password).status_code == 401
    assert httpx2.get(f"{server.url}/admin/reload").status_code == 405


def test_what_was_learnt_of_experts_that_are_the_same_is_kept(run_dir: Path, names: list[str], tmp_path: Path):
    pool = write_pool(tmp_path / "pool.yaml", names, "http://127.0.0.1:9")
    config = ServerConfig(run_dir=run_dir, pool=pool, database="")

    async def story() -> None:
        ledger = Ledger.open(f"sqlite:///{tmp_path}/leeroo.db")
        versions, journal = Versions(tmp_path / "versions"), Journal(ledger)
        old = load(config, versions, versions.begin(config), ledger, journal)
        for name in names:
            old.first.breaker.record(f"7 {name}", [DOWN], name)
            old.first._overrun[name] = 3.0
        write_pool(pool, names, "http://127.0.0.1:9", large={"usd_per_mtok_out": 2.0})
        new = load(config, versions, versions.add(config), ledger, journal, old)
        others = [name for name in names if name != "large"]
        assert all(new.first.is_open(name) and new.first._overrun[name] == 3.0 for name in others)
        assert all(new.first.by_name[name] is old.first.by_name[name] for name in others)
        assert not new.first.is_open("large") and new.first._overrun["large"] == 1.0
        assert new.first.by_name["large"].spec.price.usd_per_mtok_out == 2.0
        await old.close(1, in_use=new)
        await new.close(1)
        ledger.close()

    asyncio.run(story())


def children(pid: int) -> set[int]:
    """The workers: processes of a process, but for what multiprocessing needs."""
    found = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return {child for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()}


def test_all_workers_reload_on_a_signal(run_dir: Path, names: list[str], tmp_path: Path):
    with upstream() as before, upstream() as after:
        before.behave, after.behave = behave("before"), behave("after")
        pool = write_pool(tmp_path / "pool.yaml", names, before.url.removesuffix("/v1"))
        database = f"sqlite:///{tmp_path}/leeroo.db"
        with serving_process(run_dir, pool, database, tmp_path, "", "--workers", "2") as running:
            assert running.process is not None
            pid, secret = running.process.pid, running.key("steady")
            until(lambda: len(events(running, "start")) == 2, "no two workers")
            workers = children(pid)
            with asking(running, secret) as came:
                until(lambda: came["before"] > 5, "no answers")
                write_pool(pool, names, after.url.removesuffix("/v1"))
                os.kill(pid, signal.SIGHUP)
                until(lambda: len(events(running)) == 2, "two workers, two lines")
                assert [(line["status"], line["version"]) for line in events(running)] == [("done", 2)] * 2
                at_reload = came["before"]
                until(lambda: came["after"] > 5, "no answers of the new pool")
            assert set(came) == {"before", "after"} and came["before"] <= at_reload + CLIENTS
            assert children(pid) == workers

            pool.write_text("experts: [")
            os.kill(pid, signal.SIGHUP)
            until(lambda: len(events(running)) == 3, "no word of the broken file")
            assert events(running)[2]["status"] == "refused" and str(pool) in events(running)[2]["message"]
            write_pool(pool, [*names, "new"], after.url.removesuffix("/v1"))
            told = reload(running).json()
            assert (told["workers"], told["waiting"], told["added"]) == (2, 0, ["new"]), told
            assert children(pid) == workers


def test_a_worker_that_begins_later_has_the_version_in_force(run_dir: Path, names: list[str], tmp_path: Path):
    with upstream() as expert:
        expert.behave = behave("fine")
        pool = write_pool(tmp_path / "pool.yaml", names, expert.url.removesuffix("/v1"))
        config = ServerConfig(run_dir=run_dir, pool=pool, database="")
        shared = Versions(tmp_path / "versions")
        shared.begin(config)
        shared.put_in_force(shared.add(config))
        pool.write_text("experts: [")
        database = f"sqlite:///{tmp_path}/leeroo.db"
        with serving(run_dir, pool, database, tmp_path, versions=shared.directory) as running:
            client = running.client(running.key("steady"))
            assert (
                client.chat.completions.create(model="leeroo", messages=QUESTION).choices[0].message.content == "fine"
            )
            assert [one["version"] for one in events(running, "start")] == shared.used() == [2]
            write_pool(pool, [*names, "new"], expert.url.removesuffix("/v1"))
            shared.put_in_force(shared.add(config))  # as another worker does it
            until(lambda: "new" in [model.id for model in client.models.list()], "it does not follow")
            assert shared.used() == [3]
        assert shared.used() == []
