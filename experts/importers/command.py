"""Runs the importers from the command line: `python -m experts.importers NAME ...`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tyro

from experts.importers.llmrouterbench import import_llmrouterbench
from experts.importers.mmlu_pro import import_mmlu_pro
from experts.importers.paretobandit import import_paretobandit
from experts.importers.routellm import import_routellm
from experts.importers.routerarena import import_routerarena
from experts.importers.routerbench import import_routerbench
from experts.importers.routerdc import import_routerdc
from experts.importers.tidy import import_tidy
from leeroo_env.cli import exit_code

IMPORTERS: dict[str, Callable[..., Any]] = {
    "llmrouterbench": import_llmrouterbench,
    "mmlu-pro": import_mmlu_pro,
    "paretobandit": import_paretobandit,
    "routerarena": import_routerarena,
    "routellm": import_routellm,
    "routerbench": import_routerbench,
    "routerdc": import_routerdc,
    "tidy": import_tidy,
}


def main(arguments: Sequence[str] | None = None, prog: str = "python -m experts.importers") -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 if interrupted; then nothing is written."""

    def work() -> int:
        tyro.extras.subcommand_cli_from_dict(
            IMPORTERS,
            prog=prog,
            description="Imports published answers as a table directory.",
            args=list(arguments) if arguments is not None else None,
            config=(tyro.conf.OmitArgPrefixes,),
        )
        return 0

    return exit_code(work, "nothing is written")
