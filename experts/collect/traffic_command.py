"""Takes in what `leeroo serve --keep-texts DIRECTORY` has kept, so that the collector can go on with it.

    leeroo traffic DIRECTORY --out tables/live

writes the answers to tables/live.parts and the questions to tables/live.jsonl. It may be repeated, also while servers
run. Exit codes: 0; 2 bad input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experts.collect.store import parts_directory
from experts.collect.take_in import questions_file, take_in
from leeroo_env.cli import exit_code, printable
from leeroo_env.errors import InputError


@dataclass(frozen=True)
class Options:
    """Turns questions and answers of a live server into those of a table, so that nothing paid is asked again."""

    directory: Annotated[Path, tyro.conf.Positional]
    """where the server keeps texts"""
    out: Path
    """the table directory that `leeroo collect` is to write"""


def run(options: Options) -> int:
    """Takes everything in, and says what comes next."""
    out = options.out.resolve()
    taken = take_in(options.directory, out)
    if not taken.questions:
        raise InputError(f"{options.directory}: holds no question of a single turn")
    by_expert = ", ".join(f"{name} {n}" for name, n in taken.answers.most_common()) or "none"
    answers, usd = taken.answers.total(), taken.cost_usd
    print(printable(f"{answers} new answers, for which ${usd:.6f} was paid ({by_expert}): {parts_directory(out)}"))
    print(f"{taken.rated} answers have feedback, which is their score")
    print(printable(f"{taken.questions} questions, {taken.new_questions} of them new: {questions_file(out)}"))
    if taken.unreadable:
        print(f"{taken.unreadable} lines cannot be read; left out")
    queries = f"--queries {questions_file(options.out)} --out {options.out}"
    print(printable(f"next: leeroo collect --pool pool.yaml {queries} --grader judge --judge NAME"))
    return 0


def main(arguments: Sequence[str] | None = None, prog: str = "python -m experts.collect.traffic_command") -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(tyro.cli(Options, prog=prog, description=__doc__, args=arguments)), "run it again")


if __name__ == "__main__":
    raise SystemExit(main())
