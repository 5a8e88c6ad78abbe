"""`leeroo ask`: one question, a question from a pipe, a conversation in a terminal, and every way to fail."""

from __future__ import annotations

import io
import math
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from agents.serving.ask_command import main
from leeroo_env import ExpertTable
from tests.agents.serving.conftest import ROOT
from tests.agents.serving.orchestrators import orchestrator_of
from tests.experts.openai_server import OpenAIServer

TINY = str(ROOT / "experts" / "tiny" / "pool.yaml")
NAMES = ["nano", "calendar", "small", "arithmetic", "large"]
QUESTION = "What is 12 + 30?"


@pytest.fixture(scope="module")
def run_dir(tiny: ExpertTable, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("runs") / "one"
    orchestrator_of(tiny).save(path)
    return str(path)


@pytest.fixture
def pool(server: OpenAIServer, tmp_path: Path) -> str:
    """Experts on a server, where a token costs ten dollars a million."""
    common = {"backend": "openai", "base_url": server.url, "api_key_env": "TEST_KEY", "max_tokens": 50}
    common |= {"usd_per_mtok_in": 10, "usd_per_mtok_out": 10, "max_retries": 0}
    path = tmp_path / "pool.yaml"
    path.write_text(yaml.safe_dump({"experts": [{"name": name, "model": name, **common} for name in NAMES]}))
    return str(path)


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    return code, *capsys.readouterr()


def test_the_answer_is_stdout_and_one_line_says_where_it_came_from(
    run_dir: str, pool: str, server: OpenAIServer, capsys: pytest.CaptureFixture[str]
):
    code, out, err = asked(capsys, run_dir, "What", "is 12 + 30?", "--pool", pool, "--max-usd", "0.5")
    assert (code, out) == (0, QUESTION[::-1] + "\n") and err.count("\n") == 1
    told = re.fullmatch(r"(\w+); .+; \$(\S+), \$(\S+) left\n", err)
    assert told is not None and told[1] == server.bodies[-1]["model"]
    assert float(told[2]) == pytest.approx(server.answered_tokens * 1e-5, rel=0.1)
    assert float(told[3]) == pytest.approx(0.5 - server.answered_tokens * 1e-5)
    assert server.bodies[-1]["stream"] is True


def test_the_question_may_come_from_a_pipe(
    run_dir: str, pool: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{QUESTION}\n".encode())))
    assert asked(capsys, run_dir, "--pool", pool)[:2] == (0, QUESTION[::-1] + "\n")


def test_a_run_on_the_models_that_ship_asks_them(run_dir: str, capsys: pytest.CaptureFixture[str]):
    code, out, err = asked(capsys, run_dir, QUESTION)
    assert (code, out) == (0, "42\n") and err.split(";")[0] in NAMES


def test_another_expert_answers_where_one_fails(
    run_dir: str, pool: str, server: OpenAIServer, capsys: pytest.CaptureFixture[str]
):
    server.behaviour = lambda prompt, time: 500 if time == 1 else "ok"
    code, out, err = asked(capsys, run_dir, QUESTION, "--pool", pool)
    assert (code, out) == (0, QUESTION[::-1] + "\n")
    assert re.search(r"; not \w+: Error code: 500 - server: .*refused with 500", err)


@pytest.mark.parametrize(
    "options, behaviour, message",
    [
        (["--max-usd", "0"], "ok", "no answer: what is left pays for no expert; $0, $0.000000 left"),
        ([], 500, "no answer: "),
        (["--max-usd", "0.0034"], "ok", "no answer: what is left pays for no more of the answer"),
    ],
)
def test_without_an_answer_it_says_why(
    run_dir: str,
    pool: str,
    server: OpenAIServer,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    behaviour: int | str,
    message: str,
):
    server.behaviour = lambda prompt, time: behaviour
    server.reply = lambda prompt: "word " * 49
    code, _, err = asked(capsys, run_dir, QUESTION, "--pool", pool, *options)
    assert code == 1 and err.startswith(message) and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["RUN", " "], "question: is empty"),
        (["RUN", QUESTION, "--pool", "none.yaml"], "none.yaml: "),
        (["RUN", QUESTION, "--pool", TINY, "--max-usd", "-1"], "--max-usd -1.0: must be 0 or more"),
        ([".", QUESTION], ".: holds no policy/"),
    ],
)
def test_bad_input_is_one_line(
    run_dir: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    code, out, err = asked(capsys, *[run_dir if word == "RUN" else word for word in arguments])
    assert (code, out) == (2, "") and err.startswith(f"error: {message}") and err.count("\n") == 1


def in_terminal(
    arguments: Sequence[str], typed: Sequence[bytes], interrupt: Callable[[], bool] | None = None
) -> tuple[int, str]:
    """Exit code and what is to be seen, if a line is typed at every prompt, and Ctrl-C as soon as `interrupt` says.
    Ctrl-C at a prompt is pressed again where nothing happens: Python's `input` loses one that comes before it waits."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        program = "import agents.cli; raise SystemExit(agents.cli.main())"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
        os.execve(sys.executable, [sys.executable, "-c", program, "ask", *arguments], environment)
    shown, waiting, end, again = b"", list(typed), time.monotonic() + 120, math.inf
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the program has ended
                break
        if waiting and shown.endswith(b"> "):
            line = waiting.pop(0)
            os.write(terminal, line)
            again = time.monotonic() + 2 if line.endswith(b"\x03") else math.inf
        elif shown.endswith(b"> ") and time.monotonic() > again:
            os.write(terminal, b"\x03")
            again += 2
        elif interrupt is not None and interrupt():
            os.write(terminal, b"\x03")
            interrupt = None
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode().replace("\r", "")


def test_a_terminal_begins_a_conversation_which_ctrl_c_leaves(run_dir: str, pool: str, server: OpenAIServer):
    lines = [b"one two\r", b"three\r", b"/what\r", b"/new\r", b"four\r", b"abc\x03"]
    code, shown = in_terminal([run_dir, "--pool", pool], lines)
    assert code == 0, shown
    assert [[m["content"] for m in body["messages"]] for body in server.bodies] == [
        ["one two"],
        ["one two", "owt eno", "three"],
        ["four"],
    ]
    assert server.bodies[0]["model"] == server.bodies[1]["model"]
    assert shown.count(" left\x1b[0m") == 3 and "eerht\n" in shown and "goes on with the conversation" in shown


def test_ctrl_c_leaves_during_an_answer(run_dir: str, pool: str, server: OpenAIServer):
    server.behaviour = lambda prompt, time: "hang"
    code, shown = in_terminal([run_dir, "--pool", pool], [b"x\r"], lambda: server.under_way > 0)
    assert code == 130 and shown.endswith("interrupted; calls that were made are paid\n")
