"""Counts by expert what became of the queries, and says what a user should know about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experts.collect.store import StoredExpert
from experts.collect.table import GradedAnswer
from experts.specs import ExpertSpec
from experts.types import Query

TOO_MANY = 0.1  # share of replies without an answer, or cut off, that a user is warned of


@dataclass(frozen=True)
class Summary:
    """What became of the queries that one expert was asked.

    Attributes:
        replies: queries with a reply, an empty one included.
        answered: queries with an answer.
        empty: replies without a text.
        filtered: replies that a content filter stopped, empty or not.
        cut: answers that end where max_tokens was reached.
        graded: answers with a grade.
        unread: of these, answers in which the grader found no answer.
        score: mean of the grades; None without any.
    """

    expert: str
    replies: int
    answered: int
    empty: int
    filtered: int
    cut: int
    graded: int
    unread: int
    score: float | None

    def counts(self) -> str:
        """The counts that are not zero, in words; empty if all are."""
        counts = {
            "empty": self.empty,
            "cut off at max_tokens": self.cut,
            "stopped by a content filter": self.filtered,
            "state no answer": self.unread,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def summarize(expert: StoredExpert, queries: Sequence[Query], graded: Sequence[GradedAnswer]) -> Summary:
    """The summary of one expert, of whose answers `graded` has the grades."""
    found = [answer for query in queries if (answer := expert.found(query)) is not None]
    failed = [answer for query in queries if expert.found(query) is None and (answer := expert.failed(query))]
    replies = found + [answer for answer in failed if answer.is_empty]
    scores = [row.grade.score for row in graded]
    return Summary(
        expert=expert.name,
        replies=len(replies),
        answered=len(found),
        empty=sum(not answer.text for answer in replies),
        filtered=sum(answer.finish_reason == "content_filter" for answer in replies),
        cut=sum(answer.finish_reason == "length" and bool(answer.text) for answer in replies),
        graded=len(graded),
        unread=sum(row.grade.answer is None and bool(row.answer.text) for row in graded),
        score=sum(scores) / len(scores) if scores else None,
    )


def warnings_of(
    summary: Summary, spec: ExpertSpec, grader: str, accept_empty: bool, is_variant: bool = False
) -> Iterator[str]:
    """What a user should know, and do, where a tenth or more of the replies are cut off or empty, or not readable.
    Variants may be cut off: they are often short on purpose."""
    cut = 0 if is_variant else summary.cut
    bad = cut + summary.empty
    if bad and bad >= TOO_MANY * summary.replies:
        parts = [f"{summary.empty} empty"] * (summary.empty > 0) + [f"{cut} cut off"] * (cut > 0)
        advice = f"raise its max_tokens, {spec.max_tokens}, in pool.yaml (all of its queries are then asked anew)"
        if summary.filtered > bad / 2:
            advice = "most were stopped by a content filter"
        if summary.empty and not accept_empty:
            advice += "; --grade-empty counts empty replies as wrong answers"
        yield f"{summary.expert}: of {summary.replies} replies {' and '.join(parts)}: {advice}"
    if summary.unread > TOO_MANY * summary.graded:
        yield (
            f"{summary.expert}: {summary.unread} of {summary.graded} answers state none that --grader {grader} can "
            "read, and count as wrong; read the column output of answers.parquet, and say in the expert's prompt how "
            "to answer"
        )
