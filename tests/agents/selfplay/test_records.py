"""The records of a self-play run: their files stay as they were, and broken ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.selfplay.records import ChosenPairs, Drift, Record, Round, Voting
from leeroo_env import InputError

ROUND = {
    "round": 1,
    "spent_usd": 0.5,
    "writing_usd": 0.0,
    "votes_usd": 0.1,
    "measured_usd": 0.0,
    "written": {"kept": 3, "dropped": {"tie": 1}, "cost_usd": 0.0},
    "agreement": {"settled": 0, "mean": 0.0},
    "answered": 7,
    "explored": {"answers": 2, "score": 0.5, "cost_usd": 0.01},
    "answers": {"a": 4, "b": 3},
    "coverage": {"east": {"a": 4, "b": 3}},
    "drift": {"a": {"answers": 4, "score": 0.0, "score_z": 0.0, "cost": 0.1, "cost_z": 1.0, "changed": False}},
    "changed": [],
    "budgets_usd": [0.001, 0.01],
    "val": {"score": [0.5, 0.75], "cost_usd": [0.001, 0.005], "mean": 0.625},
    "val_before": None,
    "training_helped": False,
    "kept": True,
}
VOTING = {"references": {"q": {"reference": "x", "agreement": 1.0}}, "votes": [["q", "a"]], "dropped": {}}


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Round, ROUND), (ChosenPairs, {"explore": [["q", "a"]], "aim": []}), (Voting, VOTING | {"spent_usd": 0.25})],
)
def test_files_are_written_as_they_were_read(kind: type[Record], value: dict, tmp_path: Path):
    """Keys, their order and the indent are those of the first version of the format."""
    path = tmp_path / "record.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    kind.read(path).write(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == path.read_bytes()


def test_records_are_typed(tmp_path: Path):
    (tmp_path / "round.json").write_text(json.dumps(ROUND))
    assert Round.read(tmp_path / "round.json").drift["a"] == Drift(4, 0.0, 0.0, 0.1, 1.0, False)
    (tmp_path / "voting.json").write_text(json.dumps(VOTING | {"spent_usd": 0.25}))
    assert Voting.read(tmp_path / "voting.json").votes == [("q", "a")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({**ROUND, "val": {"score": [], "cost_usd": []}}), "val.mean: Field required"),
        ("[]", "the file: Input should be an object"),
        ("{", "the file: Invalid JSON"),
    ],
)
def test_broken_files_are_refused(text: str, message: str, tmp_path: Path):
    path = tmp_path / "round.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        Round.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
