"""The directory of a training run: begins it, finds it again, and refuses to overwrite it."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydantic
import torch
import yaml

from agents.training.config import AGENT, TrainConfig
from leeroo_env import InputError
from leeroo_env.atomic import locked
from leeroo_env.files import write_text
from leeroo_env.manifest import MANIFEST, check_files, write_manifest
from leeroo_env.yaml_file import read_yaml

CONFIG = "config.yaml"
REPORT = ("evaluation.json", "report.md", "curve.png")
FURTHER = ("report.html", "by-query.safetensors")  # of the report; runs of earlier versions lack them
PACKAGES = ("numpy", "gymnasium", "stable-baselines3")


def check_new_run(run_dir: Path) -> None:
    """Raises InputError where `run_dir` holds a run already or cannot be made; writes nothing."""
    try:
        if (run_dir / CONFIG).exists():
            raise InputError(f"{run_dir}: holds a run already; go on with it by --resume, or name another --run-dir")
        existing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    except OSError as error:  # a name that is too long
        raise InputError(f"{run_dir}: cannot be written: {error.strerror}") from None
    if not run_dir.resolve().name:
        raise InputError(f"{run_dir}: cannot be the directory of a run; name one in it")
    if not existing.is_dir():
        raise InputError(f"{run_dir}: cannot be written: Not a directory")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{run_dir}: cannot be written: Permission denied")


def begin_run(run_dir: Path, settings: dict[str, Any]) -> None:
    """Makes the directory and writes `config.yaml`: `settings` and the versions of what the run is made with.

    Raises:
        InputError: there is a run already, or the directory cannot be written.
    """
    check_new_run(run_dir)
    made_with = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build, as +cpu
    made_with |= {name: version(name) for name in PACKAGES}
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with locked(run_dir):
            check_new_run(run_dir)  # once more: another process may have begun it
            write_text(run_dir / CONFIG, yaml.safe_dump({**settings, "made_with": made_with}, sort_keys=False))
            write_manifest(run_dir, [CONFIG])
    except OSError as error:
        raise InputError(f"{run_dir}: cannot be written: {error.strerror or error}") from None


def finish_run(run_dir: Path) -> None:
    """Marks the run as finished: its manifest lists its report."""
    write_manifest(run_dir, [CONFIG, *REPORT, *FURTHER])


def is_finished(run_dir: Path) -> bool:
    """Whether the run has its report, whole and as it was written."""
    try:
        known = check_files(run_dir, REPORT, others=False)
    except InputError:
        return False
    return known or all((run_dir / name).exists() for name in REPORT)  # runs of earlier versions have no manifest


def how_to_continue(run_dir: Path, new: bool) -> str:
    """What an interrupted run has kept, and how to go on with it. A `new` one without a checkpoint is removed."""
    if not (run_dir / CONFIG).exists():
        return "nothing was written"
    if not new or any(run_dir.glob("**/step-*")):
        return f"go on from the last checkpoint with: leeroo train --resume --run-dir {run_dir}"
    for path in [*run_dir.glob("seed-*/*-call*"), *run_dir.glob("seed-*"), *run_dir.glob("*-call*"), run_dir]:
        for name in ("policy", "checkpoints"):
            shutil.rmtree(path / name, ignore_errors=True)
        for file in (*path.glob("events.*"), path / CONFIG, path / MANIFEST):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            path.rmdir()
    return "nothing is kept: there was no checkpoint yet"


def find_run(config: TrainConfig) -> Path:
    """The run to resume: `config.run_dir`, or the latest of the table in `runs/`. Raises InputError where there is
    none."""
    return Path(config.run_dir) if config.run_dir else latest_run(Path("runs"), config.table_path())


def latest_run(directory: Path, table: str) -> Path:
    """The run of a table that was begun last. Raises InputError where there is none, which names the latest one."""
    runs = sorted(directory.glob(f"*/{CONFIG}"), key=lambda path: path.stat().st_mtime, reverse=True)
    if not runs:
        raise InputError(f"{directory}/: holds no run to resume")
    for path in runs:
        with suppress(InputError):
            if read_settings(path.parent).get("table") == table:
                return path.parent
    other = runs[0].parent
    raise InputError(
        f"{directory}/: holds no run of table {table}; the latest is of {read_settings(other).get('table')}: "
        f"go on with it by --resume --run-dir {other}"
    )


def read_settings(run_dir: Path) -> dict[str, Any]:
    """The contents of `config.yaml`. Raises InputError."""
    path = run_dir / CONFIG
    check_files(run_dir, [CONFIG], others=False)
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise InputError(f"{path}: not the settings of a run")
    return settings


def config_of(run_dir: Path) -> TrainConfig:
    """The settings that the run in `run_dir` was begun with. Raises InputError."""
    earlier = {"agent": AGENT, "tune": 0, "tuned": {}}  # what runs of earlier versions do not say
    settings = {**earlier, **read_settings(run_dir)}
    try:
        known = {f.name: settings[f.name] for f in fields(TrainConfig) if f.name != "verify"}
        return pydantic.TypeAdapter(TrainConfig).validate_python(known)
    except KeyError as error:
        raise InputError(f"{run_dir / CONFIG}: not the settings of a run: {error}") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{run_dir / CONFIG}: not the settings of a run: {field}: {first['msg']}") from None


def check_unchanged(given: TrainConfig, run_dir: Path) -> None:
    """Raises InputError where settings `given` for a resumed run are not those that it was begun with."""
    settings, begun = (config.as_settings(run_dir) for config in (given, config_of(run_dir)))
    for name, was in begun.items():
        if name not in ("resume", "verify") and settings[name] != was:
            raise InputError(f"{run_dir}: began with {name} {was!r} and goes on with it, not {settings[name]!r}")
