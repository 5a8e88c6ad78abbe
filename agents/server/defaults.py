"""Where a server keeps its ledger if it is not told otherwise."""

from __future__ import annotations

import os

DATABASE = "LEEROO_DATABASE"
DEFAULT_DATABASE = "sqlite:///leeroo.db"


def database() -> str:
    """The URL of the ledger: $LEEROO_DATABASE, or a file in the working directory."""
    return os.environ.get(DATABASE) or DEFAULT_DATABASE
