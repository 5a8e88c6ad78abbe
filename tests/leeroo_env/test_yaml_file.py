"""YAML files: what is read, and that the bad ones are refused at once, in one line."""

import time
from pathlib import Path
from typing import Any

import pytest

from leeroo_env.errors import InputError
from leeroo_env.yaml_file import read_yaml


def refusal(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "file.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert time.monotonic() - started < 5
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < len(str(path)) + 200
    return message.removeprefix(f"{path}: ")


def bomb(levels: int) -> str:
    """Nine aliases of nine aliases, and so on."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bomb(9), "line 6: more than 100000 values, aliases counted as what they stand for"),
        (bomb(4000), "more than 100000 values"),
        (bomb(9).replace("[", "{k: [").replace("]", "]}"), "more than 100000 values"),
        ("a: &a [*a]", "line 1: the alias a stands inside of what it stands for"),
        ("a: &a\n  b: {c: *a}", "line 2: the alias a stands inside of what it stands for"),
        ("a: &x 1\nb: &x 2\nc: *x", "second occurrence"),
        ("[" * 100_000, "line 1: nested deeper than 50"),
        ("{a: " * 100_000, "line 1: nested deeper than 50"),
        ("- " * 100_000 + "1", "line 1: nested deeper than 50"),
        ("? " * 10_000 + "1", "nested deeper than 50"),
        ("\n".join(" " * i + "a:" for i in range(1000)), "line 51: nested deeper than 50"),
        ("[" + "1," * 200_000 + "]", "more than 100000 values"),
        ("# " + "x" * 2_000_000, "is larger than 1048576 bytes"),
        (b"a: \xff", "is not UTF-8"),
        ("a: 1".encode("utf-16"), "is not UTF-8"),
        ("a: [", "invalid YAML in line 2"),
        ("a: 1\n\tb: 2", "invalid YAML in line 2"),
        ("a: *nothing", "undefined alias"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' appears twice"),
        ("- {x: {b: 1, b: 2}}", "line 1: the key 'b' appears twice"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !own 1", "could not determine a constructor"),
        ("a: 2024-13-45", "month must be in 1..12"),
        ("a: !!int x", "invalid YAML"),
        ("a: !!bool x", "invalid YAML"),
        ("a: !!float x", "invalid YAML"),
        ("a: !!timestamp x", "invalid YAML"),
        ("a: !!binary é", "invalid YAML"),
        ("a: !!omap 3", "invalid YAML"),
        ("a: 0x_", "invalid YAML"),
        ("a: 1" + "0" * 5000, "invalid YAML"),
        ("? [a]\n: 1", "unhashable key"),
        ("a: \0", "invalid YAML"),
        ('a: "\\ud83d"', "invalid YAML"),
        ("%YAML 9.9\n---\na: 1", "invalid YAML"),
    ],
    ids=range(36),
)
def test_bad_files_are_refused_at_once(tmp_path: Path, content: str | bytes, words: str):
    assert words in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("\ufeffa: é", {"a": "é"}),
        ("a: &x [1, 2]\nb: *x\nc: [*x, *x]", {"a": [1, 2], "b": [1, 2], "c": [[1, 2], [1, 2]]}),
        ("base: &x {k: 1, m: 2}\none: {<<: *x, m: 3}", {"base": {"k": 1, "m": 2}, "one": {"k": 1, "m": 3}}),
        ("a:\r\n  - 1\r\n", {"a": [1]}),
        ("[" * 49 + "]" * 49, None),
    ],
    ids=range(7),
)
def test_good_files_are_read(tmp_path: Path, content: str, value: Any):
    path = tmp_path / "file.yaml"
    path.write_bytes(content.encode())
    found = read_yaml(path)
    assert found == value or content.startswith("[[")


def test_no_file_and_a_directory(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
