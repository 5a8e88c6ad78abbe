"""Tuning the encoder: a tiny BERT learns which words an expert knows, and the new table is honest about it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from agents.finetune import tuned_table
from agents.finetune.command import main
from agents.finetune.config import Config
from agents.finetune.training import History, batches, fit_head, rate_factor
from experts.encoder import Encoder
from leeroo_env import ExpertTable
from leeroo_env.table import TableInfo, write_table
from tests.experts.tiny_bert import make_tiny_bert

FILLERS = ["the", "a", "some", "this", "that", "of", "on"]
TOPICS = ["sum", "poem"]  # what decides who is right


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEEROO_CACHE", str(tmp_path_factory.mktemp("cache")))


def make_table(model: str | None, n: int = 200) -> ExpertTable:
    """Queries of six words without a split; two experts, each right where the text has its topic."""
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 2, n)
    texts = [" ".join(rng.permutation([TOPICS[topic], *rng.choice(FILLERS, 5)])) for topic in topics]
    return ExpertTable.from_arrays(
        "words",
        TOPICS,
        rng.normal(size=(n, 16)).astype(np.float32),
        np.eye(2)[topics],
        np.full((n, 2), 1e-4),
        query_ids=[f"q{i}" for i in range(n)],
        texts=texts,
        encoder={"model": model, "dim": 16, "max_tokens": 10} if model else {},
    )


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table's directory, which names a tiny BERT."""
    root = tmp_path_factory.mktemp("finetune")
    make_table(str(make_tiny_bert(root / "bert", [*FILLERS, *TOPICS]))).save(root / "words")
    return root / "words"


def tune(words: Path, out: Path, *options: str) -> int:
    return main(["--table", str(words), "--out", str(out), "--steps", "30", "--learning-rate", "0.003", *options])


def ids(table: ExpertTable) -> list[str]:
    return table.queries["query_id"].to_pylist()


@pytest.mark.parametrize("options", [(), ("--lora-rank", "4")])
def test_the_loss_falls_and_the_new_table_is_whole(words: Path, tmp_path: Path, options: tuple[str, ...]):
    if options:
        pytest.importorskip("peft", reason="the package peft is not installed")
    out = tmp_path / "new" / "tuned"
    assert tune(words, out, *options) == 0
    record = json.loads((out / "encoder" / "tuning.json").read_text())
    losses = {int(step): loss for step, loss in record["val_loss"].items()}
    assert sorted(losses) == [0, 6, 12, 18, 24, 30]
    assert losses[record["best_step"]] < 0.7 * losses[0]
    assert [path.name for path in out.parent.iterdir()] == ["tuned"], "nothing else is left behind"

    old, new = ExpertTable.load(words), ExpertTable.load(out)
    assert set(ids(old)) == set(ids(new)) | set(record["tuned_on"])
    np.testing.assert_allclose(new.embeddings.norm(dim=1), 1, atol=1e-5)
    encoder = Encoder(new.info.encoder["model"], max_tokens=new.info.encoder["max_tokens"], cache_dir=tmp_path)
    assert encoder.max_tokens == 10
    np.testing.assert_allclose(encoder.encode(new.queries["text"].to_pylist()), new.embeddings, atol=1e-6)


def test_queries_tuned_on_are_left_out_and_all_else_stays(words: Path, tmp_path: Path):
    out = tmp_path / "tuned"
    assert tune(words, out, "--share", "0.25", "--steps", "2") == 0
    tuned_on = json.loads((out / "encoder" / "tuning.json").read_text())["tuned_on"]
    old, new = ExpertTable.load(words), ExpertTable.load(out)
    train = [ids(old)[i] for i in old.rows("train")]
    assert len(tuned_on) == round(0.25 * len(train)) and set(tuned_on) < set(train)
    rows = [i for i, query_id in enumerate(ids(old)) if query_id not in tuned_on]
    assert ids(new) == [ids(old)[i] for i in rows]
    for name in ("scores", "costs_usd", "split"):
        assert torch.equal(getattr(new, name), getattr(old, name)[rows])
    assert None not in pq.read_table(out / "queries.parquet")["split"].to_pylist()


