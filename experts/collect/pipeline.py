"""Asks every expert every query, grades the answers and writes the table directory.

Answers are stored in `OUT.parts` as they arrive (see `store`), so a run that was killed asks only for what is missing
when it is started again. At any time an expert on a server has at most 2 · concurrency answers that are not yet on
disk, a local model one batch, a judge 32; a kill can lose no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experts.cluster.connect import Cluster
from experts.collect.feedback import read_feedback
from experts.collect.scheduler import ExpertQueue, ask_all, queue_for
from experts.collect.store import StoredExpert, open_store, parts_directory
from experts.collect.summary import Summary, summarize
from experts.collect.table import GradedAnswer, write_answers
from experts.grading import GRADERS, Grade, judge_batch
from experts.pool import keys_for, make_experts
from experts.specs import Pool
from experts.spending import SpendCap
from experts.types import Answer, Expert, Query, TextEncoder
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable

JUDGE_BATCH = 32


@dataclass(frozen=True)
class Collected:
    """The result of a run. `table` is None if no query has an answer of every expert yet."""

    queues: list[ExpertQueue]
    summaries: list[Summary]
    table: ExpertTable | None
    missing: int
    spent_usd: float

    @property
    def mean_scores(self) -> dict[str, float]:
        """By expert, of those with a grade."""
        return {one.expert: one.score for one in self.summaries if one.score is not None}


def collect(
    pool: Pool,
    queries: Sequence[Query],
    out: Path,
    encoder: TextEncoder,
    *,
    grader: str = "exact",
    judge: str | None = None,
    experts: Sequence[str] | None = None,
    max_usd: float | None = None,
    grade_empty: bool = False,
    show_progress: bool = False,
    cluster: Cluster | None = None,
) -> Collected:
    """Asks for the answers that are not stored yet, grades and embeds everything, and writes the table.

    Args:
        grader: a name in `GRADERS`, or "judge" for the pool's expert `judge`.
        experts: names to ask and to write, in this order; all if None. Stored answers of other experts are kept.
        max_usd: the most that this run may spend, in dollars.
        grade_empty: whether replies without a text are wrong answers, at their cost, instead of failed calls.
        show_progress: whether to say what the run may cost, and how far it is.
        cluster: asks, grades and embeds; None: this program does.

    Raises:
        InputError: an argument cannot be used, or another process collects into `out`.
        KeyboardInterrupt: after the calls in flight have returned and are stored.
    """
    specs = pool.select(experts)
    check_collection(queries, out, grader, judge)
    spend_cap = SpendCap(max_usd)
    judges = pool.select([judge]) if judge else []
    make = cluster.experts if cluster else make_experts
    made = make(pool, [spec.name for spec in [*specs, *judges]], spend_cap)
    by_name: dict[str, Expert] = {expert.name: expert for expert in made}
    with open_store(parts_directory(out)) as store:
        stored = [StoredExpert(by_name[spec.name], keys_for(spec), store, grade_empty) for spec in specs]
        queues = [queue_for(e, spec, e.missing(queries)) for e, spec in zip(stored, specs, strict=True)]
        if show_progress and max_usd is None:
            say_worst_cost(queues)
        ask_all(queues, show_progress)
        answers = [(e.name, q, answer) for e in stored for q in queries if (answer := e.found(q)) is not None]
        judge_expert = StoredExpert(by_name[judge], keys_for(judges[0]), store) if judge else None
        feedback = read_feedback(parts_directory(out))
        rated = {(e.name, q.query_id): feedback[key] for e in stored for q in queries if (key := e.key(q)) in feedback}
        graded = _grade_unrated(answers, grader, judge_expert, rated, cluster)
        encoder = cluster.encoder(encoder) if cluster else encoder
        table = write_answers(specs, queries, graded, encoder, out, grader)
    summaries = [summarize(e, queries, [row for row in graded if row.expert == e.name]) for e in stored]
    missing = len(specs) * len(queries) - len(graded)
    return Collected(queues, summaries, table, missing, spend_cap.spent_usd)


def say_worst_cost(queues: Sequence[ExpertQueue]) -> None:
    """Prints what the calls of a run without a limit may cost."""
    calls, worst_usd = sum(queue.total for queue in queues), sum(queue.worst_usd for queue in queues)
    if worst_usd:
        print(
            f"without --max-usd {calls} calls may cost up to ${worst_usd:.4g} (every answer max_tokens long, every "
            "retry billed); --dry-run measures what is likely",
            flush=True,
        )


def check_collection(queries: Sequence[Query], out: Path, grader: str, judge: str | None) -> None:
    """Raises InputError for what could not be graded or written after the answers are paid for."""
    if grader not in (*GRADERS, "judge"):
        raise InputError(f"--grader: no grader named {grader!r}; there are {', '.join([*GRADERS, 'judge'])}")
    if (grader == "judge") != (judge is not None):
        raise InputError("--grader judge and --judge EXPERT go together")
    if not queries:
        raise InputError("--queries: contains no queries")
    if out.exists() and not parts_directory(out).is_dir():
        raise InputError(f"{out}: exists and was not collected here (no {parts_directory(out).name} beside it)")
    if out.exists() and not (out / "table.json").is_file():
        raise InputError(f"{out}: exists and is not a table directory")
    ids: set[str] = set()
    for query in queries:
        if query.query_id in ids:
            raise InputError(f"--queries: query_id {query.query_id!r} appears twice")
        if grader != "judge" and not query.reference:
            raise InputError(f"--queries: query {query.query_id!r} has no reference to grade against")
        if grader not in ("judge", "math") or (grader == "math" and not ids):  # comparing a formula takes a while
            GRADERS[grader]("", query)  # raises InputError for a reference of the wrong kind
        ids.add(query.query_id)


def _grade_unrated(
    answers: Sequence[tuple[str, Query, Answer]],
    grader: str,
    judge_expert: Expert | None,
    rated: Mapping[tuple[str, str], float],
    cluster: Cluster | None,
) -> list[GradedAnswer]:
    """Grades answers; the score of one that users have rated, by expert and query_id, is what they said, and no judge
    is asked about it."""
    known = [one for one in answers if (one[0], one[1].query_id) in rated]
    others = [one for one in answers if (one[0], one[1].query_id) not in rated]
    unread = Grade(0.0, None)
    read = (
        [GradedAnswer(n, q, a, unread) for n, q, a in known] if judge_expert else _grade(known, grader, None, cluster)
    )
    scored = [replace(row, grade=replace(row.grade, score=rated[row.expert, row.query.query_id])) for row in read]
    return _grade(others, grader, judge_expert, cluster) + scored


def _grade(
    answers: Sequence[tuple[str, Query, Answer]], grader: str, judge_expert: Expert | None, cluster: Cluster | None
) -> list[GradedAnswer]:
    """Grades answers, given with the names of their experts. Those that the judge cannot grade are left out; it is
    given up after a batch of only these."""
    if judge_expert is None:
        texts, queries = [answer.text for _, _, answer in answers], [query for _, query, _ in answers]
        if cluster:
            grades = cluster.grade(grader, texts, queries)
        else:
            grades = [GRADERS[grader](text, query) for text, query in zip(texts, queries, strict=True)]
        return [GradedAnswer(*one, grade) for one, grade in zip(answers, grades, strict=True)]
    graded: list[GradedAnswer] = []
    for start in range(0, len(answers), JUDGE_BATCH):
        batch = answers[start : start + JUDGE_BATCH]
        grades = judge_batch(judge_expert, [answer.text for _, _, answer in batch], [query for _, query, _ in batch])
        graded += [GradedAnswer(*one, grade) for one, grade in zip(batch, grades, strict=True) if grade.error is None]
        if all(grade.error for grade in grades):
            break
    return graded
