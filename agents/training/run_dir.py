"""The directory of a training run: begins it, finds it again, and refuses to overwrite it."""

from __future__ import annotations

import os
import platform
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from agents.algorithms import ALGORITHMS
from agents.training.config import TrainConfig
from leeroo_env import InputError
from leeroo_env.files import write_text

PACKAGES = ("numpy", "gymnasium", "stable-baselines3")


def check_new_run(run_dir: Path) -> None:
    """Raises InputError where `run_dir` holds a run already or cannot be made; writes nothing."""
    if (run_dir / "config.yaml").exists():
        raise InputError(f"{run_dir}: holds a run already; go on with it by --resume, or name another --run-dir")
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
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
        write_text(run_dir / "config.yaml", yaml.safe_dump({**settings, "made_with": made_with}, sort_keys=False))
    except OSError as error:
        raise InputError(f"{run_dir}: cannot be written: {error.strerror or error}") from None


def find_run(config: TrainConfig) -> Path:
    """The run to resume: `config.run_dir`, or the latest in `runs/`. Raises InputError where there is none."""
    return Path(config.run_dir) if config.run_dir else latest_run(Path("runs"))


def latest_run(directory: Path) -> Path:
    """The run begun last. Raises InputError where there is none."""
    runs = sorted(directory.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise InputError(f"{directory}/: holds no run to resume")
    return runs[-1].parent


def read_settings(run_dir: Path) -> dict[str, Any]:
    """The contents of `config.yaml`. Raises InputError."""
    path = run_dir / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path}: not the settings of a run")
    return settings


def config_of(run_dir: Path) -> TrainConfig:
    """The settings that the run in `run_dir` was begun with. Raises InputError."""
    settings = read_settings(run_dir)
    try:
        known = {f.name: settings[f.name] for f in fields(TrainConfig)}
        config = TrainConfig(**known | {"budget": tuple(settings["budget"])})
        ALGORITHMS[config.algo]
    except (KeyError, TypeError) as error:
        raise InputError(f"{run_dir / 'config.yaml'}: not the settings of a run: {error}") from None
    return config


def check_unchanged(given: TrainConfig, run_dir: Path) -> None:
    """Raises InputError where settings `given` for a resumed run are not those that it was begun with."""
    settings, begun = (config.as_settings(run_dir) for config in (given, config_of(run_dir)))
    for name, was in begun.items():
        if name != "resume" and settings[name] != was:
            raise InputError(f"{run_dir}: began with {name} {was!r} and goes on with it, not {settings[name]!r}")
