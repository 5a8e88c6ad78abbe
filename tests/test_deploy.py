"""The files for containers and systemd say what the program understands. No container is built or run here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.server.app import create_app
from agents.server.config import ADMIN_KEY, ServerConfig
from agents.server.defaults import DATABASE
from tests.test_docs import OPTION, ROOT, help_of

DEPLOY = ROOT / "examples" / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNIT = DEPLOY / "leeroo.service"
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
ROUTES = {getattr(route, "path", "") for route in create_app(ServerConfig(run_dir=ROOT, pool=ROOT, database="")).routes}


def instructions(name: str) -> list[str]:
    """What follows an instruction of the Dockerfile, each time it is given."""
    return re.findall(rf"^{name} +(.+)$", DOCKERFILE, re.MULTILINE)


def exec_start() -> list[str]:
    (line,) = re.findall(r"^ExecStart=(.+)$", UNIT.read_text(), re.MULTILINE)
    return shlex.split(line)


@pytest.mark.parametrize(
    "words",
    [
        [*json.loads(instructions("ENTRYPOINT")[0]), *COMPOSE["services"]["leeroo"]["command"]],
        ["leeroo", *exec_start()[1:]],
    ],
)
def test_the_server_is_started_with_options_that_it_has(words: list[str]):
    assert words[:2] == ["leeroo", "serve"] and not words[2].startswith("-")
    options = [word for word in words if word.startswith("--")]
    assert "--pool" in options
    for option in options:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_of("leeroo", "serve")), option


@pytest.mark.parametrize("path", [ROOT / "Dockerfile", *sorted(DEPLOY.iterdir())], ids=lambda path: path.name)
def test_commands_in_comments_exist(path: Path):
    for command, line in re.findall(r"leeroo (serve|keys \w+)([^\n]*)", path.read_text()):
        text = help_of("leeroo", *command.split())
        for option in OPTION.findall(line):
            assert option in text, f"leeroo {command}: no option {option}"


def test_the_image_has_what_it_copies_and_the_extras_that_it_installs():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in instructions("COPY"):
        if not line.startswith("--from"):
            for name in line.split()[:-1]:
                assert (ROOT / name).exists() and f"!{name.removeprefix('./')}" in ignored, name
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", DOCKERFILE, re.MULTILINE)
    known = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(extras.split(",")) <= set(known)


def test_health_and_metrics_are_asked_for_where_they_are():
    (health,) = re.findall(r"http://127.0.0.1:8000(/\w+)", DOCKERFILE)
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert {health, scraped["metrics_path"]} <= ROUTES
    assert scraped["static_configs"][0]["targets"] == ["leeroo:8000"] and "leeroo" in COMPOSE["services"]


def test_prometheus_reads_the_admin_key_from_its_secret():
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    secret = Path(scraped["authorization"]["credentials_file"])
    assert secret.name in COMPOSE["services"]["prometheus"]["secrets"]
    assert COMPOSE["secrets"][secret.name] == {"environment": ADMIN_KEY}


def test_compose_mounts_read_only_what_the_entry_point_reads():
    service = COMPOSE["services"]["leeroo"]
    mounts = [re.sub(r"\$\{[^}]*\}", "$", mount).split(":") for mount in service["volumes"]]
    targets = {mount[1]: mount[2:] for mount in mounts}
    entry = json.loads(instructions("ENTRYPOINT")[0])
    assert targets[entry[2]] == ["ro"] and targets[str(Path(entry[4]).parent)] == ["ro"]
    assert targets[instructions("VOLUME")[0]] == [] and {ADMIN_KEY, DATABASE} <= service["environment"].keys()
    named = {mount.split(":")[0] for one in COMPOSE["services"].values() for mount in one["volumes"]}
    assert {name for name in named if name[0] not in "./$"} == COMPOSE["volumes"].keys()


def test_every_variable_of_compose_is_in_the_example():
    given = re.findall(r"^(\w+)=", (DEPLOY / "env.example").read_text(), re.MULTILINE)
    assert set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text())) <= set(given)


def test_the_image_runs_as_a_user_without_rights_who_is_known_by_number():
    assert instructions("USER")[-1].isdecimal() and int(instructions("USER")[-1]) > 0
    assert DATABASE in DOCKERFILE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(exec_start()[0], sys.executable))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
