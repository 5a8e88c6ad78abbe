"""Loads a table of experts' answers, selects from it, summarises it and saves it; its tensors are on one device.

N queries, K experts, D embedding. The directory has `table.json`, `queries.parquet`, `answers.parquet` and
`embeddings.npy`; docs/table-format.md describes each column. Tables too large for memory have a second form, see
`leeroo_env.table.mapped`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from leeroo_env.cost_scale import CostScale
from leeroo_env.errors import InputError
from leeroo_env.files import read_directory
from leeroo_env.table import mapped
from leeroo_env.table.checks import check_content, check_mapped_queries, first_alike, with_columns
from leeroo_env.table.duplicates import near_duplicates
from leeroo_env.table.files import check_table, read_embeddings, read_parquet, write_mapped, write_table
from leeroo_env.table.mapped import CHUNK
from leeroo_env.table.schema import ANSWER_COLUMNS, NULLABLE_QUERY_COLUMNS, QUERY_COLUMNS, SPLITS, ExpertInfo, TableInfo
from leeroo_env.tensors import normal_tensors


@dataclass(frozen=True)
class ExpertTable:
    """Scores and costs of K experts on N queries, with the queries' embeddings, on one device.

    Every query has a score and a cost of every expert: `load` leaves out other queries. Instances are immutable;
    tensors are shared, not copied, between a table and the tables derived from it.

    Attributes:
        info: the content of `table.json`.
        queries: query_id, text, domain, reference and split, one row per query, in the order of the tensors. A mapped
            table without `queries.arrow` has null ids and empty texts and domains.
        answers: the rows of `answers.parquet` for these queries and experts, in any order; no rows for a mapped table.
        embeddings: [N, D], float16 or float32 as on disk.
        scores: [N, K] in [0, 1], float32; a mapped table may have float16.
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

    @cached_property
    def first_alike(self) -> Tensor:
        """For each query the row of the first that is nearly the same by its embedding, itself where none is; [N]."""
        return torch.from_numpy(near_duplicates(self.embeddings.cpu().numpy())).to(self.device)

    @classmethod
    @normal_tensors
    def load(
        cls,
        path: str | os.PathLike,
        experts: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        verify: bool = False,
    ) -> ExpertTable:
        """Reads a table directory, or memory-maps one in the form that `save_mapped` writes.

        Mapped tensors take no memory but the page cache. Selecting `experts` copies their scores, costs and answers;
        another `device` copies everything.

        Args:
            path: the directory.
            experts: names to keep, in this order; None: all. Queries that one of them has not answered are left out,
                with a warning that counts them.
            device: of the tensors.
            verify: whether the large files of a mapped table are checked against the manifest, too, which takes as long
                as reading them; all other files always are.

        Raises:
            InputError: a file is missing, broken, or not what was written; the message names file, column and first
                offending row.
        """
        path = Path(path)
        content = read_directory(path, lambda: _read(path, verify))
        if isinstance(content, ExpertTable):
            return (content if experts is None else content.select(experts)).to(device)
        return cls.from_arrow(*content, experts, path).to(device)

    @classmethod
    @normal_tensors
    def from_arrow(
        cls,
        info: TableInfo,
        queries: pa.Table,
        answers: pa.Table,
        embeddings: np.ndarray,
        experts: Sequence[str] | None = None,
        source: str | os.PathLike = "",
    ) -> ExpertTable:
        """Makes a table on the CPU from the content of its files; `source` is the directory named in messages.

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
        """Makes a table on the CPU from embeddings [N, D], scores [N, K] and costs_usd [N, K]; NaN scores are missing.

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
        for column, values in (("query_ids", query_ids), ("texts", texts), ("domains", domains), ("split", split)):
            if values is not None and len(values) != n:
                raise InputError(f"{name}: {column}: {len(values)} for {n} queries")
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
        rows = _answer_rows(name, queries["query_id"], [e.name for e in infos], scores, costs_usd, answers)
        info = TableInfo(
            name=name,
            description=description,
            encoder=encoder or {"model": None, "dim": int(embeddings.shape[1])},
            experts=infos,
        )
        return cls.from_arrow(info, queries, rows, embeddings, source=name)

    @normal_tensors
    def to(self, device: torch.device | str, embeddings_device: torch.device | str | None = None) -> ExpertTable:
        """The same table with its tensors on `device`.

        Args:
            device: of all tensors but the embeddings.
            embeddings_device: of the embeddings; None: `device`. Those of a large table may remain on the host if the
                agent observes other features.
        """
        return replace(
            self,
            embeddings=self.embeddings.to(device if embeddings_device is None else embeddings_device),
            scores=self.scores.to(device),
            costs_usd=self.costs_usd.to(device),
            split=self.split.to(device),
            answer_ids=_each_row(self.answer_ids, lambda ids: ids.to(device)),
        )

    @normal_tensors
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
            InputError: there is no such split, or it is empty.
        """
        if split not in SPLITS:
            raise InputError(f"{self.name}: no split {split!r}; there are {', '.join(SPLITS)}")
        rows = np.flatnonzero(self.split.cpu().numpy() == SPLITS.index(split))
        if len(rows) == 0:
            raise InputError(f"{self.name}: queries.parquet, column split: the {split} split has no queries")
        return torch.from_numpy(rows).to(self.device)

    def mean_cost_usd(self, split: str = "train") -> Tensor:
        """Mean cost of a call of each expert on a split, in dollars, [K] float32."""
        return self._mean(self.costs_usd, split)

    def cost_scale(self, split: str = "train") -> CostScale:
        """The scale of the experts' mean costs on a split."""
        return CostScale.of(self.mean_cost_usd(split))

    def mean_score(self, split: str = "train") -> Tensor:
        """Mean score of each expert on a split, [K] float32."""
        return self._mean(self.scores, split)

    def _mean(self, values: Tensor, split: str) -> Tensor:
        # with NumPy: torch would start its threads here, and a process that forks afterwards (AsyncVectorEnv) hangs
        rows = self.rows(split).cpu().numpy()
        host = values.cpu().numpy()
        sums = [host[rows[i : i + CHUNK]].sum(axis=0, dtype=np.float64) for i in range(0, len(rows), CHUNK)]
        mean = np.sum(sums, axis=0) / len(rows)
        return torch.from_numpy(mean.astype(np.float32)).to(self.device)

    def has_answers(self) -> bool:
        """Whether the answers themselves are known, at least one, and not only their scores."""
        return any(bool((ids.cpu().numpy() >= 0).any()) for ids in self.answer_ids.split(CHUNK))

    def answer_column(self, column: str | pa.ChunkedArray) -> Tensor:
        """A column of numbers of `answers`, by its name or itself, by query and expert: [N, K] float32, NaN where it is
        null or there is no row, as in a mapped table."""
        values = self.answers[column] if isinstance(column, str) else column
        row = pc.index_in(self.answers["query_id"], self.queries["query_id"].combine_chunks())
        expert = pc.index_in(self.answers["expert"], pa.array(self.experts))
        dense = np.full(self.scores.shape, np.nan, dtype=np.float32)
        dense[np.asarray(row), np.asarray(expert)] = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return torch.from_numpy(dense).to(self.device)

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
                digest.update(first_alike(block.cpu().numpy()).data)
        return digest.hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Writes the table directory, whole or not at all; an older table at `path` is replaced.

        Raises:
            InputError: `path` cannot be written, or is not a table; the table is a mapped one, which does not have the
                rows of `answers.parquet`.
        """
        if len(self.answers) == 0:
            raise InputError(f"{path}: {self.name} is a mapped table, without the rows of answers.parquet; not written")
        write_table(path, self.info, self.queries, self.answers, self.embeddings.cpu().numpy(), checked=True)

    def save_mapped(self, path: str | os.PathLike) -> None:
        """Writes tensors and queries in the form that `load` maps, whole or not at all; see `leeroo_env.table.mapped`.

        Other columns of `answers`, such as tokens and outputs, are left out. An older table at `path` is replaced.

        Raises:
            InputError: `path` cannot be written, or is not a table.
        """
        names = [*mapped.DTYPES] if self.has_answers() else [n for n in mapped.DTYPES if n not in mapped.OPTIONAL]
        arrays = {name: getattr(self, name).cpu().numpy() for name in names}
        queries = None if mapped.are_unknown(self.queries) else self.queries
        write_mapped(path, self.info, mapped.blocks_of(arrays), queries)


def _expert_columns(known: Sequence[str], wanted: Sequence[str], source: object) -> list[int]:
    """The places of the `wanted` names among the `known` ones. Raises InputError; `source` is named in messages."""
    columns = []
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise InputError(f"{source}: no expert named {name!r}; {hint}")
        if known.index(name) in columns:
            raise InputError(f"{source}: expert {name!r} is selected twice")
        columns.append(known.index(name))
    if not columns:
        raise InputError(f"{source}: no expert selected")
    return columns


def _read(path: Path, verify: bool) -> ExpertTable | tuple[TableInfo, pa.Table, pa.Table, np.ndarray]:
    """A mapped table, or the content of the four files of another one; see `ExpertTable.load`."""
    if not path.is_dir():
        raise InputError(f"{path}: no such table directory")
    info = check_table(path, verify)
    if mapped.is_mapped(path):
        return _map(info, path)
    files = path / "queries.parquet", path / "answers.parquet"
    queries = with_columns(read_parquet(files[0]), files[0], QUERY_COLUMNS, NULLABLE_QUERY_COLUMNS)
    answers = with_columns(read_parquet(files[1]), files[1], ANSWER_COLUMNS, {})
    return info, queries, answers, read_embeddings(path / "embeddings.npy")


def _map(info: TableInfo, source: Path) -> ExpertTable:
    """The table in the mapped form in the directory `source`, checked, on the CPU."""
    arrays = mapped.map_arrays(source, len(info.experts))
    n, k = arrays["scores"].shape
    file = source / "queries.arrow"
    if file.exists():
        queries = with_columns(mapped.map_queries(file), file, QUERY_COLUMNS, NULLABLE_QUERY_COLUMNS)
        check_mapped_queries(queries, n, file)
    else:
        queries = mapped.unknown_queries(n)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tensors.setdefault("answer_ids", torch.full((1, k), -1, dtype=torch.int16).expand(n, -1))
    answers = pa.table({name: pa.array([], dtype) for name, dtype in ANSWER_COLUMNS.items()})
    return ExpertTable(info=info, queries=queries, answers=answers, **tensors)


def _each_row(ids: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change` of answer ids [N, K]; of one row alone where all rows share memory, as in tables without answers."""
    return change(ids[:1]).expand(len(ids), -1) if ids.stride(0) == 0 else change(ids)


