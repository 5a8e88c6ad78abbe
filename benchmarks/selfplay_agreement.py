"""How often the answer that several experts agree on is right, and by how much it overrates those that agree.

python benchmarks/selfplay_agreement.py

On the built-in table, whose references are known, estimates from 300 training queries choose which experts to ask about
each other query and weigh the votes, as self-play does with questions that a model has written. Results go to
`benchmarks/AGREEMENT.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from agents.estimators.ensemble import fit_predictor, predict_all
from agents.selfplay.voting import LEAST_SETTLED, rank_voters
from experts.generation.consensus import Consensus, consensus_references
from experts.grading import GRADERS
from experts.spending import not_asked
from experts.types import Answer, Query
from leeroo_env import ExpertTable
from leeroo_env.builtin import DEFAULT, resolve

START = 300
RULES = {
    "all": "all five, equal votes",
    "three": "the three chosen, equal votes",
    "weighed": "the three chosen, weighed by estimated score",
    "likely": f"the same, without questions below a chance of {LEAST_SETTLED:g} (self-play)",
}


@dataclass(frozen=True)
class Vote:
    """What a rule made of n queries.

    Attributes:
        right: [settled], whether the reference is the true one.
        graded, true: [settled, K] scores by the agreed and by the true reference, NaN for those that did not vote.
        usd: of all votes.
    """

    asked: int
    right: np.ndarray
    graded: np.ndarray
    true: np.ndarray
    domains: list[str]
    usd: float


def main(seeds: int = 3) -> None:
    """Writes the results of `seeds` draws of the first queries."""
    torch.set_num_threads(1)
    table = resolve(DEFAULT)
    votes: dict[str, list[Vote]] = {rule: [] for rule in RULES}
    for seed in range(seeds):
        for rule, vote in play(table, seed):
            votes[rule].append(vote)
    n = len(table.rows("train")) - START
    path = Path(__file__).with_name("AGREEMENT.md")
    path.write_text("\n".join(report(table, votes, n)) + "\n")


def play(table: ExpertTable, seed: int) -> Iterator[tuple[str, Vote]]:
    """Every rule on the training queries that are not among the first."""
    rows = np.random.default_rng(seed).permutation(table.rows("train").numpy())[START:]
    split = table.split.clone()
    split[torch.from_numpy(rows)] = 1
    estimates = predict_all(fit_predictor(replace(table, split=split), seed), table)[torch.from_numpy(rows)]
    ranks, chance = rank_voters(estimates)
    score = estimates.score.double().clamp(0.02, 0.98).numpy()
    three = np.zeros(score.shape, dtype=bool)
    np.put_along_axis(three, ranks[:, :3], True, axis=1)
    everyone, likely = np.ones_like(three), chance >= LEAST_SETTLED
    chosen = {"all": everyone, "three": three, "weighed": three, "likely": three & likely[:, None]}
    for rule, asked in chosen.items():
        weight = score if rule in ("weighed", "likely") else np.ones_like(score)
        yield rule, settle(table, rows, asked, weight)


def settle(table: ExpertTable, rows: np.ndarray, asked: np.ndarray, weight: np.ndarray) -> Vote:
    """References of the queries at `rows` [n] by the experts `asked` [n, K] with their `weight` [n, K]."""
    columns = ("query_id", "text", "domain", "reference")
    queries = [Query(**row) for row in table.queries.select(columns).take(rows).to_pylist()]
    outputs = {
        (row["query_id"], row["expert"]): Answer(row["output"], 0, 0, row["cost_usd"], 0.0)
        for row in table.answers.select(("query_id", "expert", "output", "cost_usd")).to_pylist()
    }
    answers = {
        name: [
            outputs[q.query_id, name] if there else not_asked() for q, there in zip(queries, asked[:, k], strict=True)
        ]
        for k, name in enumerate(table.experts)
    }
    weights = dict(zip(table.experts, weight.T.tolist(), strict=True))
    consensus = consensus_references(queries, answers, "exact", weights=weights)
    truth = [queries[i] for i in consensus.rows]
    right = np.array(
        [GRADERS["exact"](q.reference or "", t).score for q, t in zip(consensus.queries, truth, strict=True)]
    )
    usd = sum(answer.cost_usd for given in answers.values() for answer in given)
    graded, true = (_scores(answers, consensus, references) for references in (consensus.queries, truth))
    return Vote(int(asked.any(axis=1).sum()), right, graded, true, [query.domain for query in truth], usd)


def _scores(answers: dict[str, list[Answer]], consensus: Consensus, references: list[Query]) -> np.ndarray:
    """[settled, K], NaN where an expert was not asked."""
    scores = np.full((len(references), len(answers)), np.nan)
    for k, given in enumerate(answers.values()):
        for i, (row, query) in enumerate(zip(consensus.rows, references, strict=True)):
            if not given[row].error:
                scores[i, k] = GRADERS["exact"](given[row].text, query).score
    return scores


def report(table: ExpertTable, votes: dict[str, list[Vote]], n: int) -> list[str]:
    """The results as Markdown."""
    lines = [
        "# References by agreement",
        "",
        f"Of {n:,} training queries of the shipped table, with estimates from {START} others; means of "
        f"{len(votes['all'])} seeds. Made by `python benchmarks/selfplay_agreement.py`. Settled: at least 0.6 of the "
        "weight and two experts agree.",
        "",
        "| voters | asked | settled | of these right | dollars per correctly settled question |",
        "|---|---|---|---|---|",
    ]
    for rule, name in RULES.items():
        some = votes[rule]
        asked, settled = (np.mean([x / n for x in y]) for y in ([v.asked for v in some], [len(v.right) for v in some]))
        right = np.mean([vote.right.mean() for vote in some])
        usd = np.mean([vote.usd / vote.right.sum() for vote in some])
        lines.append(f"| {name} | {100 * asked:.0f} % | {100 * settled:.0f} % | {100 * right:.1f} % | {usd:.2g} |")
    graded, true = (np.concatenate([getattr(vote, of) for vote in votes["likely"]]) for of in ("graded", "true"))
    everything = [float(table.scores[table.split == 0, k].mean()) for k in range(len(table.experts))]
    lines += [
        "",
        "Scores of the voters on what self-play's rule settled, by the reference that they agreed on and by the true "
        "one, and of each expert on all training queries. From the second to the first is the optimism of grading by "
        "one's own vote; from the third to the second, that of leaving out what they differ on.",
        "",
        "| expert | votes | score by agreement | by the true reference | on all queries |",
        "|---|---|---|---|---|",
    ]
    for k, name in enumerate(table.experts):
        share = np.isfinite(graded[:, k]).mean()
        scores = f"{np.nanmean(graded[:, k]):.3f} | {np.nanmean(true[:, k]):.3f} | {everything[k]:.3f}"
        lines.append(f"| {name} | {100 * share:.0f} % | {scores} |")
    domains = np.concatenate([vote.domains for vote in votes["likely"]])
    right = np.concatenate([vote.right for vote in votes["likely"]])
    names = sorted(set(domains.tolist()))
    lines += [
        "",
        "Settled by domain, and of these right:",
        "",
        "| " + " | ".join(names) + " |",
        "|---" * len(names) + "|",
    ]
    cells = [
        f"{(domains == d).sum() // len(votes['likely'])} ({100 * right[domains == d].mean():.0f} %)" for d in names
    ]
    return [*lines, "| " + " | ".join(cells) + " |"]


if __name__ == "__main__":
    tyro.cli(main)
