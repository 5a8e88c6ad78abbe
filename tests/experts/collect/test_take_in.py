"""What servers have kept comes into the collector's store once, whatever was written, repeated or changed meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experts.collect.feedback import read_feedback
from experts.collect.store import open_store, parts_directory, read_parts
from experts.collect.take_in import TakenIn, questions_file, take_in
from experts.collect.traffic import KeptAnswer, Rating, TrafficLog
from experts.collect.traffic_command import main
from experts.data.queries import load_queries
from experts.types import Answer
from leeroo_env.errors import InputError


def answer(number: int, text: str = "q", said: str = "yes", **fields: Any) -> KeptAnswer:
    made = Answer(said, 1, 1, 0.25, 0.1)
    common = {"at": float(number), "decision": f"d{number}", "key": f"large {text}", "expert": "large", "domain": ""}
    return KeptAnswer.model_validate({**common, "text": text, "answer": made, **fields})


def rating(number: int, score: float, at: float = 1.0) -> Rating:
    return Rating(at=at, decision=f"d{number}", expert="large", score=score)


def taken(tmp_path: Path, *lines: KeptAnswer | Rating, writer: str = "a") -> TakenIn:
    TrafficLog(tmp_path / "texts", writer).append(lines)
    return take_in(tmp_path / "texts", tmp_path / "live")


def stored(tmp_path: Path) -> list[tuple[str, str]]:
    rows = read_parts(parts_directory(tmp_path / "live")).to_pylist()
    return [(row["key"], row["output"]) for row in rows]


def test_answers_come_in_once_and_questions_stand_with_the_latest_first(tmp_path: Path):
    found = taken(tmp_path, answer(1, "one"), answer(2, "two"), answer(3, "one", "no"))
    assert (found.answers, found.cost_usd, found.questions, found.new_questions) == ({"large": 2}, 0.5, 2, 2)
    file = questions_file(tmp_path / "live")
    assert [query.text for query in load_queries(file)] == ["one", "two"]
    assert sorted(stored(tmp_path)) == [("large one", "yes"), ("large two", "yes")]
    edited = [json.loads(line) | {"reference": "x"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in edited))
    assert taken(tmp_path).new_questions == 0 and all(query.reference == "x" for query in load_queries(file))
    assert taken(tmp_path, answer(4, "three"), writer="b").answers == {"large": 1}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["text"], row.get("reference")) for row in rows] == [("three", None), ("one", "x"), ("two", "x")]
    assert len(stored(tmp_path)) == 3


def test_feedback_is_of_the_answer_that_it_was_given_for(tmp_path: Path):
    lines: list[KeptAnswer | Rating] = [
        answer(1, said="no"),
        answer(2),
        answer(3),
        answer(4, "other"),
        rating(2, 0.0, at=1.0),
    ]
    TrafficLog(tmp_path / "texts", "z").append([rating(2, 0.5, at=2.0)])  # as the user thought better of it
    assert taken(tmp_path, *lines, rating(3, 1.0), rating(9, 1.0)).rated == 1
    assert dict(stored(tmp_path))["large q"] == "yes"  # that which was rated, not the first
    assert read_feedback(parts_directory(tmp_path / "live")) == {"large q": 0.75}
    taken(tmp_path, rating(1, 0.0), writer="b")  # of an answer that is not the stored one
    assert read_feedback(parts_directory(tmp_path / "live")) == {"large q": 0.75}
    taken(tmp_path, rating(4, 1.0), writer="c")
    assert read_feedback(parts_directory(tmp_path / "live")) == {"large q": 0.75, "large other": 1.0}


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = ["--out", str(tmp_path / "live")]
    assert main([str(tmp_path / "none"), *out]) == 2 and "no such directory" in capsys.readouterr().err
    taken(tmp_path, rating(1, 1.0))
    assert main([str(tmp_path / "texts"), *out]) == 2 and "no question" in capsys.readouterr().err
    (tmp_path / "texts" / "b.jsonl").write_text('{"at": 1}\nno JSON\n' + answer(1).model_dump_json() + "\n")
    assert main([str(tmp_path / "texts"), *out]) == 0 and "2 lines cannot be read" in capsys.readouterr().out
    questions_file(tmp_path / "live").write_text("[]\n")
    assert main([str(tmp_path / "texts"), *out]) == 2 and "live.jsonl: cannot be read" in capsys.readouterr().err
    with open_store(parts_directory(tmp_path / "live")), pytest.raises(InputError, match="another process"):
        take_in(tmp_path / "texts", tmp_path / "live")
