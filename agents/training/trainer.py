"""The training recipe: estimates → rules → model → plan → learning → evaluation, for every program that trains."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import asdict, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor
from tqdm import tqdm

from agents.distributed import ALONE, Processes
from agents.estimators.ensemble import Predictor, fit_predictor, table_estimates
from agents.estimators.evidence import VOTE_WEIGHT, EvidenceModel, fit_evidence, updated
from agents.evaluation.data import data_lines
from agents.evaluation.decision import (
    AGENT,
    LEAST_GAIN,
    ONE_CALL,
    SEVERAL_CALLS,
    CallsChoice,
    best_router,
    choose_calls,
    mean_interval,
)
from agents.evaluation.evaluate import Result, episodes_for, evaluate
from agents.evaluation.headline import Decision, Training, algorithm_name, headline
from agents.evaluation.report import Budgets, Played, Report, play, report_budgets, write_report
from agents.policies.answer_model import AnswerModel, fit_answer_model
from agents.policies.bid_price import BidPricePolicy, estimate_features
from agents.policies.description import NO_ALGORITHM, PolicyDescription, describe_policy
from agents.policies.io import load_policy, save_policy, save_predictor
from agents.policies.multi_call import MultiCallPolicy, start_from_plan
from agents.progress import Bars, silent
from agents.routers import Router, multi_call_routers, one_call_routers
from agents.routers.policy import PolicyRouter
from agents.routers.registry import MULTI_CALL, fit_estimator
from agents.routers.stored import save_router
from agents.training.baselines import Baselines
from agents.training.callbacks import VAL_QUERIES, WARM_UP, Interrupted, Monitor, Progress, stop_on_interrupt
from agents.training.checkpoint import latest_checkpoint, restore_checkpoint
from agents.training.config import TrainConfig
from agents.training.factory import make_model
from agents.training.parallel import lead, own_rules
from agents.training.runtime import Laps, arrays_of, generators_restored, in_background, load_arrays
from agents.training.tensorboard import tensorboard_logger, test_scalars
from agents.training.trials import search_section
from leeroo_env import ExpertTable
from leeroo_env.dynamics import COST_WEIGHT, HORIZON, Rules, make_rules

ONE_CALL_DIR, SEVERAL_CALLS_DIR = "one-call", "several-calls"  # in a run directory, where one of them is kept
CALLS_QUERIES = 4_096  # played at a budget to decide that
DECIDES_ROUTERS = ("table", "experts", "horizon", "budget", "max_calls", "seed")  # settings that do


class Trainer:
    """One agent: `prepare` makes it, `fit` trains it, `evaluate` plays it on test.

    Attributes:
        config: the settings.
        table: the experts' scores and costs.
        policy_kind: "bid-price" or "mlp".
        max_calls: the most calls of a query.
        one_call: trains an agent that makes one, where `config.max_calls` is auto and that may be several: train and
            val decide whether several calls are trained, too, and which of the two is kept.
        predictor: estimates scores and costs of queries.
        estimates: those of all N rows of the table; of the training rows they are out of fold.
        features: [N, F], what a bid-price policy observes of each query; None: the embeddings.
        processes: that train together, of which this is the first.
        laps: how long the phases of the run took.
        answer_model: of the policy of several calls; None: there is none, or none yet.
        model: the algorithm on its environment; made by `begin`, as are the next two.
        hyperparameters: those that the algorithm was made with.
        description: what `policy.json` says of the policy.
        start: the policy before training; made by `prepare`.
        calls: why several calls are not trained; None: they are.
    """

    model: BaseAlgorithm
    hyperparameters: dict[str, Any]
    description: PolicyDescription
    start: PolicyRouter
    calls: CallsChoice | None = None

    def __init__(
        self,
        config: TrainConfig,
        table: ExpertTable,
        predictor: Predictor | None = None,
        bars: Bars = silent,
        processes: Processes = ALONE,
        laps: Laps | None = None,
    ):
        """Fits the predictor, unless one fitted to this table is given. `bars` show the progress. Of the `processes`,
        which train together, this is the first. `laps` go on. Raises InputError for settings that make no sense."""
        self.processes, self.laps = processes, laps or Laps()
        self.config, self.table, self.policy_kind, self.bars = config, table, config.policy_kind(), bars
        self.max_calls = config.most_calls(table)
        self.predictor = predictor or fit_predictor(table, config.seed)
        self.estimates = table_estimates(table, self.predictor)
        bid_price = self.policy_kind == "bid-price"
        self.features = estimate_features(self.estimates, table.cost_scale()) if bid_price else None
        several = bid_price and self.max_calls > 1 and config.agent == AGENT  # routers are deployed without it
        self._evidence = in_background(self._fit_evidence) if several else None
        self.answer_model: AnswerModel | None = None
        self._plan: Iterator[dict[str, np.ndarray]] | None = None
        self._data: Iterator[list[str]] | None = None
        self.one_call: Trainer | None = None
        if config.max_calls == "auto" and config.agent == AGENT and self.max_calls > 1:
            self.one_call = copy(self)
            self.one_call.config, self.one_call.max_calls = replace(config, max_calls=1, tuned={}), 1
            self.one_call._evidence = None

    def _fit_evidence(self) -> Iterator[tuple[tuple[str, ...], dict[str, np.ndarray], np.ndarray] | None]:
        fitted = fit_evidence(self.table, self.predictor.rows, self.estimates, self.config.seed)
        yield fitted and (fitted[0].columns, arrays_of(fitted[0]), fitted[1].cpu().numpy())

    @cached_property
    def fitted_evidence(self) -> tuple[EvidenceModel, Tensor] | None:
        """What `fit_evidence` returns, which is waited for; None also where one call is made."""
        fitted = next(self._evidence) if self._evidence is not None else None
        self._evidence = None
        if fitted is None:
            return None
        columns, state, evidence = fitted
        model = EvidenceModel(columns, len(self.table.experts)).to(self.table.device).requires_grad_(False)
        load_arrays(model, state)
        return model, torch.from_numpy(evidence).to(self.table.device)

    @property
    def evidence_model(self) -> EvidenceModel | None:
        """Estimates the evidence; None where there is none."""
        return self.fitted_evidence and self.fitted_evidence[0]

    @property
    def evidence(self) -> Tensor | None:
        """[N, K], what calls tell of their answers; None: nothing. Of training rows it is out of fold."""
        return self.fitted_evidence and self.fitted_evidence[1]

    def training_rules(self) -> Rules:
        """Rules of training episodes."""
        config = self.config
        return self._rules("train", config.horizon, config.budget, config.cost_weight)

    def held_out_rules(self, split: str) -> Rules:
        """Rules of an evaluation on a split, whose horizon is at most the number of queries there."""
        return self._rules(split, self._horizon(split))

    def _horizon(self, split: str) -> int:
        return min(self.config.horizon, len(self.table.rows(split)))

    def _rules(
        self, split: str, horizon: int, budget: tuple[float, ...] = (), cost_weight: float = COST_WEIGHT
    ) -> Rules:
        reliability = self.estimates.reliability()
        if self.evidence is not None:
            reliability = updated(reliability, self.evidence, VOTE_WEIGHT)
        return make_rules(
            self.table,
            split,
            horizon,
            budget or None,
            cost_weight,
            self.max_calls,
            reliability,
            self.features,
            self.evidence,
        )

    def begin(self) -> None:
        """Makes the model, and begins to compute the plan that a bid-price policy starts from."""
        config, rules = self.config, self.training_rules()
        own = own_rules(rules, self.processes)
        self.model, self.hyperparameters = make_model(config, self.policy_kind, own, self.processes)
        network = self.hyperparameters["policy_kwargs"]
        self.description = describe_policy(rules, config.algo, network, self.policy_kind, config.hide_budget)
        if self.evidence_model is not None:
            columns = {"evidence_columns": self.evidence_model.columns}
            self.description = self.description.model_copy(update=columns)
        if isinstance(self.model.policy, MultiCallPolicy):
            rows, chance = self.predictor.rows, self.predictor.out_of_fold.score
            self.answer_model = fit_answer_model(self.table, rows, chance, config.seed, rules.evidence[rows])
        if isinstance(self.model.policy, BidPricePolicy):
            self._plan = in_background(lambda: self._starting_policy(rules))

    def _starting_policy(self, rules: Rules) -> Iterator[dict[str, np.ndarray]]:
        policy: Any = self.model.policy
        known = (self.predictor.rows, self.predictor.out_of_fold, self.config.seed, self.answer_model)
        start_from_plan(policy, rules, *known)
        yield arrays_of(policy)

    def prepare(self) -> None:
        """Makes the model, unless `begin` has; a bid-price policy starts from the plan that follows from the estimates.
        Does nothing the second time."""
        if hasattr(self, "start"):
            return
        if not hasattr(self, "model"):
            self.begin()
        policy: Any = self.model.policy
        if self._plan is not None:
            with self.bars("starting policy", 1) as bar:
                load_arrays(policy, next(self._plan))
                bar.update()
            self._plan = None
        if self.answer_model is not None:
            policy.set_models(self.answer_model.models)
        start = deepcopy(policy)
        start.set_training_mode(False)
        self.start = PolicyRouter(start, self.description, self.features)
        self.laps.end("starting policy")

    def budgets(self) -> Budgets:
        """Those of evaluations: the user's, else a grid from the cheapest to the most expensive expert."""
        return report_budgets(make_rules(self.table, "val", self._horizon("val")), self.config.budget)

    def val(self) -> Played:
        """The episodes on val that the agent is evaluated on while it trains."""
        return Played(self.held_out_rules("val"), "val", self.budgets(), queries=VAL_QUERIES)

    def test(self) -> Played:
        """Those on test."""
        return Played(self.held_out_rules("test"), "test", self.budgets(), self.config.seed)

    def baselines(self, routers: dict[str, Router]) -> Baselines:
        """Begins to play the `routers` of one call on these episodes."""
        begun, one = Baselines(self.bars), self.one_call or self  # which does not wait for the evidence
        begun.begin(lambda: routers, one.val(), one.test())
        return begun

    @property
    def router(self) -> PolicyRouter:
        """The policy as it stands."""
        return PolicyRouter(self.model.policy, self.description, self.features)

    def kept_router(self, run_dir: Path) -> PolicyRouter:
        """The policy that `fit` kept. Raises InputError where there is none."""
        policy, description = load_policy(self._policy_dir(run_dir), self.table.device)
        return PolicyRouter(policy, description, self.features)

    def _policy_dir(self, run_dir: Path) -> Path:
        """Where `fit` keeps the policy; until one of two is chosen beside what the run directory delivers."""
        return run_dir / (SEVERAL_CALLS_DIR if self.one_call else "") / "policy"

    def begin_multi_call_routers(self, baselines: Baselines) -> None:
        """Begins to fit and play the routers that may ask several experts about a query, half of the work at a time."""
        val, test = self.val(), self.test()
        for names in (MULTI_CALL[:3], MULTI_CALL[3:]):
            baselines.begin(partial(self.multi_call_routers, names), val, test)

    def multi_call_routers(self, names: Sequence[str] = MULTI_CALL) -> dict[str, Router]:
        """The routers that may ask several experts about a query, from the same estimates as the agent."""
        fitted = (self.answer_model, self.bars, self.evidence)
        return multi_call_routers(self.table, self.estimates, self.max_calls, self.config.seed, *fitted, names)

    def fit(self, run_dir: Path, baselines: Baselines, checkpoint: Path | None = None) -> bool:
        """Trains to `config.timesteps`, writing checkpoints, curves, and the policy that is best on val; before that
        the agent of one call, if there is one; then several calls are trained where their plan gains enough.

        Args:
            run_dir: where to write.
            baselines: what the agent is compared with; the first group makes one call a query.
            checkpoint: where to go on from; None: from the start.

        Returns:
            False where the user stopped the run, which has been saved.
        """
        if self.one_call is not None and not self._fit_one_call(self.one_call, run_dir, baselines):
            return False
        self.prepare()
        model, timesteps = self.model, self.config.timesteps
        if checkpoint is None and not self._worth_training():
            model.set_logger(tensorboard_logger(run_dir, resumed_at=0))
            start = self.description.model_copy(update={"step": 0})
            save_policy(self._policy_dir(run_dir), model.policy, start, self.predictor, self.evidence_model)
            return True
        groups, budgets = 1 if self.max_calls == 1 else None, self.budgets().main

        def others(wait: bool) -> dict[str, Result]:
            if not (wait or baselines.ready(groups)):
                return {}
            self.laps.end("training")
            val = replace(self.val(), all=baselines.on_val(groups))
            self.laps.end("other routers")
            return val.main

        iteration = self.hyperparameters["n_envs"] * getattr(model, "n_steps", self.config.horizon)
        monitor = Monitor(
            run_dir,
            self._policy_dir(run_dir),
            self.held_out_rules("val"),
            budgets,
            others,
            self.start,
            self.description,
            {**asdict(self.config), **self.hyperparameters, "policy": self.policy_kind},
            timesteps,
            max(timesteps // (10 if self.max_calls == 1 else 5), iteration),  # several calls take longer to evaluate
            iteration,
            self.processes,
        )
        if checkpoint is not None:
            monitor.progress = restore_checkpoint(checkpoint, model, Progress)
        if self.policy_kind == "bid-price":
            save_predictor(self._policy_dir(run_dir), self.predictor, self.evidence_model)
        model.set_logger(tensorboard_logger(run_dir, resumed_at=model.num_timesteps))
        if self.processes.world > 1:
            lead(self.processes, self.config, self.policy_kind, self.training_rules(), model)
        undo = stop_on_interrupt(monitor)
        try:
            remaining = max(0, timesteps - model.num_timesteps)
            never: Any = None  # SB3 has no other way to log by callbacks alone
            model.learn(remaining, callback=monitor, log_interval=never, reset_num_timesteps=checkpoint is None)
        except Interrupted:
            model.logger.close()
            return False
        finally:
            undo()
            monitor.close()
        self.laps.end("training")
        return True

    def _fit_one_call(self, one: Trainer, run_dir: Path, baselines: Baselines) -> bool:
        """`fit` of the agent of one call, in a directory of its own; its policy is that of the run until one is chosen.
        The training that follows is the same as without it."""
        own = run_dir / ONE_CALL_DIR
        with generators_restored():
            tqdm.write(f"training with one call a query; the plan of up to {self.max_calls} is made meanwhile")
            done = one.fit(own, baselines, latest_checkpoint(own / "checkpoints"))
        one.model.logger.close()
        if done and not (run_dir / "policy").exists():
            one._keep(one.kept_router(own), run_dir)
        return done

    def _choose_calls(self, several: PolicyRouter, one: PolicyRouter) -> CallsChoice:
        """Which of the two does better on train and val: the estimates of training queries are out of fold, and val
        alone has too few to tell."""
        rules, budgets = self.held_out_rules("val"), self.budgets().main
        rules = replace(rules, rows=torch.cat([self.table.rows("train"), rules.rows]))
        number = episodes_for(rules, CALLS_QUERIES)
        results = [evaluate(router, rules, budgets, number) for router in (several, one)]
        return choose_calls(budgets, results[0], results[1], self.max_calls)

    def _worth_training(self) -> bool:
        """Whether the plan of several calls gains enough over that of one, if there is an agent of one call: training
        rarely makes up for what a plan lacks. If not, the choice between the two is made."""
        if self.one_call is None or self.config.tuned:
            return True
        plans = self._choose_calls(self.start, self.one_call.start)
        worth = plans.gain >= LEAST_GAIN
        self.calls = None if worth else replace(plans, several=False, trained=False)
        tqdm.write(
            f"the plan of up to {self.max_calls} calls scores {plans.gain:+.4f} over that of one on train and val: "
            f"several calls are {'' if worth else 'not '}trained"
        )
        return worth

    def _keep(self, agent: PolicyRouter, run_dir: Path) -> None:
        """Makes it the policy that `Orchestrator.load` finds."""
        evidence = self.evidence_model if agent.max_calls > 1 else None
        save_policy(run_dir / "policy", agent.policy, agent.description, self.predictor, evidence)

    def evaluate(self, run_dir: Path, routers: dict[str, Router], baselines: Baselines) -> Decision:
        """Decides, where `fit` made two agents, which is kept; plays it, its start and the other one on test,
        chooses what to deploy by the results on val, and writes the report, beside the `routers` of one call and the
        baselines' results."""
        kept, agent = self, self.kept_router(run_dir)
        other: dict[str, PolicyRouter] = {}
        calls: CallsChoice | None = None
        if self.one_call is not None:
            one = self.one_call.kept_router(run_dir / ONE_CALL_DIR)
            calls = self.calls or self._choose_calls(agent, one)
            other = {ONE_CALL: one}
            if not calls.several:
                kept, agent, other = self.one_call, one, {SEVERAL_CALLS: agent}
            self._keep(agent, run_dir)
        val = play({AGENT: agent}, self.val())
        test, training = kept._play_agent_on_test(agent, other)
        self.laps.end("evaluation")
        val = replace(val, all=val.all | baselines.on_val())
        test = replace(test, all=test.all | baselines.on_test())
        training = replace(training, calls=calls)
        self.laps.end("other routers")
        decision = self._report(run_dir, AGENT, {AGENT: agent, **routers}, val, test, training)
        self.laps.end("report")
        self._log_end(test, decision, best_router(val.main))
        return decision

    def _play_agent_on_test(self, agent: PolicyRouter, other: dict[str, PolicyRouter]) -> tuple[Played, Training]:
        """The agent, what it was before training, and the other one on test; what training did."""
        step, before = agent.description.step or 0, f"{AGENT} before {algorithm_name(self.config.algo)}"
        begun = {before: self.start} if step > 0 else {}
        test = play({AGENT: agent, **begun, **other}, self.test(), self.bars)
        start = "the plan computed from the estimates" if self.policy_kind == "bid-price" else "an untrained network"
        training = Training(self.config.algo, start, self.model.num_timesteps, step)
        if step > 0:
            own, started = test.main[AGENT], test.main[before]
            gain = mean_interval((own.scored - started.scored).mean(axis=0), own.rows[0])
            return test, replace(training, gain=gain)
        same = replace(test, all={name: test.all[AGENT] for name in (AGENT, before)})
        return same.beside(test), training

    def deploy(self, run_dir: Path, routers: dict[str, Router]) -> Decision:
        """Stores the router `config.agent` for `Orchestrator.load`, and reports on it beside the others. Nothing is
        trained."""
        config, name = self.config, self.config.agent
        routers = {name: routers[name], **routers}
        val, test = (play(routers, episodes, self.bars) for episodes in (self.val(), self.test()))
        rules = replace(self.training_rules(), max_calls=routers[name].max_calls)
        estimator = fit_estimator(name, self.table, config.seed, self.predictor)
        description = describe_policy(rules, NO_ALGORITHM, {}, "router")
        save_router(run_dir / "policy", routers[name], estimator, description)
        return self._report(run_dir, name, routers, val, test, Training(None, "this router is computed, not trained"))

    def report_on(self, router: Router, run_dir: Path, routers: dict[str, Router]) -> Decision:
        """Plays a policy of the user's own beside the routers, and writes the report."""
        routers = {AGENT: router, **routers}
        val, test = (play(routers, episodes, self.bars) for episodes in (self.val(), self.test()))
        return self._report(run_dir, AGENT, routers, val, test, Training(None, "the policy was given as it is"))

    def _report(
        self,
        run_dir: Path,
        subject: str,
        routers: dict[str, Router],
        val: Played,
        test: Played,
        training: Training,
    ) -> Decision:
        config = self.config
        notes = f"Seed {config.seed}. {training.start.capitalize()}."
        if training.algorithm:
            notes = (
                f"Made with `{config.algo}` and the {self.policy_kind} policy, seed {config.seed}, "
                f"{training.steps:,} steps; kept is the state at step {training.kept_step:,}, the best on "
                "val. `config.yaml` has all settings."
            )
        notes = "\n\n".join([*search_section(run_dir), notes])
        return write_report(
            run_dir,
            Report(
                subject=subject,
                routers=routers,
                val=val,
                test=test,
                estimates=self.estimates,
                training=training,
                horizon={"train": config.horizon, "val": val.rules.horizon, "test": test.rules.horizon},
                command=deploy_command(config),
                notes=notes,
                data=next(self._data or self._data_lines()),
            ),
        )

    def begin_report(self) -> None:
        """Begins what the report says of the data, which needs no agent."""
        self._data = in_background(self._data_lines)

    def _data_lines(self) -> Iterator[list[str]]:
        yield data_lines(self.table, self.predictor, self.budgets().main, self.max_calls, self.config.seed)

    def _log_end(self, test: Played, decision: Decision, rival: str | None) -> None:
        """Test scores and the decision, for TensorBoard."""
        logger, gain = self.model.logger, decision.training.gain
        for tag, value in test_scalars(test.main, gain.mean if gain else 0.0, rival).items():
            logger.record(tag, value)
        logger.record("decision", "\n".join(headline(decision, self.table, deploy_command(self.config))))
        logger.dump(self.model.num_timesteps)
        logger.close()

    def learn(self, timesteps: int) -> None:
        """Trains without evaluations and files: first the critic alone, then all of the policy."""
        if timesteps == 0:
            return
        policy: Any = self.model.policy
        warm_up = int(WARM_UP * timesteps)
        policy.train_actor(False)
        self.model.learn(warm_up)
        policy.train_actor(True)
        self.model.learn(timesteps - warm_up, reset_num_timesteps=False)

    def save(self, run_dir: Path) -> None:
        """Writes the policy as it stands, and what it needs, for `Orchestrator.load`."""
        predictor = self.predictor if self.policy_kind == "bid-price" else None
        save_policy(run_dir / "policy", self.model.policy, self.description, predictor, self.evidence_model)


def deploy_command(config: TrainConfig) -> str:
    """The command that makes a run directory with a router of the report, NAME standing for its name."""
    options = ["leeroo", "train"]
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        if field.name in DECIDES_ROUTERS and value != field.default:
            words = [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
            options += [f"--{field.name.replace('_', '-')}", *words]
    return f"{shlex.join(options)} --agent NAME"


def report_on(
    router: Router,
    table: ExpertTable,
    run_dir: str | os.PathLike,
    horizon: int = HORIZON,
    seed: int = 0,
    budget: tuple[float, ...] = (),
) -> Decision:
    """The report on any policy beside all routers: `evaluation.json`, `curve.png` and `report.md` in a directory.

    Args:
        router: such as `agents.routers.from_function` makes of a policy; without `features` it observes embeddings.
        table: what it was trained on; val and test are played.
        run_dir: where to write.
        horizon: queries an episode.
        seed: of the routers and the episodes.
        budget: dollars a query, one or a range; by default a grid from the cheapest to the most expensive expert.
    """
    config = TrainConfig(policy="mlp", horizon=horizon, seed=seed, budget=budget, max_calls=router.max_calls)
    trainer = Trainer(config, table)
    routers = one_call_routers(table, horizon, seed)
    if router.max_calls > 1:
        routers |= trainer.multi_call_routers()
    return trainer.report_on(router, Path(run_dir), routers)
