"""The cached answers of expert language models: a directory on disk, tensors on one device.

N queries, K experts, D embedding. The directory holds `table.json`, `queries.parquet`, `answers.parquet` and
`embeddings.npy`; README.md describes each column. Tables of many millions of queries have a second form, `mapped`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic
import torch
from torch import Tensor

from leeroo_env import mapped
from leeroo_env.cost_scale import CostScale
from leeroo_env.errors import InputError
from leeroo_env.mapped import CHUNK, read_npy

SPLITS = ("train", "val", "test")
QUERY_COLUMNS = {"query_id": pa.string(), "text": pa.string(), "domain": pa.string()}
NULLABLE_QUERY_COLUMNS = {"reference": pa.string(), "split": pa.string()}
ANSWER_COLUMNS = {
    "query_id": pa.string(),
    "expert": pa.string(),
    "score": pa.float64(),
    "cost_usd": pa.float64(),
    "prompt_tokens": pa.int64(),
    "completion_tokens": pa.int64(),
}


class ExpertInfo(pydantic.BaseModel, extra="allow", frozen=True):
    """One expert as `table.json` describes it. Unknown fields are kept."""

    name: str = pydantic.Field(min_length=1)
    usd_per_mtok_in: float | None = pydantic.Field(None, ge=0)
    usd_per_mtok_out: float | None = pydantic.Field(None, ge=0)
    parameters_b: float | None = None


class TableInfo(pydantic.BaseModel, extra="allow", frozen=True):
    """`table.json`."""

    format: int = pydantic.Field(1, ge=1, le=1)
    name: str
    description: str = ""
    encoder: dict[str, Any] = {}
    experts: tuple[ExpertInfo, ...] = pydantic.Field(min_length=1)


@dataclass(frozen=True)
class ExpertTable:
    """Scores and costs of K experts on N queries, with the queries' embeddings, on one device.

    Every query has an answer of every expert: `load` leaves the others out. Instances are immutable; tensors are
    shared, not copied, between a table and what is made from it.

    Attributes:
        info: what `table.json` says.
        queries: query_id, text, domain, reference and split, one row a query, in the order of the tensors. A mapped
            table without `queries.arrow` has null for ids and empty texts and domains.
        answers: the rows of `answers.parquet` that belong to these queries and experts, in any order; none of a mapped
            table.
        embeddings: [N, D], float16 or float32 as on disk.
        scores: [N, K] float32 in [0, 1]; of a mapped table float16 where it is stored so.
        costs_usd: [N, K] float32, >= 0.
        split: [N] int8, an index into `SPLITS`.
        answer_ids: [N, K] int16; equal numbers in a row are equal answers, -1 is none.
    """

    info: TableInfo
    queries: pa.Table
    answers: pa.Table
    embeddings: Tensor
    scores: Tensor
    costs_usd: Tensor
    split: Tensor
    answer_ids: Tensor

    def __len__(self) -> int:
        return self.scores.shape[0]

    def __deepcopy__(self, memo: dict) -> ExpertTable:
        return self  # gymnasium.make deep-copies its arguments; an immutable table need not be

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {int((self.split == i).sum())}" for i, name in enumerate(SPLITS))
        return f"ExpertTable({self.name!r}, {len(self)} queries ({counts}), {len(self.experts)} experts, {self.device})"

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts' names, in the order of the columns of `scores`."""
        return tuple(expert.name for expert in self.info.experts)

    @property
    def device(self) -> torch.device:
        return self.scores.device

    @classmethod
    def load(
        cls, path: str | os.PathLike, experts: Sequence[str] | None = None, device: torch.device | str = "cpu"
    ) -> ExpertTable:
        """Reads a table directory, or maps one in the form that `save_mapped` writes.

        Mapped tensors lie in the files: they take no memory but the page cache. Choosing `experts` copies the scores,
        costs and answers of these, another `device` copies everything.

        Args:
            path: the directory.
            experts: names to keep, in this order; all where None. Queries that one of them did not answer are left out
                with a warning that counts them.
            device: where the tensors go.

        Raises:
            InputError: something is missing or broken; the message names file, column and first offending row.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path}: no such table directory")
        info = _read_info(path / "table.json")
        if mapped.is_mapped(path):
            table = _map(info, path)
            return (table if experts is None else table.select(experts)).to(device)
        queries = _read_parquet(path / "queries.parquet", QUERY_COLUMNS, NULLABLE_QUERY_COLUMNS)
        answers = _read_parquet(path / "answers.parquet", ANSWER_COLUMNS, {})
        embeddings = read_embeddings(path / "embeddings.npy")
        return cls.from_arrow(info, queries, answers, embeddings, experts, path).to(device)

    @classmethod
    def from_arrow(
        cls,
        info: TableInfo,
        queries: pa.Table,
        answers: pa.Table,
        embeddings: np.ndarray,
        experts: Sequence[str] | None = None,
        source: str | os.PathLike = "",
    ) -> ExpertTable:
        """Makes a table from what its files hold, on the CPU; `source` is the directory that messages name.

        Raises:
            InputError: as `load` does.
        """
        return _build(info, queries, answers, embeddings, experts, Path(source))

    @classmethod
    def from_arrays(
        cls,
        name: str,
        experts: Sequence[str | ExpertInfo],
        embeddings: np.ndarray,
        scores: np.ndarray,
        costs_usd: np.ndarray,
        *,
        query_ids: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
        domains: Sequence[str] | None = None,
        split: Sequence[str | None] | None = None,
        answers: Sequence[Sequence[str | None]] | np.ndarray | None = None,
        description: str = "",
        encoder: dict[str, Any] | None = None,
    ) -> ExpertTable:
        """Makes a table from embeddings [N, D], scores [N, K] and costs_usd [N, K]; a NaN score is a missing row.

        `answers` [N, K] are short answers in normal form; None where an expert gave none.

        Raises:
            InputError: as `load` does.
        """
        if np.ndim(scores) != 2 or np.shape(costs_usd) != np.shape(scores) or len(experts) != np.shape(scores)[1]:
            shapes = f"scores {np.shape(scores)}, costs {np.shape(costs_usd)}, experts {len(experts)}"
            raise InputError(f"{name}: {shapes}: not [N, K], [N, K] and K")
        n = len(scores)
        embeddings = np.asarray(embeddings)
        if embeddings.dtype != np.float16:
            embeddings = embeddings.astype(np.float32)
        for what, values in (("query_ids", query_ids), ("texts", texts), ("domains", domains), ("split", split)):
            if values is not None and len(values) != n:
                raise InputError(f"{name}: {what}: {len(values)} for {n} queries")
        infos = tuple(e if isinstance(e, ExpertInfo) else ExpertInfo(name=e) for e in experts)
        ids = list(query_ids) if query_ids is not None else [f"{name}-{i}" for i in range(n)]
        queries = pa.table(
            {
                "query_id": pa.array(ids, pa.string()),
                "text": pa.array(texts if texts is not None else ids, pa.string()),
                "domain": pa.array(domains if domains is not None else [""] * n, pa.string()),
                "reference": pa.nulls(n, pa.string()),
                "split": pa.array(split, pa.string()) if split is not None else pa.nulls(n, pa.string()),
            }
        )
        present = ~np.isnan(np.asarray(scores, dtype=np.float64))
        query, expert = np.nonzero(present)
        rows = pa.table(
            {
                "query_id": queries["query_id"].take(pa.array(query)),
                "expert": pa.array([e.name for e in infos]).take(pa.array(expert)),
                "score": pa.array(np.asarray(scores, dtype=np.float64)[query, expert]),
                "cost_usd": pa.array(np.asarray(costs_usd, dtype=np.float64)[query, expert]),
                "prompt_tokens": pa.nulls(len(query), pa.int64()),
                "completion_tokens": pa.nulls(len(query), pa.int64()),
            }
        )
        if answers is not None:
            rows = rows.append_column("answer", _answer_column(answers, present, name))
        info = TableInfo(
            name=name,
            description=description,
            encoder=encoder or {"model": None, "dim": int(embeddings.shape[1])},
            experts=infos,
        )
        return cls.from_arrow(info, queries, rows, embeddings, source=name)

    def to(self, device: torch.device | str, embeddings_device: torch.device | str | None = None) -> ExpertTable:
        """The same table with its tensors on `device`.

        Args:
            device: where they go.
            embeddings_device: where the embeddings go, as `device` where None. Those of a large table may stay on the
                host where the agent observes other features.
        """
        return replace(
            self,
            embeddings=self.embeddings.to(device if embeddings_device is None else embeddings_device),
            scores=self.scores.to(device),
            costs_usd=self.costs_usd.to(device),
            split=self.split.to(device),
            answer_ids=_each_row(self.answer_ids, lambda ids: ids.to(device)),
        )

    def select(self, experts: Sequence[str]) -> ExpertTable:
        """The same queries with only these experts, in this order. Copies scores, costs and answer ids."""
        columns = torch.tensor(_expert_columns(self.experts, experts, self.name), device=self.device)
        infos = {expert.name: expert for expert in self.info.experts}
        return replace(
            self,
            info=self.info.model_copy(update={"experts": tuple(infos[name] for name in experts)}),
            answers=self.answers.filter(pc.is_in(self.answers["expert"], pa.array(experts))),
            scores=self.scores[:, columns],
            costs_usd=self.costs_usd[:, columns],
            answer_ids=_each_row(self.answer_ids, lambda ids: ids[:, columns]),
        )

    def rows(self, split: str) -> Tensor:
        """Row numbers of a split, [n] int64, ascending.

        Raises:
            InputError: no such split, or nothing in it.
        """
        if split not in SPLITS:
            raise InputError(f"{self.name}: no split {split!r}; there are {', '.join(SPLITS)}")
        rows = np.flatnonzero(self.split.cpu().numpy() == SPLITS.index(split))
        if len(rows) == 0:
            raise InputError(f"{self.name}: queries.parquet, column split: the {split} split has no queries")
        return torch.from_numpy(rows).to(self.device)

    def mean_cost_usd(self, split: str = "train") -> Tensor:
        """Mean cost of a call to each expert on a split, [K]."""
        return self._mean(self.costs_usd, split)

    def cost_scale(self, split: str = "train") -> CostScale:
        """The scale of the experts' mean costs on a split."""
        return CostScale.of(self.mean_cost_usd(split))

    def mean_score(self, split: str = "train") -> Tensor:
        """Mean score of each expert on a split, [K]."""
        return self._mean(self.scores, split)

    def _mean(self, values: Tensor, split: str) -> Tensor:
        # in NumPy: torch would start its threads here, and a process that forks afterwards (AsyncVectorEnv) hangs
        rows = self.rows(split).cpu().numpy()
        host = values.cpu().numpy()
        sums = [host[rows[i : i + CHUNK]].sum(axis=0, dtype=np.float64) for i in range(0, len(rows), CHUNK)]
        mean = np.sum(sums, axis=0) / len(rows)
        return torch.from_numpy(mean.astype(np.float32)).to(self.device)

    def has_answers(self) -> bool:
        """Whether any answer is known, not only its score."""
        return any(bool((ids.cpu().numpy() >= 0).any()) for ids in self.answer_ids.split(CHUNK))

    def fingerprint(self) -> str:
        """SHA-256 over query ids, experts, splits and tensors: all that training depends on."""
        digest = hashlib.sha256("\0".join([*self.experts, ""]).encode())
        for ids in pa.table([self.queries["query_id"].fill_null("")], ["id"]).to_batches(CHUNK):
            digest.update("".join(f"\0{query_id}" for query_id in ids["id"].to_pylist()).encode())
        for tensor in (self.embeddings, self.scores, self.costs_usd, self.split):
            for block in tensor.split(CHUNK):
                digest.update(np.ascontiguousarray(block.cpu().numpy()).data)
        if self.has_answers():
            for block in self.answer_ids.split(CHUNK):
                digest.update(_first_alike(block.cpu().numpy()).data)
        return digest.hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Writes the table directory, whole or not at all; an older table at `path` is replaced.

        Raises:
            InputError: `path` cannot be written, or holds something other than a table; the table was mapped, so that
                the rows of `answers.parquet` are not known.
        """
        if len(self.answers) == 0:
            raise InputError(f"{path}: {self.name} is a mapped table, without the rows of answers.parquet; not written")
        write_table(path, self.info, self.queries, self.answers, self.embeddings.cpu().numpy(), checked=True)

    def save_mapped(self, path: str | os.PathLike) -> None:
        """Writes the tensors and queries in the form that `load` maps, see `mapped`; whole or not at all.

        Tokens, outputs and whatever else only `answers` tells are left out. An older table at `path` is replaced.

        Raises:
            InputError: `path` cannot be written, or holds something other than a table.
        """
        names = [*mapped.DTYPES] if self.has_answers() else [n for n in mapped.DTYPES if n not in mapped.OPTIONAL]
        arrays = {name: getattr(self, name).cpu().numpy() for name in names}
        queries = None if mapped.are_unknown(self.queries) else self.queries
        write_mapped(path, self.info, mapped.blocks_of(arrays), queries)


def write_table(
    path: str | os.PathLike,
    info: TableInfo,
    queries: pa.Table,
    answers: pa.Table,
    embeddings: np.ndarray,
    *,
    checked: bool = False,
) -> None:
    """Checks and writes a table directory, whole or not at all; an older table at `path` is replaced.

    Unlike `ExpertTable.save` this keeps queries that some expert has not answered, for those who use other experts.

    Args:
        path: the directory.
        info: what goes into `table.json`.
        queries: query_id, text, domain, reference, split, and whatever else is known of a query.
        answers: query_id, expert, score, cost_usd, prompt_tokens, completion_tokens, and more if there is.
        embeddings: [N, D] float16 or float32, a row for each of `queries`.
        checked: the content comes from an `ExpertTable`.

    Raises:
        InputError: the content breaks the format, `path` cannot be written, or holds something other than a table.
    """
    if not checked:
        _check(info, queries, answers, embeddings, Path(path))
    with _new_directory(Path(path), info) as directory:
        pq.write_table(queries, directory / "queries.parquet")
        pq.write_table(answers, directory / "answers.parquet")
        np.save(directory / "embeddings.npy", embeddings)


def write_mapped(
    path: str | os.PathLike,
    info: TableInfo,
    blocks: Iterable[Mapping[str, np.ndarray]],
    queries: pa.Table | None = None,
) -> None:
    """Checks and writes the mapped form of a table, whole or not at all; an older table at `path` is replaced.

    Args:
        path: the directory.
        info: what goes into `table.json`.
        blocks: the rows, as many at a time as fit into memory; of n rows each scores, costs_usd [n, K], embeddings
            [n, D], split [n] and, in all blocks or none, answer_ids [n, K], of the types that `mapped` lists.
        queries: query_id, text, domain and more of all N rows; None: nothing is known of them.

    Raises:
        InputError: the content breaks the format, `path` cannot be written, or holds something other than a table.
    """
    with _new_directory(Path(path), info) as directory:
        n = mapped.write_arrays(directory, blocks, len(info.experts))
        if queries is not None:
            queries = _with_columns(queries, Path(path) / "queries.arrow", QUERY_COLUMNS, NULLABLE_QUERY_COLUMNS)
            _check_mapped_queries(queries, n, Path(path) / "queries.arrow")
            mapped.write_queries(directory, queries)


@contextmanager
def _new_directory(path: Path, info: TableInfo) -> Iterator[Path]:
    """A directory with `table.json` to write the rest of a table into; it becomes `path` when all is written.

    Raises:
        InputError: `path` cannot be written, or holds something other than a table.
    """
    if path.exists() and not (path / "table.json").is_file():
        raise InputError(f"{path}: exists and is no table directory; not replaced")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        (temporary / "table.json").write_text(json.dumps(info.model_dump(exclude_none=True), indent=1) + "\n")
        yield temporary
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except OSError as error:
        raise InputError(f"{path}: cannot write the table: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hash_split(query_id: str) -> str:
    """The split of a query whose table gives none: by its id alone, so that it never moves when rows are added."""
    h = _tenth(query_id)
    return "test" if h <= 2 else "val" if h == 3 else "train"


def _tenth(query_id: str) -> int:
    return int(hashlib.sha256(query_id.encode()).hexdigest(), 16) % 10


def _splits(queries: pa.Table, source: Path) -> np.ndarray:
    """The split of every query, [N] int8."""
    ids, given = queries["query_id"].to_pylist(), queries["split"].to_pylist()
    for row, value in enumerate(given):
        if value is not None and value not in SPLITS:
            raise InputError(
                f"{source / 'queries.parquet'}: column split, row {row}: {value!r} is not train, val, test or null"
            )
    names = [hash_split(i) if value is None else value for i, value in zip(ids, given, strict=True)]
    if "val" not in names and "train" in names:
        names = ["val" if s == "train" and _tenth(i) == 3 else s for i, s in zip(ids, names, strict=True)]
    return np.array([SPLITS.index(s) for s in names], dtype=np.int8)


def _read_info(path: Path) -> TableInfo:
    try:
        info = TableInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: {field}: {first['msg']}") from None
    names = [expert.name for expert in info.experts]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"{path}: experts.{i}.name: {name!r} is there twice")
    return info


def _read_parquet(path: Path, required: dict[str, pa.DataType], nullable: dict[str, pa.DataType]) -> pa.Table:
    """Reads a file, see `_with_columns`."""
    if not path.is_file():
        raise InputError(f"{path}: missing")
    try:
        table = pq.ParquetFile(path).read()  # read_table would import half of pandas
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None
    return _with_columns(table, path, required, nullable)


def _with_columns(
    table: pa.Table, path: Path, required: dict[str, pa.DataType], nullable: dict[str, pa.DataType]
) -> pa.Table:
    """Brings the known columns of a file to their types; missing nullable columns become nulls."""
    for name, dtype in {**required, **nullable}.items():
        if table.column_names.count(name) > 1:
            raise InputError(f"{path}: column {name} is there twice")
        if name not in table.column_names:
            if name in required:
                raise InputError(f"{path}: column {name} is missing")
            table = table.append_column(name, pa.nulls(len(table), dtype))
        column = table[name]
        if column.type != dtype:
            try:
                column = column.cast(dtype)
            except pa.ArrowException:
                raise InputError(f"{path}: column {name} holds {column.type}, not {dtype}") from None
            table = table.set_column(table.column_names.index(name), name, column)
    return table


def read_embeddings(path: Path) -> np.ndarray:
    """The one array of a .npy file, in this machine's byte order. Raises InputError; nothing is unpickled."""
    embeddings = read_npy(path)
    return embeddings.astype(embeddings.dtype.newbyteorder("="), copy=False)


