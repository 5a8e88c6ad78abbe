"""Takes answers of live traffic into the collector's store, with what users thought of them; lists the questions."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from experts.collect.feedback import add_feedback
from experts.collect.parts import Row
from experts.collect.store import Store, open_store, parts_directory
from experts.collect.traffic import KeptAnswer, Rating, read_traffic
from experts.data.queries import text_id
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.files import write_text

LABEL = "traffic"  # of the answers in the store
ROWS = 1_000  # of a part


@dataclass
class TakenIn:
    """What was found.

    Attributes:
        answers: by expert, those that the store did not have.
        cost_usd: of these.
        rated: number of answers with feedback.
        questions: number of questions in the file.
        new_questions: of these, those that were not in it.
        unreadable: lines that were left out.
    """

    answers: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    rated: int = 0
    questions: int = 0
    new_questions: int = 0
    unreadable: int = 0


def questions_file(out: Path) -> Path:
    """Where the questions of a table's traffic are listed."""
    return out.with_name(out.name + ".jsonl")


def take_in(directory: Path, out: Path) -> TakenIn:
    """Adds what servers have kept in a directory to the store of a table, and its questions to a file beside it.

    It may be repeated; nothing is taken in twice. Of equal questions the store keeps one answer of an expert: the one
    that it has, else the first that was rated, else the first.

    Raises:
        InputError: there is no such directory, or another process uses the store.
    """
    taken = TakenIn()
    answers: list[KeptAnswer] = []
    said: list[Rating] = []
    for line in read_traffic(directory):
        if isinstance(line, Rating):
            said.append(line)
        elif line is not None:
            answers.append(line)
        else:
            taken.unreadable += 1
    ratings = {(one.decision, one.expert): one.score for one in sorted(said, key=lambda one: one.at)}  # the last counts
    answers.sort(key=lambda one: ((one.decision, one.expert) not in ratings, one.at))
    parts = parts_directory(out)
    with open_store(parts) as store:
        _store(store, answers, taken)
        scores = defaultdict(list)
        for one in answers:
            score = ratings.get((one.decision, one.expert))
            kept = store.found.get(one.key)
            if score is not None and kept is not None and kept.text == one.answer.text:
                scores[one.key].append(score)
        add_feedback(parts, {key: fmean(of) for key, of in scores.items()})
        taken.rated = len(scores)
        _list_questions(questions_file(out), answers, taken)
    return taken


def _store(store: Store, answers: Sequence[KeptAnswer], taken: TakenIn) -> None:
    """Stores the answers that are not there."""
    store.label = LABEL
    new: dict[str, KeptAnswer] = {}
    for one in answers:
        if one.key not in store.found:
            new.setdefault(one.key, one)
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for key, one in new.items():
        rows[one.expert].append((key, _query(one), one.answer))
        taken.answers[one.expert] += 1
        taken.cost_usd += one.answer.cost_usd
    for expert, of in rows.items():
        for start in range(0, len(of), ROWS):
            store.append(expert, of[start : start + ROWS])


def _list_questions(path: Path, answers: Iterable[KeptAnswer], taken: TakenIn) -> None:
    """Puts new questions, the latest first, before those that the file has, whose lines stay as they are: a user may
    have added references to them."""
    try:
        known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        ids = {json.loads(line)["query_id"] for line in known}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None
    latest = {one.text: one for one in sorted(answers, key=lambda one: one.at)}
    new = [_query(one) for one in sorted(latest.values(), key=lambda one: -one.at)]
    lines = [
        json.dumps({"query_id": query.query_id, "text": query.text, "domain": query.domain}, ensure_ascii=False)
        for query in new
        if query.query_id not in ids
    ]
    taken.new_questions, taken.questions = len(lines), len(lines) + len(known)
    if lines:
        write_text(path, "".join(f"{line}\n" for line in [*lines, *known]))


def _query(one: KeptAnswer) -> Query:
    return Query(text_id(one.text), one.text, one.domain)
