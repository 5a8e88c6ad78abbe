"""The settings of a self-play run, and the checks that they make sense."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import experts.tiny
from agents.training.run_dir import CONFIG, begin_run, check_new_run, read_settings
from experts.data.readers import reader_of
from experts.grading import GRADERS
from experts.specs import Pool
from leeroo_env import InputError
from leeroo_env.dynamics import HORIZON

VOTERS = 3  # experts asked about each question that a model has written; at least two must agree
PROGRAMS = ("tasks", "reasoning-gym")  # writers that are not models
TINY_POOL = Path(experts.tiny.__file__).parent / "pool.yaml"
MAY_CHANGE = ("rounds", "usd_to_begin", "threads", "run_dir", "engine", "address")  # when a run is resumed


@dataclass(frozen=True)
class Config:
    """Makes an agent's training data by self-play: writes queries, asks experts where it pays, grades, learns."""

    pool: Path = TINY_POOL
    """pool.yaml of the experts; the tiny models by default"""
    seed_queries: str = ""
    """file of the first queries, with val and test queries; those of the built-in table if empty"""
    start: int = 300
    """number of its training queries, drawn at random, that all experts are asked first; 0 takes all"""
    rounds: int = 3
    """rounds to play; more rounds resume a finished run"""
    usd_per_round: float = 0.012
    """most dollars for a round's queries and answers; a rest below the next call's worst case stays unspent"""
    usd_to_begin: float = math.inf
    """most dollars for the first answers: on the first training queries, and on val and test, which compare agents"""
    queries_per_round: int = 600
    """new queries to write; about three times as many as the money would cover if all experts were asked"""
    ask: Literal["aimed", "all"] = "aimed"
    """aimed: the agent's own choices, and answers by their value per cost; all: every expert, query by query"""
    explore: float = 0.2
    """share of a round's money for the agent's own choices on new queries"""
    epsilon: float = 0.1
    """exploration rate: chance of a random expert instead of the agent's choice"""
    writer: str = "tasks"
    """writers of queries, separated by commas: tasks (programs for the tiny models), reasoning-gym, names of models, or
    files of questions, as `leeroo traffic` writes them"""
    writer_pool: str = ""
    """pool.yaml of the writing models; that of the experts if empty"""
    teacher: str = ""
    """expert whose answers are the references of questions written by models; if empty, the experts' majority vote"""
    least_agreement: float = 0.6
    """least share of the votes behind a reference; other questions are not used"""
    grader: str = "exact"
    """multiple-choice, number, exact or math"""
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """the model that embeds queries"""
    horizon: int = HORIZON
    """queries in an episode, which share one budget"""
    timesteps: int = 50_000
    """queries to route in each round's training"""
    seed: int = 0
    """decides everything that is random"""
    threads: int = 1
    """threads of torch"""
    run_dir: Path = Path("runs/selfplay")
    """directory of the run; a run that is there is resumed"""
    engine: Literal["local", "ray"] = "local"
    """ray: the workers of a cluster write and answer, under the same limits; the round's learning stays here"""
    address: str | None = None
    """the Ray cluster, HOST:PORT or auto; by default that of RAY_ADDRESS, else one is started on this machine"""


def check_config(config: Config) -> None:
    """Raises InputError where a setting makes no sense."""
    if config.engine == "local" and config.address is not None:
        raise InputError("--address goes with --engine ray")
    if min(config.start, config.timesteps, config.seed) < 0 or min(config.queries_per_round, config.horizon) < 1:
        raise InputError("start, timesteps and seed must be 0 or more, queries_per_round and horizon 1 or more")
    if not (config.run_dir / CONFIG).exists():
        check_new_run(config.run_dir)
    if config.seed >= 2**32:
        raise InputError(f"seed {config.seed}: must be 0 to 2^32 - 1")
    if config.rounds < 0 or not config.usd_per_round > 0 or not config.usd_to_begin > 0:
        raise InputError(f"rounds {config.rounds}: must be 0 or more; dollars must be above 0")
    if not (0 <= config.explore <= 1 and 0 <= config.epsilon <= 1):
        raise InputError(f"explore {config.explore}, epsilon {config.epsilon}: must be 0 to 1")
    if config.grader not in GRADERS:
        raise InputError(f"grader: {config.grader!r} is none of {', '.join(GRADERS)}")
    if not 0.5 <= config.least_agreement <= 1:
        raise InputError(f"least_agreement {config.least_agreement}: must be 0.5 to 1")


def check_pools(config: Config, pool: Pool, writer_pool: Pool) -> None:
    """Raises InputError where a writer or the teacher is missing, or where there are too few experts to vote."""
    if config.teacher:
        pool.select([config.teacher])
    models = [name for name in config.writer.split(",") if name not in PROGRAMS]
    writer_pool.select([name for name in models if not is_file(name)])
    if models and not config.teacher and len(pool.experts) < VOTERS:
        raise InputError(
            f"writer {models[0]!r}: references by agreement need {VOTERS} experts and {pool.path} has "
            f"{len(pool.experts)}; name a --teacher"
        )


def is_file(writer: str) -> bool:
    """Whether a writer is a file of questions."""
    return reader_of(Path(writer)) is not None


def start_or_resume(config: Config) -> None:
    """Writes `config.yaml` of a new run. Raises InputError where one is resumed with other settings than its own."""
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()}
    if not (config.run_dir / "config.yaml").exists():
        begin_run(config.run_dir, settings)
        return
    began_with = read_settings(config.run_dir)
    for name, value in settings.items():
        if name not in MAY_CHANGE and began_with.get(name) != value:
            raise InputError(
                f"{config.run_dir}: began with {name} {began_with.get(name)!r} and resumes with it, not {value!r}; "
                "name another --run-dir"
            )
