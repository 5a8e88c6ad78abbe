"""Reads and writes the mapped form of a table: memory-mapped arrays, for tables too large for memory.

N queries, K experts, D embedding. Beside `table.json` the directory holds

- `scores.npy`: [N, K] float16 or float32, in [0, 1]
- `costs_usd.npy`: [N, K] float32, >= 0
- `embeddings.npy`: [N, D] float16 or float32
- `split.npy`: [N] int8; 0 train, 1 val, 2 test
- `answer_ids.npy`, where answers are known: [N, K] int16; equal numbers in a row are equal answers, -1 is none
- `queries.arrow`, where the queries are known: an uncompressed Arrow IPC file with the columns of `queries.parquet`;
  which split a query is in `split.npy` alone decides

Loading reads the arrays once, block by block, to check them, and copies nothing: they use the page cache, which
processes share and the system reclaims. Ids and texts in `queries.arrow` are not read: the program that writes them
has to make sure that ids are unique.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from leeroo_env.errors import UNFIT, InputError, first_line
from leeroo_env.table.checks import validate
from leeroo_env.table.schema import MAX_COST_USD, NOT_A_COST

CHUNK = 2**16  # rows read, checked or written at a time
DTYPES: dict[str, tuple[type, ...]] = {
    "scores": (np.float16, np.float32),
    "costs_usd": (np.float32,),
    "embeddings": (np.float16, np.float32),
    "split": (np.int8,),
    "answer_ids": (np.int16,),
}
PER_EXPERT = ("scores", "costs_usd", "answer_ids")
OPTIONAL = ("answer_ids",)
FILES = (*(f"{name}.npy" for name in DTYPES), "queries.arrow")
HASHED_BYTES = 2**26  # files up to this size are hashed whenever a table is mapped: it takes 50 ms


def is_mapped(path: Path) -> bool:
    """Whether the directory `path` holds the mapped form; where both forms are there, the parquet files are used."""
    arrays = [path / "scores.npy", path / "costs_usd.npy"]
    return not (path / "answers.parquet").exists() and any(file.exists() for file in arrays)


def read_npy(file: Path, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file; nothing is unpickled.

    Args:
        file: the file.
        mapped: whether to memory-map it, copy on write: changes to the array never reach the file.

    Raises:
        InputError: the file is missing, truncated, or not one array.
    """
    if not file.is_file():
        raise InputError(f"{file}: missing")
    try:
        array = np.load(file, mmap_mode="c" if mapped else None, allow_pickle=False)
    except (*UNFIT, OSError, EOFError, MemoryError, SyntaxError, TokenError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: not a readable .npy file: {first_line(error)}") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{file}: not a readable .npy file: holds several arrays")
    return np.asarray(array)


def map_arrays(directory: Path, n_experts: int) -> dict[str, np.ndarray]:
    """Maps and checks the arrays of a mapped table, by name; `answer_ids` only if there is such a file.

    Raises:
        InputError: a file is missing or truncated, or has another shape, another type or a value that is not allowed;
            the message names the file and the first offending row.
    """
    files = {name: directory / f"{name}.npy" for name in DTYPES}
    present = {name: file for name, file in files.items() if name not in OPTIONAL or file.exists()}
    arrays = {name: read_npy(file, mapped=True) for name, file in present.items()}
    n = len(np.atleast_1d(arrays["scores"]))
    for name, array in arrays.items():
        _check_form(files[name], name, array, n, n_experts)
    for name, array in arrays.items():
        for start in range(0, n, CHUNK):
            _check_values(files[name], name, array[start : start + CHUNK], start)
    return arrays


def map_queries(file: Path) -> pa.Table:
    """Maps an Arrow IPC file and checks that all of it can be read safely. Raises InputError if it is not one."""
    try:
        queries = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        names = queries.column_names
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable Arrow IPC file: {str(error).splitlines()[0]}") from None
    for name, column in zip(names, queries.columns, strict=True):
        validate(column, f"{file}: column {name}")
    return queries