@pytest.mark.parametrize("options", [(), ("--lora-rank", "4")])
def test_a_seed_decides_every_bit(words: Path, tmp_path: Path, options: tuple[str, ...]):
    if options:
        pytest.importorskip("peft", reason="the package peft is not installed")
    for name, seed in (("one", "1"), ("same", "1"), ("other", "2")):
        assert tune(words, tmp_path / name, "--steps", "5", "--seed", seed, *options) == 0
    for file in ("embeddings.npy", "queries.parquet", "encoder/model.safetensors"):
        one, same, other = ((tmp_path / name / file).read_bytes() for name in ("one", "same", "other"))
        assert one == same != other


def test_steps_that_do_harm_are_undone(words: Path, tmp_path: Path):
    assert tune(words, tmp_path / "tuned", "--steps", "5", "--learning-rate", "0.9", "--share", "0.99") == 0
    assert json.loads((tmp_path / "tuned" / "encoder" / "tuning.json").read_text())["best_step"] == 0
    old, new = ExpertTable.load(words), ExpertTable.load(tmp_path / "tuned")
    untuned = Encoder(old.info.encoder["model"], max_tokens=10).encode(new.queries["text"].to_pylist())
    np.testing.assert_allclose(untuned, new.embeddings, atol=1e-6)  # a GPU may have tuned it


def test_a_loss_that_is_no_number_is_never_the_best():
    history, weight = History(), torch.zeros(1)
    for step, loss in enumerate((float("nan"), 0.5, float("nan"), 0.5)):
        history.add(step, loss, [weight + step])
    assert history.best_step == 1 and history.best == [torch.ones(1)]


def test_the_head_is_at_the_optimum_of_its_objective():
    torch.manual_seed(0)
    x, y = torch.randn(50, 4), torch.rand(50, 3)
    head = fit_head(x, y)
    residual = torch.sigmoid(head(x)) - y
    torch.testing.assert_close(residual.T @ x + head.weight, torch.zeros(3, 4), atol=1e-2, rtol=0)
    torch.testing.assert_close(residual.sum(dim=0), torch.zeros(3), atol=1e-2, rtol=0)


def test_batches_ask_about_every_query_once_before_any_twice():
    drawn = batches(5, Config("", "", batch_size=7))
    first, second = next(drawn), next(drawn)
    assert sorted(first[:5]) == sorted([*first[5:], *second[:3]]) == list(range(5))


def test_the_learning_rate_rises_and_falls():
    factors = [rate_factor(step, 20) for step in range(20)]
    assert factors[:3] == [0.5, 1, 1] and factors[2:] == sorted(factors[2:], reverse=True)
    assert 0 < factors[-1] < 0.1 and rate_factor(0, 1) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "1"], "share 1.0"),
        (["--steps", "0"], "steps 0"),
        (["--batch-size", "0"], "batch_size 0"),
        (["--max-tokens", "0"], "max_tokens 0"),
        (["--lora-rank", "-1"], "lora_rank -1"),
        (["--learning-rate", "0"], "learning_rate 0.0"),
        (["--seed", "-1"], "seed -1"),
        (["--encoder", "no/such/model"], "no/such/model"),
        (["--table", "no/such/table"], "no such table directory"),
        (["--out", "/dev/null/tuned"], "/dev/null/tuned"),
    ],
)
def test_bad_input_is_one_line(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    assert tune(words, tmp_path / "tuned", *options) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error: ") and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced(words: Path, capsys: pytest.CaptureFixture[str]):
    assert tune(words, words) == 2
    assert "exists" in capsys.readouterr().err


def test_without_peft_it_says_what_to_install(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert tune(words, tmp_path / "tuned", "--lora-rank", "2") == 2
    error = capsys.readouterr().err.strip()
    assert "pip install -e '.[finetune]'" in error and "\n" not in error


@pytest.mark.parametrize("encoder", [{}, {"model": 3}])
def test_a_table_without_an_encoder_needs_one_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: dict):
    table = make_table(None)
    info = TableInfo(**{**table.info.model_dump(), "encoder": encoder})
    write_table(tmp_path / "words", info, table.queries, table.answers, table.embeddings.numpy())
    assert tune(tmp_path / "words", tmp_path / "tuned") == 2
    assert "give --encoder" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuned_table, "embed", fail)
    assert tune(words, tmp_path / "tuned", "--steps", "1") == 2
    assert not list(tmp_path.iterdir())
