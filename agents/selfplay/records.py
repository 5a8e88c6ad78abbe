"""The JSON files of a self-play run as types: what each round wrote, voted, chose and learned, and the final test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pydantic

from leeroo_env.files import read_model, write_json

PairId = tuple[str, str]  # query_id, name of an expert
R = TypeVar("R", bound="Record")


class Record(pydantic.BaseModel, frozen=True):
    """One JSON object, with its fields as keys."""

    def write(self, path: Path) -> None:
        write_json(path, self.model_dump())

    @classmethod
    def read(cls: type[R], path: Path) -> R:
        """Raises InputError where the file is missing or not such a record."""
        return read_model(path, cls)


class Writing(Record):
    """The new queries of a round: how many were kept, how many dropped by reason, and what writing cost."""

    kept: int
    dropped: dict[str, int]
    cost_usd: float


class Voters(pydantic.RootModel[dict[str, list[str]]], frozen=True):
    """By query_id the experts in the order in which to ask them for votes."""


class Reference(Record):
    """The reference of a question, from the experts' answers, and the share of the voters' weight behind it."""

    reference: str
    agreement: float


class Voting(Record):
    """The references that the experts' votes gave to a round's questions.

    Attributes:
        references: by query_id.
        votes: the answers received.
        dropped: reason -> number of questions without a reference.
        spent_usd: cost of the votes.
    """

    references: dict[str, Reference]
    votes: list[PairId]
    dropped: dict[str, int]
    spent_usd: float


class ChosenPairs(Record):
    """The calls to make in a round, in order.

    Attributes:
        explore: the agent's own choices on new queries, some of them random.
        aim: drawn by acquisition value; in round 0, and with `--ask all`, all experts on each query.
    """

    explore: list[PairId]
    aim: list[PairId]


class Agreement(Record):
    """Number of questions that got their reference by votes, and the mean agreement on these."""

    settled: int
    mean: float


class LiveScore(Record):
    """Number, mean score and mean cost of answers."""

    answers: int
    score: float
    cost_usd: float


@dataclass(frozen=True)
class Drift:
    """How n new answers of an expert differ from their predictions.

    Attributes:
        answers: n.
        score: mean of score minus predicted score.
        score_z: the same in standard errors.
        cost: mean logarithm of cost over predicted cost.
        cost_z: the same in standard errors.
        changed: whether the score or the cost differs by much and significantly.
    """

    answers: int
    score: float
    score_z: float
    cost: float
    cost_z: float
    changed: bool


class ValScores(Record):
    """Mean score and mean cost per query on the val split, by budget, and the mean score over the budgets."""

    score: list[float]
    cost_usd: list[float]
    mean: float


class Learned(Record):
    """The outcome of a round's training.

    Attributes:
        budgets_usd: dollars per query at which agents are evaluated, the same in all rounds.
        val: scores of the best new agent.
        val_before: mean score of the last round's agent; None in round 0.
        training_helped: whether PPO improved the new agent.
        kept: whether the new agent is kept; else the last one is.
    """

    budgets_usd: list[float]
    val: ValScores
    val_before: float | None
    training_helped: bool
    kept: bool


class Round(Record):
    """A finished round, `round.json`.

    Attributes:
        round: its number; round 0 asks all experts the first queries.
        spent_usd: cost of its training answers and of writing.
        writing_usd, votes_usd: parts of `spent_usd`.
        measured_usd: cost of answers on the val split.
        written: its queries; `kept` counts those with a reference.
        answered: number of its calls that were answered.
        explored: the agent's own choices on new queries.
        answers: training answers by expert, of all rounds so far.
        coverage: the same by domain and expert.
        drift: by expert.
        changed: the experts that were found to have changed.

    The last five fields are those of `Learned`.
    """

    round: int
    spent_usd: float
    writing_usd: float
    votes_usd: float
    measured_usd: float
    written: Writing
    agreement: Agreement
    answered: int
    explored: LiveScore
    answers: dict[str, int]
    coverage: dict[str, dict[str, int]]
    drift: dict[str, Drift]
    changed: list[str]
    budgets_usd: list[float]
    val: ValScores
    val_before: float | None
    training_helped: bool
    kept: bool


class FinalTest(Record):
    """Scores of the agents of all rounds on the test split, `test.json`.

    Attributes:
        measured_usd: cost of answers on the test split.
        score: by round and budget.
        mean: by round, over the budgets.
        stderr: by round, of the difference of `mean` to round 0.
    """

    measured_usd: float
    score: list[list[float]]
    mean: list[float]
    stderr: list[float]
