"""Query files and datasets in the forms they come in."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experts.data.queries import load_queries, text_id
from experts.types import Query
from leeroo_env.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"query_id": "a", "text": "1 + 1?", "domain": "sums", "reference": "2", "split": "train"},
    {"query_id": "b", "text": "2 + 2?\nExactly.", "domain": "", "reference": "4", "split": "test"},
    {"query_id": "c", "text": 'say "hi", twice', "domain": "words", "reference": "hi hi", "split": None},
]
MMLU: list[dict[str, Any]] = [
    {"question": "Which?", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 0},
    {"question": "Who?", "subject": "law", "choices": ["k", "l", "m", "n"], "answer": 3},
    {"question": "Which?", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 0},
]
GSM8K = [
    {"question": "Ann has 3 and buys 4.", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    {"question": "Bob sells 1,000.", "answer": "All.\n#### 1,000"},
]
MMLU_PRO = [
    {
        "question_id": 70,
        "question": "Which?",
        "options": ["w", "x", "y", "N/A"],
        "answer": "C",
        "answer_index": 2,
        "cot_content": "",
        "category": "law",
        "src": "x",
    }
]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_every_format_reads_the_same(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"queries{suffix}", ROWS)
    assert load_queries(path) == [Query(**row) for row in ROWS]
    assert [q.query_id for q in load_queries(str(path), limit=2)] == ["a", "b"]
    assert [q.query_id for q in load_queries(path, split="test")] == ["b"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_other_names_and_made_ids(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"q{suffix}", [{"prompt": "One?", "category": "x", "target": "1"}])
    assert load_queries(path) == [Query(text_id("One?"), "One?", "x", "1")]
    path = write(tmp_path / f"numbered{suffix}", [{"id": 7, "question": "One?"}])
    assert load_queries(path) == [Query("7", "One?")]
    assert len(text_id("One?")) == 16 and text_id("One?") != text_id("Two?")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_mmlu_form(tmp_path: Path, suffix: str):
    queries = load_queries(write(tmp_path / f"mmlu{suffix}", MMLU[:2]))
    assert queries[0] == Query(text_id("Which?\nA. w\nB. x\nC. y\nD. z"), "Which?\nA. w\nB. x\nC. y\nD. z", "law", "A")
    assert queries[1].reference == "D"


def test_gsm8k_form(tmp_path: Path):
    queries = load_queries(write(tmp_path / "gsm8k.jsonl", GSM8K))
    assert [(q.text, q.reference) for q in queries] == [("Ann has 3 and buys 4.", "7"), ("Bob sells 1,000.", "1,000")]


def test_mmlu_pro_form(tmp_path: Path):
    assert load_queries(write(tmp_path / "pro.parquet", MMLU_PRO)) == [
        Query("70", "Which?\nA. w\nB. x\nC. y", "law", "C")
    ]


def change(row: int, **fields) -> list[dict]:
    return [r | (fields if i == row else {}) for i, r in enumerate(ROWS)]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("rows", "row", "field"),
    [
        (change(1, query_id="a"), 1, "query_id"),
        (change(2, query_id=None), 2, "query_id"),
        (change(0, text=None), 0, "text"),
        (change(0, text="  "), 0, "text"),
        (change(1, domain=None), 1, "domain"),
        (change(2, reference=None), 2, "reference"),
        (change(1, split="dev"), 1, "split"),
        ([{"text": "One?"}, {"text": "One?"}], 1, "query_id"),
        ([{"query": "One?", "options": ["a", "b"], "answer": 2}], 0, "answer"),
        ([{"query": "One?", "options": ["a", None], "answer": 0}], 0, "options"),
        ([{"words": "One?"}], 0, "text"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, suffix: str, rows: list[dict], row: int, field: str):
    path = write(tmp_path / f"broken{suffix}", rows)
    with pytest.raises(InputError) as caught:
        load_queries(path)
    message = str(caught.value)
    assert str(path) in message and f"row {row}" in message and field in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "row 1"),
        ("a.jsonl", b"[1]\n", "row 0"),
        ("a.jsonl", b"\xff\xfe", "row 0"),
        ("a.jsonl", b"", "no queries"),
        ("a.csv", b"text,domain\nx\n", "row 0"),
        ("a.csv", b"text\nx,y\n", "row 0"),
        ("a.csv", b'text\n"x\n', "CSV"),
        ("a.csv", b"text\n\xff\n", "CSV"),
        ("a.parquet", b"PAR1 nothing", "parquet"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, name: str, content: bytes, words: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_queries(path)
    assert str(path) in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_no_such_file_split_or_limit(tmp_path: Path):
    path = write(tmp_path / "queries.jsonl", ROWS)
    for arguments in ((tmp_path / "other.jsonl",), (path, 0), (path, None, "val")):
        with pytest.raises(InputError):
            load_queries(*arguments)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Datasets of the shape of those on the hub, in a directory that `datasets` reads under the same names."""
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    for name, configuration, rows, suffix in (
        ("cais/mmlu", "all", MMLU, "parquet"),
        ("openai/gsm8k", "main", GSM8K, "jsonl"),
        ("TIGER-Lab/MMLU-Pro", "default", MMLU_PRO, "parquet"),
    ):
        (tmp_path / name).mkdir(parents=True)
        for split in ("test", "train"):
            write(tmp_path / name / f"{split}.{suffix}", rows if split == "test" else rows[:1])
        files = "".join(f"  - split: {s}\n    path: {s}.{suffix}\n" for s in ("test", "train"))
        readme = f"---\nconfigs:\n- config_name: {configuration}\n  data_files:\n{files}---\n"
        (tmp_path / name / "README.md").write_text(readme)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.mark.usefixtures("hub")
def test_datasets_by_name():
    with pytest.warns(UserWarning, match="1 repeated questions are left out"):
        mmlu = load_queries("cais/mmlu")
    assert [(q.reference, q.domain, q.split) for q in mmlu] == [("A", "law", None), ("D", "law", None)]
    assert all(q.query_id.startswith("mmlu-") for q in mmlu)
    gsm8k = load_queries("openai/gsm8k")
    assert [q.reference for q in gsm8k] == ["7", "1,000"]
    assert load_queries("openai/gsm8k", limit=1, split="train") == gsm8k[:1]
    assert load_queries("TIGER-Lab/MMLU-Pro") == [Query("mmlupro-70", "Which?\nA. w\nB. x\nC. y", "law", "C")]
    assert load_queries("openai/gsm8k:main") == gsm8k


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("arguments", [("openai/gsm8k", None, "nowhere"), ("openai/gsm8k:other",)])
def test_a_dataset_that_cannot_be_loaded_is_one_line(arguments: tuple):
    with pytest.raises(InputError, match="openai/gsm8k") as caught:
        load_queries(*arguments)
    assert "\n" not in str(caught.value)
