"""The command `leeroo` has the programs' options and their exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agents.cli import COMMANDS, main


def test_help_names_every_command_and_imports_none():
    code = "import sys; from agents.cli import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert done.stdout.endswith("\nFalse\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_its_options(name: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: leeroo {name} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: no command 'trian'; did you mean 'train'?\n"),
        (["xyz"], f"error: no command 'xyz'; there are {', '.join(COMMANDS)}\n"),
        (["train", "--table", "nowhere"], "error: nowhere: no such table directory"),
        (["collect", "--pool", "no.yaml", "--queries", "no.jsonl", "--out", "no"], "error: no.yaml: "),
        (["import", "tidy", "no.csv", "--out", "no"], "error: no.csv: "),
        (["selfplay", "--pool", "no.yaml", "--run-dir", "no"], "error: "),
        (["finetune", "--table", "nowhere", "--out", "no"], "error: nowhere: "),
        (["verify", "nowhere"], "error: nowhere: no table and no run\n"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(message) and err.count("\n") == 1 and not out
