"""Writes a conversation as one text, for models that only complete texts."""

from __future__ import annotations

from collections.abc import Sequence

Turn = tuple[str, str]  # role and text
ENDS = ("\nUser:",)  # where an answer to a conversation ends, at which a model may go on with the user's part


def as_text(turns: Sequence[Turn]) -> str:
    """The prompt. One turn is its text alone, after the system's; of several each has its speaker before it."""
    system = [text for role, text in turns if role == "system"]
    others = [(role, text) for role, text in turns if role != "system"]
    if len(others) <= 1:
        return "\n\n".join([*system, *(text for _, text in others)])
    lines = [f"{'Assistant' if role == 'assistant' else 'User'}: {text}" for role, text in others]
    return "\n\n".join([*system, *lines, "Assistant:"])


def has_several_turns(turns: Sequence[Turn]) -> bool:
    """Whether `as_text` writes the speakers, so that the answer ends at `ENDS`."""
    return sum(role != "system" for role, _ in turns) > 1
