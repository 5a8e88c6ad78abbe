"""Checks all files of a table, a run or a checkpoint against the manifests in its directories, or renews these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.training.run_dir import CONFIG, FURTHER, REPORT
from leeroo_env import InputError
from leeroo_env.cli import exit_code
from leeroo_env.manifest import MANIFEST, check_files, write_manifest

DESCRIBED_BY = ("table.json", "policy.json", "state.json", CONFIG)  # files that directories with manifests have


@dataclass(frozen=True)
class Options:
    """Checks all files of a table, a run or a checkpoint against the sizes and hashes that were written with them."""

    path: Annotated[Path, tyro.conf.Positional]
    """its directory"""
    renew: bool = False
    """take the files as they are now, after a change of your own: write the manifests anew"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m agents.verify") -> int:
    """The command line. Returns the exit code: 0, 2 where a file is not what was written."""
    return exit_code(lambda: run(tyro.cli(Options, prog=prog, args=arguments)), "nothing was changed")


def run(options: Options) -> int:
    """Raises InputError, which names the first file that is not what was written, or where there is no manifest."""
    path = options.path
    directories = sorted({file.parent for name in DESCRIBED_BY for file in path.rglob(name)})
    if options.renew:
        for directory in directories:
            write_manifest(directory, [CONFIG, *REPORT, *FURTHER] if (directory / CONFIG).exists() else None)
    checked = [directory for directory in directories if check_files(directory)]
    if not checked:
        raise InputError(f"{path}: {'no table and no run' if not directories else f'has no {MANIFEST}'}")
    print(f"{path}: {len(checked)} of {len(directories)} directories have a {MANIFEST}; all files are as it says")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
