"""Tables: what is read is what was written, and broken ones are refused in one clear line."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from leeroo_env import ExpertTable, InputError
from leeroo_env.manifest import write_manifest
from leeroo_env.table import hash_split
from tests.conftest import random_table, refused_in_one_line


@pytest.fixture
def directory(tmp_path: Path, table: ExpertTable) -> Path:
    table.save(tmp_path / "t")
    return tmp_path / "t"


def test_save_and_load_give_the_same_table(directory: Path, table: ExpertTable):
    loaded = ExpertTable.load(directory)
    assert loaded.experts == table.experts and loaded.name == "random"
    for name in ("embeddings", "scores", "costs_usd", "split", "answer_ids"):
        assert torch.equal(getattr(loaded, name), getattr(table, name)), name
    assert loaded.queries.equals(table.queries)
    assert loaded.fingerprint() == table.fingerprint()
    assert sorted(p.name for p in directory.parent.iterdir()) == ["t"], "no temporary file may stay behind"


def test_float16_embeddings_stay_float16(tmp_path: Path):
    table = ExpertTable.from_arrays("h", ["a"], np.ones((10, 3), np.float16), np.ones((10, 1)), np.ones((10, 1)))
    table.save(tmp_path / "h")
    assert ExpertTable.load(tmp_path / "h").embeddings.dtype == torch.float16


def test_a_column_of_the_answers_by_query_and_expert(directory: Path):
    numbers = np.arange(240) / 7
    add_column("evidence_x", pa.array([None, *numbers[1:]], pa.float64()))(directory)
    write_manifest(directory)
    table = ExpertTable.load(directory).select(["expert-2", "expert-0"])
    column = table.answer_column("evidence_x")
    assert column.shape == (60, 2) and column.dtype == torch.float32
    rows = zip(*(table.answers[name].to_pylist() for name in ("query_id", "expert", "evidence_x")), strict=True)
    ids = table.queries["query_id"].to_pylist()
    for query, expert, value in rows:
        cell = float(column[ids.index(query), table.experts.index(expert)])
        assert np.isnan(cell) if value is None else cell == np.float32(value)
    assert table.answer_column("completion_tokens").isnan().all(), "nulls"


def test_extra_columns_and_fields_survive(directory: Path, tmp_path: Path):
    answers = pq.ParquetFile(directory / "answers.parquet").read()
    answers = answers.append_column("latency_s", pa.array(np.arange(len(answers)) / 7))
    pq.write_table(answers, directory / "answers.parquet")
    info = json.loads((directory / "table.json").read_text())
    info["experts"][0]["licence"] = "MIT"
    (directory / "table.json").write_text(json.dumps(info))
    write_manifest(directory)
    ExpertTable.load(directory).save(tmp_path / "again")
    again = ExpertTable.load(tmp_path / "again")
    assert again.answers["latency_s"].to_pylist() == answers["latency_s"].to_pylist()
    assert json.loads((tmp_path / "again" / "table.json").read_text())["experts"][0]["licence"] == "MIT"


def answered_table(answers: list[list[str | None]]) -> ExpertTable:
    n, k = len(answers), len(answers[0])
    return ExpertTable.from_arrays(
        "a", [f"e{i}" for i in range(k)], np.ones((n, 2)), np.ones((n, k)), np.ones((n, k)), answers=answers
    )


def test_equal_answers_have_equal_ids(tmp_path: Path):
    table = answered_table([["x", "y", "x", None], [None, None, "x", "x"], ["", "a", "A", ""], [None] * 4])
    expected = torch.tensor([[0, 1, 0, -1], [-1, -1, 2, 2], [0, 1, 2, 0], [-1] * 4], dtype=torch.int16)
    assert torch.equal(table.answer_ids, expected) and table.answer_ids.dtype == torch.int16
    table.save(tmp_path / "a")
    assert torch.equal(ExpertTable.load(tmp_path / "a").answer_ids, expected)
    some = ExpertTable.load(tmp_path / "a", ["e2", "e3", "e0"])
    assert torch.equal(some.answer_ids, expected[:, [2, 3, 0]])
    assert torch.equal(table.select(["e2", "e3", "e0"]).answer_ids, expected[:, [2, 3, 0]])
    some.save(tmp_path / "some")
    assert ExpertTable.load(tmp_path / "some").fingerprint() == some.fingerprint(), "whatever the numbers are"


def test_answers_of_queries_left_out_are_left_out(tmp_path: Path):
    scores = np.array([[1, np.nan], [1, 0], [0, 1.0]])
    with pytest.warns(UserWarning, match="1 of 3 queries lack"):
        table = ExpertTable.from_arrays(
            "a", ["e", "f"], np.ones((3, 2)), scores, np.ones((3, 2)), answers=[["x", "x"], ["x", "y"], [None, "z"]]
        )
    assert table.answer_ids.tolist() == [[0, 1], [-1, 1]]


def test_without_answers_nothing_is_known_and_the_fingerprint_stays(table: ExpertTable):
    nothing = random_table(answers=[[None] * 4] * 60)
    assert not table.has_answers() and not nothing.has_answers() and (table.answer_ids == -1).all()
    assert "answer" not in table.answers.column_names and nothing.answers["answer"].null_count == 240
    recorded = "eef6f031d52b02c1d74ad82673527a554765ab98952dd5ea2599bfa3511cf291"
    assert table.fingerprint() == nothing.fingerprint() == recorded
    one, other = (random_table(answers=[["x", second, None, None]] * 60) for second in ("x", "y"))
    renamed = random_table(answers=[["u", "u", None, None]] * 60)
    assert one.has_answers() and one.fingerprint() == renamed.fingerprint()
    assert len({table.fingerprint(), one.fingerprint(), other.fingerprint()}) == 3


def test_answers_of_another_shape_or_type_are_refused():
    for answers in ([["x", "y"]], [["x"], ["y"]], [["x", "y"], ["x"]], ["x", "y"]):
        with pytest.raises(InputError, match=r"a: answers .*not \[N, K\] as the scores \(2, 2\)"):
            ExpertTable.from_arrays("a", ["e", "f"], np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)), answers=answers)
    with pytest.raises(InputError, match="a: answers: not all strings or None"):
        answered_table([["x", 3]])  # type: ignore[list-item]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_answers_may_be_stored_as_any_string(kind: pa.DataType, directory: Path):
    add_column("answer", pa.array((["x", "y", None, "x"] * 60), pa.string()).cast(kind))(directory)
    write_manifest(directory)
    assert torch.equal(ExpertTable.load(directory).answer_ids[7], torch.tensor([0, 1, -1, 0], dtype=torch.int16))


def test_saving_replaces_a_table_but_nothing_else(directory: Path, tmp_path: Path):
    other = random_table(seed=1)
    other.save(directory)
    assert ExpertTable.load(directory).fingerprint() == other.fingerprint()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("hello")
    with pytest.raises(InputError, match="no table directory; not replaced"):
        other.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "hello"


def test_experts_are_selected_by_name_and_order(directory: Path, table: ExpertTable):
    loaded = ExpertTable.load(directory, ["expert-2", "expert-0"])
    assert loaded.experts == ("expert-2", "expert-0")
    assert torch.equal(loaded.scores, table.scores[:, [2, 0]])
    assert torch.equal(table.select(["expert-2", "expert-0"]).costs_usd, table.costs_usd[:, [2, 0]])
    assert set(loaded.answers["expert"].to_pylist()) == {"expert-2", "expert-0"}


def test_answers_may_be_in_any_order_and_missing(directory: Path, table: ExpertTable):
    answers = pq.ParquetFile(directory / "answers.parquet").read()
    shuffled = answers.take(pa.array(np.random.default_rng(0).permutation(len(answers))))
    lost = pc.and_(pc.equal(shuffled["query_id"], "random-7"), pc.equal(shuffled["expert"], "expert-3"))
    pq.write_table(shuffled.filter(pc.invert(lost)), directory / "answers.parquet")
    write_manifest(directory)
    with pytest.warns(UserWarning, match=r"1 of 60 queries lack an answer of a selected expert; left out") as caught:
        loaded = ExpertTable.load(directory)
    assert len(caught) == 1
    keep = [i for i in range(60) if i != 7]
    assert torch.equal(loaded.scores, table.scores[keep]) and torch.equal(loaded.embeddings, table.embeddings[keep])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ExpertTable.load(directory, ["expert-0"])) == 60, "only selected experts' answers are needed"


def test_splits_follow_the_hash_of_the_id():
    ids = [f"q{i}" for i in range(500)]
    table = ExpertTable.from_arrays(
        "s", ["a"], np.ones((500, 2), np.float32), np.ones((500, 1)), np.ones((500, 1)), query_ids=ids
    )
    for split, allowed in (("test", {0, 1, 2}), ("val", {3}), ("train", {4, 5, 6, 7, 8, 9})):
        rows = table.rows(split).tolist()
        assert rows == [i for i, q in enumerate(ids) if int(hashlib.sha256(q.encode()).hexdigest(), 16) % 10 in allowed]
    assert {hash_split(q) for q in ids} == {"train", "val", "test"}


def test_a_table_with_train_and_test_takes_val_from_train():
    split = ["train", "test"] * 100
    table = random_table(n=200)
    table = ExpertTable.from_arrays(
        "s", table.experts, table.embeddings.numpy(), table.scores.numpy(), table.costs_usd.numpy(), split=split
    )
    ids = table.queries["query_id"].to_pylist()
    third = [i for i in range(0, 200, 2) if int(hashlib.sha256(ids[i].encode()).hexdigest(), 16) % 10 == 3]
    assert table.rows("val").tolist() == third and third
    assert table.rows("test").tolist() == list(range(1, 200, 2))


def change_info(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        info = json.loads((directory / "table.json").read_text())
        change(info)
        (directory / "table.json").write_text(json.dumps(info))

    return apply


def change_column(file: str, column: str, row: int, value: object) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        table = pq.ParquetFile(directory / file).read()
        values = table[column].to_pylist()
        values[row] = value
        changed = table.set_column(table.column_names.index(column), column, pa.array(values, table[column].type))
        pq.write_table(changed, directory / file)

    return apply


def add_column(column: str, values: pa.Array) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        answers = pq.ParquetFile(directory / "answers.parquet").read()
        pq.write_table(answers.append_column(column, values), directory / "answers.parquet")

    return apply


def drop_column(file: str, column: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        pq.write_table(pq.ParquetFile(directory / file).read().drop_columns([column]), directory / file)

    return apply


def change_embeddings(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        np.save(directory / "embeddings.npy", change(np.load(directory / "embeddings.npy")))

    return apply


def with_nan(embeddings: np.ndarray) -> np.ndarray:
    embeddings[11, 2] = np.nan
    return embeddings


def pickled(directory: Path) -> None:
    np.save(directory / "embeddings.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def several_arrays(directory: Path) -> None:
    with (directory / "embeddings.npy").open("wb") as file:
        np.savez(file, a=np.ones(3))


def answer_twice(directory: Path) -> None:
    for _ in range(2):
        add_column("answer", pa.array(["x"] * 240))(directory)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, r"no such table directory"),
    "no table.json": (lambda d: (d / "table.json").unlink(), r"table\.json: missing"),
    "no queries": (lambda d: (d / "queries.parquet").unlink(), r"queries\.parquet: missing"),
    "no answers": (lambda d: (d / "answers.parquet").unlink(), r"answers\.parquet: missing"),
    "no embeddings": (lambda d: (d / "embeddings.npy").unlink(), r"embeddings\.npy: missing"),
    "json cut off": (lambda d: (d / "table.json").write_text('{"format": 1,'), r"table\.json: the file: "),
    "other format": (change_info(lambda i: i.update(format=2)), r"table\.json: format: "),
    "no experts": (change_info(lambda i: i.update(experts=[])), r"table\.json: experts: "),
    "negative price": (
        change_info(lambda i: i["experts"][1].update(usd_per_mtok_in=-1)),
        r"experts\.1\.usd_per_mtok_in",
    ),
    "expert twice": (
        change_info(lambda i: i["experts"][1].update(name="expert-0")),
        r"experts\.1\.name: 'expert-0' appears twice",
    ),
    "no parquet": (lambda d: (d / "answers.parquet").write_text("hello"), r"answers\.parquet: not a readable parquet"),
    "no score": (drop_column("answers.parquet", "score"), r"answers\.parquet: column score is missing"),
    "no text": (drop_column("queries.parquet", "text"), r"queries\.parquet: column text is missing"),
    "score NaN": (change_column("answers.parquet", "score", 5, float("nan")), r"column score, row 5: nan is not in"),
    "score null": (change_column("answers.parquet", "score", 5, None), r"column score, row 5: None is not in"),
    "score 1.5": (change_column("answers.parquet", "score", 9, 1.5), r"column score, row 9: 1\.5 is not in \[0, 1\]"),
    "cost < 0": (change_column("answers.parquet", "cost_usd", 8, -0.1), r"column cost_usd, row 8: -0\.1 is not a cost"),
    "cost inf": (change_column("answers.parquet", "cost_usd", 8, float("inf")), r"column cost_usd, row 8: inf is not"),
    "id twice": (
        change_column("queries.parquet", "query_id", 3, "random-1"),
        r"column query_id, row 3: 'random-1' appears twice",
    ),
    "id null": (change_column("queries.parquet", "query_id", 3, None), r"column query_id, row 3: None is not allowed"),
    "unknown split": (change_column("queries.parquet", "split", 4, "dev"), r"column split, row 4: 'dev' is not train"),
    "unknown id": (
        change_column("answers.parquet", "query_id", 2, "x"),
        r"column query_id, row 2: 'x' is not in queries",
    ),
    "unknown expert": (
        change_column("answers.parquet", "expert", 2, "x"),
        r"column expert, row 2: 'x' is not in table",
    ),
    "answer twice": (
        change_column("answers.parquet", "expert", 1, "expert-0"),
        r"row 1: 'random-0' has a second answer",
    ),
    "too few rows": (change_embeddings(lambda e: e[:-1]), r"embeddings\.npy: 59 rows, but queries\.parquet has 60"),
    "NaN embedding": (change_embeddings(with_nan), r"embeddings\.npy: row 11 holds NaN"),
    "float64": (change_embeddings(lambda e: e.astype(np.float64)), r"embeddings\.npy: holds float64"),
    "several arrays": (several_arrays, r"embeddings\.npy: not a readable \.npy file: holds several"),
    "no width": (change_embeddings(lambda e: e[:, :0]), r"embeddings\.npy: holds float32 \[60, 0\]"),
    "score twice": (add_column("score", pa.array([1.0] * 240)), r"answers\.parquet: column score appears twice"),
    "column twice": (answer_twice, r"answers\.parquet: column answer appears twice"),
    "evidence of text": (
        add_column("evidence_x", pa.array(["sure"] * 240)),
        r"answers\.parquet: column evidence_x holds string, not numbers",
    ),
    "evidence inf": (
        add_column("evidence_x", pa.array([0.5] * 7 + [float("-inf")] + [None] * 232)),
        r"answers\.parquet: column evidence_x, row 7: -inf is not a finite number",
    ),
    "number": (add_column("answer", pa.array([1] * 240)), r"answers\.parquet: column answer holds int64, not string"),
    "list": (add_column("answer", pa.array([["x"]] * 240)), r"column answer holds list<.*>, not string"),
    "number code": (
        add_column("answer", pa.array([1.0] * 240).dictionary_encode()),
        r"column answer holds double, not string",
    ),
    "pickle": (pickled, r"embeddings\.npy: not a readable \.npy file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tables_are_refused_in_one_line(name: str, directory: Path):
    refused_in_one_line(*BROKEN[name], directory)


def test_unknown_experts_and_splits_are_named(directory: Path, table: ExpertTable):
    with pytest.raises(InputError, match="no expert named 'expert-9'; did you mean 'expert-"):
        ExpertTable.load(directory, ["expert-0", "expert-9"])
    with pytest.raises(InputError, match="'expert-0' is selected twice"):
        table.select(["expert-0", "expert-0"])
    with pytest.raises(InputError, match="no split 'dev'"):
        table.rows("dev")
    only = random_table(n=30)
    only = ExpertTable.from_arrays(
        "o", only.experts, only.embeddings.numpy(), only.scores.numpy(), only.costs_usd.numpy(), split=["test"] * 30
    )
    with pytest.raises(InputError, match="the train split has no queries"):
        only.rows("train")


def test_the_real_table(mmlu_pro: Path):
    start = time.perf_counter()
    with pytest.warns(UserWarning, match="39 of 8058 queries lack"):
        table = ExpertTable.load(mmlu_pro)
    assert time.perf_counter() - start < 30, "3 s is the aim; this only catches a loop over rows"
    assert table.scores.shape == (8019, 22) and table.embeddings.dtype == torch.float16
    answers = pq.ParquetFile(mmlu_pro / "answers.parquet").read(["query_id", "expert", "score", "cost_usd"])
    row = {q: i for i, q in enumerate(table.queries["query_id"].to_pylist())}
    rng = np.random.default_rng(0)
    for answer in answers.take(pa.array(rng.integers(len(answers), size=300))).to_pylist():
        if answer["query_id"] in row:
            cell = row[answer["query_id"]], table.experts.index(answer["expert"])
            assert float(table.scores[cell]) == answer["score"]
            assert float(table.costs_usd[cell]) == pytest.approx(answer["cost_usd"], rel=1e-6)
