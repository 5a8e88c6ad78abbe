"""What a search for hyperparameters has found: its file, and its part of the report."""

from __future__ import annotations

from pathlib import Path

import pydantic

from agents.evaluation.markdown import table_head, table_line
from leeroo_env.files import read_model

SEARCH = "search.json"


class Trial(pydantic.BaseModel, frozen=True):
    """What one trial did.

    Attributes:
        settings: its hyperparameters.
        scores: mean scores on val after each part of the training.
        steps: queries routed when they were measured.
    """

    settings: dict[str, float]
    scores: list[float] = []
    steps: list[int] = []

    @property
    def best(self) -> float:
        return max(self.scores, default=-1.0)


class Search(pydantic.BaseModel, frozen=True):
    """`search.json`: all trials, the first with the defaults."""

    trials: list[Trial]

    @property
    def winner(self) -> Trial:
        return max(self.trials, key=lambda trial: trial.best)


def search_section(run_dir: Path) -> list[str]:
    """Paragraphs of the report about the search of a run; none where there was none. Raises InputError for a broken
    file."""
    if not (run_dir / SEARCH).exists():
        return []
    found = read_model(run_dir / SEARCH, Search)
    winner, default = found.winner, found.trials[0]
    names = list(default.settings)
    rows = [
        table_line([f"{trial.best:.4f}", f"{trial.steps[-1]:,}", *(f"{trial.settings[name]:.4g}" for name in names)])
        for trial in sorted(found.trials, key=lambda trial: -trial.best)
    ]
    gain = 100 * (winner.best - default.best)
    told = (
        f"{words_of(winner)}, {gain:+.2f} points on val over the defaults" if winner is not default else "the defaults"
    )
    return [
        "## The search for hyperparameters",
        f"{len(found.trials)} trials; best on val: {told}. The best of several is partly luck: what it is worth, test "
        "says above, which was played once, with this one. Trials that fell behind were stopped early.",
        "\n".join([*table_head(["best score on val", "steps", *names]), *rows]),
    ]


def words_of(trial: Trial) -> str:
    """Its settings, for people."""
    return ", ".join(f"{name} {value:.4g}" for name, value in trial.settings.items())
