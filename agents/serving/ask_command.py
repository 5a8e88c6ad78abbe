"""Asks the experts of a pool from a shell: one question, or a conversation.

    leeroo ask runs/mine "What is 12 + 30?" --pool pool.yaml

Exit codes: 0 answered; 1 no answer; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.serving.chat import INTERRUPTED
from agents.serving.defaults import pool_of
from agents.serving.orchestrator import Orchestrator
from agents.serving.reply import Reply
from experts.types import CUT_OFF, OUT_OF_MONEY
from leeroo_env.cli import exit_code, printable
from leeroo_env.errors import InputError

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
HELP = "/new begins another conversation, /quit leaves"


@dataclass(frozen=True)
class Options:
    """Has a trained orchestrator choose who answers a question, and streams the answer to stdout.

    Who answered, why, the cost and what is left go to stderr. Without a question, that is what stdin holds; where
    stdin is a terminal, a conversation begins.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    """the directory of a training run"""
    question: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """what to ask"""
    pool: Path | None = None
    """pool.yaml with the experts; by default that of the tiny models, if the run was trained on them"""
    max_usd: float = 1.0
    """the dollars that all calls together may cost"""


def run(options: Options) -> int:
    """Asks once, or as long as the user does. Returns the exit code."""
    if not 0 <= options.max_usd < math.inf:
        raise InputError(f"--max-usd {options.max_usd}: must be 0 or more")
    pool = pool_of(options.run_dir, options.pool)
    text = " ".join(options.question) if options.question else None
    if text is None and not sys.stdin.isatty():
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
    if text is not None and not text.strip():
        raise InputError("question: is empty")
    orchestrator = Orchestrator.load(options.run_dir, pool=pool, max_usd=options.max_usd)
    if text is None:
        return converse(orchestrator)
    reply = show(orchestrator, [{"role": "user", "content": text.strip()}])
    return 0 if reply.text is not None else 1


def converse(orchestrator: Orchestrator) -> int:
    """A conversation, until the user leaves."""
    _edit_lines()
    messages: list[dict[str, Any]] = []
    tell(f"${orchestrator.left_usd:.4g} to spend; {HELP}")
    while (text := _read_line()) is not None:
        if text in ("/new", "/quit"):
            messages = []
            if text == "/quit":
                return 0
        elif text.startswith("/"):
            tell(HELP)
        elif text:
            asked = [*messages, {"role": "user", "content": text}]
            try:
                reply = show(orchestrator, asked)
            except InputError as error:
                tell(str(error))
                continue
            if reply.text is not None:
                messages = [*asked, {"role": "assistant", "content": reply.text}]
    return 0


def show(orchestrator: Orchestrator, messages: list[dict[str, Any]]) -> Reply:
    """Streams the answer to a conversation to stdout; then one line on stderr says where it came from."""
    (route,) = orchestrator.route(messages)
    stream = orchestrator.stream(messages)
    end = "\n"
    for piece in stream:
        piece = shown(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
        end = piece[-1:] or end
    sys.stdout.write("" if end == "\n" else "\n")
    sys.stdout.flush()
    assert stream.reply is not None
    tell(summary(stream.reply, route.why if route.expert == stream.reply.expert else "", orchestrator.left_usd or 0.0))
    return stream.reply


def summary(reply: Reply, why: str, left_usd: float) -> str:
    """Who answered, why, the cost and what is left; or why there is no answer."""
    money = f"${reply.billed_usd:.2g}, ${left_usd:.6f} left"
    failed = [f"{call.expert}: {call.error}" for call in reply.calls if call.error is not None]
    if reply.expert is None:
        cut_off = any(call.finish_reason == OUT_OF_MONEY for call in reply.calls)
        unpaid = "what is left pays for no more of the answer" if cut_off else "what is left pays for no expert"
        return f"no answer: {'; '.join(failed) if reply.stop_reason == 'failed' else unpaid}; {money}"
    ends = {INTERRUPTED: "the answer broke off", CUT_OFF: "cut off at the expert's max_tokens"}
    reasons = [ends.get(reply.calls[-1].finish_reason or "", ""), why, *(f"not {one}" for one in failed)]
    return "; ".join(part for part in (reply.expert, *reasons, money) if part)


def tell(text: str) -> None:
    """One line on stderr, dim on a terminal."""
    line = printable(text)
    is_dim = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"{DIM}{line}{PLAIN}" if is_dim else line, file=sys.stderr, flush=True)


def shown(text: str) -> str:
    """What a model wrote, for a terminal, which must take none of it for commands."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else " " * c.isspace() for c in text)


def _read_line() -> str | None:
    """What the user types; None: he leaves, with Ctrl-C or Ctrl-D."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return None


def _edit_lines() -> None:
    """Lets lines be edited and fetched again, where Python can do that."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def main(arguments: Sequence[str] | None = None, prog: str = "python -m agents.serving.ask_command") -> int:
    """The command line. Returns the exit code: 0 answered, 1 no answer, 2 for bad input, 130 if interrupted."""
    return exit_code(lambda: run(tyro.cli(Options, prog=prog, args=arguments)), "calls that were made are paid")


if __name__ == "__main__":
    raise SystemExit(main())
