"""The directory of a training run: begun once, found again, never written over."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from agents.files import write_text
from leeroo_env import InputError

PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3")


def begin_run(run_dir: Path, settings: dict[str, Any]) -> None:
    """Makes the directory and writes down what the run is made with.

    Raises:
        InputError: there is a run already, or the directory cannot be written.
    """
    if (run_dir / "config.yaml").exists():
        raise InputError(f"{run_dir}: holds a run already; go on with it by --resume, or name another --run-dir")
    made_with = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
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
