"""Published answers -> table directory: `python -m experts.importers {mmlu-pro,routerbench,tidy} ... --out TABLE`."""

from __future__ import annotations

import ast
import csv
import difflib
import json
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pydantic
import tyro
import yaml

from experts.data.queries import render_options
from experts.encoder import DEFAULT_MODEL, Encoder
from experts.grading import grade_multiple_choice
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import ANSWER_COLUMNS, SPLITS, ExpertInfo, ExpertTable, TableInfo, read_embeddings, write_table

CHARS_PER_TOKEN = 4
_CSV_BLOCK_BYTES = 64 << 20  # a row must fit into a block
ANSWER_TYPES = {**ANSWER_COLUMNS, "answer": pa.string(), "output": pa.string(), "latency_s": pa.float64()}


@dataclass(frozen=True)
class Output:
    """Where the table goes and how its queries are embedded."""

    out: Path
    """The table directory to write; an older table there is replaced."""
    name: str | None = None
    """The table's name; that of the directory where none is given."""
    embeddings: Path | None = None
    """A .npy file [N, D], float16 or float32, row i for query i of the source (mmlu-pro: in ascending question_id)."""
    encoder: str | None = None
    """The model that embeds the queries (all-MiniLM-L6-v2 where none is given), or that made the file of embeddings."""
    max_tokens: int | None = None
    """Longer queries are cut for the encoder; None takes the encoder's own limit."""
    device: str = "cpu"
    """Where the encoder runs."""


@dataclass
class Imported:
    """What an importer has read: queries by id, columns of answers, and what it left out."""

    queries: dict[str, Query] = field(default_factory=dict)
    answers: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in ANSWER_TYPES})
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, query: Query, expert: str, score: float, cost_usd: float, **more: Any) -> None:
        row = {"query_id": query.query_id, "expert": expert, "score": score, "cost_usd": cost_usd, **more}
        for name, column in self.answers.items():
            column.append(row.get(name))

    def leave_out(self, what: str, count: int = 1) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + count


