"""What is taken from the training run where a caller or a server is not told otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from leeroo_env.builtin import BUILTIN, DEFAULT
from leeroo_env.errors import InputError
from leeroo_env.files import read_json

GRADED_BY = re.compile(r"graded by ([\w-]+)")


def pool_of(run_dir: Path, pool: Path | None) -> Path:
    """The pool that is given, or that of the tiny models for a run on their table. Raises InputError."""
    if pool is not None:
        return pool
    description = run_dir / "policy" / "policy.json"
    if not description.exists():
        raise InputError(f"{run_dir}: holds no policy/; is it the directory of a training run?")
    if read_json(description).get("table") == DEFAULT:
        import experts.tiny

        return Path(experts.tiny.__file__).parent / "pool.yaml"
    raise InputError("--pool: give the pool.yaml whose experts answer")


def budget_of(run_dir: Path) -> float | None:
    """Dollars a query of the deployment that the run's report recommends; None where it recommends none."""
    try:
        decision = json.loads((run_dir / "evaluation.json").read_text()).get("decision") or {}
        usd = decision["budget_usd_per_1000_queries"] / 1000
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return float(usd) if usd > 0 else None


def compare_of(run_dir: Path) -> str:
    """How answers are compared: as the run's table was graded, if that is there and says so, else exactly."""
    from experts.grading import NORMAL_FORMS

    try:
        name = yaml.safe_load((run_dir / "config.yaml").read_text())["table"]
        description = json.loads((BUILTIN.get(name, Path(name)) / "table.json").read_text())["description"]
        told = GRADED_BY.search(description)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return "exact"
    return told[1] if told is not None and told[1] in NORMAL_FORMS else "exact"
