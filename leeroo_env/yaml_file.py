"""Reads YAML files that people write; one that is huge, deep, recursive or multiplied by aliases is refused at once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from leeroo_env.errors import InputError

MOST_BYTES = 1 << 20  # a pool of 300 experts takes a tenth of it
MOST_DEPTH = 50
MOST_NODES = 100_000  # with every alias replaced by what it stands for
_SURROGATE = re.compile("[\ud800-\udfff]")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of libyaml, ten times as fast, where it was built


class _Refused(ValueError):
    """What is wrong with the file, in words; its line if that is known."""


def read_yaml(path: str | os.PathLike) -> Any:
    """The value in a YAML file, of plain types only. Raises InputError: one line with file, line and problem."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise _Refused(f"is larger than {MOST_BYTES} bytes")
        text = data.decode("utf-8-sig")
        _check_events(text)
        return _load(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: invalid YAML: is not UTF-8") from None
    except _Refused as error:
        raise InputError(f"{path}: invalid YAML: {error}") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}: invalid YAML{line}" + (f": {problem}" if problem else "")) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # of dates and numbers that are none
        raise InputError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from None


def _check_events(text: str) -> None:
    """Raises _Refused for what must not be built: the parser itself neither recurses nor follows aliases."""
    sizes: dict[str, int | None] = {}  # nodes under each anchor; None while its node is open
    open_nodes: list[tuple[str | None, int]] = []  # anchor, nodes before it
    nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        where = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = nodes - before
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor or "", 1)
            if size is None:
                raise _Refused(f"{where}the alias {event.anchor} stands inside of what it stands for")
            nodes += size
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, nodes - 1))
            elif _SURROGATE.search(getattr(event, "value", "")):
                raise _Refused(f"{where}half of a surrogate pair")
            if event.anchor is not None:
                sizes[event.anchor] = None if isinstance(event, yaml.CollectionStartEvent) else 1
        if len(open_nodes) > MOST_DEPTH:
            raise _Refused(f"{where}nested deeper than {MOST_DEPTH}")
        if nodes > MOST_NODES:
            raise _Refused(f"{where}more than {MOST_NODES} values, aliases counted as what they stand for")


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_keys(node: Any, seen: set[int]) -> None:
    """Raises _Refused for a key that stands twice in a mapping, of which YAML would take the last."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    keys: set[str] = set()
    for entry in node.value:
        if isinstance(node, yaml.MappingNode):
            key, entry = entry
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise _Refused(f"line {key.start_mark.line + 1}: the key {key.value[:60]!r} appears twice")
                keys.add(key.value)
            _check_keys(key, seen)
        _check_keys(entry, seen)