def write_imported(
    output: Output, description: str, experts: Sequence[ExpertInfo], collected: Imported, order: Sequence[str]
) -> ExpertTable:
    """Embeds the queries, in `order`, checks everything, writes the table and prints one line of what was written."""
    if output.out.exists() and not (output.out / "table.json").is_file():
        raise InputError(f"{output.out}: exists and is no table directory; not replaced")
    if not collected.queries:
        raise InputError(f"{output.out}: nothing to write: no query was found")
    chosen = [collected.queries[query_id] for query_id in order]
    fields = ("query_id", "text", "domain", "reference", "split")
    queries = pa.table({name: pa.array([getattr(q, name) for q in chosen], pa.string()) for name in fields})
    used = {n: c for n, c in collected.answers.items() if n not in ("answer", "output", "latency_s") or any(c)}
    answers = pa.table({name: pa.array(column, ANSWER_TYPES[name]) for name, column in used.items()})
    embeddings, encoder = _embeddings(output, [query.text for query in chosen])
    info = TableInfo(
        name=output.name or output.out.name, description=description, encoder=encoder, experts=tuple(experts)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the queries left out are counted in the line below
        table = ExpertTable.from_arrow(info, queries, answers, embeddings, source=output.out)
    write_table(output.out, info, queries, answers, embeddings, checked=True)
    left_out = {"queries without every expert's answer": len(chosen) - len(table), **collected.left_out}
    told = ", ".join(f"{count} {what}" for what, count in left_out.items() if count) or "nothing"
    print(f"{output.out}: {len(table)} queries, {len(experts)} experts; left out: {told}")
    return table


def _embeddings(output: Output, texts: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """The embeddings [N, D] and what table.json says of them."""
    if output.embeddings is None:
        encoder = Encoder(output.encoder or DEFAULT_MODEL, device=output.device, max_tokens=output.max_tokens)
        return encoder.encode(texts), encoder.info
    embeddings = read_embeddings(output.embeddings)
    if embeddings.ndim != 2 or len(embeddings) != len(texts) or embeddings.dtype.kind != "f":
        held = f"{embeddings.dtype} {list(embeddings.shape)}"
        raise InputError(f"{output.embeddings}: holds {held}, not a row for each of {len(texts)} queries")
    if not np.isfinite(embeddings).all():
        row = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0]
        raise InputError(f"{output.embeddings}: row {row} holds NaN or infinity")
    if embeddings.dtype != np.float16:
        embeddings = embeddings.astype(np.float32)
    told = {"model": output.encoder, "max_tokens": output.max_tokens}
    return embeddings, {k: v for k, v in told.items() if v is not None} | {"dim": int(embeddings.shape[1])}


# ---------------------------------------------------------------------------------------------------------------------
# MMLU-Pro: the result files of the benchmark's authors

_SHOTS = re.compile(r"^model_outputs_|_\d+shots?$")
_OUTPUT_FIELDS = ("model_outputs", "response", "generated_text")
_LARGEST_FILE = 2 << 30


def import_mmlu_pro(
    directory: tyro.conf.Positional[Path], prices: Path, output: Output, outputs: bool = False
) -> ExpertTable:
    """The result files that the authors of MMLU-Pro publish (directory eval_results of TIGER-AI-Lab/MMLU-Pro).

    Read are `model_outputs_MODEL_5shots.zip` (also unzipped) and directories MODEL with JSON files in them. Each output
    is graded anew: without a stated letter it is wrong, never guessed. Tokens are estimated at 4 characters each, and
    costs are these tokens times the prices; the few-shot prompt that the authors put before a question is not counted.

    Args:
        directory: where the result files are.
        prices: YAML or JSON, model -> dollars per million tokens, or model -> {usd_per_mtok_in, usd_per_mtok_out}. Only
            models with a price are imported.
        outputs: keep the whole outputs in the table.
    """
    infos = _read_prices(prices)
    found = _result_files(directory)
    for name in infos:
        if name not in found:
            close = difflib.get_close_matches(name, list(found), n=1)
            hint = f"; {close[0]!r} has" if close else ""
            raise InputError(f"{prices}: {name!r} has no results in {directory}{hint}")
    collected = Imported()
    for name, info in infos.items():
        seen: set[str] = set()
        for where, record in _records(found[name]):
            _add_mmlu_pro(collected, info, where, record, seen, outputs)
    collected.leave_out("models without a price", len(found.keys() - infos.keys()))
    order = sorted(collected.queries, key=lambda query_id: (len(query_id), query_id))
    description = (
        f"MMLU-Pro answers of {len(infos)} language models from the authors' result files. Token counts are estimates "
        f"({CHARS_PER_TOKEN} characters a token, without the few-shot prompt), and so are the costs."
    )
    return write_imported(output, description, list(infos.values()), collected, order)


def _read_prices(path: Path) -> dict[str, ExpertInfo]:
    try:
        prices = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(prices, dict) or not prices:
        raise InputError(f"{path}: is no mapping of models to prices")
    infos = {}
    for name, price in prices.items():
        fields = price if isinstance(price, dict) else {"usd_per_mtok_in": price, "usd_per_mtok_out": price}
        try:
            infos[str(name)] = info = ExpertInfo(name=str(name), **fields)
        except (pydantic.ValidationError, TypeError):
            raise InputError(f"{path}: {name}: {price!r} is no price in dollars per million tokens") from None
        if info.usd_per_mtok_in is None or info.usd_per_mtok_out is None:
            raise InputError(f"{path}: {name}: needs usd_per_mtok_in and usd_per_mtok_out")
    return infos


def _result_files(directory: Path) -> dict[str, list[Path]]:
    """Files with results, by model."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    found: dict[str, list[Path]] = {}
    for path in sorted(directory.rglob("*")):
        if path.suffix not in (".zip", ".json") or path.stem.endswith("summary") or path.name.startswith("."):
            continue
        inside = path.relative_to(directory).parts
        if len(inside) > 1:
            name = inside[0]
        else:
            name = path.stem if path.stem.startswith("model_outputs_") else directory.resolve().name
        found.setdefault(_model_name(name), []).append(path)
    if not found:
        raise InputError(f"{directory}: holds no .zip or .json result files")
    return found


def _model_name(stem: str) -> str:
    """The model of `model_outputs_Meta-Llama-3_1-8B_5shots`: Meta-Llama-3.1-8B."""
    return re.sub(r"(?<=\d)_(?=\d)", ".", _SHOTS.sub("", _SHOTS.sub("", stem)))


def _records(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every record with where it stands."""
    for path in paths:
        for where, content in _json_contents(path):
            try:
                records = json.loads(content)
            except ValueError as error:
                raise InputError(f"{where}: is no JSON: {error}") from error
            if not isinstance(records, list):
                raise InputError(f"{where}: is no list of records")
            for number, record in enumerate(records):
                yield f"{where}: record {number}", record


def _json_contents(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.suffix == ".json":
            yield str(path), path.read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = Path(entry.filename)
                if name.suffix != ".json" or name.name.startswith(".") or name.stem.endswith("summary"):
                    continue
                if entry.file_size > _LARGEST_FILE:
                    raise InputError(f"{path}: {entry.filename} would unpack to {entry.file_size} bytes; refused")
                yield f"{path}: {entry.filename}", archive.read(entry)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _add_mmlu_pro(
    collected: Imported, info: ExpertInfo, where: str, record: Any, seen: set[str], outputs: bool
) -> None:
    query = _mmlu_pro_query(where, record)
    known = collected.queries.setdefault(query.query_id, query)
    if (known.text, known.reference) != (query.text, query.reference):
        return collected.leave_out("answers to another wording of a question")
    if query.query_id in seen:
        return collected.leave_out("repeated answers")
    seen.add(query.query_id)
    written = next((record[name] for name in _OUTPUT_FIELDS if record.get(name)), None)
    written = written[0] if isinstance(written, list) else written
    if not isinstance(written, str):
        return collected.leave_out("records without an output")
    grade = grade_multiple_choice(written, query)
    tokens = _tokens(record, "prompt_tokens", query.text), _tokens(record, "completion_tokens", written)
    cost_usd = (tokens[0] * (info.usd_per_mtok_in or 0) + tokens[1] * (info.usd_per_mtok_out or 0)) / 1e6
    collected.add(
        query,
        info.name,
        grade.score,
        cost_usd,
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        answer=grade.answer,
        output=written if outputs else None,
    )


def _mmlu_pro_query(where: str, record: Any) -> Query:
    kinds = {"question_id": int, "question": str, "options": list, "answer": str, "category": str}
    for name, kind in kinds.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise InputError(f"{where}: field {name}: is missing or no {kind.__name__}")
    options = [str(option) for option in record["options"] if option != "N/A"]
    if not re.fullmatch("[A-Z]", record["answer"]):
        raise InputError(f"{where}: field answer: {record['answer']!r} is no letter of an option")
    text = render_options(record["question"], options)
    return Query(f"mmlupro-{record['question_id']}", text, record["category"], record["answer"])


def _tokens(record: dict[str, Any], name: str, text: str) -> int:
    """The tokens that a record counts; estimated from the text where it doesn't, as the published ones don't."""
    counted = record.get(name)
    return counted if isinstance(counted, int) and counted >= 0 else -(-len(text) // CHARS_PER_TOKEN)


# ---------------------------------------------------------------------------------------------------------------------
# RouterBench: one wide row a query

_ADMITTED = {
    **{("pandas", name): "" for name in ("DataFrame", "Index", "RangeIndex")},
    ("pandas.core.frame", "DataFrame"): "",
    ("pandas.core.indexes.base", "Index"): "",
    ("pandas.core.indexes.base", "_new_Index"): "",
    ("pandas.core.indexes.range", "RangeIndex"): "",
    **{("pandas.core.indexes.numeric", f"{kind}Index"): "pandas.Index" for kind in ("Int64", "UInt64", "Float64")},
    ("pandas.core.internals.managers", "BlockManager"): "",
    ("pandas._libs.internals", "_unpickle_block"): "",
    ("numpy", "ndarray"): "",
    ("numpy", "dtype"): "",
    **{
        (f"numpy.{core}.{module}", name): f"numpy._core.{module}.{name}"
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
    **{(module, name): f"builtins.{name}" for module in ("builtins", "__builtin__") for name in ("slice", "bytearray")},
}
"""What a pickled data frame is made of, and what to take for it where it has moved since."""


def import_routerbench(file: tyro.conf.Positional[Path], output: Output, outputs: bool = False) -> ExpertTable:
    """RouterBench (withmartian/routerbench): a pickled data frame, .csv or .parquet with a wide row for every query.

    Columns: sample_id, prompt, eval_name, and for every model MODEL (its score), MODEL|total_cost and
    MODEL|model_response; the oracle's column is not read. A pickle is opened by an unpickler that admits nothing but
    data frames, arrays and their parts. RouterBench has no token counts.

    Args:
        file: the published file.
        outputs: keep the models' responses in the table.
    """
    columns = _read_wide(file)
    models = [name.removesuffix("|total_cost") for name in columns if name.endswith("|total_cost")]
    for name in ("sample_id", "prompt", "eval_name", *models):
        if name not in columns:
            raise InputError(f"{file}: column {name} is missing")
    if not models:
        raise InputError(f"{file}: has no column MODEL|total_cost, so no models")
    collected = Imported()
    for row, query_id in enumerate(columns["sample_id"]):
        values = {name: columns[name][row] for name in ("sample_id", "prompt", "eval_name")}
        for name, value in values.items():
            if not isinstance(value, str) or not value:
                raise InputError(f"{file}: column {name}, row {row}: {value!r} is no text")
        if query_id in collected.queries:
            raise InputError(f"{file}: column sample_id, row {row}: {query_id!r} is there twice")
        collected.queries[query_id] = Query(query_id, _unlisted(values["prompt"]), values["eval_name"])
    for model in models:
        _add_model(collected, file, columns, model, outputs)
    description = f"RouterBench answers of {len(models)} language models ({file.name})"
    infos = [ExpertInfo(name=model) for model in models]
    return write_imported(output, description, infos, collected, list(collected.queries))


def _add_model(collected: Imported, file: Path, columns: Mapping[str, list[Any]], model: str, outputs: bool) -> None:
    """One model's answers; those without a score or a cost are missing answers."""
    responses = columns.get(f"{model}|model_response", [None] * len(columns[model])) if outputs else None
    for row, query in enumerate(collected.queries.values()):
        score = _number(columns[model][row], f"{file}: column {model}, row {row}")
        cost_usd = _number(columns[f"{model}|total_cost"][row], f"{file}: column {model}|total_cost, row {row}")
        if score is None or cost_usd is None:
            continue
        if not 0 <= score <= 1:
            raise InputError(f"{file}: column {model}, row {row}: {score!r} is not in [0, 1]")
        if not 0 <= cost_usd < float("inf"):
            raise InputError(f"{file}: column {model}|total_cost, row {row}: {cost_usd!r} is not a cost >= 0")
        written = responses[row] if responses else None
        collected.add(query, model, score, cost_usd, output=_unlisted(written) if isinstance(written, str) else None)


def _number(value: Any, where: str) -> float | None:
    """A float; None for what is empty or not a number."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {value!r} is no number") from None
    return None if np.isnan(number) else number


def _unlisted(text: str) -> str:
    """RouterBench writes texts as Python lists of their turns: "['first', 'second']"."""
    if not text.startswith("["):
        return text
    try:
        turns = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    whole = isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)
    return "\n".join(turns) if whole else text


def _read_wide(file: Path) -> dict[str, list[Any]]:
    """The columns of a wide file."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    if file.suffix in _READERS:
        return _READERS[file.suffix](file).to_pydict()
    frame = _read_pickle(file)
    return {str(name): frame.iloc[:, i].tolist() for i, name in enumerate(frame.columns)}


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How old pickles write bytes: `_codecs.encode`, but for this encoding alone."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"an encoding {encoding!r}")
    return text.encode("latin1")


class _FrameUnpickler(pickle.Unpickler):
    """Admits what data frames are made of, and nothing else: no other name in the file is so much as imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        target = _ADMITTED[module, name] or f"{module}.{name}"
        return super().find_class(*target.rsplit(".", 1))


def _read_pickle(file: Path) -> Any:
    try:
        import pandas
    except ImportError:
        raise InputError(f"{file}: a pickled data frame needs the package pandas: pip install pandas") from None
    with file.open("rb") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            frame = _FrameUnpickler(opened).load()
            whole = isinstance(frame, pandas.DataFrame) and frame.columns.is_unique and len(frame) >= 0
        except Exception as error:  # a damaged or hostile pickle can raise anything
            hint = " (pandas 3 strings: save it as .parquet or .csv)" if "pandas.arrays" in str(error) else ""
            raise InputError(f"{file}: refused, not a plain pickled data frame: {error}{hint}") from None
    if not whole:
        raise InputError(
            f"{file}: refused, a pickled {type(frame).__name__} and not a data frame with distinct columns"
        )
    return frame


# ---------------------------------------------------------------------------------------------------------------------
# Tidy: one row an answer

_TIDY_REQUIRED = ("query_id", "expert", "score", "cost_usd", "text")
_TIDY_OPTIONAL = (
    "domain",
    "reference",
    "split",
    "prompt_tokens",
    "completion_tokens",
    "answer",
    "output",
    "latency_s",
)


def import_tidy(file: tyro.conf.Positional[Path], output: Output, columns: str = "") -> ExpertTable:
    """Any long .parquet or .csv: one row for every query and expert.

    Needed are query_id, expert, score (0 to 1), cost_usd and text; domain, reference, split, prompt_tokens,
    completion_tokens, answer, output and latency_s are taken where they are.

    Args:
        file: the file.
        columns: what the file calls them where it differs: "query_id=item,expert=model,text=question".
    """
    names = _column_map(columns)
    table = _read_tidy(file, names)
    _check_tidy(table, file, names)
    ids, rows = table["query_id"].to_pylist(), table.to_pylist()
    collected = Imported()
    for row, query_id in enumerate(ids):
        about = {name: rows[row].get(name) for name in ("text", "domain", "reference", "split")}
        query = Query(query_id, about["text"], about["domain"] or "", about["reference"], about["split"])
        known = collected.queries.setdefault(query_id, query)
        if known != query:
            differs = next(name for name in about if getattr(known, name) != getattr(query, name))
            raise InputError(f"{file}: column {names[differs]}, row {row}: differs from an earlier row of {query_id!r}")
        answer = {name: rows[row].get(name) for name in ANSWER_TYPES if name in table.column_names}
        collected.add(query, **{name: value for name, value in answer.items() if name != "query_id"})
    infos = [ExpertInfo(name=name) for name in dict.fromkeys(table["expert"].to_pylist())]
    return write_imported(output, f"Imported from {file.name}", infos, collected, list(collected.queries))


def _column_map(columns: str) -> dict[str, str]:
    """What the file calls each of our columns."""
    names = {name: name for name in (*_TIDY_REQUIRED, *_TIDY_OPTIONAL)}
    for pair in filter(None, columns.split(",")):
        ours, equals, theirs = pair.partition("=")
        if not equals or ours.strip() not in names or not theirs.strip():
            raise InputError(f"--columns: {pair!r} is not COLUMN=NAME with one of {', '.join(names)}")
        names[ours.strip()] = theirs.strip()
    return names


def _read_tidy(file: Path, names: Mapping[str, str]) -> pa.Table:
    """The columns that are ours, under our names and in our types."""
    if file.suffix not in _READERS:
        raise InputError(f"{file}: is neither .csv nor .parquet")
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    table = _READERS[file.suffix](file)
    found = {}
    for name, theirs in names.items():
        if theirs in table.column_names:
            dtype = ANSWER_TYPES.get(name, pa.string())
            found[name] = _cast(table[theirs], dtype, f"{file}: column {theirs}")
        elif name in _TIDY_REQUIRED or theirs != name:
            raise InputError(f"{file}: column {theirs} is missing; there are {', '.join(table.column_names)}")
    if len(table) == 0:
        raise InputError(f"{file}: has no rows")
    return pa.table(found)


def _cast(column: pa.ChunkedArray, dtype: pa.DataType, where: str) -> pa.ChunkedArray:
    try:
        return column.cast(dtype)
    except (pa.ArrowException, NotImplementedError):
        for row, value in enumerate(column):
            try:
                pa.array([value.as_py()], column.type).cast(dtype)
            except (pa.ArrowException, NotImplementedError):
                raise InputError(f"{where}, row {row}: {value.as_py()!r} is no {dtype}") from None
        raise


def _check_tidy(table: pa.Table, file: Path, names: Mapping[str, str]) -> None:
    """Raises the error that names column and first offending row of the file."""
    for name in _TIDY_REQUIRED:
        _require(pc.is_null(table[name]), table[name], f"{file}: column {names[name]}", "is not allowed here")
    score, cost = table["score"].to_numpy(), table["cost_usd"].to_numpy()
    _require(~((score >= 0) & (score <= 1)), table["score"], f"{file}: column {names['score']}", "is not in [0, 1]")
    where = f"{file}: column {names['cost_usd']}"
    _require(~((cost >= 0) & np.isfinite(cost)), table["cost_usd"], where, "is not a cost in dollars >= 0")
    if "split" in table.column_names:
        bad = pc.invert(pc.is_in(table["split"], pa.array([*SPLITS, None], pa.string())))
        _require(bad, table["split"], f"{file}: column {names['split']}", f"is none of {', '.join(SPLITS)}")
    pairs: set[tuple[str, str]] = set()
    for row, pair in enumerate(zip(table["query_id"].to_pylist(), table["expert"].to_pylist(), strict=True)):
        if pair in pairs:
            where = f"{file}: column {names['query_id']}, row {row}"
            raise InputError(f"{where}: a second answer of {pair[1]!r} to {pair[0]!r}")
        pairs.add(pair)


def _require(bad: Any, values: pa.ChunkedArray, where: str, problem: str) -> None:
    rows = np.flatnonzero(np.asarray(bad))
    if len(rows):
        raise InputError(f"{where}, row {rows[0]}: {values[int(rows[0])].as_py()!r} {problem}")


def _read_parquet(file: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(file).read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    _check_header(file, table.column_names)
    return table


def _check_header(file: Path, header: Sequence[str]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"{file}: column {name} is there twice")


def _read_csv(file: Path) -> pa.Table:
    """All columns as text: an id "007" stays what it is. Empty fields are null."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header = next(csv.reader(opened), [])
        _check_header(file, header)
        return pyarrow.csv.read_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in header}, strings_can_be_null=True, null_values=[""]
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a readable CSV file: {str(error).splitlines()[0]}") from error


_READERS: dict[str, Callable[[Path], pa.Table]] = {".csv": _read_csv, ".parquet": _read_parquet}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Bad input is told in one line, with exit code 2, and nothing is written."""
    commands: dict[str, Callable[..., Any]] = {
        "mmlu-pro": import_mmlu_pro,
        "routerbench": import_routerbench,
        "tidy": import_tidy,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m experts.importers",
            description="Published answers -> table directory.",
            args=list(arguments) if arguments is not None else None,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
