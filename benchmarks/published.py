"""Rows in the same conditions as published results of routers, from tables that the importers read.

python benchmarks/published.py tables/paretobandit tables/routellm_mmlu --seeds 5

The data stays with you; `GROUNDS` says where each is had, which command imports it, what was published, and what
differs here. A table belongs to the ground that its name begins with; any other gets the measures that need no
particular data. The agent is trained as `train.py` does, with one call a query as the published routers make, and plays
the test split, as do the routers of a report and the controls. The domains of the queries are hidden from all of them:
published routers see the text alone. Other authors' own packages play in the same run with `--peer` and the Python of
an environment that has them; `PEERS` has a script for each. Results are added to `benchmarks/PUBLISHED.md`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro
from sections import add_section

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agents.evaluation.evaluate import QUERIES, Result, always, episodes_for, evaluate  # noqa: E402
from agents.evaluation.markdown import table_head, table_line  # noqa: E402
from agents.evaluation.metrics import aiq, apgr, interval, weak_and_strong  # noqa: E402
from agents.evaluation.published import (  # noqa: E402
    arena_score,
    macro_mean,
    overshoot,
    strong_call_apgr,
    strong_call_cpt,
)
from agents.routers import Cheapest, Router, one_call_routers  # noqa: E402
from agents.training.config import TrainConfig  # noqa: E402
from agents.training.trainer import Trainer  # noqa: E402
from leeroo_env import ExpertTable  # noqa: E402
from leeroo_env.dynamics import Rules, budget_grid  # noqa: E402
from leeroo_env.table.schema import SPLITS  # noqa: E402

AGENT = "agent"
PEERS = ("peer_llmrouter.py", "peer_routellm.py")  # the first lines of each say what to install, and how it plays
CONTROLS = ("best single", "best mixture", "random", "cheapest")  # that keep a budget and ignore the query
SHARES = tuple(i / 10 for i in range(1, 10))  # of strong calls, or of the way from the lowest mean cost to the highest
Numbers = dict[str, float]
Measure = Callable[[ExpertTable, list[float], Result], Numbers]


@dataclass(frozen=True)
class Ground:
    """What was published on some data.

    Attributes:
        title: of its section.
        data: where it is had, and how it is imported.
        differs: the conditions that are not the same here, in sentences.
        measure: the numbers of a router's result, by column, in the order of the table.
        published: rows by name; columns as in `measure`, those that were not published missing.
        budgets_usd: dollars a query; empty: from the lowest mean cost to the highest.
        whole_split: whether an episode is the whole test split in random order, once, on one budget.
        peers: the scripts in this directory that run other authors' packages.
    """

    title: str
    data: str
    differs: str
    measure: Measure
    published: Mapping[str, Numbers]
    budgets_usd: tuple[float, ...] = ()
    whole_split: bool = False
    peers: tuple[str, ...] = PEERS


def _strong_calls(table: ExpertTable, budgets_usd: list[float], result: Result) -> Numbers:
    """RouteLLM's measures of two models."""
    alone = [float(always(table, k, result).score[0]) for k in range(2)]
    strong = int(np.argmax(alone))
    curve = result.calls[:, strong].clip(0, 1), result.score, alone[1 - strong], alone[strong]
    return {
        "APGR": strong_call_apgr(*curve),
        "CPT(50 %)": strong_call_cpt(*curve, 0.5),
        "CPT(80 %)": strong_call_cpt(*curve, 0.8),
    }


def _score_at_budgets(table: ExpertTable, budgets_usd: list[float], result: Result) -> Numbers:
    """ParetoBandit's: the mean reward at each budget, and by how much the worst is overspent."""
    scores = {f"${usd:.1e}": score for usd, score in zip(budgets_usd, result.score.tolist(), strict=True)}
    spent = zip(result.cost_usd.tolist(), budgets_usd, strict=True)
    return {**scores, "overshoot": max(overshoot(paid, usd) for paid, usd in spent)}


def _mean_of_tests(table: ExpertTable, budgets_usd: list[float], result: Result) -> Numbers:
    """RouterDC's and LLMRouterBench's: the mean of the tests' accuracies, at the largest budget."""
    names = np.array(table.queries["domain"].to_pylist())[result.rows[-1]]
    tests, number = np.unique(names, return_inverse=True)
    each = {str(test): float(result.scored[-1][number == i].mean()) for i, test in enumerate(tests)}
    return {"mean of the tests": macro_mean(result.scored[-1], number), **each}


