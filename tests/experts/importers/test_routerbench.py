"""The importer of RouterBench, on small files of the published shape in every format."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.experts.importers.importing import QUESTIONS, embeddings, load_and_step, refused, run, train_briefly


def wide(**changes) -> dict[str, list]:
    """RouterBench's columns; scores are objects and texts are lists of turns, as published."""
    n = range(QUESTIONS)
    columns: dict[str, list] = {
        "sample_id": [f"task.dev.{i}" for i in n],
        "prompt": [repr(["Answer with a letter.", f"What's {i}?"]) for i in n],
        "eval_name": ["task" for _ in n],
        "big/model": [1.0 if i % 2 else np.float64(0.25) for i in n],
        "small": [float(i % 3 == 0) for i in n],
        "big/model|model_response": [repr([f"it is {i}"]) for i in n],
        "small|model_response": [repr(["dunno"]) for _ in n],
        "big/model|total_cost": [0.01 + i * 1e-4 for i in n],
        "small|total_cost": [1e-4 for _ in n],
        "oracle_model_to_route_to": ["small" for _ in n],
    }
    for name, value in changes.items():
        columns[name.replace("__", "|")] = value
    return columns


def save_wide(path: Path, columns: dict[str, list]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({n: pandas.Series(c, dtype=object) for n, c in columns.items()})
    frame["small|total_cost"] = frame["small|total_cost"].astype(float)
    frame.columns = pandas.Index(list(columns), dtype=object)  # as pandas 1 and 2 wrote them
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_pickle(path, protocol=int(path.stem[-1]))
    return path


@pytest.mark.parametrize("name", ["wide2.pkl", "wide3.pkl", "wide4.pkl", "wide5.pkl", "wide.csv", "wide.parquet"])
def test_routerbench(tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    file = save_wide(tmp_path / name, wide(small=[None if i == 3 else float(i % 3 == 0) for i in range(QUESTIONS)]))
    out = tmp_path / "table"
    code, printed, error = run(
        capsys, "routerbench", file, "--out", out, "--embeddings", embeddings(tmp_path), "--outputs"
    )
    assert (code, error) == (0, "")
    assert printed == f"{out}: 39 queries, 2 experts; left out: 1 queries without every expert's answer\n"
    if name == "wide.parquet":
        train_briefly(out)
    table = load_and_step(out)
    assert table.experts == ("big/model", "small")
    query = table.queries.slice(0, 1).to_pylist()[0]
    assert query["text"] == "Answer with a letter.\nWhat's 0?" and query["domain"] == "task"
    assert table.scores[:2].tolist() == [[0.25, 1.0], [1.0, 0.0]]
    np.testing.assert_allclose(table.costs_usd[1], [0.0101, 1e-4], rtol=1e-5)
    assert "it is 0" in table.answers["output"].to_pylist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"small": [2.0] * QUESTIONS}, "column small, row 0: 2.0 is not in [0, 1]"),
        ({"small": ["good"] * QUESTIONS}, "column small, row 0: 'good' is not a number"),
        ({"small__total_cost": [0.1] * 7 + [-1.0] * 33}, "column small|total_cost, row 7"),
        ({"sample_id": ["a"] * QUESTIONS}, "column sample_id, row 1: 'a' appears twice"),
        ({"prompt": [None] * QUESTIONS}, "column prompt, row 0"),
        ({"third__total_cost": [0.1] * QUESTIONS}, "column third is missing"),
    ],
)
def test_routerbench_refuses(tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict, words: str):
    file = save_wide(tmp_path / "wide.parquet", wide(**changes))
    out = tmp_path / "out" / "table"
    out.parent.mkdir()
    assert words in refused(capsys, out, "routerbench", file, "--embeddings", embeddings(tmp_path))


@pytest.mark.parametrize("name", ["wide4.pkl", "wide.csv", "wide.parquet"])
@pytest.mark.parametrize(("right", "wrong"), [("True", "False"), (True, False)])
def test_scores_that_are_truth_values(tmp_path: Path, capsys: pytest.CaptureFixture, name: str, right, wrong):
    scores = [right if i % 3 == 0 else wrong for i in range(QUESTIONS)]
    file, out = save_wide(tmp_path / name, wide(small=scores)), tmp_path / "table"
    assert run(capsys, "routerbench", file, "--out", out, "--embeddings", embeddings(tmp_path))[0] == 0
    assert load_and_step(out).scores[:4, 1].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_a_cost_is_no_truth_value(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = save_wide(tmp_path / "wide.parquet", wide(small__total_cost=[True] * QUESTIONS))
    message = refused(capsys, tmp_path / "t", "routerbench", file, "--embeddings", embeddings(tmp_path))
    assert "column small|total_cost, row 0: True is not a number" in message


def test_half_a_surrogate_pair_and_lists_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture):
    """In a pickle: a question with it is refused, an output keeps its other characters."""
    prompts = ["[{[]: 1}]", "['\\d', 'b']", "[" * 10_000, *wide()["prompt"][3:]]
    outputs = [repr(["half \ud83d"])] * QUESTIONS
    file = save_wide(tmp_path / "wide4.pkl", wide(prompt=prompts, small__model_response=outputs))
    given = ("--embeddings", embeddings(tmp_path))
    assert run(capsys, "routerbench", file, "--out", tmp_path / "t", "--outputs", *given)[0] == 0
    table = load_and_step(tmp_path / "t")
    assert table.queries["text"].to_pylist()[:3] == ["[{[]: 1}]", "\\d\nb", "[" * 10_000]
    assert "half ?" in table.answers["output"].to_pylist()
    file = save_wide(tmp_path / "wide4.pkl", wide(prompt=["a", "\ud83d", *prompts[2:]]))
    assert "column prompt, row 1" in refused(capsys, tmp_path / "u", "routerbench", file, *given)
