"""`--engine ray` without Ray or without a cluster: one line that says what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experts.cluster.connect import _share
from experts.collect.command import main
from experts.specs import OpenAISpec
from tests.experts.collect.test_command import arguments
from tests.experts.collecting import write_pool


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "ray"], "--engine ray needs Ray: pip install -e '.[ray]'"),
        (["--address", "auto"], "--address goes with --engine ray"),
    ],
)
def test_without_ray(tmp_path: Path, capsys, monkeypatch, options: list[str], message: str):
    monkeypatch.setitem(sys.modules, "ray", None)
    write_pool(tmp_path)
    assert main(arguments(tmp_path, *options)) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_an_address_that_cannot_be_used(tmp_path: Path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    write_pool(tmp_path)
    assert main(arguments(tmp_path, "--engine", "ray", "--address", "ray://nowhere:1")) == 2
    assert "give HOST:PORT or auto" in capsys.readouterr().err


@pytest.mark.parametrize(("calls", "workers"), [(3, 3), (100, 7), (65, 2), (1, 1)])
def test_limits_are_divided_without_a_rest(calls: int, workers: int):
    spec = OpenAISpec(
        name="a", backend="openai", model="m", usd_per_second=0, concurrency=calls, requests_per_minute=60
    )
    shares = [_share(spec, i, workers) for i in range(workers)]
    assert sum(share.concurrency for share in shares) == calls and min(share.concurrency for share in shares) > 0
    assert sum(share.requests_per_minute or 0 for share in shares) == pytest.approx(60)
