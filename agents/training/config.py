"""The settings of a training run: what `train.py` takes as options and `config.yaml` remembers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.algorithms import ALGORITHMS, AlgorithmName
from agents.routers.registry import router_names
from leeroo_env import ExpertTable, InputError
from leeroo_env.builtin import BUILTIN, DEFAULT
from leeroo_env.dynamics import COST_WEIGHT, HORIZON
from leeroo_env.threads import check_threads

AGENT = "agent"  # the name of what is trained, beside the routers of a report
AUTO_CALLS = 4  # a query, at most, where `max_calls` is auto
PolicyKind = Literal["bid-price", "mlp"]


@dataclass(frozen=True)
class TrainConfig:
    """Trains an agent that routes queries among language models, and reports how it does on queries it never saw."""

    table: str = DEFAULT
    """A table directory, or the name of a built-in one (tiny: real answers of the tiny models that ship)."""
    experts: str = ""
    """Names of the experts to use, separated by commas; all of the table's if empty."""
    agent: str = AGENT
    """What the run directory is to hold: the agent, which is trained, or a router of the report by its name, such as
    "paced kNN", which is not trained but fitted, compared and stored, to be deployed."""
    algo: AlgorithmName = "ppo"
    """The algorithm that learns: ppo, a2c, dqn from stable-baselines3; maskable_ppo, qrdqn, trpo from sb3-contrib."""
    policy: Literal["auto", "bid-price", "mlp"] = "auto"
    """bid-price: estimated score less a budget-dependent price times estimated cost (ppo and a2c); mlp: a plain network
    on embedding and budget; auto: bid-price where the algorithm can train it."""
    timesteps: int = 500_000
    """Queries to route in training; the last iteration is completed."""
    n_envs: int = 0
    """Episodes played in lockstep; 0 takes the algorithm's own default."""
    horizon: int = HORIZON
    """Queries in an episode: what one budget has to last for."""
    budget: Annotated[tuple[float, ...], tyro.conf.arg(metavar="USD [USD]")] = ()
    """Dollars per query: one number fixes the budget, two give the range that each episode's budget is drawn from. By
    default from the cheapest expert's mean cost to the most expensive one's, so that one policy serves every budget."""
    max_calls: int | Literal["auto"] = "auto"
    """Experts that may be asked about one query. With more than one, their answers are compared and the one with the
    strongest support is delivered; the table must hold the answers. auto: up to 4 where it does and the policy is
    bid-price, beside an agent of one call; train and val decide whether several are trained, and which of the two is
    kept. Else, and for mlp, auto is 1."""
    cost_weight: float = COST_WEIGHT
    """What a call of the most expensive expert costs in the reward, where a right answer counts 1."""
    hide_budget: bool = False
    """Hides the budget and the number of queries left from the policy: an ablation, which should hurt."""
    seed: int = 0
    """Decides everything random, including the episodes of the evaluation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where table and network are kept; auto takes the GPU if there is one."""
    seeds: int = 1
    """Agents to train, with --seed and the numbers after it; their mean and interval are reported."""
    tune: int = 0
    """Trials of a search for hyperparameters by Ray Tune and Optuna, decided on val; 0 takes the defaults."""
    tuned: Annotated[dict[str, float], tyro.conf.Suppress] = field(default_factory=dict)
    """Hyperparameters in place of the defaults, as a search has found them."""
    threads: int = 1
    """Threads of torch. The results' last bits depend on it; more than one pays on idle cores only."""
    run_dir: str = ""
    """Where the run is written; runs/TABLE-ALGO-SEED-TIME if empty."""
    resume: bool = False
    """Go on with the run in --run-dir (if that is empty, the latest of --table in runs/), with the settings it began
    with."""
    verify: bool = False
    """Read all of a large mapped table to check it against its manifest; other tables always are."""

    def check(self) -> None:
        """Raises InputError where a number is out of its range."""
        if not (1 <= self.timesteps <= 10**12 and 0 <= self.n_envs <= 2**20):
            raise InputError(
                f"timesteps {self.timesteps}, n_envs {self.n_envs}: must be positive, at most 10^12 and 2^20"
            )
        if not 1 <= self.seeds <= 1000:
            raise InputError(f"seeds {self.seeds}: must be 1 to 1000")
        if not 0 <= self.seed <= 2**32 - self.seeds:
            last = "2^32 - 1" if self.seeds == 1 else f"2^32 - {self.seeds}, for {self.seeds} seeds"
            raise InputError(f"seed {self.seed}: must be 0 to {last}")
        if self.tune and not 2 <= self.tune <= 10_000:
            raise InputError(f"tune {self.tune}: must be 2 to 10000 trials, or 0 for none")
        check_threads(self.threads)
        names = router_names(AUTO_CALLS if self.max_calls == "auto" else self.max_calls)
        if self.agent not in (AGENT, *names):
            close = get_close_matches(self.agent, names, 1) or names
            raise InputError(
                f"agent {self.agent!r}: no such router; did you mean {close[0]!r}? There are {', '.join(names)}"
            )
        if self.agent != AGENT and (self.seeds > 1 or self.tune):
            option = f"--seeds {self.seeds}" if self.seeds > 1 else f"--tune {self.tune}"
            raise InputError(f"agent {self.agent}: is not trained, so that there is nothing to vary by {option}")

    def policy_kind(self) -> PolicyKind:
        """The policy that `auto` stands for. Raises InputError where the algorithm cannot train it."""
        trains_bid_price = ALGORITHMS[self.algo].bid_price
        if self.policy == "bid-price" and not trains_bid_price:
            raise InputError(f"policy bid-price: {self.algo} cannot train it; use --policy mlp or another --algo")
        if self.policy != "auto":
            return self.policy
        return "bid-price" if trains_bid_price else "mlp"

    def most_calls(self, table: ExpertTable) -> int:
        """The most calls of a query on a table, for which `max_calls` may say auto. Raises InputError where the router
        `agent` makes several and the table has no answers to compare."""
        if self.max_calls != "auto":
            return self.max_calls
        several = self.agent not in router_names(1)
        possible = table.has_answers() and len(table.experts) > 1
        if self.agent == AGENT:
            several = possible and self.policy_kind() == "bid-price"
        elif several and not possible:
            raise InputError(
                f"agent {self.agent}: compares the answers of several experts to a query, and {table.name} has none"
            )
        return min(AUTO_CALLS, len(table.experts)) if several else 1

    def table_path(self) -> str:
        """The table's name where it is a built-in one, else its absolute path."""
        return self.table if self.table in BUILTIN else str(Path(self.table).resolve())

    def as_settings(self, run_dir: Path) -> dict[str, Any]:
        """What `config.yaml` remembers; a table directory by its absolute path."""
        return {**asdict(self), "table": self.table_path(), "budget": list(self.budget), "run_dir": str(run_dir)}
