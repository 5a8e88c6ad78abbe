"""Tables in Markdown, and what the reports' Markdown is in HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

INLINE = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*")
NUMBER = re.compile(r"[-+$±]?[\d.]|[-?]?$")  # what a cell of a column of numbers begins with; or nothing


def table_line(cells: Sequence[str]) -> str:
    """A row; what a cell holds can end neither it nor the line."""
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def table_head(names: Sequence[str]) -> list[str]:
    """The two lines that a table begins with."""
    return [table_line(names), "|---" * len(names) + "|"]


def table_cells(line: str) -> list[str]:
    """The cells of a row, as `table_line` was given them."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: plain text.
        level: of its heading, 1 or 2.
        lines: of Markdown that follow the heading.
    """

    title: str
    level: int
    lines: list[str]

    @property
    def html(self) -> str:
        return to_html(self.lines)

    @property
    def tables(self) -> list[list[list[str]]]:
        """The cells of its tables, by row, the head first."""
        return [list(map(table_cells, [rows[0], *rows[2:]])) for kind, rows in _blocks(self.lines) if kind == "|"]


def sections(lines: Sequence[str]) -> list[Section]:
    """The parts of a report, in order; its lines may hold several lines each."""
    found: list[Section] = []
    for line in "\n".join(lines).split("\n"):
        if heading := re.match(r"(##?) (.*)", line):
            found.append(Section(heading[2], len(heading[1]), []))
        elif found:
            found[-1].lines.append(line)
    return found


def to_html(lines: Sequence[str]) -> str:
    """Paragraphs, lists and tables in HTML, with all text escaped; pictures are left out."""
    return "\n".join(_block(kind, block) for kind, block in _blocks(lines))


def _blocks(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Neighbouring lines of a kind, which is how they begin: "|" of a table, "-" of a list, else ""."""
    for kind, block in groupby(lines, lambda line: line[:1] if line[:2] in ("| ", "|-", "- ") else line and "p"):
        if kind == "p":
            yield from (("", [line]) for line in block if not line.startswith("!["))
        elif kind:
            yield kind, list(block)


def _block(kind: str, lines: Sequence[str]) -> str:
    if kind == "-":
        return f"<ul>{''.join(f'<li>{inline(line[2:])}</li>' for line in lines)}</ul>"
    return _table(lines) if kind == "|" else f"<p>{inline(lines[0])}</p>"


def _table(lines: Sequence[str]) -> str:
    head, *rows = map(table_cells, [lines[0], *lines[2:]])
    numbers = [i > 0 and all(NUMBER.match(row[i]) for row in rows) for i in range(len(head))]
    kinds = [' class="n"' if number else "" for number in numbers]
    cells = [f'<th scope="col"{kind}>{inline(name)}</th>' for name, kind in zip(head, kinds, strict=True)]
    body = []
    for first, *others in rows:
        more = [f"<td{kind}>{inline(cell)}</td>" for cell, kind in zip(others, kinds[1:], strict=True)]
        body.append(f'<tr><th scope="row">{inline(first)}</th>{"".join(more)}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'
        f"<thead><tr>{''.join(cells)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def inline(text: str) -> str:
    """A line's text, escaped, with its code and what is bold."""
    return INLINE.sub(
        lambda found: f"<code>{found[1]}</code>" if found[1] else f"<strong>{found[2]}</strong>", escape(text)
    )
