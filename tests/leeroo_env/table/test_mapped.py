"""The mapped form of a table: the same episodes as the plain one, no second copy, broken files refused in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from leeroo_env import ExpertTable, InputError, LeerooVectorEnv
from leeroo_env.manifest import write_manifest
from leeroo_env.table import TableInfo, mapped, write_mapped
from tests.conftest import random_table, refused_in_one_line

TENSORS = ("embeddings", "scores", "costs_usd", "split", "answer_ids")
ANSWERS = [["x", "y", "x", None], [None, "z", "z", "z"]] * 30


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    random_table(answers=ANSWERS).save_mapped(tmp_path / "t")
    return tmp_path / "t"


def blocks(n: int, k: int = 2, dim: int = 3, rows: int = 7, dtype: type = np.float16) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "scores": (rng.integers(0, 5, size=(n, k)) / 4).astype(dtype),
        "costs_usd": rng.uniform(1e-5, 1e-3, size=(n, k)).astype(np.float32),
        "embeddings": rng.normal(size=(n, dim)).astype(np.float16),
        "split": (np.arange(n) % 3).astype(np.int8),
    }
    return [{name: a[i : i + rows] for name, a in arrays.items()} for i in range(0, n, rows)]


def info(k: int = 2) -> TableInfo:
    return TableInfo.model_validate({"name": "blocks", "experts": [{"name": f"expert-{i}"} for i in range(k)]})


def test_what_is_mapped_is_what_was_saved(directory: Path):
    table, loaded = random_table(answers=ANSWERS), ExpertTable.load(directory)
    for name in TENSORS:
        assert torch.equal(getattr(loaded, name), getattr(table, name)), name
    assert loaded.queries.equals(table.queries) and loaded.info == table.info and len(loaded.answers) == 0
    assert loaded.fingerprint() == table.fingerprint() and loaded.has_answers()
    for split in ("train", "val", "test"):
        assert torch.equal(loaded.rows(split), table.rows(split))
        assert torch.equal(loaded.mean_cost_usd(split), table.mean_cost_usd(split))
    assert sorted(p.name for p in directory.parent.iterdir()) == ["t"], "no temporary file may stay behind"


def test_chunks_make_no_difference(directory: Path, monkeypatch: pytest.MonkeyPatch):
    whole = random_table(answers=ANSWERS)
    known = whole.fingerprint(), whole.mean_cost_usd(), whole.mean_score()
    for module in ("leeroo_env.table.mapped", "leeroo_env.table.table"):
        monkeypatch.setattr(f"{module}.CHUNK", 7)
    for table in (random_table(answers=ANSWERS), ExpertTable.load(directory)):
        assert table.fingerprint() == known[0]
        torch.testing.assert_close(table.mean_cost_usd(), known[1], rtol=1e-6, atol=0)
        torch.testing.assert_close(table.mean_score(), known[2], rtol=1e-6, atol=0)
    whole.save_mapped(directory)
    assert ExpertTable.load(directory).fingerprint() == known[0]


def played(table: ExpertTable, max_calls: int, steps: int = 300) -> list[np.ndarray]:
    env = LeerooVectorEnv(5, table, horizon=9, max_calls=max_calls)
    rng = np.random.default_rng(0)
    observed = [env.reset(seed=3)[0]]
    for _ in range(steps):
        observations, rewards, terminated, _, infos = env.step(rng.integers(env.rules.n_actions, size=5))
        observed += [observations, rewards, terminated, infos["action_mask"], infos["left_usd"], infos["score"]]
    return observed


@pytest.mark.parametrize("max_calls", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_episodes_are_the_plain_tables_bit_for_bit(dtype: torch.dtype, max_calls: int, directory: Path):
    plain = played(random_table(answers=ANSWERS), max_calls)
    np.save(directory / "scores.npy", np.load(directory / "scores.npy").astype(str(dtype).removeprefix("torch.")))
    write_manifest(directory)
    loaded = ExpertTable.load(directory)
    assert loaded.scores.dtype == dtype
    for one, other in zip(plain, played(loaded, max_calls), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_table_is_written_block_by_block_without_queries(tmp_path: Path):
    write_mapped(tmp_path / "b", info(), iter(blocks(60)))
    table = ExpertTable.load(tmp_path / "b")
    whole = {name: np.concatenate([b[name] for b in blocks(60)]) for name in blocks(60)[0]}
    for name, array in whole.items():
        np.testing.assert_array_equal(getattr(table, name).numpy(), array)
    assert not (tmp_path / "b" / "queries.arrow").exists()
    assert len(table.queries) == 60 and table.queries["query_id"].null_count == 60
    assert table.queries["text"].to_pylist() == [""] * 60
    assert not table.has_answers() and table.answer_ids.stride(0) == 0, "one row stands for all"
    assert table.select(["expert-1"]).answer_ids.stride(0) == 0 and table.to("cpu").answer_ids.stride(0) == 0
    assert table.answer_ids.shape == (60, 2) and len(table.fingerprint()) == 64
    table.save_mapped(tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert ExpertTable.load(tmp_path / "again").fingerprint() == table.fingerprint()
    with pytest.raises(InputError, match="is a mapped table, without the rows of"):
        table.save(tmp_path / "plain")


def test_queries_unknown_are_many_rows_in_little_memory():
    queries = mapped.unknown_queries(10_000_001)
    assert len(queries) == 10_000_001 and queries["text"].null_count == 0 and mapped.are_unknown(queries)
    held = {b.address: b.size for chunk in queries["text"].chunks for b in chunk.buffers() if b is not None}
    assert sum(held.values()) < 1_000_000
    assert not mapped.are_unknown(random_table().queries)


def test_experts_are_selected_and_embeddings_may_stay_behind(directory: Path):
    plain = random_table(answers=ANSWERS)
    some = ExpertTable.load(directory, ["expert-2", "expert-0"])
    assert some.experts == ("expert-2", "expert-0") and torch.equal(some.scores, plain.scores[:, [2, 0]])
    assert torch.equal(some.answer_ids, plain.answer_ids[:, [2, 0]])
    moved = ExpertTable.load(directory).to("meta", embeddings_device="cpu")
    assert moved.device.type == "meta" and torch.equal(moved.embeddings, plain.embeddings)


def test_the_files_are_never_written_to(directory: Path):
    before = (directory / "scores.npy").read_bytes()
    table = ExpertTable.load(directory)
    table.scores[0, 0] = 0.5
    assert (directory / "scores.npy").read_bytes() == before


LOAD = """
import sys, torch
from leeroo_env import ExpertTable, LeerooVectorEnv

