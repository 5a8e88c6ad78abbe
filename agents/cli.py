"""The command `leeroo`: one subcommand for each program, with the same options as the program by itself."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from agents.interrupt import leave, quit_at_once, raise_again

COMMANDS = {  # name: module whose main(arguments, prog) runs it, and what it does
    "train": ("train", "train an agent on a table, evaluate it and write a report"),
    "collect": ("experts.collect.command", "ask the experts of a pool and write their graded answers as a table"),
    "import": ("experts.importers.command", "turn published answers into a table"),
    "compare": ("agents.evaluation.compare", "put finished runs side by side: scores, costs and their differences"),
    "selfplay": ("agents.selfplay.loop", "write new questions, ask, grade and learn, round after round"),
    "finetune": ("agents.finetune.command", "fine-tune a table's encoder on the routing task"),
    "ask": ("agents.serving.ask_command", "ask a question or talk: the answer, who gave it, why and at what cost"),
    "keys": ("agents.server.keys_command", "make, list and limit the API keys of the live server"),
    "serve": ("agents.server.command", "answer OpenAI's API with a trained orchestrator in front of your models"),
    "traffic": (
        "experts.collect.traffic_command",
        "take in what a live server has kept, for collect and selfplay",
    ),
    "verify": ("agents.verify", "check the files of a table or a run against their manifests"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code: 0, 2 for bad input, 130 for an interrupted run."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"error: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    is_program = arguments is None
    if is_program:
        quit_at_once()
    module = importlib.import_module(COMMANDS[name][0])  # only now: the others' libraries take seconds to import
    if is_program and name != "train":  # which knows when it begins to write
        raise_again()
    code = module.main(rest, prog=f"leeroo {name}")
    if is_program and name in ("train", "ask"):  # whose threads may still be at work
        leave(code)
    return code


def usage() -> str:
    """The text of `leeroo --help`."""
    lines = [f"  {name:10} {description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: leeroo COMMAND [OPTIONS]",
            "",
            "Learns which of several language models should answer each query.",
            "",
            "commands:",
            *lines,
            "",
            "`leeroo COMMAND --help` explains a command's options.",
        ]
    )
