"""`python -m experts.collect`: the table, exit codes, Ctrl-C, and that no key is shown or written."""

import contextlib
import fcntl
import functools
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from pathlib import Path

import pytest

from experts.collect.command import main
from experts.collect.store import read_parts
from leeroo_env import ExpertTable
from tests.conftest import KEY
from tests.experts.collecting import make_queries, write_pool
from tests.experts.tiny_llama import make_tiny_llama


def arguments(tmp_path: Path, *options: str) -> list[str]:
    queries = tmp_path / "queries.jsonl"
    rows = [{"query_id": q.query_id, "text": q.text, "reference": q.reference} for q in make_queries(30)]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = ["--pool", str(tmp_path / "pool.yaml"), "--queries", str(queries), "--out", str(tmp_path / "table")]
    return [*paths, *options]


def test_the_program_makes_a_table_and_the_key_is_nowhere(server, tmp_path):
    write_pool(tmp_path)
    encoder = str(make_tiny_llama(tmp_path / "encoder"))
    server.behaviour = lambda prompt, time: "echo key" if prompt == "question 7" else "ok"
    environment = os.environ | {"LEEROO_CACHE": str(tmp_path / "cache"), "OPENAI_LOG": "debug"}
    command = [sys.executable, "-m", "experts.collect", *arguments(tmp_path, "--encoder", encoder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "alpha: 29/30 done, 1 failed" in done.stdout, done.stderr
    parts = read_parts(tmp_path / "table.parts")
    text = "".join(str(row) for row in parts.to_pylist())
    assert len(parts) == 60 and "[redacted]" in text
    with pytest.warns(UserWarning, match="1 of 30 queries lack an answer"):
        assert len(ExpertTable.load(tmp_path / "table")) == 29
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for place in (done.stdout, done.stderr, text, written.decode("latin-1")):
        assert KEY not in place and KEY[8:24] not in place


def test_a_dry_run_asks_and_writes_nothing(server, tmp_path, monkeypatch, capsys):
    write_pool(tmp_path)
    monkeypatch.delenv("TEST_KEY")  # nor does it need the key
    assert main(arguments(tmp_path, "--dry-run", "--limit", "7")) == 0
    printed = capsys.readouterr().out
    assert "Estimate" in printed and "alpha: 7 to ask (0 stored)" in printed and "at most $" in printed
    assert server.requests.total() == 0
    assert {path.name for path in tmp_path.iterdir()} == {"pool.yaml", "queries.jsonl"}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("backend: openai", "backend: opensi"), [], "pool.yaml: experts.0: "),
        (("", ""), ["--experts", "alpha,gamma"], "no expert named 'gamma'"),
        (("", ""), ["--max-usd", "-1"], "--max-usd: -1.0"),
        (("", ""), ["--encoder", "no/where/encoder"], "no/where/encoder"),
        (("TEST_KEY", "TEST_KEY_2"), [], "TEST_KEY_2 is not set"),
        (("", ""), ["--queries", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(server, tmp_path, capsys, change, options, message):
    pool = write_pool(tmp_path)
    pool.write_text(pool.read_text().replace(*change))
    assert main(arguments(tmp_path, *options)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and message in printed.err
    assert {path.name for path in tmp_path.iterdir()} == {"pool.yaml", "queries.jsonl"}


def test_ctrl_c_on_a_terminal_keeps_the_answers(server, tmp_path):
    server.delay_s = 0.3
    write_pool(tmp_path)
    encoder = str(make_tiny_llama(tmp_path / "encoder"))
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command = [sys.executable, "-m", "experts.collect", *arguments(tmp_path, "--encoder", encoder)]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, preexec_fn=heard)
    os.close(terminal)
    while server.requests.total() < 20 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    shown = read_all(screen)
    assert process.wait() == 130, shown
    assert b"interrupted; the answers so far are kept" in shown and b"Traceback" not in shown
    assert b"answers/s" in shown and b"$0." in shown and b"s left" in shown
    recorded = Counter(row["query_id"] + row["expert"] for row in read_parts(tmp_path / "table.parts").to_pylist())
    assert len(recorded) == server.requests.total() < 60  # every call returned and is stored
    assert not (tmp_path / "table").exists()


def read_all(screen: int) -> bytes:
    """What a terminal shows until its last program ends."""
    shown = b""
    with open(screen, "rb", buffering=0) as stream, contextlib.suppress(OSError):
        while data := stream.read(65536):
            shown += data
    return shown
