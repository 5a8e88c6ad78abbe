"""Counts what the server does, for Prometheus; several workers share files where prometheus-client is told so."""

from __future__ import annotations

import os
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

if TYPE_CHECKING:
    from agents.server.gateway import Gateway, Job

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


def exposition(gateway: Gateway) -> bytes:
    """All numbers in Prometheus' format."""
    for name in gateway.by_name:
        breaker.labels(name).set(gateway.is_open(name))
    if SHARED not in os.environ:
        return generate_latest(OWN)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return generate_latest(registry)
