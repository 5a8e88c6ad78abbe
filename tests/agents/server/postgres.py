"""A PostgreSQL server of its own, from the binaries of the operating system, gone at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

DEBIAN = Path("/usr/lib/postgresql")


def find_binaries() -> Path | None:
    """The directory of the newest server's programs, or None."""
    versions = sorted(DEBIAN.glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    found = [path for path in versions if (path / "initdb").exists()]
    on_path = shutil.which("initdb")
    return found[0] if found else Path(on_path).resolve().parent if on_path else None


class Postgres:
    """Listens on a socket in a directory of its own; as user nobody if we are root, whom PostgreSQL refuses."""

    def __init__(self, binaries: Path):
        self._binaries = binaries
        self.directory = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path must be short
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(self.directory, "nobody", "nogroup")
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        self._run("initdb", "--username=leeroo", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        self.start()

    def start(self) -> None:
        options = f"-k {self.directory} -c listen_addresses= -c fsync=off -c max_connections=50"
        self._run("pg_ctl", "start", "-w", "-s", "-o", options, "-l", str(self.directory / "log"))

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "-w", "-s", "-m", mode)

    @property
    def url(self) -> str:
        return f"postgresql://leeroo@/postgres?host={self.directory}"

    def new_store(self) -> str:
        """The URL of an empty store: a schema of its own, which is made faster than a database."""
        name = f"test_{uuid.uuid4().hex}"
        engine = create_engine(self.url.replace("postgresql", "postgresql+psycopg", 1))
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {name}"))
        engine.dispose()
        return f"{self.url}&options=-csearch_path%3D{name}"

    def close(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.directory)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, "-D", self.directory / "data", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **self._user,
        )