def _expert_columns(known: Sequence[str], wanted: Sequence[str], source: object) -> list[int]:
    columns = []
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise InputError(f"{source}: no expert named {name!r}; {hint}")
        if known.index(name) in columns:
            raise InputError(f"{source}: expert {name!r} is asked for twice")
        columns.append(known.index(name))
    if not columns:
        raise InputError(f"{source}: no expert selected")
    return columns


def _first(bad: pa.ChunkedArray | np.ndarray) -> int | None:
    """Row number of the first True, None without one."""
    bad = np.asarray(bad)
    return int(bad.argmax()) if bad.any() else None


def _require(bad: Any, file: Path, column: str, values: Any, problem: str) -> None:
    """Raises the error that names file, column, first offending row and its value where any of `bad` is true."""
    row = _first(bad)
    if row is not None:
        value = values[row]
        value = value.as_py() if isinstance(value, pa.Scalar) else value
        raise InputError(f"{file}: column {column}, row {row}: {value!r} {problem}")


def _check_unique(ids: pa.ChunkedArray, file: Path, column: str) -> None:
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first_seen = np.unique(codes, return_index=True)[1]
    repeated = np.ones(len(codes), dtype=bool)
    repeated[first_seen] = False
    _require(repeated, file, column, ids, "is there twice")


