"""Writes the table of the queries that were not tuned on, embedded by the tuned encoder, which lies in its directory.

N queries of the new table, n tuned on, D embedding.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor
from tqdm import tqdm

from agents.finetune.config import Config
from agents.finetune.training import History
from experts.encoder import TEXTS_PER_SHARD, Encoder
from leeroo_env import ExpertTable, InputError
from leeroo_env.files import new_directory, write_json
from leeroo_env.table import SPLITS, write_table


def write_tuned(
    out: Path, table: ExpertTable, rows: Tensor, others: Tensor, encoder: Encoder, history: History, config: Config
) -> None:
    """Writes the table of the rows `others` and, in its directory, the tuned encoder; atomically.

    Args:
        out: the directory.
        table: the original table.
        rows: [n], the rows tuned on.
        others: [N], all other rows.
        encoder: the tuned one.
        history: the val losses.
        config: the settings.

    Raises:
        InputError: `out` cannot be written.
    """
    ids = table.queries["query_id"]
    record = {
        "settings": asdict(config),
        "encoder": encoder.model,
        "table_sha256": table.fingerprint(),
        "val_loss": history.val_loss,
        "best_step": history.best_step,
        "tuned_on": ids.take(pa.array(rows.numpy())).to_pylist(),
    }
    try:
        with new_directory(out) as directory:
            encoder.save(directory / "encoder")
            write_json(directory / "encoder" / "tuning.json", record)
            (directory / "encoder" / "model.safetensors").chmod(0o644)  # readable like the other files of a table
            tuned = Encoder(str(directory / "encoder"), directory / "cache", encoder.device)
            _write_table(directory / "table", out, table, others, tuned, encoder.model)
            for file in (directory / "table").iterdir():
                file.rename(directory / file.name)
            for made in ("table", "cache"):
                shutil.rmtree(directory / made, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error


def _write_table(path: Path, out: Path, table: ExpertTable, others: Tensor, tuned: Encoder, tuned_from: str) -> None:
    """Writes to `path` the table of the rows `others`, as it will stand at `out`."""
    kept = pa.array(others.numpy())
    queries, ids = table.queries.take(kept), table.queries["query_id"].take(kept)
    splits = pa.array([SPLITS[i] for i in table.split[others].tolist()])  # not by a hash of the id
    queries = queries.set_column(queries.column_names.index("split"), "split", splits)
    answers = table.answers.filter(pc.is_in(table.answers["query_id"], ids.combine_chunks()))
    embeddings = embed(tuned, queries["text"].to_pylist()).astype(table.embeddings.numpy().dtype)
    encoder = {**tuned.info, "model": str(out.resolve() / "encoder"), "tuned_from": tuned_from}
    description = (
        f"{table.info.description}; the encoder is tuned on {len(table) - len(others)} queries that are left out"
    )
    info = table.info.model_copy(
        update={"name": out.resolve().name, "description": description.lstrip("; "), "encoder": encoder}
    )
    write_table(path, info, queries, answers, embeddings)


def embed(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """[N, D] float32, each row of length 1."""
    starts = tqdm(range(0, len(texts), TEXTS_PER_SHARD), "embedding")
    return np.concatenate([encoder.encode(texts[i : i + TEXTS_PER_SHARD]) for i in starts])
