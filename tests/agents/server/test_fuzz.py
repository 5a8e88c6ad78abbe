"""Requests of every kind that the server's own description allows, and many that it does not: no 500, no answer that
is not described. For a longer search: LEEROO_FUZZ_EXAMPLES=2000."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

from agents.server.app import create_app  # noqa: E402
from agents.server.config import ServerConfig  # noqa: E402
from tests.agents.server.running import ADMIN, Running  # noqa: E402

EXAMPLES = int(os.environ.get("LEEROO_FUZZ_EXAMPLES", "25"))
CHECKS: list[Any] = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
DESCRIBED = create_app(ServerConfig(run_dir=Path(), pool=Path(), database="")).openapi()
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
OPERATIONS = [
    (path, method, mode)
    for path, methods in DESCRIBED["paths"].items()
    for method, said in methods.items()
    for mode in ([POSITIVE, NEGATIVE] if "requestBody" in said else [POSITIVE])
]


@pytest.fixture(scope="module")
def secret(server: Running) -> str:
    return server.key("fuzz", 1_000.0)


@pytest.mark.parametrize("path, method, mode", OPERATIONS)
def test_every_answer_is_as_described(server: Running, secret: str, path: str, method: str, mode: Any):
    schema = schemathesis.openapi.from_dict(DESCRIBED)
    headers = {"Authorization": f"Bearer {ADMIN if path in ('/', '/metrics') else secret}"}

    @hypothesis.given(case=schema[path][method].as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), database=None
    )
    def ask(case: Any) -> None:
        case.call_and_validate(base_url=server.url, headers=headers, checks=CHECKS, timeout=30)

    ask()


def test_the_description_is_whole():
    """Every status that a route may answer with is told, and every way to say who asks."""
    named = {name for methods in DESCRIBED["paths"].values() for said in methods.values() for name in said["responses"]}
    asked = [
        one for methods in DESCRIBED["paths"].values() for said in methods.values() for one in said.get("security", [])
    ]
    assert "422" not in named and {name for one in asked for name in one} == set(
        DESCRIBED["components"]["securitySchemes"]
    )
