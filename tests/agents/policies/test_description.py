"""policy.json is read back as it was written; one line names file and field where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.policies.description import PolicyDescription, describe_policy, read_description, write_description
from leeroo_env import InputError, dynamics
from tests.conftest import random_table


@pytest.fixture
def description() -> PolicyDescription:
    return describe_policy(dynamics.make_rules(random_table(), horizon=8), "ppo", {"net_arch": [8]})


@pytest.mark.parametrize("step", [None, 512])
def test_it_is_read_back_as_it_was(description: PolicyDescription, step: int | None, tmp_path: Path):
    written = description.model_copy(update={"step": step})
    write_description(tmp_path / "policy.json", written)
    assert read_description(tmp_path / "policy.json") == written
    assert ("step" in json.loads((tmp_path / "policy.json").read_text())) == (step is not None)


def test_descriptions_from_before_several_calls_make_one_call(description: PolicyDescription, tmp_path: Path):
    old = description.model_dump(exclude={"max_calls", "step"})
    (tmp_path / "policy.json").write_text(json.dumps(old))
    assert read_description(tmp_path / "policy.json") == description


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": None}, "table: Input should be a valid string"),
        ({"encoder": ...}, "encoder: Field required"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"format": 1}, "format: 1 is not 2"),
        ({"algorithm": "os.system"}, "algorithm: 'os.system' is none of ppo, "),
        ({"policy": "cnn"}, "policy: Input should be 'mlp', 'bid-price' or 'router'"),
        ({"mean_cost_usd": [1e-4]}, "mean_cost_usd: 1 costs for 4 experts"),
        ({"max_calls": 0}, "max_calls: Input should be greater than or equal to 1"),
    ],
)
def test_anything_else_is_refused(description: PolicyDescription, change: dict, message: str, tmp_path: Path):
    path = tmp_path / "policy.json"
    data = {**description.model_dump(), **change}
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))
    with pytest.raises(InputError) as error:
        read_description(path)
    assert str(error.value).startswith(f"{path}: {message}") and "\n" not in str(error.value)
