"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table_line(cells: Sequence[str]) -> str:
    """A row; what a cell holds can end neither it nor the line."""
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def table_head(names: Sequence[str]) -> list[str]:
    """The two lines that a table begins with."""
    return [table_line(names), "|---" * len(names) + "|"]
