"""Where and how torch computes: the device, threads, what runs beside the rest and how long, random generators."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import RLock, Thread
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from leeroo_env import InputError

T = TypeVar("T")

NICE = 10  # of processes that are not urgent


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto is the GPU if there is one. Raises InputError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch finds no usable GPU here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Laps:
    """The seconds that the phases of a run take, one after the other."""

    def __init__(self, began: float | None = None):
        """`began` is by `time.perf_counter`; None: now."""
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter() if began is None else began

    def end(self, phase: str) -> None:
        """Ends a phase, which began with the end of the last one."""
        now = time.perf_counter()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now - self._last, 3)
        self._last = now


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_parallel(*work: Callable[[], Any]) -> list[Any]:
    """The results of all pieces of work, run in Python threads with one thread of torch each.

    There are as many threads as processors; what takes longest should come first. With one thread of torch each, their
    bits do not depend on the number of threads. They must not draw from the global random generators. An interruption
    does not wait for them.
    """
    before = torch.get_num_threads()
    futures: list[Future[Any]] = [Future() for _ in work]
    left = deque(zip(work, futures, strict=True))

    def run_some() -> None:
        torch.set_num_threads(1)
        with suppress(IndexError):  # none is left
            while True:
                piece, future = left.popleft()
                try:
                    future.set_result(piece())
                except BaseException as error:
                    future.set_exception(error)

    for _ in range(min(len(work), processors())):
        Thread(target=run_some, daemon=True).start()
    results = [future.result() for future in futures]
    torch.set_num_threads(before)
    return results


class Background(Iterator[T]):
    """The values that `in_background` computes, in order, for the process that asked for them."""

    def __init__(self, values: Iterator[T], pipe: Connection | None = None):
        self._values, self._pipe, self._pid = values, pipe, os.getpid()

    def __next__(self) -> T:
        if os.getpid() != self._pid:
            raise RuntimeError("a process may not take results from another one's pipe")
        return next(self._values)

    def ready(self) -> bool:
        """Whether the next value need not be waited for: it is here, or is computed where it is asked for."""
        return self._pipe is None or self._pipe.poll()


def in_background(work: Callable[[], Iterator[T]], urgent: bool = True) -> Background[T]:
    """What `work` yields, computed from now on in a process of its own where a fork is safe, else when it is asked for;
    the results are the same.

    `work` must not draw from the global random generators. The process has one thread of torch and shows no progress;
    one that is not urgent leaves the processors to others. It ends with this one, or when the iterator is dropped.
    """
    if not sys.platform.startswith("linux") or torch.cuda.is_initialized() or _is_one_of_many():
        return Background(work())
    context = get_context("fork")
    results, sender = context.Pipe(duplex=False)
    end, alive = context.Pipe(duplex=False)  # `alive` is never written to: it is closed when nobody waits any more

    def run() -> None:
        alive.close()
        if not urgent:
            os.nice(NICE)
        _work_alone(work, sender, end)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, such as those of progress bars
        process = context.Process(target=run, daemon=True)
        process.start()
    sender.close()
    end.close()
    return Background(_received(results, alive), results)


def _is_one_of_many() -> bool:
    """Whether this process belongs to a cluster of Ray's or a data-parallel run, whose threads a fork would lose."""
    ray = sys.modules.get("ray")
    return torch.distributed.is_initialized() or bool(ray and ray.is_initialized())


def _work_alone(work: Callable[[], Iterator[Any]], sender: Connection, end: Connection) -> None:
    """In the process of `in_background`: sends what `work` yields, or its error, unless the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(RLock())  # a thread that held the old one is not here
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends

    def end_with_the_other() -> None:
        end.poll(None)
        os._exit(1)

    waiting: SimpleQueue[tuple[bool, Any] | None] = SimpleQueue()

    def send() -> None:  # a pipe holds little: what is not asked for yet does not keep the work waiting
        for value in iter(waiting.get, None):
            sender.send(value)
        sender.send(None)

    sending = Thread(target=send, daemon=True)
    for thread in (Thread(target=end_with_the_other, daemon=True), sending):
        thread.start()
    torch.set_num_threads(1)
    try:
        for value in work():
            waiting.put((True, value))
    except BaseException as error:
        waiting.put((False, error))
    waiting.put(None)
    sending.join()
    os._exit(0)


def _received(results: Connection, alive: Connection) -> Iterator[Any]:
    with results, alive:
        while True:
            try:
                received = results.recv()
            except EOFError:
                raise InputError("a process of this run was killed; is there too little memory?") from None
            if received is None:
                return
            fine, value = received
            if not fine:
                raise value
            yield value


def arrays_of(module: nn.Module) -> dict[str, np.ndarray]:
    """The parameters and buffers of a module, to be sent to another process."""
    return {name: tensor.cpu().numpy() for name, tensor in module.state_dict().items()}


def load_arrays(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    """Gives a module what `arrays_of` took from another one."""
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})


@contextmanager
def generators_restored() -> Iterator[None]:
    """Puts the global random generators back to where they were, so that what the block draws changes nothing after."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - SB3 draws from it
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