def _curve(table: ExpertTable, budgets_usd: list[float], result: Result) -> Numbers:
    """Of a curve over cost: RouterBench's AIQ, RouteLLM's APGR for any number of models, and the best of RouterArena's
    score, each of which needs dollars only."""
    alone = [always(table, k, result) for k in range(len(table.experts))]
    cost, score = (np.array([float(getattr(a, name)[0]) for a in alone]) for name in ("cost_usd", "score"))
    weak, strong = weak_and_strong(cost, score)
    arena = [arena_score(s, 1000 * c) for s, c in zip(result.score.tolist(), result.cost_usd.tolist(), strict=True)]
    return {
        "AIQ": aiq(result.cost_usd, result.score, (float(cost.min()), float(cost.max()))),
        "APGR": apgr(result.cost_usd, result.score, weak, strong),
        "RouterArena's formula": max(arena),
    }


IN_DISTRIBUTION = (
    "Our routers are fitted to six tenths of the benchmark's own questions and play three tenths; RouteLLM's never see "
    "them but for {seen}. Rows with published numbers are on all of its questions."
)
GROUNDS = {
    "routellm_mmlu": Ground(
        "RouteLLM's MMLU",
        "github.com/lm-sys/RouteLLM; `leeroo import routellm routellm/evals/mmlu/responses/*.csv`",
        IN_DISTRIBUTION.format(seen="about 1,500 validation questions of MMLU, beside the Chatbot Arena's preferences"),
        _strong_calls,
        {
            "RouteLLM, SW ranking": {"APGR": 0.603, "CPT(50 %)": 0.3540, "CPT(80 %)": 0.7155},
            "RouteLLM, causal LLM": {"APGR": 0.600, "CPT(50 %)": 0.3549, "CPT(80 %)": 0.7031},
            "RouteLLM, matrix factorisation": {"APGR": 0.597, "CPT(50 %)": 0.3546, "CPT(80 %)": 0.7140},
            "RouteLLM, BERT": {"APGR": 0.572, "CPT(50 %)": 0.4130, "CPT(80 %)": 0.7220},
            "RouteLLM, random": {"APGR": 0.500, "CPT(50 %)": 0.5007, "CPT(80 %)": 0.7993},
        },
    ),
    "routellm_gsm8k": Ground(
        "RouteLLM's GSM8K",
        "github.com/lm-sys/RouteLLM; `leeroo import routellm routellm/evals/gsm8k/gsm8k_responses.csv`",
        IN_DISTRIBUTION.format(seen="preferences of the Chatbot Arena and of a judge"),
        _strong_calls,
        {
            "RouteLLM, causal LLM": {"APGR": 0.622, "CPT(50 %)": 0.3364, "CPT(80 %)": 0.6326},
            "RouteLLM, SW ranking": {"APGR": 0.568, "CPT(50 %)": 0.4121, "CPT(80 %)": 0.7220},
            "RouteLLM, matrix factorisation": {"APGR": 0.565, "CPT(50 %)": 0.3882, "CPT(80 %)": 0.7262},
            "RouteLLM, BERT": {"APGR": 0.531, "CPT(50 %)": 0.4476, "CPT(80 %)": 0.7909},
            "RouteLLM, random": {"APGR": 0.497, "CPT(50 %)": 0.5000, "CPT(80 %)": 0.8008},
        },
    ),
    "paretobandit": Ground(
        "ParetoBandit's test stream",
        "the package `paretobandit` has it in pareto_bandit/data/examples; `leeroo import paretobandit DIR`",
        "ParetoBandit starts from priors of a training split that is not published, goes on learning from the reward "
        "of the one model that it asks, on val and in the test stream, knows no end of the stream, and may overspend. "
        "Ours learn from the rewards of all models on val (one seventh of it selects) and nothing in the stream, know "
        "its length, and a call that exceeds what is left of the budget is cut off and scores 0. Published are the "
        "means of 20 orders (experiment 01 of its repository, `_autogen.tex` at commit 051d2b2a); its paper claims an "
        "overshoot of at most 0.4 %. Its package (0.1.1) plays with the priors and hyperparameters that it ships; it "
        "does not reach those numbers here, so that they are the bar, not its row.",
        _score_at_budgets,
        {
            "ParetoBandit": {
                "$2.9e-05": 0.793,
                "$8.3e-05": 0.813,
                "$2.3e-04": 0.855,
                "$6.6e-04": 0.884,
                "$1.9e-03": 0.908,
                "$5.3e-03": 0.917,
                "$1.5e-02": 0.922,
                "overshoot": 0.02,
            }
        },
        budgets_usd=(2.929e-5, 8.288e-5, 2.345e-4, 3.0e-4, 6.636e-4, 1.878e-3, 5.312e-3, 1.504e-2),
        whole_split=True,
        peers=("peer_paretobandit.py",),
    ),
    "routerdc": Ground(
        "RouterDC's five in-distribution tests",
        "github.com/shuhao02/RouterDC, datasets/split2_model7; `leeroo import routerdc datasets/split2_model7`",
        "Every model costs the same, so that budgets decide nothing. RouterDC tunes an encoder (mDeBERTa-v3) on at "
        "most 1,000 questions of each test; ours use embeddings that are not tuned, of all training questions.",
        _mean_of_tests,
        {
            "RouterDC": {"mean of the tests": 0.5854},
            "best single model": {"mean of the tests": 0.5456},
        },
    ),
    "routerbench": Ground(
        "RouterBench",
        "huggingface.co/datasets/withmartian/routerbench; `leeroo import routerbench routerbench_0shot.pkl`",
        "AIQ is over the range from the cheapest model's mean cost to the most expensive one's, on our test split.",
        _curve,
        {},
    ),
    "llmrouterbench": Ground(
        "LLMRouterBench",
        "github.com/ynulihao/LLMRouterBench (results/bench); `leeroo import llmrouterbench results/bench`",
        "Our split has six tenths of the queries for training, where LLMRouterBench has seven.",
        _mean_of_tests,
        {},
    ),
}
PEERS_PLAY = (
    "LLMRouter (`llmrouter-lib`) and RouteLLM (`routellm`) play with their own code, fitted to our train split and our "
    "embeddings, once for all seeds. They have no budget: LLMRouter's routers learn which model is best, of all or of "
    "the cheaper ones, or with a weight on cost; RouteLLM's routes between two models by a threshold. A budget buys a "
    "lottery between two such points that did best on val for that money, and may be overspent: what was paid counts. "
    "Tuned: the lottery chooses among several settings (`SETTINGS` in `benchmarks/peer_*.py`)."
)
OTHER = Ground(
    "",
    "",
    "There is no published result for this table: these are the measures that need no particular data.",
    _curve,
    {},
)