def unknown_queries(n: int) -> pa.Table:
    """Placeholders for N unknown queries: null ids, empty texts and domains. They take the memory of few rows."""
    rows = min(n, CHUNK)
    null, empty = pa.nulls(rows, pa.string()), pa.array([""] * rows, pa.string())
    columns = {"query_id": null, "text": empty, "domain": empty, "reference": null, "split": null}
    chunks = [rows] * (n // rows) + [n % rows] * (n % rows > 0)
    return pa.table({name: pa.chunked_array([c.slice(0, m) for m in chunks]) for name, c in columns.items()})


def are_unknown(queries: pa.Table) -> bool:
    """Whether `queries` are `unknown_queries`."""
    return queries["query_id"].null_count == len(queries)


def blocks_of(arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Splits `arrays` of N rows each into blocks of at most `CHUNK` rows."""
    for start in range(0, len(arrays["scores"]), CHUNK):
        yield {name: array[start : start + CHUNK] for name, array in arrays.items()}


def write_arrays(directory: Path, blocks: Iterable[Mapping[str, np.ndarray]], n_experts: int) -> int:
    """Checks and writes the arrays of a mapped table, block by block; returns N.

    Args:
        directory: to write into.
        blocks: each the arrays by name, with equally many rows; names, types and D must be those of the first block.
        n_experts: K.

    Raises:
        InputError: a block has another form or a value that is not allowed.
    """
    n = 0
    first: dict[str, np.ndarray] = {}
    files: dict[str, BinaryIO] = {}
    with ExitStack() as opened:
        for block in blocks:
            block = {name: np.ascontiguousarray(array) for name, array in block.items()}
            first = first or block
            _check_block(directory, block, first, n, n_experts)
            for name, array in block.items():
                if name not in files:
                    files[name] = opened.enter_context((directory / f"{name}.npy").open("wb"))
                    _write_header(files[name], array, 0)
                files[name].write(array.data)
            n += len(block["scores"])
        if n == 0:
            raise InputError(f"{directory}: no rows")
        for name, file in files.items():
            file.seek(0)
            _write_header(file, first[name], n)
    return n


def write_queries(directory: Path, queries: pa.Table) -> None:
    """Writes `queries.arrow` uncompressed, so that it can be mapped."""
    with pa.ipc.new_file(str(directory / "queries.arrow"), queries.schema) as writer:
        writer.write_table(queries, max_chunksize=CHUNK)


def _write_header(file: BinaryIO, like: np.ndarray, n: int) -> None:
    """The header for n rows like those of `like`; its length does not depend on n, so it can be overwritten."""
    descr = np.lib.format.dtype_to_descr(like.dtype)
    shape = (n, *like.shape[1:])
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _check_block(
    directory: Path, block: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray], row: int, n_experts: int
) -> None:
    required = set(DTYPES) - set(OPTIONAL)
    if not required <= set(block) <= set(DTYPES) or set(block) != set(first):
        held, wanted = ", ".join(sorted(block)), ", ".join(sorted(required))
        raise InputError(
            f"{directory}: row {row}: a block of {held}; must be {wanted} and, in all blocks or none, answer_ids"
        )
    n = len(np.atleast_1d(block["scores"]))
    for name, array in block.items():
        file = directory / f"{name}.npy"
        _check_form(file, name, array, n, n_experts)
        if (array.dtype, array.shape[1:]) != (first[name].dtype, first[name].shape[1:]):
            held = f"{array.dtype} {list(array.shape[1:])}"
            wanted = f"{first[name].dtype} {list(first[name].shape[1:])}"
            raise InputError(f"{file}: row {row}: {held}, but rows before are {wanted}")
        _check_values(file, name, array, row)


def _check_form(file: Path, name: str, array: np.ndarray, n: int, n_experts: int) -> None:
    """Checks type, shape and memory order."""
    wanted = "[N]" if name == "split" else f"[N, {n_experts}]" if name in PER_EXPERT else "[N, D]"
    fits = array.ndim == (1 if name == "split" else 2) and array.size > 0
    fits = fits and (name not in PER_EXPERT or array.shape[1] == n_experts)
    if not fits or array.dtype not in DTYPES[name]:
        dtypes = " or ".join(np.dtype(dtype).name for dtype in DTYPES[name])
        raise InputError(f"{file}: holds {array.dtype} {list(array.shape)}, not {dtypes} {wanted}")
    if len(array) != n:
        raise InputError(f"{file}: {len(array)} rows, but scores.npy has {n}")
    if not array.flags.c_contiguous:
        raise InputError(f"{file}: is stored column by column (Fortran order), not row by row")


def _is_share(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.float16:
        return (values >= 0) & (values <= 1)
    bits = values.view(np.uint16)  # floats from 0 to 1 are ordered as their bits; NumPy is slow to compare float16
    return (bits <= 0x3C00) | (bits == 0x8000)


ALLOWED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "scores": (_is_share, "is not in [0, 1]"),
    "costs_usd": (lambda values: (values >= 0) & (values <= MAX_COST_USD), NOT_A_COST),
    "embeddings": (np.isfinite, "is not finite"),
    "split": (lambda values: (values >= 0) & (values <= 2), "is not 0 (train), 1 (val) or 2 (test)"),
    "answer_ids": (lambda values: values >= -1, "is below -1"),
}


def _check_values(file: Path, name: str, values: np.ndarray, first_row: int) -> None:
    allowed, problem = ALLOWED[name]
    good = allowed(values)
    if not good.all():
        row, *column = (int(i) for i in np.unravel_index(good.argmin(), good.shape))
        where = f"row {first_row + row}" + "".join(f", column {c}" for c in column)
        raise InputError(f"{file}: {where}: {values[(row, *column)].item()!r} {problem}")
