"""Query files and datasets in the forms they come in."""

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experts.data.fields import COLUMNS
from experts.data.queries import load_queries, text_id
from experts.data.readers import READERS
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


NAN, INFINITY = float("nan"), float("inf")
BLANKS = "a" + " " * 100_000 + "b"


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


def load(path: Path, content: str | bytes) -> list[Query]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_queries(path)


def refusal(path: Path, content: str | bytes | None = None) -> str:
    """The one line with which a file is refused."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        load_queries(path)
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and len(message) < 400 + len(str(path))
    return message


TABLES = {
    ".jsonl": b'{"id": "007", "text": "caf\xc3\xa9?", "answer": "NA"}\r\n\r\n',
    ".csv": b"id,text,answer\r\n007,caf\xc3\xa9?,NA\r\n",
}
TABLES |= {".ndjson": TABLES[".jsonl"], ".tsv": TABLES[".csv"].replace(b",", b"\t")}


@pytest.mark.parametrize("ending", TABLES)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_endings_marks_and_packed_files(tmp_path: Path, ending: str, mark: bytes):
    expected = [Query("007", "café?", reference="NA")]
    assert load(tmp_path / f"q{ending}", mark + TABLES[ending]) == expected
    assert load(tmp_path / f"q{ending.upper()}", mark + TABLES[ending].replace(b"\r\n", b"\n")) == expected
    packed = gzip.compress(mark + TABLES[ending])
    assert load(tmp_path / f"q.v1{ending}.gz", packed) == expected
    assert "cannot be read" in (cut := refusal(tmp_path / f"q{ending}.gz", packed[:-9])) or "not a readable" in cut
    assert refusal(tmp_path / f"q{ending}.gz", TABLES[ending])  # not packed at all
    assert refusal(tmp_path / f"q{ending}.gz", packed[:12] + b"\0\0\0\0" + packed[16:])


@pytest.mark.parametrize("name", ["q.json", "q.txt", "q.xlsx", "q.parquet.gz", "q.gz", "q.jsonl.zip", "q"])
def test_an_ending_that_is_not_known_is_the_reason(tmp_path: Path, name: str):
    assert f"the ending {Path(name).suffix!r} is not known" in refusal(tmp_path / name, '{"text": "2 + 3?"}\n')
    assert ".ndjson" in refusal(tmp_path / name)


def test_a_directory_or_no_file_is_the_reason(tmp_path: Path):
    (tmp_path / "q.jsonl").mkdir()
    assert "is a directory" in refusal(tmp_path / "q.jsonl")
    assert "no such file" in refusal(tmp_path / "missing.csv.gz")


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.tsv", "q.ndjson"])
def test_an_empty_file_has_no_queries(tmp_path: Path, name: str):
    for content in ("", "\n\n", "\ufeff"):
        assert "contains no queries" in refusal(tmp_path / name, content)


def test_what_looks_like_a_gap_is_text(tmp_path: Path):
    gaps = ["N/A", "NA", "null", "None", "nan", "NaN", "-", ""]
    expected = [f"{letter}. {gap}" for letter, gap in zip("ABCDEFGH", gaps, strict=True)]
    row = {"question": "Which?", "options": gaps, "answer": "B"}
    for path in (tmp_path / "q.jsonl", tmp_path / "q.parquet"):
        (query,) = load_queries(write(path, [row]))
        assert query.text.split("\n")[1:] == expected and query.reference == "B"
    for spelled in (json.dumps(gaps), repr(gaps)):
        (query,) = load_queries(write(tmp_path / "q.csv", [row | {"options": spelled}]))
        assert query.text.split("\n")[1:] == expected
    for gap in gaps[:-1]:
        (query,) = load(tmp_path / "q.csv", f"question,answer,category\n{gap},{gap},{gap}\n")
        assert (query.text, query.reference, query.domain) == (gap, gap, gap)


@pytest.mark.parametrize(
    ("options", "more", "count"),
    [
        (["0", "N/A", "none"], {}, 3),
        (["0", "none", "N/A"], {}, 3),
        (["0", "none", "N/A", "N/A"], {}, 2),
        (["0", "N/A", "none", "N/A"], {"cot_content": ""}, 3),
    ],
)
def test_only_na_at_the_end_is_padding(tmp_path: Path, options: list[str], more: dict, count: int):
    (query,) = load_queries(write(tmp_path / "q.jsonl", [{"text": "?", "options": options, "answer": "A"} | more]))
    assert query.text == "\n".join(["?", *(f"{'ABC'[i]}. {options[i]}" for i in range(count))])


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (["x", "y"], "b", "B"),
        (["x", "y"], "(B)", "B"),
        (["x", "y"], "B.", "B"),
        (["x", "y"], " B) ", "B"),
        (["x", "y"], "B. y", "B"),
        (["x", "y"], "y", "B"),
        (["x", "y"], "Y", "B"),
        (["b", "a"], "a", "B"),
        (["C", "D"], "D", "B"),
        (["True", "False"], False, "B"),
        (["x", "y"], 1, "B"),
        (["x", "y"], 1.0, "B"),
        (["x", "y"], "1", "B"),
        (["5", "7"], "7", "B"),
        ([5, 7], "7", "B"),
        (["0.5", "NaN"], "NaN", "B"),
    ],
)
def test_a_reference_among_options_is_a_letter(tmp_path: Path, options: list, answer: Any, letter: str):
    (query,) = load_queries(write(tmp_path / "q.jsonl", [{"text": "?", "options": options, "answer": answer}]))
    assert query.reference == letter


@pytest.mark.parametrize(
    "answer",
    [
        "C",
        "c",
        "(C)",
        "Z",
        "AB",
        "A, B",
        "2",
        "-1",
        "none",
        "é",
        "",
        "  ",
        2,
        -1,
        0.5,
        1e300,
        True,
        None,
        ["A"],
        {},
        NAN,
        INFINITY,
    ],
)
def test_a_reference_to_no_option_is_refused(tmp_path: Path, answer: Any):
    rows = [
        {"text": "1?", "options": ["x", "y"], "answer": "A"},
        {"text": "2?", "options": ["x", "y"], "answer": answer},
    ]
    message = refusal(write(tmp_path / "q.jsonl", rows))
    assert "row 1" in message and ("answer" in message or "reference" in message)


@pytest.mark.parametrize(("options", "answer"), [(["2", "3", "1"], "1"), (["x", "x"], "x"), (["a", "b", "A"], "a. a")])
def test_a_reference_to_two_options_is_refused(tmp_path: Path, options: list[str], answer: str):
    path = write(tmp_path / "q.jsonl", [{"text": "?", "options": options, "answer": answer}])
    if answer == "a. a":
        assert load_queries(path)[0].reference == "A"
    else:
        assert "names several of the options" in refusal(path)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (5, "5"),
        (5.0, "5"),
        (0.25, "0.25"),
        (True, "True"),
        ("False", "False"),
        ("NaN", "NaN"),
        ("#### 7 ", "7"),
        (" x ", " x "),
        ("####", "####"),
        (BLANKS, BLANKS),
    ],
)
def test_references_without_options(tmp_path: Path, answer: Any, reference: str):
    (query,) = load_queries(write(tmp_path / "q.jsonl", [{"text": "?", "answer": answer}]))
    assert query.reference == reference


@pytest.mark.parametrize("answer", ["NaN", "Infinity", "-Infinity", "1e999", '"x\\ud83d"', '"x\\u0000"', "[]", "{}"])
def test_no_reference_is_refused_also_alone(tmp_path: Path, answer: str):
    message = refusal(tmp_path / "q.jsonl", f'{{"text": "?", "answer": {answer}}}')
    assert "row 0: field answer" in message


@pytest.mark.parametrize("field", ["id", "question", "subject", "answer", "split", "options"])
@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00", "\\ude00\\ud83d", "\\u0000"])
def test_half_a_surrogate_pair_or_nul_is_refused_anywhere(tmp_path: Path, field: str, half: str):
    row = {"id": "1", "question": "?", "subject": "s", "answer": "y", "options": ["x", "y"]}
    text = json.dumps(row | {field: ["y", "HALF"] if field == "options" else "HALF"}).replace("HALF", f"x{half}")
    message = refusal(tmp_path / "q.jsonl", '{"question": "1?", "answer": "1"}\n' + text)
    assert f"row 1: field {field}" in message


def test_whole_surrogate_pairs_are_read(tmp_path: Path):
    assert load(tmp_path / "q.jsonl", '{"text": "\\ud83d\\ude00 \u20ac \U0001f600"}')[0].text == "😀 € 😀"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("q.jsonl", b'{"text": "1"}\n\n{"text": "\xff"}\n', "row 1: is not UTF-8: byte 0xff"),
        ("q.jsonl", b'{"text": "\xed\xa0\xbd"}\n', "row 0: is not UTF-8: byte 0xed"),
        ("q.jsonl", '{"text": "1"}'.encode("utf-16"), "row 0: is not UTF-8"),
        ("q.csv", b"text\n1\n\xe9\n", "row 1: is not UTF-8: byte 0xe9"),
        ("q.csv", b"te\xe9xt\n1\n", "header: is not UTF-8"),
        ("q.tsv", b"text\tid\n1\n", "row 0: has 1 fields, the header has 2"),
        ("q.jsonl", b'{"text": "1"}\n' + b'{"text": ' + b"[" * 100_000, "row 1: is not valid JSON: nested too deeply"),
        ("q.jsonl", b'{"text": "1", "x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "nested too deeply"),
        ("q.jsonl", b'{"text": "1", "options": ' + b"[" * 700 + b"]" * 700 + b"}", "row 0: field options: [[["),
        ("q.csv", b"text,options\n1," + b"[" * 100_000 + b"\n", "row 0: field options: '[[["),
        ("q.csv", b"text,options\n1,x|y\n", "row 0: field options: 'x|y' is not a list of texts"),
        ("q.jsonl", b'{"text": "1", "text": "2"}', "row 0: is not valid JSON: field 'text' appears twice"),
        ("q.csv", b"text,text\n1,2\n", "column text appears twice"),
        ("q.csv", b"text, text\n1,2\n", "column text appears twice"),
        ("q.jsonl", b'{"text": "a\0b"}', "row 0: is not valid JSON"),
        ("q.csv", b"text\na\0b\n", "row 0: field text"),
        ("q.jsonl", b'{"text": 1' + b"0" * 5000 + b"}", "row 0: is not valid JSON"),
        ("q.jsonl", b'{"text": true}', "row 0: field text: True is not text"),
        ("q.jsonl", b'{"text": "1", "id": NaN}', "row 0: field id: nan is not text"),
        ("q.jsonl", b'{"text": "1", "id": 1.5}', "row 0: field id: 1.5 is not text"),
        (
            "q.jsonl",
            b'{"text": "1", "split": ["train"]}',
            "row 0: field split: ['train'] is not one of train, val, test",
        ),
        (
            "q.jsonl",
            b'{"text": "1", "options": {"text": ["a"]}}',
            "row 0: field options: {'text': ['a']} is not a list",
        ),
        (
            "q.jsonl",
            b'{"text": "1", "options": ["a", null]}',
            "row 0: field options: ['a', None] is not a list of texts: None",
        ),
        (
            "q.jsonl",
            b'{"text": "1", "options": ["a", true]}',
            "row 0: field options: ['a', True] is not a list of texts: True",
        ),
        (
            "q.csv",
            b"words;answer\na;b\n",
            "row 0: has none of the fields text, question, prompt, query, but ['words;answer']",
        ),
        ("q.jsonl", b'"text"', "row 0: is not a JSON object"),
    ],
)
def test_broken_rows_of_text_files(tmp_path: Path, name: str, content: bytes, words: str):
    assert words in refusal(tmp_path / name, content)


def test_broken_texts_of_parquet_files(tmp_path: Path):
    bad = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2]), bad)
    for columns, name in (({"text": bad}, "text"), ({"text": ["1", "2"], "options": lists}, "options")):
        pq.write_table(pa.table(columns), tmp_path / "q.parquet")
        assert f"column {name}: damaged: row 1: is not UTF-8" in refusal(tmp_path / "q.parquet")
    far = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["1"], "made": far}), tmp_path / "q.parquet")
    assert "cannot be read" in refusal(tmp_path / "q.parquet")
    pq.write_table(pa.table({"text": pa.array([b"1"])}), tmp_path / "q.parquet")
    assert "row 0: field text: b'1' is not text" in refusal(tmp_path / "q.parquet")
    pq.write_table(pa.table([["1"], ["2"]], names=["text", "text"]), tmp_path / "q.parquet")
    assert "column text appears twice" in refusal(tmp_path / "q.parquet")
    pq.write_table(pa.table({"text": ["1", "2"], "answer": [1.0, float("nan")]}), tmp_path / "q.parquet")
    assert "row 1: field answer: nan is no reference" in refusal(tmp_path / "q.parquet")
    assert "not a readable parquet file" in refusal(tmp_path / "q.parquet", b"")


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


@pytest.mark.usefixtures("hub")
def test_gaps_of_a_csv_data_set_are_text(tmp_path: Path):
    (tmp_path / "own").mkdir()
    rows = [{"question": "NA", "answer": "null"}, {"question": "None", "answer": "nan"}]
    write(tmp_path / "own" / "test.csv", rows)
    assert [(q.text, q.reference) for q in load_queries("own")] == [("NA", "null"), ("None", "nan")]


def test_the_page_names_every_ending_and_column():
    page = (Path(__file__).parents[3] / "docs" / "questions.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("|")]
    assert set(re.findall(r"`(\.\w+)`", " ".join(first for first, _ in rows))) == set(READERS)
    columns = {first.strip(): set(re.findall(r"`(\w+)`", second)) for first, second in rows}
    assert {field: columns[field] for field in COLUMNS} == {field: set(names) for field, names in COLUMNS.items()}
