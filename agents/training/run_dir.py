"""The directory of a training run: begun once, found again, never written over."""

from __future__ import annotations

import platform
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from agents.training.algorithms import ALGORITHMS
from leeroo_env import InputError
from leeroo_env.files import write_text

PACKAGES = ("numpy", "gymnasium", "stable-baselines3")


def begin_run(run_dir: Path, settings: dict[str, Any]) -> None:
    """Makes the directory and writes down what the run is made with.

    Raises:
        InputError: there is a run already, or the directory cannot be written.
    """
    if (run_dir / "config.yaml").exists():
        raise InputError(f"{run_dir}: holds a run already; go on with it by --resume, or name another --run-dir")
    made_with = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build, as +cpu
    made_with |= {name: version(name) for name in PACKAGES}
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(run_dir / "config.yaml", yaml.safe_dump({**settings, "made_with": made_with}, sort_keys=False))
    except OSError as error:
        raise InputError(f"{run_dir}: cannot be written: {error.strerror or error}") from None


def latest_run(directory: Path) -> Path:
    """The run begun last. Raises InputError where there is none."""
    runs = sorted(directory.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise InputError(f"{directory}/: holds no run to resume")
    return runs[-1].parent


def read_settings(run_dir: Path) -> dict[str, Any]:
    """What `begin_run` wrote. Raises InputError."""
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


def resumed(given: Any, run_dir: Path) -> Any:
    """The configuration, a dataclass as `given`, that the run began with; whatever else is given must agree with it."""
    config = config_of(type(given), run_dir)
    for field in fields(given):
        value, began_with = getattr(given, field.name), getattr(config, field.name)
        if field.name not in ("resume", "run_dir") and value not in (field.default, began_with):
            raise InputError(f"{run_dir}: began with {field.name} {began_with!r} and goes on with it, not {value!r}")
    return config


def config_of(kind: type, run_dir: Path) -> Any:
    """The configuration of this `kind` in a run directory."""
    settings = read_settings(run_dir)
    try:
        config = kind(**{f.name: settings[f.name] for f in fields(kind)} | {"budget": tuple(settings["budget"])})
        ALGORITHMS[config.algo]
    except (KeyError, TypeError) as error:
        raise InputError(f"{run_dir / 'config.yaml'}: not the settings of a run: {error}") from None
    return config
