"""Asks a process of its own about formulas: whether two are equal, and what number one is."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import threading
from typing import Any

START_TIMEOUT_S = 120.0
FORMULA_CHARS = 2_000  # longer ones are no formulas

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from experts.grading.math_worker import serve; serve()"
)


@functools.cache
def have_math_verify() -> bool:
    """Whether the package is installed, without which no question about a formula is answered."""
    return importlib.util.find_spec("math_verify") is not None


class FormulaProcess:
    """A process with a computer algebra system, since only killing it reliably stops one that hangs."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, question: list[Any], timeout_s: float) -> dict[str, Any] | None:
        """The reply of `math_worker.answer`; None if it took longer than `timeout_s` or the process died.

        Threads wait for each other, so a call takes at most `timeout_s` for itself and each one before it.
        """
        with self._lock:
            if self.process is None or self.process.poll() is not None:
                self._start()
            return self._exchange(json.dumps(question) + "\n", timeout_s)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def forget(self) -> None:
        """Leaves the process to the parent: after a fork, both would write into the same pipe."""
        self.process, self._lock = None, threading.Lock()

    def _start(self) -> None:
        self.stop()
        command = [sys.executable, "-c", _START, json.dumps(sys.path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
        )
        if self._exchange("", START_TIMEOUT_S) is None:
            raise RuntimeError("the process that compares formulas did not start")

    def _exchange(self, line: str, timeout_s: float) -> dict[str, Any] | None:
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        timer = threading.Timer(timeout_s, process.kill)
        timer.daemon = True
        timer.start()
        reply = ""
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(line)
                process.stdin.flush()
                reply = process.stdout.readline()
        finally:
            timer.cancel()
            if not reply.endswith("\n"):  # too late, dead or interrupted: its next line would answer this question
                process.kill()
                process.wait()
        return json.loads(reply) if reply.endswith("\n") else None


formula_process = FormulaProcess()
atexit.register(formula_process.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=formula_process.forget)
