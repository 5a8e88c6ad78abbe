"""Imports go one way: no cycle between modules or rooms, and `leeroo_env` ← `experts` ← `agents`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("leeroo_env", "experts", "agents")


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(file): file for package in PACKAGES for file in (ROOT / package).rglob("*.py")}


def imported(node: ast.AST) -> Iterator[str]:
    """What a syntax tree imports, in functions too, but for what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            yield from (name if name in FILES else str(child.module) for name in names)
        yield from imported(child)


@cache
def graph() -> dict[str, set[str]]:
    """The project's modules that each of its modules imports."""
    return {
        module: {name for name in imported(ast.parse(file.read_text())) if name in FILES and name != module}
        for module, file in FILES.items()
    }


def room(module: str) -> str:
    """A subpackage, as `agents.routers`, or a module beside these."""
    return ".".join(module.split(".")[:2])


def test_no_cycle_between_modules():
    assert len(FILES) > 50
    TopologicalSorter(graph()).prepare()


def test_no_cycle_between_rooms():
    rooms: dict[str, set[str]] = {}
    for module, names in graph().items():
        if module not in PACKAGES:  # a package's own __init__ only re-exports
            rooms.setdefault(room(module), set()).update(room(n) for n in names if n not in PACKAGES)
    for name, others in rooms.items():
        others.discard(name)
    TopologicalSorter(rooms).prepare()


def test_packages_import_one_way():
    for module, names in graph().items():
        allowed = PACKAGES[: PACKAGES.index(module.split(".")[0]) + 1]
        assert all(name.split(".")[0] in allowed for name in names), module
