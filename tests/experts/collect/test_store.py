"""The store: what every kind of answer becomes on disk, old parts, and rows that cannot be used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experts.collect import store as store_module
from experts.collect.parts import ADDED, SCHEMA, part_files, part_of, read_parts, write_part
from experts.collect.store import Store, StoredExpert, open_store, successes
from experts.types import EMPTY, Answer, Query

GOOD = Answer("forty", 10, 5, 0.002, 0.5, None, "stop", "I think", 0.001, 4, 2, 3, "counted")
EMPTY_REPLY = Answer("", 10, 5, 0.0, 0.5, f"{EMPTY} (finish_reason length)", "length", "I think", lost_usd=0.02)


class Scripted:
    """An expert that replies as it was told, by the text of the query."""

    name = "scripted"

    def __init__(self, replies: dict[str, Any]) -> None:
        self.replies, self.asked = replies, 0

    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        self.asked += len(queries)
        return [self.replies[query.text] for query in queries]


def asked(directory: Path, replies: dict[str, Any], **options: bool) -> tuple[list[Answer], Scripted, Store]:
    """What an expert with these replies is found to answer, one query for each."""
    expert, queries = Scripted(replies), [Query(text, text) for text in replies]
    with open_store(directory) as store:
        return StoredExpert(expert, lambda query: query.text, store, **options).answer(queries), expert, store


def write_rows(directory: Path, **changes: Any) -> None:
    """A part with the answers `before`, `odd`, which has these changes, and `after`."""
    rows = part_of("one", [(name, Query(name, name), GOOD) for name in ("before", "odd", "after")], "").to_pylist()
    rows[1] |= changes
    directory.mkdir(exist_ok=True)
    write_part(pa.Table.from_pylist(rows, SCHEMA), directory / "000000.parquet")


def test_every_field_of_an_answer_is_kept(tmp_path):
    assert asked(tmp_path, {"good": GOOD, "empty": EMPTY_REPLY})[0] == [GOOD, EMPTY_REPLY]
    with open_store(tmp_path) as store:
        assert (store.found, store.failed) == ({"good": GOOD}, {"empty": EMPTY_REPLY})


def test_parts_without_the_newer_columns_are_read(tmp_path):
    write_rows(tmp_path)
    (part,) = part_files(tmp_path)
    pq.write_table(pq.ParquetFile(part).read().drop_columns(list(ADDED)), part)
    with open_store(tmp_path) as store:
        assert store.found["odd"] == Answer("forty", 10, 5, 0.002, 0.5)
        assert not store.failed and not any(store.lost_usd.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_tokens": -9},
        {"completion_tokens": -1},
        {"prompt_tokens": None},
        {"completion_tokens": 2**62},
        {"cached_tokens": -1},
        {"reasoning_tokens": -3},
        {"cost_usd": -0.01},
        {"cost_usd": math.nan},
        {"cost_usd": math.inf},
        {"cost_usd": 3e38},
        {"cost_usd": None},
        {"lost_usd": -1.0},
        {"lost_usd": math.nan},
        {"latency_s": math.nan},
        {"latency_s": -1.0},
        {"output": None},
        {"key": None},
        {"query_id": None},
        {"expert": None},
        {"output": None, "error": "refused", "cost_usd": -1.0},
    ],
    ids=str,
)
def test_a_bad_row_is_skipped_and_its_neighbours_stay(tmp_path, changes):
    write_rows(tmp_path, **changes)
    with pytest.warns(UserWarning, match="1 stored answer cannot be used") as told, open_store(tmp_path) as store:
        assert store.found == {"before": GOOD, "after": GOOD} and not store.failed
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, expert, store = asked(tmp_path, {"before": None, "odd": GOOD, "after": None})
    assert expert.asked == 1 and len(store.found) == 3


@pytest.mark.parametrize("column", ["output", "reasoning", "finish_reason", "query_id"])
def test_a_text_that_is_no_utf8_is_skipped(tmp_path, column):
    write_rows(tmp_path, **{column: "NOT TEXT"})
    (part,) = part_files(tmp_path)
    part.write_bytes(part.read_bytes().replace(b"NOT TEXT", b"NOT \xff\xfe\xfd\xfc"))
    with pytest.warns(UserWarning, match="1 stored answer cannot be used"):
        assert set(successes(read_parts(tmp_path))) == {"before", "after"}


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("\ud83d ok", "\ufffd ok"),
        ("ok \ude00", "ok \ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("a\0b\x1b[31m", "a\0b\x1b[31m"),
    ],
)
def test_half_surrogates_are_replaced_in_every_text(tmp_path, text, stored):
    odd = replace(GOOD, text=text, reasoning=text, finish_reason=text)
    failed = replace(EMPTY_REPLY, error=f"{EMPTY}: {text}")
    query = Query(f"id {text}", "query")
    with open_store(tmp_path) as store:
        answers = StoredExpert(Scripted({"query": odd}), lambda query: "key", store).answer([query])
    assert answers == [replace(GOOD, text=stored, reasoning=stored, finish_reason=stored)]
    assert asked(tmp_path, {"failed": failed})[0][0].error == f"{EMPTY}: {stored}"
    assert read_parts(tmp_path)["query_id"].to_pylist() == [f"id {stored}", "failed"]


@pytest.mark.parametrize(
    ("changes", "lost_usd"),
    [
        ({"prompt_tokens": -9}, 0.003),
        ({"prompt_tokens": 10**20}, 0.003),
        ({"completion_tokens": None}, 0.003),
        ({"completion_tokens": 5.5}, 0.003),
        ({"reasoning_tokens": "5"}, 0.003),
        ({"cost_usd": math.nan}, 0.001),
        ({"cost_usd": -5.0}, 0.001),
        ({"cost_usd": math.inf}, 0.001),
        ({"lost_usd": -5.0}, 0.002),
        ({"latency_s": math.nan}, 0.003),
        ({"text": None}, 0.003),
        ({"text": [{"type": "text", "text": "ok"}]}, 0.003),
        ({"logprob": float("nan")}, 0.003),
        ({"confidence": float("nan")}, 0.003),
        ({"confidence": 83}, 0.003),
        ({"confidence": "83%"}, 0.003),
        ({"finish_reason": 7}, 0.003),
    ],
    ids=str,
)
def test_an_impossible_answer_is_a_failed_call_and_its_batch_is_kept(tmp_path, changes, lost_usd):
    odd = replace(GOOD, **changes)
    answers, _, _ = asked(tmp_path, {"before": GOOD, "odd": odd, "after": GOOD})
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert next(iter(changes)) in (answers[1].error or "") and answers[1].lost_usd == pytest.approx(lost_usd)
    with open_store(tmp_path) as store:
        assert set(store.found) == {"before", "after"} and store.failed == {"odd": answers[1]}


def test_an_empty_answer_of_the_first_parts_is_a_failed_call_with_its_cost(tmp_path):
    write_rows(tmp_path, output=" \n")
    (part,) = part_files(tmp_path)
    pq.write_table(pq.ParquetFile(part).read().drop_columns(list(ADDED)), part)
    with open_store(tmp_path) as store:
        assert set(store.found) == {"before", "after"}
        assert store.failed["odd"].is_empty and store.failed["odd"].billed_usd == 0.002


def test_an_empty_answer_that_its_backend_accepts_is_one(tmp_path):
    """As of a local model that says nothing."""
    assert asked(tmp_path, {"silent": replace(GOOD, text="")})[0] == [replace(GOOD, text="")]
    answers, expert, _ = asked(tmp_path, {"silent": None})
    assert answers == [replace(GOOD, text="")] and expert.asked == 0


def test_empty_replies_are_asked_again_unless_they_are_accepted(tmp_path):
    assert asked(tmp_path, {"empty": EMPTY_REPLY})[0][0].is_empty
    answers, expert, _ = asked(tmp_path, {"empty": EMPTY_REPLY}, accept_empty=True)
    wrong = replace(EMPTY_REPLY, error=None, cost_usd=0.02, lost_usd=0.0)
    assert answers == [wrong] and expert.asked == 0
    assert asked(tmp_path, {"new": EMPTY_REPLY}, accept_empty=True)[0] == [wrong]
    answers, expert, _ = asked(tmp_path, {"empty": GOOD})
    assert answers == [GOOD] and expert.asked == 1


def test_what_failed_calls_were_billed_is_kept_by_what_they_were_for(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "MERGE_ABOVE", 1)
    refused = Answer("", 0, 0, 0.0, 0.1, "timed out", lost_usd=0.5)
    for number, label in enumerate(("votes", "asks", "asks")):
        with open_store(tmp_path) as store:
            store.label = label
            replies = {"good": GOOD, "failed": refused}
            StoredExpert(Scripted(replies), lambda query: query.text, store).answer([Query(x, x) for x in replies])
        part = part_files(tmp_path)[0]
        (tmp_path / f"{1000 + number:06d}.parquet").write_bytes(part.read_bytes())  # as an interrupted merge leaves it
    with open_store(tmp_path) as store:
        assert dict(store.lost_usd) == pytest.approx({"votes": 0.501, "asks": 1.0})
