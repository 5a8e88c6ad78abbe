"""What a server is told when it starts, and how its worker processes hear of it."""

from __future__ import annotations

import os
from pathlib import Path

import pydantic

ADMIN_KEY = "LEEROO_ADMIN_KEY"  # the variable with the key of the page and of the metrics
CONFIG = "LEEROO_SERVER"  # the variable by which workers get their settings; it holds no secret


class ServerConfig(pydantic.BaseModel):
    """Settings of a server; all of its workers have the same.

    Attributes:
        run_dir: of the training run whose policy decides.
        pool: pool.yaml, with the experts that it knows.
        database: URL of the ledger.
        compare: how answers are compared, where several experts are asked; None: as the run's table was graded.
        usd_per_query: the most that a query may cost in the mean; None: what the run's report recommends, if it does.
        deadline_s: of a request.
        threads: torch threads of a worker.
        keep_texts: directory to which questions and answers are appended; None: no text is stored.
        shadow: a second run, whose policy decides beside the first.
        split: the share of conversations that this one answers.
        versions: the directory of what the workers have loaded; None: one of the worker's own.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    run_dir: Path
    pool: Path
    database: str
    compare: str | None = None
    usd_per_query: float | None = None
    deadline_s: float = 120.0
    threads: int = 1
    keep_texts: Path | None = None
    shadow: Path | None = None
    split: float = 0.0
    versions: Path | None = None

    @property
    def runs(self) -> list[Path]:
        """The one or two runs whose policies decide."""
        return [self.run_dir] if self.shadow is None else [self.run_dir, self.shadow]

    def hand_on(self) -> None:
        """Lets worker processes that begin from now on have these settings."""
        os.environ[CONFIG] = self.model_dump_json()

    @classmethod
    def handed_on(cls) -> ServerConfig:
        return cls.model_validate_json(os.environ[CONFIG])