def main(
    tables: tyro.conf.Positional[tuple[str, ...]],
    experts: str = "",
    seeds: int = 1,
    timesteps: int = TrainConfig.timesteps,
    queries: int = QUERIES,
    runs: Path = Path("runs/published"),
    peer: str = "",
    out: Path = ROOT / "benchmarks" / "PUBLISHED.md",
) -> None:
    """Trains and evaluates, then adds a section to the results for each table.

    Args:
        tables: table directories.
        experts: names of the experts to use, separated by commas; all if empty.
        seeds: how many, from 0.
        timesteps: of each training.
        queries: asked at each budget in the evaluation.
        runs: where the agents, and the choices of the peers, are kept; finished ones are not made again.
        peer: the Python of an environment with other authors' packages, which then play too.
        out: the file of results.
    """
    for name in tables:
        table = ExpertTable.load(name)
        table = table.select(experts.split(",")) if experts else table
        key = next((key for key in GROUNDS if table.name.startswith(key)), "")
        ground = GROUNDS.get(key, OTHER)
        rows: dict[str, list[Numbers]] = {}
        for seed in range(seeds):
            config = TrainConfig(name, experts, max_calls=1, timesteps=timesteps, seed=seed)
            played = _play(ground, config, table, queries, runs / table.name, peer)
            for router, numbers in played.items():
                rows.setdefault(router, []).append(numbers)
        options = f" --experts {experts}" if experts else ""
        options += f" --timesteps {timesteps}" if timesteps != TrainConfig.timesteps else ""
        options += f" --queries {queries}" if queries != QUERIES else ""
        options += " --peer peers/bin/python" if peer else ""
        command = f"python benchmarks/published.py tables/{table.name} --seeds {seeds}{options}"
        text = _section(ground, table, rows, command)
        add_section(out, "# Published results, and ours in the same conditions", ground.title or table.name, text)
        print(f"## {ground.title or table.name}\n\n{text}")