def _check_embeddings(embeddings: np.ndarray, n: int, file: Path) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] == 0 or embeddings.dtype not in (np.float16, np.float32):
        raise InputError(f"{file}: holds {embeddings.dtype} {list(embeddings.shape)}, not float16 or float32 [N, D]")
    if len(embeddings) != n:
        raise InputError(f"{file}: {len(embeddings)} rows, but queries.parquet has {n}")
    row = _first(~np.isfinite(embeddings).all(axis=1))
    if row is not None:
        raise InputError(f"{file}: row {row} holds NaN or infinity")


def _map(info: TableInfo, source: Path) -> ExpertTable:
    """The table in the mapped form at `source`, checked, on the CPU."""
    arrays = mapped.map_arrays(source, len(info.experts))
    n, k = arrays["scores"].shape
    file = source / "queries.arrow"
    if file.exists():
        queries = _with_columns(mapped.map_queries(file), file, QUERY_COLUMNS, NULLABLE_QUERY_COLUMNS)
        _check_mapped_queries(queries, n, file)
    else:
        queries = mapped.unknown_queries(n)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tensors.setdefault("answer_ids", torch.full((1, k), -1, dtype=torch.int16).expand(n, -1))
    answers = pa.table({name: pa.array([], dtype) for name, dtype in ANSWER_COLUMNS.items()})
    return ExpertTable(info=info, queries=queries, answers=answers, **tensors)