def anonymous_mb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

ExpertTable.load(sys.argv[2]), torch.set_num_threads(1)
before = anonymous_mb()
table = ExpertTable.load(sys.argv[1])
table.mean_cost_usd(), table.has_answers(), table.fingerprint()
loaded = anonymous_mb()
env = LeerooVectorEnv(64, table)
env.reset(seed=0)
for _ in range(100):
    env.step(env.action_space.sample())
print(loaded - before, anonymous_mb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_loading_and_playing_make_no_second_copy(directory: Path, tmp_path: Path):
    many = (b for _ in range(8) for b in blocks(50_000, k=20, dim=160, rows=50_000))
    write_mapped(tmp_path / "large", info(20), many)
    size_mb = sum(file.stat().st_size for file in (tmp_path / "large").iterdir()) / 2**20
    assert size_mb > 150
    command = [sys.executable, "-c", LOAD, str(tmp_path / "large"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    loaded_mb, played_mb = map(float, done.stdout.split())
    assert loaded_mb < 0.25 * size_mb and played_mb < 0.4 * size_mb
    assert "Warning" not in done.stderr


def changed(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        array = np.load(directory / f"{name}.npy")
        result = change(array)
        np.save(directory / f"{name}.npy", array if result is None else result)

    return apply


def put(name: str, cell: tuple[int, ...] | int, value: float, dtype: type | None = None) -> Callable[[Path], None]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype or array.dtype)
        array[cell] = value
        return array

    return changed(name, change)


def cut_off(file: str) -> Callable[[Path], object]:
    return lambda d: (d / file).write_bytes((d / file).read_bytes()[:-100])


def pickled(directory: Path) -> None:
    np.save(directory / "split.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def several(directory: Path) -> None:
    with (directory / "split.npy").open("wb") as file:
        np.savez(file, a=np.ones(3))


def other_queries(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        with pa.OSFile(str(directory / "queries.arrow")) as file:
            queries = change(pa.ipc.open_file(file).read_all())
        mapped.write_queries(directory, queries)

    return apply


def with_null_text(queries: pa.Table) -> pa.Table:
    texts: list[str | None] = queries["text"].to_pylist()
    texts[4] = None
    return queries.set_column(1, "text", pa.array(texts, pa.string()))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "no such table directory"),
    "no table.json": (lambda d: (d / "table.json").unlink(), r"table\.json: missing"),
    "no scores": (lambda d: (d / "scores.npy").unlink(), r"scores\.npy: missing"),
    "no costs": (lambda d: (d / "costs_usd.npy").unlink(), r"costs_usd\.npy: missing"),
    "no embeddings": (lambda d: (d / "embeddings.npy").unlink(), r"embeddings\.npy: missing"),
    "no split": (lambda d: (d / "split.npy").unlink(), r"split\.npy: missing"),
    "score NaN": (put("scores", (5, 1), np.nan), r"scores\.npy: row 5, column 1: nan is not in \[0, 1\]"),
    "half NaN": (put("scores", (59, 3), np.nan, np.float16), r"scores\.npy: row 59, column 3: nan is not in"),
    "half 1.5": (put("scores", (7, 0), 1.5, np.float16), r"scores\.npy: row 7, column 0: 1\.5 is not in"),
    "half < 0": (put("scores", (7, 0), -0.5, np.float16), r"scores\.npy: row 7, column 0: -0\.5 is not in"),
    "cost < 0": (put("costs_usd", (8, 2), -1), r"costs_usd\.npy: row 8, column 2: -1\.0 is not a cost"),
    "cost inf": (put("costs_usd", (8, 2), np.inf), r"costs_usd\.npy: row 8, column 2: inf is not a cost"),
    "embedding": (put("embeddings", (11, 2), np.nan), r"embeddings\.npy: row 11, column 2: nan is not finite"),
    "other split": (put("split", 4, 3), r"split\.npy: row 4: 3 is not 0 \(train\), 1"),
    "answer": (put("answer_ids", (4, 0), -2), r"answer_ids\.npy: row 4, column 0: -2 is below -1"),
    "float64": (changed("costs_usd", lambda a: a.astype(np.float64)), r"holds float64 \[60, 4\], not float32 \[N, 4\]"),
    "half costs": (changed("costs_usd", lambda a: a.astype(np.float16)), r"costs_usd\.npy: holds float16"),
    "big endian": (changed("scores", lambda a: a.astype(">f4")), r"scores\.npy: holds >f4 \[60, 4\], not float16 or"),
    "columns": (changed("embeddings", np.asfortranarray), r"embeddings\.npy: is stored column by column"),
    "experts": (changed("scores", lambda a: a[:, :3]), r"scores\.npy: holds float32 \[60, 3\], not .* \[N, 4\]"),
    "one number": (changed("scores", lambda a: a[0, 0]), r"scores\.npy: holds float32 \[\], not"),
    "rows": (changed("split", lambda a: a[:-1]), r"split\.npy: 59 rows, but scores\.npy has 60"),
    "no rows": (changed("scores", lambda a: a[:0]), r"scores\.npy: "),
    "flat": (changed("embeddings", np.ravel), r"embeddings\.npy: holds float32 \[300\], not"),
    "cut off": (cut_off("costs_usd.npy"), r"costs_usd\.npy: not a readable \.npy file: "),
    "pickle": (pickled, r"split\.npy: not a readable \.npy file: "),
    "several arrays": (several, r"split\.npy: not a readable \.npy file: holds several"),
    "text": (lambda d: (d / "scores.npy").write_text("hello"), r"scores\.npy: not a readable \.npy file: "),
    "empty file": (lambda d: (d / "scores.npy").write_text(""), r"scores\.npy: not a readable \.npy file: "),
    "no arrow": (lambda d: (d / "queries.arrow").write_text("hello"), r"queries\.arrow: not a readable Arrow IPC"),
    "arrow empty": (lambda d: (d / "queries.arrow").write_text(""), r"queries\.arrow: not a readable Arrow IPC"),
    "arrow cut off": (cut_off("queries.arrow"), r"queries\.arrow: not a readable Arrow IPC"),
    "few queries": (other_queries(lambda q: q.slice(1)), r"queries\.arrow: 59 rows, but scores\.npy has 60"),
    "no text": (other_queries(lambda q: q.drop_columns(["text"])), r"queries\.arrow: column text is missing"),
    "null text": (other_queries(with_null_text), r"queries\.arrow: column text, row 4: None is not allowed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tables_are_refused_in_one_line(name: str, directory: Path):
    refused_in_one_line(*BROKEN[name], directory)


def without(block: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {other: array for other, array in block.items() if other != name}


def test_broken_blocks_are_refused_and_leave_nothing(tmp_path: Path):
    one, two, *_ = blocks(60)
    nan = two | {"scores": np.full_like(two["scores"], np.nan)}
    for bad, message in (
        ([], "no rows"),
        ([one, without(two, "split")], r"row 7: a block of costs_usd, embeddings, scores; must be"),
        ([one, two | {"answer_ids": np.zeros((7, 2), np.int16)}], "row 7: a block of answer_ids"),
        ([one, nan], r"scores\.npy: row 7, column 0: nan is not in"),
        ([one, two | {"scores": two["scores"].astype(np.float32)}], r"row 7: float32 \[2\], but rows before are flo"),
        ([one, two | {"embeddings": two["embeddings"][:, :2]}], r"row 7: float16 \[2\], but rows before are float16"),
        ([one, two | {"split": two["split"][:3]}], r"split\.npy: 3 rows, but scores\.npy has 7"),
    ):
        with pytest.raises(InputError, match=message):
            write_mapped(tmp_path / "b", info(), bad)
        assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"queries\.arrow: 59 rows, but scores\.npy has 60"):
        write_mapped(tmp_path / "b", info(), blocks(60), random_table(n=59).queries)


def test_saving_replaces_a_table_but_nothing_else(directory: Path, tmp_path: Path):
    table = ExpertTable.load(directory)
    table.save_mapped(directory)
    assert ExpertTable.load(directory).fingerprint() == table.fingerprint(), "its own files too"
    random_table().save(directory)
    assert not mapped.is_mapped(directory) and len(ExpertTable.load(directory).answers) == 240
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="no table directory; not replaced"):
        table.save_mapped(tmp_path / "mine")
    kept = json.loads((directory / "table.json").read_text())
    assert kept["name"] == "random"