def _play(
    ground: Ground, config: TrainConfig, table: ExpertTable, queries: int, runs: Path, peer: str
) -> dict[str, Numbers]:
    """The numbers of the agent, the routers and the controls on the test split, by name."""
    hidden = table.queries.set_column(table.queries.column_names.index("domain"), "domain", pa.array([""] * len(table)))
    blind = replace(table, queries=hidden)
    trainer = Trainer(config, blind)
    trainer.prepare()
    run_dir = runs / f"s{config.seed}-{config.timesteps}-{len(table.experts)}"
    if not (run_dir / "finished").exists():
        trainer.fit(run_dir, trainer.baselines({"cheapest": Cheapest(blind)}))
        (run_dir / "finished").touch()
    routers: dict[str, Router] = {AGENT: trainer.kept_router(run_dir)}
    routers |= one_call_routers(blind, config.horizon, config.seed)
    rules = trainer.held_out_rules("test")
    budgets = _budgets(ground, rules)
    if ground.whole_split:
        rules = replace(rules, horizon=len(rules.rows))
    episodes = episodes_for(rules, queries)
    results = {name: evaluate(router, rules, budgets, episodes, config.seed) for name, router in routers.items()}
    results |= _controls(table, results)
    for script in ground.peers if peer else ():
        seed = config.seed if ground.whole_split else 0  # of an order of the stream; a fit serves all seeds' queries
        played = runs / f"{Path(script).stem}-s{seed}.npz"
        if not played.exists():
            _ask_peer(peer, script, table, budgets, seed, played)
        results |= _played_by(dict(np.load(played)), table, results[AGENT])
    return {name: ground.measure(table, budgets, result) for name, result in results.items()}


def _ask_peer(python: str, script: str, table: ExpertTable, budgets: list[float], seed: int, out: Path) -> None:
    """Has a package choose for the test split, in its own environment."""
    with tempfile.TemporaryDirectory() as directory:
        data, played = f"{directory}/data.npz", f"{directory}/played.npz"
        arrays = {
            "embeddings": table.embeddings.numpy(),
            "rewards": table.scores.numpy(),
            "costs": table.costs_usd.numpy(),
            "names": np.array(table.experts),
            "budgets": np.array(budgets),
            "seed": np.array(seed),
        }
        splits = {split: np.isin(np.arange(len(table)), table.rows(split).numpy()) for split in SPLITS}
        np.savez(data, allow_pickle=False, **arrays, **splits)
        subprocess.run([python, str(ROOT / "benchmarks" / script), data, played], check=True)
        shutil.move(played, out)


def _played_by(played: dict[str, np.ndarray], table: ExpertTable, like: Result) -> dict[str, Result]:
    """How a package's routers do on the queries of `like`, in the mean over their lotteries (`peer_lottery.save`)."""
    place = np.zeros(len(table), dtype=np.int64)
    place[played["rows"]] = np.arange(len(played["rows"]))
    results = {}
    for name, chosen, shares in zip(played["names"].tolist(), played["chosen"], played["shares"], strict=True):
        asked = chosen[:, place[like.rows]].swapaxes(0, 1)  # [G, P, n]

        def mean(values: np.ndarray, shares: np.ndarray = shares) -> np.ndarray:
            """Over the points of the lottery, [G, n] from [G, P, n]."""
            return np.einsum("gp,gpn->gn", shares, values)

        rows = like.rows[:, None]
        scored, paid_usd = (mean(x.numpy().astype(np.float64)[rows, asked]) for x in (table.scores, table.costs_usd))
        calls = np.stack([mean(asked == k).mean(axis=1) for k in range(len(table.experts))], axis=1)
        results[name] = replace(
            like,
            score=scored.mean(axis=1),
            cost_usd=paid_usd.mean(axis=1),
            calls=calls,
            scored=scored,
            paid_usd=paid_usd,
        )
    return results


def _budgets(ground: Ground, rules: Rules) -> list[float]:
    """Dollars a query, rising: those of the ground, else those of a report, which begin where the cheapest expert can
    just be paid, and `SHARES` of the way to the most expensive one."""
    low, high = rules.cost_scale.low_usd, rules.cost_scale.high_usd
    return list(ground.budgets_usd) or sorted({*budget_grid(rules), *(low + share * (high - low) for share in SHARES)})


