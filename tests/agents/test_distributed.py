"""Processes of one run: what they tell each other, and what the others do where one ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from agents.distributed import ALONE, Processes, ProcessLost, processes

ENDS = "import torch.distributed as dist; dist.init_process_group('gloo'); import os; os._exit(1)"


def join_two(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Makes this process the first of two, as torchrun does; returns the environment of the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in {**shared, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    return {**shared, "RANK": "1", "LOCAL_RANK": "1"}


def test_alone_without_torchrun():
    with processes() as own:
        assert own is ALONE
    values = torch.tensor([1.0, 2.0, 6.0])
    assert torch.equal(own.mean([values])[0], values) and own.moments(values) == (values.mean(), values.std())
    assert own.told(True) and not own.told(False)


@pytest.mark.parametrize("ask", [lambda own: own.mean([torch.ones(3)]), lambda own: own.send({}, 1)])
def test_a_process_that_ends_is_noticed_at_once(ask: Callable[[Processes], object], monkeypatch: pytest.MonkeyPatch):
    other = subprocess.Popen([sys.executable, "-c", ENDS], env={**os.environ, **join_two(monkeypatch)})
    try:
        with pytest.raises(ProcessLost, match="another process of this run has ended"), processes() as own:
            other.wait(60)
            ask(own)
    finally:
        dist.destroy_process_group()
