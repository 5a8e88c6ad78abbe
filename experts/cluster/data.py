"""Reads queries, grades answers and embeds texts with Ray Data.

The results do not depend on where a piece is computed. What fits one piece is done by the program itself.
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experts.cluster.session import last_line
from experts.grading import GRADERS, Grade
from experts.types import Query
from leeroo_env.errors import InputError, first_line

if TYPE_CHECKING:  # imports torch, which grading does without
    from experts.encoder import Encoder

GRADES_PER_PIECE = 1000
ENDINGS = (".parquet", ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
QUERY_FIELDS = ("query_id", "text", "domain", "reference")


def grade_answers(
    grader: str, texts: Sequence[str], queries: Sequence[Query], make_room: Callable[[], None]
) -> list[Grade]:
    """The grades of answers to queries, by a grader of `GRADERS`; `make_room` frees CPUs of the cluster."""
    if len(texts) <= GRADES_PER_PIECE:
        return [GRADERS[grader](text, query) for text, query in zip(texts, queries, strict=True)]
    make_room()
    columns = {name: pa.array([getattr(query, name) for query in queries], pa.string()) for name in QUERY_FIELDS}
    rows = pa.table(columns | {"output": pa.array(texts, pa.string())})
    graded = _mapped(rows, GRADES_PER_PIECE, functools.partial(_grade, grader), {})
    return [Grade(score, answer) for score, answer in zip(*graded.to_pydict().values(), strict=True)]


def _grade(grader: str, rows: pa.Table) -> pa.Table:
    grades = [
        GRADERS[grader](row["output"], Query(**{name: row[name] for name in QUERY_FIELDS})) for row in rows.to_pylist()
    ]
    score = pa.array([grade.score for grade in grades], pa.float64())
    answer = pa.array([grade.answer for grade in grades], pa.string())
    return pa.table({"row": rows["row"], "score": score, "answer": answer})


class ClusterEncoder:
    """An encoder whose texts are embedded by workers, and cached as if this program had done it.

    Args:
        encoder: its model must be found at the same place on every machine.
        make_room: frees CPUs and GPUs of the cluster.
    """

    def __init__(self, encoder: Encoder, make_room: Callable[[], None]) -> None:
        self._encoder, self._make_room = encoder, make_room

    @property
    def info(self) -> dict[str, Any]:
        return self._encoder.info

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode`."""
        encoder, shards = self._encoder, self._encoder.missing(texts)
        if len(shards) > 1:
            self._make_room()
            device = encoder.device.partition(":")[0]  # Ray shows a worker the GPU that it may use
            settings = (encoder.model, None, device, encoder.max_tokens, encoder.batch_size)
            embed, options = _Embedding(*settings), dict[str, Any]()
            if device == "cuda":  # Ray ends a task's process with the task if it had a GPU
                options = {"fn_constructor_args": settings, "concurrency": (1, len(shards)), "num_gpus": 1}
            embedded = _mapped(pa.table({"texts": pa.array(shards)}), 1, _Embedding if options else embed, options)
            for shard, vectors in zip(shards, embedded["vectors"].to_pylist(), strict=True):
                encoder.remember(shard, np.frombuffer(vectors, np.float32).reshape(len(shard), -1))
        return encoder.encode(texts)


class _Embedding:
    """In a worker: embeds shards, one a row."""

    def __init__(self, *settings: Any) -> None:
        self._settings = settings

    def __call__(self, rows: pa.Table) -> pa.Table:
        encoder = _encoder(*self._settings)
        vectors = [encoder.embed_shard(texts).tobytes() for texts in rows["texts"].to_pylist()]
        return pa.table({"row": rows["row"], "vectors": pa.array(vectors, pa.large_binary())})


@functools.cache
def _encoder(*settings: Any) -> Encoder:
    """The encoder of this process, which has one thread as other work is done beside it."""
    from experts.encoder import Encoder
    from leeroo_env.threads import set_threads

    set_threads(1)
    return Encoder(*settings)


def read_rows(source: str) -> Iterator[dict[str, Any]]:
    """The rows of parquet or JSONL files: a directory, or an address that fsspec knows, such as s3://bucket/questions.

    Workers read them, but for files of this machine, which others may not have.

    Raises:
        InputError: there are no such files, they are of different kinds, or cannot be read.
    """
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        files, root = fsspec.url_to_fs(source)
        paths = sorted(files.find(root)) if files.isdir(root) else [root]
    except (ImportError, OSError, ValueError) as error:
        raise InputError(f"{source}: {first_line(error)}") from None
    endings = {next((e for e in ENDINGS if path.lower().endswith(e)), "") for path in paths}
    if len(endings) != 1 or endings == {""}:
        raise InputError(f"{source}: there should be files of one kind, which end in one of {', '.join(ENDINGS)}")
    with _one_line_errors(source):
        if isinstance(files, LocalFileSystem):
            tables: Iterable[pa.Table] = (_read_file(files, path) for path in paths)
        else:
            tables = _blocks([pa.table({"path": [path]}) for path in paths], functools.partial(_read_files, files), {})
        yield from _rows(tables, source)


def _read_files(files: Any, paths: pa.Table) -> pa.Table:
    return pa.concat_tables([_read_file(files, path) for path in paths["path"].to_pylist()])


def _read_file(files: Any, path: str) -> pa.Table:
    """The columns of a parquet file, or the lines of a JSONL file, which are not parsed yet, as the column `line`."""
    if path.lower().endswith(".parquet"):
        with files.open(path) as file:
            return pq.read_table(file)
    with files.open(path, compression="infer") as file:
        return pa.table({"line": pa.array(file.read().splitlines(), pa.binary())})


def _rows(tables: Iterable[pa.Table], source: str) -> Iterator[dict[str, Any]]:
    from experts.data.readers import json_object

    number = 0
    for row in (row for table in tables for row in table.to_pylist()):
        if isinstance(line := row.get("line"), bytes):
            if line := line.removeprefix(codecs.BOM_UTF8).strip():
                yield json_object(line.decode("utf-8", "surrogateescape"), f"{source}: row {number}")
                number += 1
        else:
            yield row


def _mapped(rows: pa.Table, rows_per_piece: int, function: Any, options: dict[str, Any]) -> pa.Table:
    """What a function of a table, which keeps the column `row`, makes of the pieces of `rows`, in their order."""
    rows = rows.append_column("row", pa.array(range(len(rows)), pa.int64()))
    pieces = [rows.slice(start, rows_per_piece) for start in range(0, len(rows), rows_per_piece)]
    with _one_line_errors("ray"):
        return pa.concat_tables(_blocks(pieces, function, options)).sort_by("row").drop_columns("row")


def _blocks(pieces: Sequence[pa.Table], function: Any, options: dict[str, Any]) -> Iterable[pa.Table]:
    """What a function makes of each piece, each once, whatever is lost meanwhile: Ray makes lost ones again."""
    import ray.data

    mapped = ray.data.from_arrow(list(pieces)).map_batches(function, batch_format="pyarrow", batch_size=None, **options)
    mapped.context.execution_options.preserve_order = True
    blocks: Iterable[pa.Table] = mapped.iter_batches(batch_format="pyarrow", batch_size=None)
    return blocks


@contextmanager
def _one_line_errors(source: str) -> Iterator[None]:
    """Turns what Ray raises, with whole tracebacks, into an InputError of one line."""
    import ray.exceptions

    try:
        yield
    except InputError:
        raise
    except (ray.exceptions.RayError, OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{source}: {last_line(error)}") from None
