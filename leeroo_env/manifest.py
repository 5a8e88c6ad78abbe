"""Writes and checks manifests: `manifest.json` has the size and the SHA-256 of every file of a directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pydantic

from leeroo_env.atomic import write_atomically
from leeroo_env.errors import InputError

MANIFEST = "manifest.json"
BLOCK = 2**20  # bytes read at a time


class FileEntry(pydantic.BaseModel, extra="forbid", frozen=True):
    """What a file holds: bytes, and their SHA-256."""

    size: int
    sha256: str


class Manifest(pydantic.BaseModel, extra="forbid", frozen=True):
    """`manifest.json`.

    Attributes:
        format: 1.
        files: by path within the directory.
        sha256: of `files`, so that a damaged manifest is not taken for a damaged file.
    """

    format: int = pydantic.Field(ge=1, le=1)
    files: dict[str, FileEntry]
    sha256: str

    @classmethod
    def of(cls, files: dict[str, FileEntry]) -> Manifest:
        return cls(format=1, files=files, sha256=_digest(files))


def _digest(files: dict[str, FileEntry]) -> str:
    plain = {name: [entry.size, entry.sha256] for name, entry in files.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(directory: Path, names: Iterable[str] | None = None) -> None:
    """Writes the manifest of a directory; arguments as `manifest_text`."""
    text = manifest_text(directory, names)
    write_atomically(directory / MANIFEST, lambda temporary: temporary.write_text(text))


def manifest_text(directory: Path, names: Iterable[str] | None = None, known_in: Path | None = None) -> str:
    """The manifest of a directory: of all files in it, or of those `names` that are there.

    Files that are links to those of another directory, `known_in`, are not read: its manifest knows them.
    """
    if names is None:
        names = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.name != MANIFEST)
    known = (read_manifest(known_in) if known_in is not None else None) or Manifest.of({})
    entries = {}
    for name in names:
        file = directory / name
        if known_in is not None and name in known.files and _same_file(file, known_in / name):
            entries[name] = known.files[name]
        elif file.is_file():
            entries[name] = FileEntry(size=file.stat().st_size, sha256=sha256_of(file))
    return Manifest.of(entries).model_dump_json(indent=1) + "\n"


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a directory; None where there is none. Raises InputError where it is damaged."""
    file = directory / MANIFEST
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{file}: damaged: not a manifest{_renewal(directory)}") from None
    if manifest.sha256 != _digest(manifest.files):
        raise InputError(f"{file}: damaged: its own sha256 differs{_renewal(directory)}")
    return manifest


def check_files(
    directory: Path, names: Iterable[str] | None = None, hashed_bytes: int | None = None, others: bool = True
) -> bool:
    """Checks files against the manifest of their directory; returns whether it has one.

    Args:
        directory: of the files.
        names: of those that are going to be read, whose hashes are checked; None: all.
        hashed_bytes: files above this size are not hashed; None: there is no limit.
        others: whether the sizes of all other files are checked.

    Raises:
        InputError: a file is missing, is not in the manifest, or differs from it.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        return False
    wanted = set(manifest.files if names is None else names)
    for name in sorted(wanted - set(manifest.files)):
        added = f"is not in {MANIFEST}: added by hand{_renewal(directory)}"
        raise InputError(f"{directory / name}: {added if (directory / name).exists() else 'missing'}")
    for name, entry in manifest.files.items():
        if others or name in wanted:
            hashed = name in wanted and (hashed_bytes is None or entry.size <= hashed_bytes)
            _check_file(directory, name, entry, hashed)
    return True


def _check_file(directory: Path, name: str, entry: FileEntry, hashed: bool) -> None:
    file = directory / name
    try:
        size = file.stat().st_size
        differs = f"{size:,} bytes, not {entry.size:,}" if size != entry.size else ""
        if not differs and hashed and sha256_of(file) != entry.sha256:
            differs = "other bytes than were written"
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{file}: missing") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    if differs:
        raise InputError(f"{file}: damaged, or changed by hand: {differs}{_renewal(directory)}")


def missing_manifest(directory: Path) -> InputError:
    return InputError(f"{directory / MANIFEST}: missing{_renewal(directory)}")


def _renewal(directory: Path) -> str:
    return f"; if that is wanted: leeroo verify --renew {directory}"
