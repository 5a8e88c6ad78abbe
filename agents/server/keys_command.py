"""API keys of the live server, teams of keys, and their limits.

    leeroo keys add alice --usd 20 --per month

Where the ledger is kept: --database, else the environment's LEEROO_DATABASE, else leeroo.db in this directory.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from leeroo_env.cli import exit_code
from leeroo_env.errors import InputError

if TYPE_CHECKING:
    from agents.server.money import Account, KeyInfo, Ledger

Period = Literal["day", "month", "total"]


def default_database() -> str:
    """Where the ledger is kept unless something else is said."""
    return os.environ.get("LEEROO_DATABASE") or "sqlite:///leeroo.db"


@dataclass(frozen=True, kw_only=True)
class _Command:
    database: str = dataclasses.field(default_factory=default_database)
    """sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"""


@dataclass(frozen=True)
class Add(_Command):
    """Makes a key and prints it. Only a hash is stored: it cannot be shown again."""

    name: tyro.conf.Positional[str]
    usd: float | None = None
    """the most that it may spend, in dollars; no limit by default"""
    per: Period = "month"
    """when that begins anew (UTC); total: never"""
    team: str | None = None
    """whose limit counts as well"""
    requests_per_minute: int | None = None
    """the most requests in any 60 seconds"""

    def run(self, ledger: Ledger) -> None:
        print(ledger.add_key(self.name, self.usd, self.per, self.team, self.requests_per_minute))


@dataclass(frozen=True)
class List(_Command):
    """Prints keys and limits with what is spent, reserved for calls under way, and left."""

    def run(self, ledger: Ledger) -> None:
        known = ledger.keys()
        keys = {key.name: key for key in known}
        rows = [_row(account, keys.get(account.name)) for account in ledger.accounts()]
        rows.insert(0, ("", "name", "limit", "spent", "reserved", "left", "begins anew", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@dataclass(frozen=True)
class Revoke(_Command):
    """Makes a key useless, within five seconds everywhere."""

    name: tyro.conf.Positional[str]

    def run(self, ledger: Ledger) -> None:
        ledger.revoke(self.name)


@dataclass(frozen=True)
class TopUp(_Command):
    """Adds money to what a key may spend in this day or month, or in total."""

    name: tyro.conf.Positional[str]
    usd: float
    """dollars to add"""

    def run(self, ledger: Ledger) -> None:
        ledger.top_up(self.name, self.usd)


@dataclass(frozen=True)
class Team(_Command):
    """Makes a team of keys, or changes the limit that they share."""

    name: tyro.conf.Positional[str]
    usd: float | None = None
    """the most that its keys may spend together, in dollars; no limit by default"""
    per: Period = "month"
    """when that begins anew (UTC); total: never"""

    def run(self, ledger: Ledger) -> None:
        ledger.set_team(self.name, self.usd, self.per)


@dataclass(frozen=True)
class Limit(_Command):
    """Limits what all keys together may spend, what is lost on failed calls included."""

    usd: float | None = None
    """the most, in dollars; no limit by default"""
    per: Period = "month"
    """when that begins anew (UTC); total: never"""

    def run(self, ledger: Ledger) -> None:
        ledger.set_server_limit(self.usd, self.per)


Command = (
    Annotated[Add, tyro.conf.subcommand("add")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Revoke, tyro.conf.subcommand("revoke")]
    | Annotated[TopUp, tyro.conf.subcommand("top-up")]
    | Annotated[Team, tyro.conf.subcommand("team")]
    | Annotated[Limit, tyro.conf.subcommand("limit")]
)


def _row(account: Account, key: KeyInfo | None) -> tuple[str, ...]:
    limit = "none" if account.micro_usd is None else f"${account.micro_usd / 1e6:.2f} per {account.per}"
    limit = limit.replace("per total", "in total")
    until = "" if account.refills_at is None else f"{datetime.fromtimestamp(account.refills_at, timezone.utc):%Y-%m-%d}"
    notes = []
    if account.scope == "key" and key is not None:
        notes = [f"{key.prefix}…", f"team {key.team}" if key.team else "", "revoked" if key.revoked else ""]
        notes += [f"{key.requests_per_minute} a minute" if key.requests_per_minute else ""]
    left = "" if account.left_micro is None else f"${account.left_micro / 1e6:.6f}"
    spent, reserved = f"${account.spent_micro / 1e6:.6f}", f"${account.reserved_micro / 1e6:.6f}"
    return account.scope, account.name, limit, spent, reserved, left, until, ", ".join(filter(None, notes))


def main(arguments: Sequence[str] | None = None, prog: str = "python -m agents.server.keys_command") -> int:
    """The command line; returns the exit code: 0, 2 for bad input or a store that cannot be reached."""

    def work() -> int:
        command: Add | List | Revoke | TopUp | Team | Limit = tyro.cli(
            Command, prog=prog, description=__doc__, args=arguments, config=(tyro.conf.OmitArgPrefixes,)
        )
        return _run(command)

    return exit_code(work, "nothing is changed")


def _run(command: Add | List | Revoke | TopUp | Team | Limit) -> int:
    try:
        from agents.server.money import Ledger, StoreUnavailable
    except ModuleNotFoundError as error:
        raise InputError(f"no module {error.name!r}: pip install 'leeroo[serve]'") from None
    try:
        ledger = Ledger.open(command.database, must_exist=isinstance(command, List | Revoke | TopUp))
        try:
            command.run(ledger)
        finally:
            ledger.close()
    except StoreUnavailable as error:
        raise InputError(str(error)) from None
    return 0
