"""Counts what the server does, for Prometheus; several workers share files where prometheus-client is told so."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client import REGISTRY as OWN
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from agents.server.drift import Drift
    from agents.server.gateway import Gateway
    from agents.server.job import Job
    from agents.server.shadow import Choice

CONTENT_TYPE = CONTENT_TYPE_LATEST
SHARED = "PROMETHEUS_MULTIPROC_DIR"

requests = Counter("leeroo_requests", "Requests by expert and HTTP status", ["expert", "status"])
seconds = Histogram(
    "leeroo_request_seconds",
    "Time of a request, with its calls",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120),
)
dollars = Counter("leeroo_dollars", "Dollars charged to keys, by expert", ["expert"])
attempts = Counter("leeroo_attempts", "Calls to experts")
failures = Counter("leeroo_failures", "Calls that failed, by kind", ["kind"])
texts = Counter("leeroo_texts", "With --keep-texts: answers kept, lost, or left out, by the reason", ["outcome"])
policy_requests = Counter("leeroo_policy_requests", "Answered requests by the policy that decided", ["policy"])
policy_dollars = Counter("leeroo_policy_dollars", "Dollars charged to keys, by the policy that decided", ["policy"])
policy_seconds = Counter("leeroo_policy_seconds", "Time of answered requests, by the policy that decided", ["policy"])
both_decided = Counter("leeroo_both_decided", "Requests about which both policies decided", ["first", "second"])
both_agreed = Counter("leeroo_both_agreed", "Of them, those with the same expert", ["first", "second"])
first_score = Counter("leeroo_first_score", "Of them, the sum of estimated scores, by policy", ["policy"])
first_dollars = Counter("leeroo_first_dollars", "Of them, the sum of estimated dollars, by policy", ["policy"])
breaker = Gauge("leeroo_breaker_open", "Whether an expert is left alone", ["expert"], multiprocess_mode="max")


def request(job: Job | None, status: int, took_s: float) -> None:
    """Counts a finished request."""
    expert = "" if job is None or status != 200 else job.expert
    requests.labels(expert, str(status)).inc()
    seconds.observe(took_s)
    if job is None:
        return
    attempts.inc(job.reservations)
    for error in job.failures:
        failures.labels(error.kind).inc()
    if job.cost_micro:
        dollars.labels(job.expert).inc(job.cost_micro / 1e6)
    if job.policy and status == 200:
        policy_requests.labels(job.policy).inc()
        policy_dollars.labels(job.policy).inc(job.cost_micro / 1e6)
        policy_seconds.labels(job.policy).inc(took_s)


def compared(first: Choice, second: Choice) -> None:
    """Counts what two policies decided about one request."""
    both_decided.labels(first.policy, second.policy).inc()
    both_agreed.labels(first.policy, second.policy).inc(first.expert == second.expert)
    for one in (first, second):
        first_score.labels(one.policy).inc(max(one.score or 0.0, 0.0))
        first_dollars.labels(one.policy).inc(max(one.usd, 0.0))


def exposition(gateway: Gateway, drifts: Sequence[Drift]) -> bytes:
    """All numbers in Prometheus' format; `drifts`: how experts have changed."""
    for name in gateway.by_name:
        breaker.labels(name).set(gateway.is_open(name))
    registry = OWN
    if SHARED in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    drifting = CollectorRegistry()
    drifting.register(_Drifts(drifts))
    return generate_latest(registry) + generate_latest(drifting)


def forget(names: Iterable[str]) -> None:
    """Reports of experts that are gone no more that they are left alone."""
    for name in names:
        breaker.labels(name).set(0)


class _Drifts(Collector):
    """What is read from the database each time, the same in all workers."""

    def __init__(self, drifts: Sequence[Drift]):
        self._drifts = drifts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["expert", "what", "against"]
        told = "Change in 2 days: a difference of feedback, else a ratio less 1"
        change = GaugeMetricFamily("leeroo_drift", told, labels=labels)
        changed = GaugeMetricFamily("leeroo_drift_changed", "Whether it is large and no chance", labels=labels)
        for one in self._drifts:
            change.add_metric([one.expert, one.what, one.against], one.change)
            changed.add_metric([one.expert, one.what, one.against], one.verdict == "changed")
        yield change
        yield changed
