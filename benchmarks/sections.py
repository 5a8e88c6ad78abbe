"""Files of results: a title, then a section for each thing measured, which a later measurement replaces."""

from __future__ import annotations

from pathlib import Path


def read_section(path: Path, heading: str) -> str:
    """What stands below a heading; empty where there is none."""
    return dict(_sections(path)[1]).get(heading, "")


def add_section(path: Path, title: str, heading: str, text: str) -> None:
    """Replaces the section of that heading, or adds it; a file that is not there begins with `title`."""
    head, sections = _sections(path)
    kept = [f"## {name}\n\n{body}" for name, body in sections if name != heading]
    path.write_text("\n\n".join([head or title, *kept, f"## {heading}\n\n{text.strip()}"]) + "\n")


def _sections(path: Path) -> tuple[str, list[tuple[str, str]]]:
    """What stands above the sections, and of each its heading and text."""
    head, *sections = (path.read_text() if path.exists() else "").split("\n## ")
    parts = (section.partition("\n") for section in sections)
    return head.strip(), [(name, body.strip()) for name, _, body in parts]
