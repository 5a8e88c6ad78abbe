"""`leeroo keys` makes, lists, changes and revokes keys; a secret is printed once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agents.cli import main
from agents.server.money import Ledger


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEEROO_DATABASE", raising=False)
    return tmp_path


def keys(*arguments: str) -> int:
    return main(["keys", *arguments])


def test_a_key_from_its_making_to_its_end(here: Path, capsys: pytest.CaptureFixture):
    assert keys("team", "red", "--usd", "50", "--per", "month") == 0
    assert keys("add", "alice", "--usd", "5", "--per", "day", "--team", "red", "--requests-per-minute", "20") == 0
    secret, *more = capsys.readouterr().out.split()
    assert not more
    assert keys("add", "bob") == keys("top-up", "alice", "--usd", "2.5") == keys("revoke", "bob") == 0
    assert keys("limit", "--usd", "100", "--per", "total") == 0
    capsys.readouterr()
    assert keys("list") == 0
    out = capsys.readouterr().out
    lines = {" ".join(line.split()[:2]): " ".join(line.split()) for line in out.splitlines()}
    assert lines["server $100.00"].startswith("server $100.00 in total $0.000000 $0.000000 $100.000000")
    assert lines["team red"].startswith("team red $50.00 per month $0.000000 $0.000000 $50.000000 20")
    assert lines["key alice"].startswith("key alice $7.50 per day $0.000000 $0.000000 $7.500000 20")
    assert lines["key alice"].endswith(f"{secret[:9]}…, team red, 20 a minute")
    assert lines["key bob"].startswith("key bob none $0.000000 $0.000000 20") and lines["key bob"].endswith("revoked")
    assert secret not in out
    ledger = Ledger.open(f"sqlite:///{here}/leeroo.db")
    info = asyncio.run(ledger.authenticate(secret))
    assert info is not None and info.name == "alice"
    ledger.close()


def test_the_store_is_the_one_of_the_option_or_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEEROO_DATABASE", f"sqlite:///{here}/of-environment.db")
    assert keys("add", "a") == keys("add", "a", "--database", f"sqlite:///{here}/of-option.db") == 0
    assert sorted(path.name for path in here.iterdir()) == ["of-environment.db", "of-option.db"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "a"], "there is a key 'a' already"),
        (["add", "b", "--usd", "-1"], "$-1: an amount is at least 0"),
        (["add", "b", "--usd", "nan"], "$nan: an amount"),
        (["add", "b", "--team", "red"], "no team 'red'"),
        (["add", ""], "key '': a name has 1 to 100 printable characters"),
        (["add", "b", "--requests-per-minute", "0"], "0 requests per minute"),
        (["revoke", "aa"], "no key 'aa'; did you mean 'a'?"),
        (["top-up", "b", "--usd", "1"], "no key 'b'"),
        (["top-up", "a", "--usd", "1"], "key 'a' has no limit"),
        (["list", "--database", "sqlite:///other.db"], "sqlite:///other.db: no such file"),
        (["revoke", "a", "--database", "sqlite:///other.db"], "sqlite:///other.db: no such file"),
        (["add", "a", "--database", "oracle://x"], "oracle://x: the ledger is kept in sqlite or postgresql"),
        (["add", "a", "--database", "postgresql://u:geheim@127.0.0.1:1/x"], "postgresql://u:***@127.0.0.1:1/x: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture
):
    assert keys("add", "a") == 0
    capsys.readouterr()
    assert keys(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}") and err.count("\n") == 1 and not out and "geheim" not in err
    assert [path.name for path in here.iterdir()] == ["leeroo.db"]


@pytest.mark.parametrize("arguments", [["add", "a", "--per", "week"], ["add", "a", "--usd", "much"], ["ad"], []])
def test_what_tyro_cannot_read_has_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        keys(*arguments)
    assert ended.value.code == 2
