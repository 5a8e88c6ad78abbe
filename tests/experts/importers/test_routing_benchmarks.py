"""The importers of published routing benchmarks, on small files of the published shapes."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import train
from leeroo_env import ExpertTable
from tests.experts.importers.importing import embeddings, load_and_step, refused, run

ARMS = {"llama": {"reward": 0.75, "cost": 2e-5, "near_best": True}, "gemini": {"reward": 1.0, "cost": 0.01}}


def imported(tmp_path: Path, capsys: pytest.CaptureFixture, rows: int, *arguments: object) -> ExpertTable:
    out = tmp_path / "table"
    files = ["--out", out, "--embeddings", embeddings(tmp_path, rows)]
    code, _, error = run(capsys, *arguments, *files)
    assert (code, error) == (0, "")
    return load_and_step(out)


def domains(table: ExpertTable) -> list[str]:
    return table.queries["domain"].to_pylist()


def save_paretobandit(directory: Path, **changes: Any) -> Path:
    directory.mkdir(exist_ok=True)
    for name, rows in (("val", 14), ("test_holdout", 6)):
        lines = [{"prompt": f"{name} {i}?", "source": "gsm8k", "best_arm": "gemini", "arms": ARMS} for i in range(rows)]
        lines[-1] |= changes
        (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return directory


def test_paretobandit(tmp_path: Path, capsys: pytest.CaptureFixture):
    table = imported(tmp_path, capsys, 20, "paretobandit", save_paretobandit(tmp_path / "examples"))
    assert table.experts == ("llama", "gemini")
    assert {split: len(table.rows(split)) for split in ("train", "val", "test")} == {"train": 12, "val": 2, "test": 6}
    assert table.mean_score("test").tolist() == [0.75, 1.0]
    assert table.mean_cost_usd("test").tolist() == pytest.approx([2e-5, 0.01])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": ""}, "row 5: field prompt"),
        ({"arms": []}, "row 5: field arms"),
        ({"arms": {"llama": {"reward": 1.5, "cost": 0.1}}}, "reward of llama: 1.5 is not a number from 0 to 1"),
        ({"arms": {"llama": {"reward": True, "cost": 0.1}}}, "reward of llama: True"),
        ({"arms": {"llama": {"reward": 1.0}}}, "cost of llama: None is not a number of 0 or more"),
        ({"arms": {"llama": 3}}, "reward of llama"),
    ],
)
def test_broken_paretobandit(tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict[str, Any], said: str):
    directory = save_paretobandit(tmp_path / "examples", **changes)
    assert said in refused(capsys, tmp_path / "table", "paretobandit", directory)


def test_no_paretobandit(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert "test_holdout.jsonl" in refused(capsys, tmp_path / "table", "paretobandit", tmp_path)


GPT, MIXTRAL = "gpt-4-1106-preview", "mixtral-8x7b-instruct-v0.1"


def save_routellm(directory: Path, rows: int = 30, value: str = "False", header: str = GPT) -> list[Path]:
    directory.mkdir()
    files = []
    for name in ("mmlu_anatomy", "mmlu_astronomy"):
        lines = [f'"{name} {i},\nA. one\nAnswer:",{i % 2 == 0},True' for i in range(rows)]
        lines += [f'"{name} 0,\nA. one\nAnswer:",True,True', f"known {name},{value},True"]
        files.append(directory / f"{name}.csv")
        files[-1].write_text("\n".join([f"prompt,{MIXTRAL},{header}", *lines]) + "\n")
    (directory.parent / "contaminated_prompts.jsonl").write_text(json.dumps({"eval_prompt": "known mmlu_anatomy"}))
    return files


def test_routellm(tmp_path: Path, capsys: pytest.CaptureFixture):
    files = save_routellm(tmp_path / "responses")
    table = imported(tmp_path, capsys, 61, "routellm", *files)
    assert table.experts == (GPT, MIXTRAL) and len(table) == 61
    assert Counter(domains(table)) == {"mmlu_anatomy": 30, "mmlu_astronomy": 31}
    assert table.scores.mean(dim=0).tolist() == pytest.approx([1.0, 30 / 61])
    assert table.costs_usd.unique(dim=0).tolist()[0] == pytest.approx([0.0247, 0.00024])


@pytest.mark.parametrize(("changes", "said"), [({"value": "maybe"}, "'maybe'"), ({"header": "gpt-5"}, f"column {GPT}")])
def test_broken_routellm(tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict[str, Any], said: str):
    files = save_routellm(tmp_path / "responses", **changes)
    assert said in refused(capsys, tmp_path / "table", "routellm", *reversed(files))


def save_routerdc(directory: Path, score: Any = 0.3) -> Path:
    cluster = directory.with_name(f"{directory.name}_cluster")
    for place in (directory, cluster):
        place.mkdir()
    for test in ("mmlu", "gsm8k", "cmmlu", "arc_challenge", "humaneval"):
        lines = [{"question": f"{test} {i}?", "scores": {"a/7b": score, "b/8b": 0.0}} for i in range(7)]
        mark = "-" if test == "gsm8k" else "_"
        (directory / f"{test}{mark}test.json").write_text(json.dumps(lines))
        (cluster / f"{test}{mark}train.json").write_text(json.dumps([{**line, "cluster_id": 1} for line in lines]))
    return directory


def test_routerdc(tmp_path: Path, capsys: pytest.CaptureFixture):
    table = imported(tmp_path, capsys, 70, "routerdc", save_routerdc(tmp_path / "split2_model7"))
    assert {split: len(table.rows(split)) for split in ("train", "val", "test")} == {"train": 30, "val": 5, "test": 35}
    scores = {domain: row[0] for domain, row in zip(domains(table), table.scores.tolist(), strict=True)}
    right = {"mmlu": 1.0, "cmmlu": 1.0, "arc_challenge": 1.0}  # probabilities; the others have shares of attempts
    assert scores == {**right, "gsm8k": pytest.approx(0.3), "humaneval": pytest.approx(0.3)}
    assert table.costs_usd.unique().numel() == 1


@pytest.mark.parametrize("score", [1.2, -0.1, None, "1", True])
def test_broken_routerdc(tmp_path: Path, capsys: pytest.CaptureFixture, score: Any):
    directory = save_routerdc(tmp_path / "split2_model7", score)
    assert "question 0: score of a/7b" in refused(capsys, tmp_path / "table", "routerdc", directory)


def test_incomplete_routerdc(tmp_path: Path, capsys: pytest.CaptureFixture):
    directory = save_routerdc(tmp_path / "split2_model7")
    (directory / "gsm8k-test.json").write_text("{}")
    assert "is not a list of questions" in refused(capsys, tmp_path / "table", "routerdc", directory)
    (directory / "gsm8k-test.json").unlink()
    assert "contains no gsm8k_test.json" in refused(capsys, tmp_path / "table", "routerdc", directory)


def save_llmrouterbench(directory: Path, **changes: Any) -> Path:
    for dataset in ("aime", "mmlu_pro"):
        for model, cost in (("gpt-5", 0.02), ("glm", 0.001)):
            records = [
                {"index": i, "prompt": f"{dataset} {i}", "score": 1.0, "cost": cost, "prompt_tokens": 9}
                for i in range(20)
            ]
            records[-1] |= changes if model == "glm" else {}
            place = directory / dataset / "test" / model
            place.mkdir(parents=True)
            (place / "20250102.json").write_text(json.dumps({"records": records, "counts": 20}))
            (place / "20250101.json").write_text("not read")
    return directory


def test_llmrouterbench(tmp_path: Path, capsys: pytest.CaptureFixture):
    directory = save_llmrouterbench(tmp_path / "bench", score=0.5)
    table = imported(tmp_path, capsys, 40, "llmrouterbench", directory)
    assert table.experts == ("glm", "gpt-5") and Counter(domains(table)) == {"aime": 20, "mmlu_pro": 20}
    assert table.scores.sum(dim=0).tolist() == [39.0, 40.0]
    assert imported(tmp_path, capsys, 40, "llmrouterbench", directory, "--models", "gpt-5").experts == ("gpt-5",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"score": 2}, "record 19: field score: 2 is not a number from 0 to 1"),
        ({"cost": None}, "field cost: None"),
        ({"prompt": None}, "needs index, prompt, score and cost"),
        ({"prompt_tokens": -1}, "field prompt_tokens: -1"),
    ],
)
def test_broken_llmrouterbench(tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict[str, Any], said: str):
    directory = save_llmrouterbench(tmp_path / "bench", **changes)
    assert said in refused(capsys, tmp_path / "table", "llmrouterbench", directory)


def test_no_llmrouterbench(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "table"
    assert "contains no DATASET" in refused(capsys, out, "llmrouterbench", tmp_path)
    directory = save_llmrouterbench(tmp_path / "bench")
    assert "no results of 'o3'" in refused(capsys, out, "llmrouterbench", directory, "--models", "o3")


def save_routerarena(directory: Path, **changes: Any) -> list[Path]:
    """A file of either kind, of a model each; the changes are made to the last answer of both."""
    directory.mkdir()
    lines: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for i in range(12):
        call = {"generated_answer": "A", "success": True, "token_usage": {"input_tokens": 90, "output_tokens": i}}
        graded = {"score": 0.25, "inference_cost": 3e-5, "metric": "meteor_score"}
        line = {"global_index": f"WMT19-cs-en_{i}", "question": f"{i}?", "llm_selected": "qwen/qwen3", **call}
        lines.append(line | {"evaluation_result": graded, "run_number": 1})
        prediction = {"global index": f"WMT19-cs-en_{i}", "prompt": f"{i}?", "prediction": "gpt-5"}
        predictions.append(prediction | {"generated_result": call, "accuracy": 1.0, "cost": 0.002})
    lines[-1] |= changes
    result = {k: v for k, v in changes.items() if k in ("success", "token_usage")}
    predictions[-1] |= changes | {"generated_result": predictions[-1]["generated_result"] | result}
    files = [directory / "qwen.jsonl", directory / "router.json"]
    files[0].write_text("\n".join(map(json.dumps, lines)) + "\n")
    files[1].write_text(json.dumps(predictions))
    return files


def test_routerarena_is_for_evaluation_only(tmp_path: Path, capsys: pytest.CaptureFixture):
    files = save_routerarena(tmp_path / "arena")
    out = tmp_path / "table"
    arguments = ["routerarena", *files, files[0], "--out", out, "--embeddings", embeddings(tmp_path, 12), "--outputs"]
    code, printed, error = run(capsys, *arguments)
    assert (code, error) == (0, "") and "12 queries, 2 experts; left out: 12 repeated answers" in printed
    table = ExpertTable.load(out)
    assert table.experts == ("gpt-5", "qwen/qwen3") and set(domains(table)) == {"WMT19-cs-en"}
    assert len(table.rows("test")) == 12 and table.mean_score("test").tolist() == [1.0, 0.25]
    assert table.mean_cost_usd("test").tolist() == pytest.approx([0.002, 3e-5])
    assert set(table.answers["output"].to_pylist()) == {"A"}
    assert train.main(["--table", str(out), "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the train split has no queries" in error


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"success": False}, "2 failed calls"),
        ({"evaluation_result": None, "accuracy": None}, "2 answers without a score"),
        ({"question": "another?"}, "1 queries without every expert's answer, 1 answers to another wording"),
    ],
)
def test_left_out_of_routerarena(tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict[str, Any], left_out: str):
    files = save_routerarena(tmp_path / "arena", **changes)
    rows = 12 if "question" in changes else 11
    written = ["--out", tmp_path / "table", "--embeddings", embeddings(tmp_path, rows)]
    code, printed, _ = run(capsys, "routerarena", *reversed(files), *written)
    assert code == 0 and left_out in printed
    with pytest.warns(UserWarning) if "question" in changes else nullcontext():
        assert len(ExpertTable.load(tmp_path / "table")) == 11


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"global_index": None}, "row 11: needs global_index"),
        ({"question": 3}, "row 11: needs global_index, llm_selected and question"),
        ({"evaluation_result": {"score": 1.5}}, "row 11: score: 1.5 is not a number from 0 to 1"),
        ({"evaluation_result": {"score": True}}, "row 11: score: True"),
        ({"evaluation_result": {"score": 1.0}}, "row 11: cost: None"),
        ({"token_usage": {"input_tokens": -1}}, "row 11: prompt_tokens: -1 is not a number of tokens"),
    ],
)
def test_broken_routerarena(tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict[str, Any], said: str):
    assert said in refused(capsys, tmp_path / "table", "routerarena", *save_routerarena(tmp_path / "arena", **changes))


def test_no_routerarena(tmp_path: Path, capsys: pytest.CaptureFixture):
    out, files = tmp_path / "table", save_routerarena(tmp_path / "arena")
    assert "no graded answers of 'o3'" in refused(capsys, out, "routerarena", *files, "--models", "o3,gpt-5")
    files[1].write_text("{}")
    assert "is not a list of predictions" in refused(capsys, out, "routerarena", files[1])
    files[0].write_text("")
    assert "no answer has a score" in refused(capsys, out, "routerarena", files[0])
