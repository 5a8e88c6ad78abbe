"""Checks what users hand to the orchestrator: queries, texts, embeddings, experts and numbers, or one clear error."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from agents.serving.answer_match import Compare, by_normal_form
from agents.serving.asking import is_limited
from agents.serving.chat import as_chat, is_conversation
from experts.types import Expert, Query
from leeroo_env.errors import InputError


def as_queries(queries: Any) -> list[Query]:
    """A query, a text, a conversation, or an iterable of them, as queries; texts are numbered. A text is one query, not
    its letters; a list of messages is one conversation.

    Raises:
        InputError: anything else, a text that is blank, or one that cannot be sent as UTF-8.
    """
    if isinstance(queries, str | Query) or is_conversation(queries):
        queries = [queries]
    if not isinstance(queries, Iterable) or isinstance(queries, bytes | bytearray | Mapping | set | frozenset):
        raise InputError(f"queries: must be texts or queries in order, not {type(queries).__name__}")
    return [_as_query(i, query) for i, query in enumerate(queries)]


def _as_query(number: int, query: Any) -> Query:
    where = f"queries[{number}]"
    if is_conversation(query):
        return as_chat(query, where)
    text = query.text if isinstance(query, Query) else query
    if not isinstance(text, str):
        raise InputError(f"{where}: must be a text or a query, not {type(text).__name__}")
    if not text.strip():
        raise InputError(f"{where}: is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: character {error.start} is half a surrogate pair, which is no text") from None
    return query if isinstance(query, Query) else Query(str(number), str(text))


def as_compare(compare: Any) -> Compare:
    """A function that compares answers, by its name or itself. Raises InputError."""
    compare = by_normal_form(compare) if isinstance(compare, str) else compare
    if not callable(compare):
        raise InputError(f"compare: must be a name or a function, not {type(compare).__name__}")
    return compare  # type: ignore[no-any-return]


def as_texts(texts: Any, n: int, name: str = "texts") -> list[str] | None:
    """The texts of n queries; one text alone is that of one query. Raises InputError where they are not n texts."""
    if texts is None:
        return None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | bytearray | Mapping | set | frozenset):
        raise InputError(f"{name} must be strings in order, not {type(texts).__name__}")
    texts = list(texts)
    if len(texts) != n:
        raise InputError(f"{len(texts)} {name} for {n} embeddings")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{name} must be strings; {name}[{i}] is {type(text).__name__}")
    return texts


def as_embeddings(embeddings: Any, dim: int) -> np.ndarray:
    """As [B, D] float32. Raises InputError."""
    try:
        x = np.asarray(embeddings, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(f"embeddings must be numbers, [B, {dim}]") from None
    if x.ndim != 2 or x.shape[1] != dim:
        raise InputError(f"embeddings are {list(x.shape)}, not [B, {dim}]")
    if not np.isfinite(x).all():
        raise InputError("embeddings must be finite")
    return x


def as_budgets(remaining_usd: Any, remaining_queries: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Dollars float64 and queries int64 left, [n] each, from numbers or arrays. Raises InputError."""
    try:
        usd = np.broadcast_to(np.asarray(remaining_usd, dtype=np.float64), n).copy()
        queries = np.broadcast_to(np.asarray(remaining_queries, dtype=np.float64), n).copy()
    except (TypeError, ValueError):
        raise InputError(f"remaining_usd and remaining_queries must be numbers or [{n}]") from None
    if not all(np.isfinite(part).all() and (part >= 0).all() for part in (usd, queries)):
        raise InputError("remaining_usd and remaining_queries must be finite, and not negative")
    return usd, queries.astype(np.int64)


def check_stream(remaining_usd: Any, remaining_queries: Any, at_once: Any, n: int) -> None:
    """Raises InputError unless these numbers make sense for a stream that begins with n queries."""
    amounts = isinstance(remaining_usd, numbers.Real) and 0 <= float(remaining_usd) < math.inf
    counts = all(isinstance(count, numbers.Integral) for count in (remaining_queries, at_once))
    if not (amounts and counts and remaining_queries >= n and at_once >= 1):
        raise InputError(
            f"remaining_usd {remaining_usd}, remaining_queries {remaining_queries}, at_once {at_once}: must be "
            f"0 or more, {n} or more, 1 or more"
        )


def experts_in_order(experts: Any, names: Sequence[str]) -> list[Expert]:
    """The experts of these names. Raises InputError where one is missing or cannot answer."""
    if not isinstance(experts, Mapping):
        raise InputError(f"experts: must be a mapping from names to experts, not {type(experts).__name__}")
    for name in names:
        if name not in experts:
            raise InputError(f"experts: no expert named {name!r}; there are {', '.join(map(str, experts))}")
        if not callable(getattr(experts[name], "answer", None)):
            raise InputError(f"experts: {name}: {type(experts[name]).__name__} has no method answer")
    return [experts[name] for name in names]


def check_limited(experts: Sequence[Expert]) -> None:
    """Raises InputError where an expert cannot be held to a budget."""
    for expert in experts:
        if not is_limited(expert):
            raise InputError(
                f"experts: {expert.name}: {type(expert).__name__} cannot be held to a budget: it has no `spec` (an "
                "ExpertSpec, with prices and max_tokens), or its `answer` takes no limits_usd; "
                "allow_unbounded=True asks it all the same"
            )
