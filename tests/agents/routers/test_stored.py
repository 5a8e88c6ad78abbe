"""Every router of a report can be stored without pickle and deployed, and chooses as it did in the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from agents import Orchestrator
from agents.estimators.ensemble import Predictor, fit_predictor, table_estimates
from agents.evaluation.evaluate import evaluate
from agents.policies.bid_price import estimate_features
from agents.policies.description import NO_ALGORITHM, describe_policy
from agents.routers import Router, multi_call_routers, one_call_routers
from agents.routers.boosted import Trees, TwoStageTrees
from agents.routers.registry import fit_estimator, router_names
from agents.routers.stored import FILES, StoredRouter, load_router, save_router
from agents.training.config import TrainConfig
from leeroo_env import ExpertTable, InputError, dynamics
from leeroo_env.manifest import MANIFEST
from tests.synthetic import doubting_table

HORIZON = 12
ONE_CALL, SEVERAL = router_names(), router_names(3)[-4:]


@pytest.fixture(scope="module")
def table() -> ExpertTable:
    rng = np.random.default_rng(0)
    return doubting_table(n=360, domains=rng.choice(["a", "b", "c"], size=360).tolist())


@pytest.fixture(scope="module")
def predictor(table: ExpertTable) -> Predictor:
    return fit_predictor(table)


@pytest.fixture(scope="module")
def routers(table: ExpertTable, predictor: Predictor) -> dict[str, Router]:
    with pytest.MonkeyPatch.context() as patch:
        for name, few in {"LOADING_STEPS": 20, "STEPS": 40, "BATCH": 200}.items():
            patch.setattr(f"agents.policies.answer_model.{name}", few)
        several = multi_call_routers(table, table_estimates(table, predictor), 3)
    return one_call_routers(table, HORIZON) | several


def stored(directory: Path, name: str, table: ExpertTable, routers: dict[str, Router], predictor: Predictor) -> Path:
    """The run directory of a router."""
    rules = dynamics.make_rules(table, max_calls=routers[name].max_calls)
    description = describe_policy(rules, NO_ALGORITHM, {}, "router")
    save_router(directory / "policy", routers[name], fit_estimator(name, table, 0, predictor), description)
    return directory


def test_the_names_are_those_of_the_report(routers: dict[str, Router]):
    assert sorted(routers) == sorted(router_names(3))


@pytest.mark.parametrize("name", [*ONE_CALL, *SEVERAL])
def test_a_stored_router_plays_as_the_one_that_was_stored(
    name: str, table: ExpertTable, routers: dict[str, Router], predictor: Predictor, tmp_path: Path
):
    """On test, whose estimates are made anew from the embeddings."""
    rules = dynamics.make_rules(table, "test", HORIZON, max_calls=routers[name].max_calls)
    budgets = dynamics.budget_grid(rules)
    before = evaluate(routers[name], rules, budgets, episodes=16)  # which tunes fixed prices for these budgets
    orchestrator = Orchestrator.load(stored(tmp_path, name, table, routers, predictor))
    assert orchestrator.experts == list(table.experts) and orchestrator.max_calls == routers[name].max_calls
    after = evaluate(orchestrator.router(table), rules, budgets, episodes=16)
    if name.startswith("fixed price"):  # its price is that of what is left, not of the episode's budget
        assert abs(after.mean_score - before.mean_score) < 0.1
    else:
        assert np.mean(after.chosen == before.chosen) > 0.999, "estimates may differ in their last bits"
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == sorted((*FILES, MANIFEST))


@pytest.mark.parametrize("name", ["best mixture", "paced domain means", "fixed price kNN", "cascade routing"])
def test_it_chooses_for_single_queries(
    name: str, table: ExpertTable, routers: dict[str, Router], predictor: Predictor, tmp_path: Path
):
    rules = dynamics.make_rules(table, "test", HORIZON)
    evaluate(routers[name], rules, dynamics.budget_grid(rules), episodes=2)
    orchestrator = Orchestrator.load(stored(tmp_path, name, table, routers, predictor))
    embeddings = table.embeddings[:40].numpy()
    chosen = [int(orchestrator.choose(row[None], 0.02, 40, domains=["a"])[0]) for row in embeddings]
    assert set(chosen) <= {0, 1, 2}
    if name == "best mixture":
        assert len(set(chosen)) > 1, "it draws lots anew for every query"
    orchestrator.save(tmp_path / "again")
    again = Orchestrator.load(tmp_path / "again")
    assert again.experts == orchestrator.experts
    with pytest.raises(InputError, match="add_expert"):
        orchestrator.add_expert("new", embeddings, np.ones(40), np.ones(40))


def test_the_domain_decides_where_it_is_known(
    table: ExpertTable, routers: dict[str, Router], predictor: Predictor, tmp_path: Path
):
    _, estimator = load_router(stored(tmp_path, "paced domain means", table, routers, predictor) / "policy")
    same = torch.zeros(4, table.embeddings.shape[1])
    found = estimator.predict(same, domains=["a", "b", "nowhere", ""]).score
    assert not torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])
    assert torch.equal(estimator.predict(same).score[0], found[2])


def tree_inputs(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 5)).round(1).astype(np.float32)  # with ties


def test_trees_predict_as_scikit_learns_to_the_bit():
    from sklearn.ensemble import HistGradientBoostingRegressor

    x = tree_inputs(600, 0)
    y = np.sin(3 * x[:, 0]) + (x[:, 1] > 0.3) * x[:, 2]
    fitted = HistGradientBoostingRegressor(max_iter=40, max_leaf_nodes=8, random_state=0).fit(x, y)
    trees = Trees.of(fitted)
    for part in (x, tree_inputs(500, 1)):
        np.testing.assert_array_equal(trees.predict(torch.from_numpy(part)).numpy(), fitted.predict(part))
    constant = Trees.of(HistGradientBoostingRegressor(max_iter=3).fit(x, np.ones(600)))
    assert constant.predict(torch.from_numpy(x)).unique().tolist() == [1.0]


def test_two_stage_trees_are_stored_as_tensors(routers: dict[str, Router]):
    router = routers["two-stage trees"]
    assert isinstance(router, TwoStageTrees) and all(isinstance(one, Trees) for one in router.trees.values())


def other_class(packed: dict) -> None:
    packed["router"]["class"] = "Popen"


def no_field(packed: dict) -> None:
    packed["router"]["fields"] = {"mean_cost_usd": {"tensor": "nowhere"}}


def no_router(packed: dict) -> None:
    packed["router"] = packed["estimator"]


@pytest.mark.parametrize("breaks", [other_class, no_field, no_router])
def test_a_broken_file_is_one_line(
    breaks: Callable[[dict], None],
    table: ExpertTable,
    routers: dict[str, Router],
    predictor: Predictor,
    tmp_path: Path,
):
    directory = stored(tmp_path, "paced kNN", table, routers, predictor) / "policy"
    path = directory / "router.json"
    packed = json.loads(path.read_text())
    breaks(packed)
    path.write_text(json.dumps(packed))
    with pytest.raises(InputError, match=r"router\.json"):
        load_router(directory)  # by its hash
    (directory / MANIFEST).unlink()
    with pytest.raises(InputError) as error:
        load_router(directory)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_router_of_the_report_is_not_stored(table: ExpertTable, predictor: Predictor, tmp_path: Path):
    class Own(Router):
        def choose(self, context):
            raise NotImplementedError

    rules = dynamics.make_rules(table)
    with pytest.raises(InputError, match="Own cannot be stored"):
        save_router(tmp_path / "policy", Own(), predictor, describe_policy(rules, NO_ALGORITHM, {}, "router"))
    assert not (tmp_path / "policy").exists()


def test_train_makes_a_directory_with_a_router(small_synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    config = TrainConfig(str(small_synthetic), agent="planned kernel ridge", horizon=16)
    assert train.run(replace(config, run_dir=str(tmp_path / "run"))) == 0
    assert "deploy: " in capsys.readouterr().out
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    name, *others = evaluation["routers"]
    assert name == "planned kernel ridge" and "agent" not in others
    report = (tmp_path / "run/report.md").read_text()
    assert "this router is computed, not trained" in report and "**Deploy " in report
    orchestrator = Orchestrator.load(tmp_path / "run")
    table = ExpertTable.load(small_synthetic)
    rules = dynamics.make_rules(table, "test", 16)
    played = evaluate(orchestrator.router(table), rules, evaluation["budgets_usd"])
    assert played.score == pytest.approx(evaluation["routers"][name]["score"], abs=0.002)


def test_a_router_that_there_is_not_is_one_line(small_synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    run_dir = str(tmp_path / "run")
    assert train.main(["--agent", "paced knn", "--run-dir", run_dir]) == 2
    assert "agent 'paced knn': no such router; did you mean 'paced kNN'?" in capsys.readouterr().err
    assert train.main(["--agent", "cascade", "--max-calls", "1", "--run-dir", run_dir]) == 2, "it asks several experts"
    assert "no such router" in capsys.readouterr().err
    assert train.main(["--table", str(small_synthetic), "--agent", "cascade", "--run-dir", run_dir]) == 2
    assert "agent cascade: compares the answers of several experts" in capsys.readouterr().err
    assert train.main(["--agent", "paced kNN", "--seeds", "2", "--run-dir", run_dir]) == 2
    assert "--seeds 2" in capsys.readouterr().err


def test_a_stored_router_observes_what_the_agent_does(
    table: ExpertTable, routers: dict[str, Router], predictor: Predictor, tmp_path: Path
):
    """Estimated scores and costs side by side, as the session and the orchestrator hand them on."""
    router, estimator = load_router(stored(tmp_path, "paced kNN", table, routers, predictor) / "policy")
    assert isinstance(router, StoredRouter)
    features = estimate_features(estimator.predict(table.embeddings[:3]), router.cost_scale)
    assert features.shape == (3, 6) and float(features[:, 3:].max()) < 1.5
