"""Fits in parallel keep their order and leave the number of threads as it was; what runs in the background ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agents.training.runtime import Laps, choose_device, in_background, run_in_parallel
from leeroo_env import InputError


def test_results_come_in_order_from_one_thread_each():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert run_in_parallel(lambda: (1, torch.get_num_threads()), lambda: (2, torch.get_num_threads())) == [
            (1, 1),
            (2, 1),
        ]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_in_one_of_them_is_raised():
    with pytest.raises(InputError, match="broken"):
        run_in_parallel(lambda: 1, lambda: (_ for _ in ()).throw(InputError("broken")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="device cuda: torch finds no usable GPU here"):
        choose_device("cuda")


def test_work_in_the_background_gives_what_it_would_here():
    def work() -> Iterator[int]:
        yield os.getpid()
        yield 7

    elsewhere = in_background(work)
    assert next(elsewhere) != os.getpid() or not sys.platform.startswith("linux")
    assert list(elsewhere) == [7]


def test_whether_a_result_is_waited_for_can_be_asked():
    read, write = os.pipe()

    def work() -> Iterator[bytes]:
        yield os.read(read, 1)

    results = in_background(work)
    assert results.ready() == (not sys.platform.startswith("linux"))
    os.write(write, b"x")
    deadline = time.monotonic() + 20
    while not results.ready():
        assert time.monotonic() < deadline
    assert next(results) == b"x"


def test_an_error_in_the_background_is_raised_where_its_result_is_asked_for():
    def work() -> Iterator[int]:
        yield 1
        raise InputError("broken")

    results = in_background(work)
    assert next(results) == 1
    with pytest.raises(InputError, match="broken"):
        next(results)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no process of its own elsewhere")
def test_a_process_that_is_killed_says_so():
    def work() -> Iterator[int]:
        yield 1
        time.sleep(0.2)  # the first result is on its way
        os.kill(os.getpid(), signal.SIGKILL)

    results = in_background(work)
    assert next(results) == 1
    with pytest.raises(InputError, match="a process of this run was killed"):
        next(results)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no process of its own elsewhere")
def test_a_result_that_nobody_asks_for_yet_does_not_keep_the_work_waiting(tmp_path: Path):
    def work() -> Iterator[bytes]:
        yield bytes(2**20)  # more than a pipe holds
        (tmp_path / "went on").touch()
        yield b""

    results = in_background(work, urgent=False)
    deadline = time.monotonic() + 20
    while not (tmp_path / "went on").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [len(value) for value in results] == [2**20, 0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no process of its own elsewhere")
def test_nobody_works_on_for_a_process_that_was_killed(tmp_path: Path):
    pids = tmp_path / "pids"
    read, write = os.pipe()
    leader = os.fork()
    if leader == 0:

        def forever() -> Iterator[int]:
            with pids.open("a") as file:
                file.write(f"{os.getpid()}\n")
            os.write(write, b"x")
            time.sleep(60)
            yield 1

        kept = [in_background(forever), in_background(forever)]
        time.sleep(60)
        os._exit(len(kept))
    assert os.read(read, 1) + os.read(read, 1) == b"xx"
    os.kill(leader, signal.SIGKILL)
    os.waitpid(leader, 0)
    deadline = time.monotonic() + 20
    while alive := [pid for pid in pids.read_text().split() if Path(f"/proc/{pid}").exists() and not is_zombie(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)


def is_zombie(pid: str) -> bool:
    """Whether it has ended, and nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_laps_follow_each_other():
    laps = Laps(time.perf_counter() - 5)
    laps.end("first")
    laps.end("second")
    laps.end("first")
    assert list(laps.seconds) == ["first", "second"] and 5 <= laps.seconds["first"] < 6 and laps.seconds["second"] < 1
