"""`python -m experts.collect`: the table, exit codes, Ctrl-C, and that no key is shown or written."""

import contextlib
import fcntl
import functools
import json
import os
import pty
import re
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


def test_a_dry_run_without_probes_asks_and_writes_nothing(server, tmp_path, monkeypatch, capsys):
    write_pool(tmp_path)
    monkeypatch.delenv("TEST_KEY")  # nor does it need the key
    assert main(arguments(tmp_path, "--dry-run", "--probe", "0", "--limit", "7")) == 0
    printed = capsys.readouterr().out
    assert "alpha: 7 to ask (0 stored)" in printed and "at most $" in printed and "nothing measured" in printed
    assert server.requests.total() == 0
    assert {path.name for path in tmp_path.iterdir()} == {"pool.yaml", "queries.jsonl"}


def amounts(line: str) -> dict[str, float]:
    """The dollars in a line of an estimate."""
    found = re.search(r"about \$(\S+) \(95 %: \$(\S+) to \$(\S+)\), at most \$(\S+)", line)
    assert found, line
    return dict(zip(("usd", "low", "high", "worst"), map(float, found.groups()), strict=True))


def test_a_dry_run_measures_a_few_calls_and_keeps_their_answers(server, tmp_path, capsys, monkeypatch):
    """Priced by the second, with a timeout of two minutes and five retries, the worst case says nothing."""
    pool = write_pool(tmp_path)
    prices = "usd_per_mtok_in: 1000, usd_per_mtok_out: 2000", "usd_per_second: 0.001"
    pool.write_text(pool.read_text().replace(*prices).replace("max_retries: 0", "max_retries: 5"))
    server.delay_s = 0.2
    encoder = str(make_tiny_llama(tmp_path / "encoder"))
    assert main(arguments(tmp_path, "--dry-run", "--encoder", encoder)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert server.requests.total() == 10 and set(server.requests.values()) == {1}
    assert "asked 10 queries" in lines[0] and lines[1].startswith("alpha: 25 to ask (5 stored)")
    told = amounts(lines[-1])
    assert main(arguments(tmp_path, "--encoder", encoder)) == 0
    assert server.requests.total() == 60 and set(server.requests.values()) == {1}  # nothing is asked again
    printed = capsys.readouterr().out
    spent_usd = float(re.findall(r"^spent \$(\S+),", printed, re.MULTILINE)[0])
    assert told["usd"] / 2 < spent_usd < 2 * told["usd"] and told["worst"] > 1000 * spent_usd
    assert "without --max-usd 50 calls may cost up to $36" in printed
    assert main(arguments(tmp_path, "--dry-run")) == 0
    assert server.requests.total() == 60 and "alpha: 0 to ask (30 stored), about $0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [(401, "401"), (404, "/v1/chat/completions"), (400, "400"), (500, "500"), ("nothing", "empty reply")],
)
def test_a_dry_run_says_which_expert_cannot_be_asked(server, tmp_path, capsys, behaviour, message):
    write_pool(tmp_path)
    server.behaviour = lambda prompt, time: behaviour if prompt.startswith("beta") else "ok"
    assert main(arguments(tmp_path, "--dry-run")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("beta: last error: ") and message in line for line in lines)
    assert any(line.startswith("beta: 30 to ask (0 stored)") and "nothing measured" in line for line in lines)
    assert any(line.startswith("alpha: 25 to ask (5 stored)") and "95 %" in line for line in lines)


def test_a_dry_run_stays_within_its_limit(server, tmp_path, capsys):
    write_pool(tmp_path)
    assert main(arguments(tmp_path, "--dry-run", "--max-usd", "0.01")) == 1
    assert server.requests.total() == 0
    assert "alpha: needs at least $0.2" in capsys.readouterr().out


def test_a_cap_below_one_call_says_what_one_call_needs(server, tmp_path, capsys):
    write_pool(tmp_path)
    encoder = str(make_tiny_llama(tmp_path / "encoder"))
    assert main(arguments(tmp_path, "--max-usd", "0.01", "--encoder", encoder)) == 1
    printed = capsys.readouterr().out
    (needed,) = re.findall(r"alpha: needs at least \$(\S+) for one call \(worst case\); raise --max-usd", printed)
    assert server.requests.total() == 0
    assert main(arguments(tmp_path, "--max-usd", str(1.05 * float(needed)), "--encoder", encoder)) == 1
    assert server.requests.total() > 0 and "alpha: what is left of --max-usd" in capsys.readouterr().out


