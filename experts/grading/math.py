"""Grades formulas by mathematical equality with the reference."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import subprocess
import sys
import threading

from experts.grading.base import Grade, first_reply, reference_of
from experts.types import Query
from leeroo_env.errors import InputError

MATH_TIMEOUT_S = 10.0
MATH_START_TIMEOUT_S = 120.0

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from experts.grading.math_worker import serve; serve()"
)


@functools.cache
def _have_math_verify() -> bool:
    return importlib.util.find_spec("math_verify") is not None


class _MathWorker:
    """A process that compares formulas, since only killing it reliably stops a computer algebra system that hangs."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, reference: str, output: str, timeout_s: float) -> dict | None:
        """The result of `math_worker.compare`; None if it took longer than `timeout_s` or the process died."""
        with self._lock:
            if self.process is None or self.process.poll() is not None:
                self._start()
            return self._exchange(json.dumps([reference, output]) + "\n", timeout_s)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self) -> None:
        self.stop()
        command = [sys.executable, "-c", _START, json.dumps(sys.path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
        )
        if self._exchange("", MATH_START_TIMEOUT_S) is None:
            raise RuntimeError("the process that compares formulas did not start")

    def _exchange(self, line: str, timeout_s: float) -> dict | None:
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        finally:
            timer.cancel()
            timer.join()
        if not reply.endswith("\n"):
            process.kill()
            process.wait()
            return None
        return json.loads(reply)


_math_worker = _MathWorker()
atexit.register(_math_worker.stop)


def stated_formula(output: str, query: Query, timeout_s: float = MATH_TIMEOUT_S) -> str | None:
    """The formula that the output settles on, simplified; None also if that takes longer than `timeout_s`."""
    return _compare_formulas("", output, timeout_s).answer


def grade_math(output: str, query: Query, timeout_s: float = MATH_TIMEOUT_S) -> Grade:
    """Whether the output's formula is mathematically equal to the reference, by the library `math-verify`.

    The comparison runs in a process of its own, which is killed after `timeout_s`; the score is then 0.
    """
    return _compare_formulas(reference_of(query), output, timeout_s)


def _compare_formulas(reference: str, output: str, timeout_s: float) -> Grade:
    if not _have_math_verify():
        raise InputError("grader 'math' needs the package math-verify: pip install -e '.[math]'")
    reply = _math_worker.ask(reference, first_reply(output), timeout_s)
    return Grade(0.0, None) if reply is None else Grade(float(reply["right"]), reply["answer"])
