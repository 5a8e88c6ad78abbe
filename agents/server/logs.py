"""One line of JSON a request on stderr: who, what, how long, how much; neither prompts nor keys."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.server.job import Job

log = logging.getLogger("leeroo.requests")


def set_up() -> None:
    """Sends the lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def request(job: Job | None, status: int, seconds: float) -> None:
    """Writes the line of a finished request; `job` None: it was refused before anything was known of it."""
    line: dict[str, Any] = {"at": round(time.time(), 3), "status": status, "seconds": round(seconds, 4)}
    if job is not None:
        line |= {
            "decision": job.id,
            "key": job.key.name,
            "policy": job.policy,
            "expert": job.expert,
            "attempts": job.reservations,
            "micro_usd": job.cost_micro,
            "stream": bool(job.request.stream),
            "why": job.why,
            "failures": [f"{error.kind}: {error.message}"[:200] for error in job.failures],
        }
    log.info(json.dumps(line))


def event(name: str, **fields: Any) -> None:
    """Writes a line about the server itself."""
    log.info(json.dumps({"at": round(time.time(), 3), "event": name, **fields}))