def _build(
    info: TableInfo,
    queries: pa.Table,
    answers: pa.Table,
    embeddings: np.ndarray,
    experts: Sequence[str] | None,
    source: Path,
) -> ExpertTable:
    """Checks the content of a table and makes its tensors on the CPU."""
    split, scores, costs, answer_ids = check_content(info, queries, answers, embeddings, source)
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
            stacklevel=6,  # the caller of `load`
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


def _answer_rows(
    name: str,
    query_ids: pa.ChunkedArray,
    experts: list[str],
    scores: np.ndarray,
    costs_usd: np.ndarray,
    answers: Sequence[Sequence[str | None]] | np.ndarray | None,
) -> pa.Table:
    """The rows of `answers.parquet` for arrays [N, K] of the table `name`; none where the score is NaN."""
    present = ~np.isnan(np.asarray(scores, dtype=np.float64))
    query, expert = np.nonzero(present)
    rows = pa.table(
        {
            "query_id": query_ids.take(pa.array(query)),
            "expert": pa.array(experts).take(pa.array(expert)),
            "score": pa.array(np.asarray(scores, dtype=np.float64)[query, expert]),
            "cost_usd": pa.array(np.asarray(costs_usd, dtype=np.float64)[query, expert]),
            "prompt_tokens": pa.nulls(len(query), pa.int64()),
            "completion_tokens": pa.nulls(len(query), pa.int64()),
        }
    )
    return rows if answers is None else rows.append_column("answer", _answer_column(answers, present, name))


def _answer_column(answers: Sequence[Sequence[str | None]] | np.ndarray, present: np.ndarray, name: str) -> pa.Array:
    """The entries of `answers` [N, K] where `present` [N, K] is true, row by row. Raises InputError."""
    array = np.array(answers, dtype=object)
    if array.shape != present.shape:
        raise InputError(f"{name}: answers {array.shape}: not [N, K] as the scores {present.shape}")
    try:
        return pa.array(array[present].tolist(), pa.string())
    except pa.ArrowException as error:
        raise InputError(f"{name}: answers: not all strings or None: {str(error).splitlines()[0]}") from None