def test_what_is_empty_or_cut_off_is_counted_and_asked_again_or_graded_as_asked(server, tmp_path, capsys):
    write_pool(tmp_path, ["alpha"])
    options = "--encoder", str(make_tiny_llama(tmp_path / "encoder"))
    kinds = {f"question {i}": "nothing" if i < 4 else "cut" if i < 6 else "filtered" for i in range(7)}
    server.behaviour = lambda prompt, time: kinds.get(prompt, "ok")
    assert main(arguments(tmp_path, *options)) == 1
    out, err = capsys.readouterr()
    assert "25/30 done, 5 failed" in out and "5 empty, 2 cut off at max_tokens, 1 stopped by a content filter" in out
    assert "alpha: of 30 replies 5 empty and 2 cut off: raise its max_tokens, 5" in err and "--grade-empty" in err
    assert "5 answers missing; run again" in out
    before = server.requests.copy()
    assert main(arguments(tmp_path, *options, "--grade-empty")) == 0
    assert server.requests == before and "0 answers missing" in capsys.readouterr().out
    rows = {row["query_id"]: row for row in ExpertTable.load(tmp_path / "table").answers.to_pylist()}
    assert (rows["q3"]["score"], rows["q3"]["output"], rows["q3"]["answer"]) == (0.0, "", None)
    assert rows["q3"]["finish_reason"] == "length" and rows["q3"]["cost_usd"] == pytest.approx(0.012)
    assert rows["q5"]["finish_reason"] == "length" and rows["q6"]["finish_reason"] == "content_filter"
    server.behaviour = lambda prompt, time: "ok"
    assert main(arguments(tmp_path, *options)) == 0
    assert {prompt for prompt, times in server.requests.items() if times > before[prompt]} == set(kinds) - {
        "question 4",
        "question 5",
    }
    rows = {row["query_id"]: row for row in ExpertTable.load(tmp_path / "table").answers.to_pylist()}
    assert rows["q3"]["score"] == 1.0 and rows["q3"]["finish_reason"] == "stop"


def test_a_variant_that_is_short_on_purpose_is_not_to_be_lengthened(server, tmp_path, capsys):
    write_pool(tmp_path, ["alpha"], ", variants: {short: {max_tokens: 1, prompt: 'short: {text}'}}")
    options = "--encoder", str(make_tiny_llama(tmp_path / "encoder"))
    server.reply = lambda prompt: "The answer is 7."
    assert main(arguments(tmp_path, *options)) == 0
    out, err = capsys.readouterr()
    assert "30 cut off at max_tokens" in out and "max_tokens" not in err
    server.behaviour = lambda prompt, time: "nothing" if prompt.startswith("short") else "ok"
    assert main(arguments(tmp_path, *options, "--out", str(tmp_path / "other"))) == 1
    assert "empty: raise its max_tokens, 1, in pool.yaml" in capsys.readouterr().err


def test_an_expert_whose_replies_are_all_empty_is_no_expert_that_scores_zero(server, tmp_path, capsys):
    write_pool(tmp_path)
    options = "--encoder", str(make_tiny_llama(tmp_path / "encoder"))
    server.behaviour = lambda prompt, time: "nothing" if prompt.startswith("beta") else "ok"
    assert main(arguments(tmp_path, *options)) == 1
    out, err = capsys.readouterr()
    (n,) = map(int, re.findall(r"beta: given up after (\d+) failed calls", out))
    assert 8 <= n < 14 and "raise max_tokens" in out
    assert "mean score 0.000" not in out and "--experts alpha makes the table without beta" in out
    assert f"beta: of {n} replies {n} empty: raise its max_tokens" in err and not (tmp_path / "table").exists()
    assert main(arguments(tmp_path, *options, "--experts", "alpha")) == 0
    assert main(arguments(tmp_path, *options, "--grade-empty")) == 0
    assert f"beta: {30 - n}/{30 - n} done" in capsys.readouterr().out and sum(server.requests.values()) == 60


def test_answers_that_state_none_are_counted(server, tmp_path, capsys):
    write_pool(tmp_path, ["alpha"])
    encoder = str(make_tiny_llama(tmp_path / "encoder"))
    server.reply = lambda prompt: "no idea" if int(prompt.split()[1]) < 4 else "The answer is 7."
    queries = arguments(tmp_path)
    rows = [json.dumps({"query_id": q.query_id, "text": q.text, "reference": "7"}) for q in make_queries(30)]
    (tmp_path / "queries.jsonl").write_text("\n".join(rows))
    assert main([*queries, "--grader", "number", "--encoder", encoder]) == 0
    out, err = capsys.readouterr()
    assert "alpha: 30/30 done" in out and "mean score 0.867, 4 state no answer" in out
    assert "alpha: 4 of 30 answers state none that --grader number can read" in err


def test_control_codes_of_a_server_do_not_reach_the_terminal(server, tmp_path, capsys):
    pool = write_pool(tmp_path)
    pool.write_text(pool.read_text().replace("name: beta", 'name: "be\\e[2Jta"'))
    server.behaviour = lambda prompt, time: "escape" if prompt.startswith("beta") else "ok"
    main(arguments(tmp_path, "--encoder", str(make_tiny_llama(tmp_path / "encoder"))))
    out, err = capsys.readouterr()
    assert "be [2Jta: " in out and "clear [2J me" in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out + err)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("backend: openai", "backend: opensi"), [], "pool.yaml: experts.0: "),
        (("", ""), ["--experts", "alpha,gamma"], "no expert named 'gamma'"),
        (("", ""), ["--max-usd", "-1"], "--max-usd: -1.0"),
        (("", ""), ["--dry-run", "--probe", "-1"], "--probe: -1"),
        (("TEST_KEY", "TEST_KEY_2"), ["--dry-run"], "TEST_KEY_2 is not set"),
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
