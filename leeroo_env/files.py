"""Reads and writes files and directories: written whole or not at all, and never unpickled."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leeroo_env.atomic import put_in_place, recover, temporary_directory, write_atomically
from leeroo_env.errors import InputError
from leeroo_env.manifest import MANIFEST, manifest_text

__all__ = [
    "new_directory",
    "read_directory",
    "read_json",
    "read_model",
    "read_tensors",
    "write_atomically",
    "write_json",
    "write_tensors",
    "write_text",
]

M = TypeVar("M", bound=pydantic.BaseModel)
T = TypeVar("T")


@contextmanager
def new_directory(path: Path, *, keep: bool = False) -> Iterator[Path]:
    """A temporary directory beside `path` to write into; with a manifest it takes the place of `path` in one step when
    the block ends well.

    Args:
        path: the directory; a link to one is followed.
        keep: whether the files that `path` holds are kept, unless the block replaces them.

    Raises:
        InputError: `path` has no name, as /.
        OSError: it cannot be written.
    """
    path = Path(os.path.realpath(path))
    if not path.name:
        raise InputError(f"{path}: is no directory that can be replaced")
    recover(path)
    with temporary_directory(path) as directory:
        if keep and path.is_dir():
            shutil.copytree(path, directory, copy_function=_link, dirs_exist_ok=True)
        yield directory
        (directory / MANIFEST).write_text(manifest_text(directory, known_in=path if keep else None))
        put_in_place(directory, path)


def _link(file: str, copy: str) -> None:
    """A second name for a file, which takes no time and no space; a copy where there are no hard links."""
    try:
        os.link(file, copy)
    except OSError:
        shutil.copy2(file, copy)


def read_directory(path: Path, read: Callable[[], T]) -> T:
    """What `read` returns of a directory that `new_directory` may replace meanwhile: it reads again in that case."""
    recover(path)
    while True:
        with _open_directory(path) as before:
            try:
                result = read()
            except InputError:
                if before == _identity(path):
                    raise
                continue
            if before == _identity(path):
                return result


@contextmanager
def _open_directory(path: Path) -> Iterator[tuple[int, int] | None]:
    """The `_identity` of a directory, which no other directory gets as long as this one is open."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield None
        return
    try:
        yield _identity(descriptor)
    finally:
        os.close(descriptor)


def _identity(path: Path | int) -> tuple[int, int] | None:
    """Differs where another directory has taken the place of `path`; None where there is nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError where the file is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def read_model(path: Path, model: type[M]) -> M:
    """The JSON object in a file as a `model`. Raises InputError, one line with file and field, where it is none."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Raises OSError where they cannot be written."""
    host = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        write_atomically(path, lambda temporary: save_file(host, temporary, metadata))
    except SafetensorError as error:  # what it makes of a full disk
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Raises InputError where the file is missing or broken."""
    try:
        return load_file(path, device=str(device))
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