def _controls(table: ExpertTable, results: Mapping[str, Result]) -> dict[str, Result]:
    """What needs no router: every expert alone, and a lottery with the agent's share of calls to each expert."""
    agent = results[AGENT]
    alone = {f"always {name}": always(table, k, agent) for k, name in enumerate(table.experts)}
    keep = {int(table.mean_cost_usd().argmin()), int(table.mean_score().argmax())}
    shares = agent.calls / agent.calls.sum(axis=1, keepdims=True)  # [G, K]
    every = list(alone.values())

    def mixed(name: str) -> np.ndarray:
        """The shares' mean of what the experts alone have, [G] or [G, n]."""
        values = np.stack([getattr(result, name) for result in every])  # [K, G, ...]
        return np.einsum("gk,kg...->g...", shares, values)

    lottery = replace(
        agent, score=mixed("score"), cost_usd=mixed("cost_usd"), scored=mixed("scored"), paid_usd=mixed("paid_usd")
    )
    kept = {name: result for k, (name, result) in enumerate(alone.items()) if k in keep}
    return {"lottery with the agent's shares": lottery, **kept}


def _section(ground: Ground, table: ExpertTable, rows: Mapping[str, list[Numbers]], command: str) -> str:
    """The published rows, then ours: the agent, and the others, the best first."""
    columns = list(rows[AGENT][0])
    ranked = [column for column in columns if column.startswith("$")] or columns[:1]

    def merit(name: str) -> float:
        return float(np.mean([numbers[column] for numbers in rows[name] for column in ranked]))

    order = sorted(rows, key=lambda name: (name != AGENT, -merit(name)))
    control = max((name for name in CONTROLS if name in rows), key=merit)
    leads = [_cell(mean, "lead") for mean, _ in (_over_seeds(rows, AGENT, control, column) for column in ranked)]
    notes = [ground.differs, *([PEERS_PLAY] if any(name.startswith("LLMRouter") for name in rows) else [])]
    counts = ", ".join(f"{len(table.rows(split)):,} {split}" for split in ("train", "val", "test"))
    seeds = len(rows[AGENT])
    return "\n".join(
        [
            f"{len(table.experts)} models; {counts} queries; {seeds} seed{'s' if seeds > 1 else ''}"
            f"{', mean and 95 % interval' if seeds > 1 else ''}. {' '.join(notes)}",
            "",
            f"**Against {control}, the strongest control that keeps a budget, the agent gains {', '.join(leads)}** "
            f"({', '.join(ranked)}).",
            "",
            *table_head(["", *columns]),
            *(table_line([f"{name} (published)", *_published(n, columns)]) for name, n in ground.published.items()),
            *(table_line([f"**{name}**" if name == AGENT else name, *_cells(rows[name], columns)]) for name in order),
            "",
            f"`{command}`" + (f". The data: {ground.data}." if ground.data else ""),
        ]
    )


def _over_seeds(rows: Mapping[str, list[Numbers]], name: str, other: str, column: str) -> tuple[float, float]:
    """By how much one leads the other, seed by seed: mean and half a 95 % interval."""
    return interval(np.array([a[column] - b[column] for a, b in zip(rows[name], rows[other], strict=True)]))


def _published(numbers: Numbers, columns: list[str]) -> list[str]:
    return [_cell(numbers[column], column) if column in numbers else "" for column in columns]


def _cells(seeds: list[Numbers], columns: list[str]) -> list[str]:
    """Means over the seeds, with half a 95 % interval where there is one that three digits show."""
    cells = []
    for column in columns:
        mean, half = interval(np.array([numbers[column] for numbers in seeds]))
        wide = half >= 0.0005 and column != "overshoot"
        cells.append(_cell(mean, column) + (f" ± {_cell(half, column)}" if wide else ""))
    return cells


def _cell(value: float, column: str) -> str:
    if np.isnan(value):
        return "never"
    if column == "overshoot" and value > 1:
        return "has no budget"
    if column == "lead":
        return f"{value:+.3f}"
    return f"{100 * value:.1f} %" if column.startswith(("CPT", "overshoot")) else f"{value:.3f}"


if __name__ == "__main__":
    tyro.cli(main)