def _check_mapped_queries(queries: pa.Table, n: int, file: Path) -> None:
    if len(queries) != n:
        raise InputError(f"{file}: {len(queries)} rows, but scores.npy has {n}")
    for name in QUERY_COLUMNS:
        if queries[name].null_count:
            _require(pc.is_null(queries[name]), file, name, queries[name], "is not allowed here")


def _each_row(ids: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change` of answer ids [N, K]; of one row alone where all rows are the same one, as where no answer is known."""
    return change(ids[:1]).expand(len(ids), -1) if ids.stride(0) == 0 else change(ids)


def _build(
    info: TableInfo,
    queries: pa.Table,
    answers: pa.Table,
    embeddings: np.ndarray,
    experts: Sequence[str] | None,
    source: Path,
) -> ExpertTable:
    """Checks everything and makes the dense tensors on the CPU."""
    split, scores, costs, answer_ids = _check(info, queries, answers, embeddings, source)
    names = [expert.name for expert in info.experts]
    wanted = list(experts) if experts is not None else names
    columns = _expert_columns(names, wanted, source / "table.json")
    scores, costs, answer_ids = scores[:, columns], costs[:, columns], answer_ids[:, columns]

    complete = ~np.isnan(scores).any(axis=1)
    if not complete.any():
        raise InputError(f"{source / 'answers.parquet'}: no query has an answer of every selected expert")
    if not complete.all():
        warnings.warn(
            f"{source}: {(~complete).sum()} of {len(complete)} queries lack an answer of a selected expert; left out",
            stacklevel=4,
        )
        queries, embeddings = queries.filter(pa.array(complete)), embeddings[complete]
        scores, costs, split, answer_ids = scores[complete], costs[complete], split[complete], answer_ids[complete]
    if not complete.all() or wanted != names:
        known = pc.and_(
            pc.is_in(answers["expert"], pa.array(wanted)),
            pc.is_in(answers["query_id"], queries["query_id"].combine_chunks()),
        )
        answers = answers.filter(known)
    infos = {expert.name: expert for expert in info.experts}
    return ExpertTable(
        info=info.model_copy(update={"experts": tuple(infos[name] for name in wanted)}),
        queries=queries,
        answers=answers,
        embeddings=torch.from_numpy(np.ascontiguousarray(embeddings)),
        scores=torch.from_numpy(np.ascontiguousarray(scores)),
        costs_usd=torch.from_numpy(np.ascontiguousarray(costs)),
        split=torch.from_numpy(split),
        answer_ids=torch.from_numpy(np.ascontiguousarray(answer_ids)),
    )


def _check(
    info: TableInfo, queries: pa.Table, answers: pa.Table, embeddings: np.ndarray, source: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Everything that can be wrong with the content.

    Returns split [N]; scores and costs [N, K], NaN where missing; answer_ids [N, K].
    """
    file = source / "queries.parquet"
    if len(queries) == 0:
        raise InputError(f"{file}: has no rows")
    for name in QUERY_COLUMNS:
        _require(pc.is_null(queries[name]), file, name, queries[name], "is not allowed here")
    _check_unique(queries["query_id"], file, "query_id")
    _check_embeddings(embeddings, len(queries), source / "embeddings.npy")
    names = pa.array([expert.name for expert in info.experts])
    dense = _dense(answers, queries["query_id"].combine_chunks(), names, source / "answers.parquet")
    return _splits(queries, source), *dense


def _dense(answers: pa.Table, ids: pa.Array, names: pa.Array, file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checks the long answers and spreads them out.

    Returns scores and costs [N, K] float32, NaN where there is no row; answer_ids [N, K] int16.
    """
    row = pc.index_in(answers["query_id"], ids)
    column = pc.index_in(answers["expert"], names)
    _require(pc.is_null(row), file, "query_id", answers["query_id"], "is not in queries.parquet")
    _require(pc.is_null(column), file, "expert", answers["expert"], "is not in table.json")
    cell = np.asarray(row, dtype=np.int64) * len(names) + np.asarray(column, dtype=np.int64)
    repeated = np.ones(len(cell), dtype=bool)
    repeated[np.unique(cell, return_index=True)[1]] = False
    _require(repeated, file, "query_id, expert", answers["query_id"], "has a second answer of the same expert")
    score = answers["score"].to_numpy(zero_copy_only=False)
    cost = answers["cost_usd"].to_numpy(zero_copy_only=False)
    _require(~((score >= 0) & (score <= 1)), file, "score", answers["score"], "is not in [0, 1]")
    _require(~((cost >= 0) & np.isfinite(cost)), file, "cost_usd", answers["cost_usd"], "is not a cost in dollars >= 0")
    dense = np.full((2, len(ids) * len(names)), np.nan, dtype=np.float32)
    dense[0, cell], dense[1, cell] = score, cost
    scores, costs = dense.reshape(2, len(ids), len(names))
    codes = np.full(scores.size, -1, dtype=np.int32)
    codes[cell] = _answer_codes(answers, file)
    return scores, costs, _first_alike(codes.reshape(scores.shape))


def _answer_codes(answers: pa.Table, file: Path) -> np.ndarray:
    """A number for each different string in the column `answer`; -1 for null, and everywhere without the column."""
    count = answers.column_names.count("answer")
    if count == 0:
        return np.full(len(answers), -1, dtype=np.int32)
    if count > 1:
        raise InputError(f"{file}: column answer is there twice")
    column = answers["answer"]
    held = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_null(held)):
        raise InputError(f"{file}: column answer holds {held}, not string")
    return column.cast(pa.string()).combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()


def _first_alike(codes: np.ndarray) -> np.ndarray:
    """For each cell of [N, K] the first column of its row that holds the same, int16; -1 where that is below 0."""
    first = np.full(codes.shape, -1, dtype=np.int16)
    for column in range(codes.shape[1] - 1, -1, -1):
        first[codes == codes[:, column, None]] = column
    first[codes < 0] = -1
    return first


def _answer_column(answers: Sequence[Sequence[str | None]] | np.ndarray, present: np.ndarray, name: str) -> pa.Array:
    """Those of the `answers` [N, K] that are `present` [N, K], row after row. Raises InputError."""
    array = np.array(answers, dtype=object)
    if array.shape != present.shape:
        raise InputError(f"{name}: answers {array.shape}: not [N, K] as the scores {present.shape}")
    try:
        return pa.array(array[present].tolist(), pa.string())
    except pa.ArrowException as error:
        raise InputError(f"{name}: answers: not all strings or None: {str(error).splitlines()[0]}") from None
