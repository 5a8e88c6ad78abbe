"""A byte that is not what was written is found, the file is named, and a user can vouch for a change."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agents.verify import main
from leeroo_env import ExpertTable, InputError
from leeroo_env.builtin import BUILTIN
from leeroo_env.manifest import MANIFEST, check_files, manifest_text, write_manifest
from leeroo_env.table import mapped
from tests.conftest import random_table
from tests.flipping import flipped

ANSWERS = [[str(i * j % 3) for j in range(4)] for i in range(60)]


def content(path: Path, **kwargs: Any) -> tuple:
    """All that is loaded from a table directory."""
    table = ExpertTable.load(path, **kwargs)
    return table.fingerprint(), table.info, table.queries.to_pylist(), table.answers.to_pylist()


@pytest.mark.parametrize("form", ["save", "save_mapped"])
def test_any_flipped_bit_of_a_table_is_refused_by_the_name_of_its_file(form: str, tmp_path: Path):
    getattr(random_table(answers=ANSWERS), form)(tmp_path / "t")
    whole, rng = content(tmp_path / "t"), random.Random(0)
    for file in sorted((tmp_path / "t").iterdir()):
        before = file.read_bytes()
        for _ in range(12):
            file.write_bytes(flipped(file.read_bytes(), rng))
            with pytest.raises(InputError) as error:
                ExpertTable.load(tmp_path / "t")
            assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)
        file.write_bytes(before)
    assert content(tmp_path / "t") == whole


@pytest.mark.parametrize("form", ["save", "save_mapped"])
def test_without_a_manifest_a_flipped_bit_never_ends_in_a_traceback(form: str, tmp_path: Path):
    """Those of other programs have none: what can be seen is refused, and nothing else than InputError is raised."""
    getattr(random_table(answers=ANSWERS), form)(tmp_path / "t")
    (tmp_path / "t" / MANIFEST).unlink()
    info = json.loads((tmp_path / "t" / "table.json").read_text())
    (tmp_path / "t" / "table.json").write_text(json.dumps({k: v for k, v in info.items() if k != "manifest"}))
    rng, refused = random.Random(1), 0
    for file in sorted((tmp_path / "t").iterdir()):
        before = file.read_bytes()
        for _ in range(40):
            file.write_bytes(flipped(file.read_bytes(), rng))
            try:
                content(tmp_path / "t")
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
        file.write_bytes(before)
    assert refused > 40


def test_large_files_of_a_mapped_table_are_hashed_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mapped, "HASHED_BYTES", 1000)
    random_table(answers=ANSWERS).save_mapped(tmp_path / "t")
    file = tmp_path / "t" / "embeddings.npy"
    embeddings = np.load(file)
    embeddings[7, 3] += 1
    np.save(file, embeddings)
    ExpertTable.load(tmp_path / "t")
    with pytest.raises(InputError, match=r"embeddings\.npy: damaged, or changed by hand: other bytes"):
        ExpertTable.load(tmp_path / "t", verify=True)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"embeddings\.npy: damaged, or changed by hand: 1,324 bytes, not 1,328"):
        ExpertTable.load(tmp_path / "t")


def test_bad_utf8_names_file_and_column(tmp_path: Path):
    random_table().save(tmp_path / "t")
    file = tmp_path / "t" / "queries.parquet"
    queries = pq.ParquetFile(file).read()
    texts = pa.array([b"\xff\xfe"] + [b"fine"] * 59, pa.binary()).view(pa.string())
    pq.write_table(queries.set_column(queries.column_names.index("text"), "text", texts), file)
    write_manifest(tmp_path / "t")
    with pytest.raises(InputError, match=r"queries\.parquet: column text: damaged: row 0: is not UTF-8") as error:
        ExpertTable.load(tmp_path / "t")
    assert "\n" not in str(error.value)


def test_a_missing_manifest_a_missing_file_and_an_added_one_are_noticed(tmp_path: Path):
    random_table(answers=ANSWERS).save_mapped(tmp_path / "t")
    (tmp_path / "t" / "answer_ids.npy").rename(tmp_path / "kept.npy")
    with pytest.raises(InputError, match=r"answer_ids\.npy: missing"):
        ExpertTable.load(tmp_path / "t")
    write_manifest(tmp_path / "t")
    ExpertTable.load(tmp_path / "t")
    (tmp_path / "kept.npy").rename(tmp_path / "t" / "answer_ids.npy")
    with pytest.raises(InputError, match=r"answer_ids\.npy: is not in manifest\.json: added by hand"):
        ExpertTable.load(tmp_path / "t")
    (tmp_path / "t" / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"manifest\.json: missing; if that is wanted: leeroo verify --renew"):
        ExpertTable.load(tmp_path / "t")


def test_a_change_by_hand_is_vouched_for_with_renew(tmp_path: Path, capsys: pytest.CaptureFixture):
    table = tmp_path / "t"
    random_table().save(table)
    assert main([str(tmp_path)]) == 0
    info = json.loads((table / "table.json").read_text())
    (table / "table.json").write_text(json.dumps(info | {"description": "mine"}))
    for command in (lambda: main([str(tmp_path)]), lambda: ExpertTable.load(table)):
        try:
            assert command() == 2
            told = capsys.readouterr().err
        except InputError as error:
            told = str(error)
        assert f"{table}/table.json: damaged, or changed by hand" in told and told.count("\n") <= 1
        assert f"leeroo verify --renew {table}" in told
    assert main(["--renew", str(table)]) == 0
    assert ExpertTable.load(table).info.description == "mine" and main([str(table)]) == 0
    assert "1 of 1 directories have a manifest.json" in capsys.readouterr().out


def test_the_builtin_table_has_one():
    for path in BUILTIN.values():
        assert check_files(path) and (path / MANIFEST).read_text() == manifest_text(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 2}', "\xff", "[" * 100_000])
def test_a_broken_manifest_is_one_line(text: str, tmp_path: Path):
    random_table().save(tmp_path / "t")
    (tmp_path / "t" / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"manifest\.json: damaged") as error:
        ExpertTable.load(tmp_path / "t")
    assert "\n" not in str(error.value)
