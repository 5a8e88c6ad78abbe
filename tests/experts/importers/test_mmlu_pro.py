"""The importer of MMLU-Pro's result files, on small ones of the published shape."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.experts.importers.importing import QUESTIONS, embeddings, load_and_step, refused, run, train_briefly

LETTERS = "ABC"


def records(right_up_to: int, field: str = "model_outputs", count: int = QUESTIONS) -> list[dict]:
    """Results as published: right for the first questions, wrong for the others."""
    made = []
    for i in range(count):
        stated = LETTERS[i % 3] if i < right_up_to else LETTERS[(i + 1) % 3]
        made.append(
            {
                "question_id": 100 - i,
                "question": f"What is {i}?",
                "options": ["x", "y", "z", "N/A"],
                "answer": LETTERS[i % 3],
                "answer_index": i % 3,
                "cot_content": "",
                "category": "law" if i % 2 else "math",
                "src": "made up",
                "pred": "J",
                field: f"Let me think about {i}. The answer is ({stated}).",
            }
        )
    return made


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A directory like eval_results: a zip file, a directory a model, summaries and a model without a price."""
    directory = tmp_path / "eval_results"
    (directory / "gpt4o").mkdir(parents=True)
    with zipfile.ZipFile(directory / "model_outputs_Meta-Llama-3_1-8B_5shots.zip", "w") as archive:
        archive.writestr("model_outputs_Meta-Llama-3_1-8B_5shots.json", json.dumps(records(10)))
        archive.writestr("__MACOSX/._model_outputs_Meta-Llama-3_1-8B_5shots.json", b"\0\1")
    written = records(30, "response")
    for category in ("law", "math"):
        part = [r for r in written if r["category"] == category]
        (directory / "gpt4o" / f"{category}_result.json").write_text(json.dumps(part))
        (directory / "gpt4o" / f"{category}_summary.json").write_text('{"total": {"corr": 1.0}}')
    (directory / "model_outputs_Yi-6B_5shots.json").write_text(json.dumps(records(5)))
    (directory / "summary.json").write_text("{}")
    return directory


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text("Meta-Llama-3.1-8B: 0.2\ngpt4o: {usd_per_mtok_in: 5, usd_per_mtok_out: 15}\n")
    return path


def test_mmlu_pro(tmp_path: Path, results: Path, prices: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "table"
    given = embeddings(tmp_path)
    code, printed, _ = run(
        capsys, "mmlu-pro", results, "--prices", prices, "--out", out, "--embeddings", given, "--outputs"
    )
    assert code == 0
    assert printed == f"{out}: 40 queries, 2 experts; left out: 1 models without a price\n"
    train_briefly(out)
    table = load_and_step(out)
    assert table.experts == ("Meta-Llama-3.1-8B", "gpt4o")
    np.testing.assert_allclose(table.scores.mean(dim=0), [10 / 40, 30 / 40])
    assert table.queries["query_id"].to_pylist() == [f"mmlupro-{i}" for i in range(61, 101)], "ascending question_id"
    np.testing.assert_array_equal(table.embeddings, np.load(given))
    first = table.queries.slice(39, 1).to_pylist()[0]
    assert first["text"] == "What is 0?\nA. x\nB. y\nC. z" and first["reference"] == "A" and first["domain"] == "math"
    assert "estimate" in table.info.description
    answer = next(r for r in table.answers.to_pylist() if r["query_id"] == "mmlupro-100" and r["expert"] == "gpt4o")
    assert (answer["answer"], answer["prompt_tokens"], answer["completion_tokens"]) == ("A", 7, 10)
    assert answer["cost_usd"] == pytest.approx((7 * 5 + 10 * 15) / 1e6)
    assert answer["output"].endswith("The answer is (A).")
    assert table.info.experts[1].usd_per_mtok_out == 15


def test_mmlu_pro_counts_what_it_leaves_out(tmp_path: Path, results: Path, prices: Path, capsys: pytest.CaptureFixture):
    changed = records(30)
    changed[0]["question"] = "Something else?"
    changed[1]["model_outputs"] = None
    changed[2]["model_outputs"] = [changed[2]["model_outputs"]]
    changed.append(changed[2])
    (results / "model_outputs_Yi-6B_5shots.json").write_text(json.dumps(changed))
    prices.write_text(json.dumps({"gpt4o": 5, "Yi-6B": 0.1}))
    _, printed, _ = run(
        capsys, "mmlu-pro", results, "--prices", prices, "--out", tmp_path / "t", "--embeddings", embeddings(tmp_path)
    )
    for words in (
        "38 queries, 2 experts",
        "2 queries without every expert's answer",
        "1 answers to another wording",
        "1 records without an output",
        "1 repeated answers",
        "1 models without a price",
    ):
        assert words in printed
    assert "output" not in load_and_step(tmp_path / "t").answers.column_names


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("prices.yaml", "Meta-Llama-3.1-8b: 1", "Meta-Llama-3.1-8B"),
        ("prices.yaml", "gpt4o: -1", "gpt4o"),
        ("prices.yaml", "gpt4o: {usd_per_mtok_in: 1}", "usd_per_mtok_out"),
        ("prices.yaml", "gpt4o: expensive", "not a price"),
        ("prices.yaml", "[", "prices.yaml"),
        ("prices.yaml", "gpt4o: true", "not a price"),
        ("eval_results/gpt4o/law_result.json", "[" * 100_000, "not valid JSON"),
        (
            "eval_results/gpt4o/law_result.json",
            json.dumps([records(1)[0] | {"answer": "D"}]),
            "letter of one of 3 options",
        ),
        ("eval_results/gpt4o/law_result.json", json.dumps([records(1)[0] | {"question": "\ud83d"}]), "surrogate"),
        ("eval_results/gpt4o/law_result.json", "[{", "not valid JSON"),
        ("eval_results/gpt4o/law_result.json", "{}", "not a list"),
        ("eval_results/gpt4o/law_result.json", '[{"question_id": 1}]', "record 0: field question"),
        ("eval_results/model_outputs_Meta-Llama-3_1-8B_5shots.zip", "PK", "cannot be read"),
    ],
)
def test_mmlu_pro_refuses(
    tmp_path: Path, results: Path, prices: Path, capsys: pytest.CaptureFixture, file: str, content: str, words: str
):
    (tmp_path / file).write_text(content)
    given = embeddings(tmp_path)
    out = tmp_path / "out" / "table"
    out.parent.mkdir()
    assert words in refused(capsys, out, "mmlu-pro", results, "--prices", prices, "--embeddings", given)


def test_a_na_between_options_keeps_its_letter(
    tmp_path: Path, results: Path, prices: Path, capsys: pytest.CaptureFixture
):
    changed = [
        record | {"options": ["x", "N/A", "z", "N/A", "N/A"], "response": "half \ud83d"} for record in records(30)
    ]
    (results / "model_outputs_Yi-6B_5shots.json").write_text(json.dumps(changed))
    prices.write_text("Yi-6B: 1")
    given = ("--prices", prices, "--embeddings", embeddings(tmp_path), "--outputs")
    assert run(capsys, "mmlu-pro", results, "--out", tmp_path / "t", *given)[0] == 0
    text = load_and_step(tmp_path / "t").queries["text"].to_pylist()[0]
    assert text.split("\n")[1:] == ["A. x", "B. N/A", "C. z"]
