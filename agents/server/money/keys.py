"""Keys and limits in the store: made, changed, found by the hash of a secret."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import re
import secrets

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from agents.server.money.counter import Counter
from agents.server.money.counter_rows import counter_of, save_counters
from agents.server.money.periods import period_start
from agents.server.money.schema import SERVER_ID, counters, keys, ledger
from agents.server.money.types import MOST_MICRO, KeyInfo, Period, Scope
from leeroo_env.errors import InputError

SECRET = re.compile(r"lr-[A-Za-z0-9_-]{43}")  # 256 random bits, so that a plain hash is as good as a slow one
PREFIX_LENGTH = 9
MOST_NAME = 100
MOST_REQUESTS_PER_MINUTE = 1_000_000
PERIODS: tuple[Period, ...] = ("day", "month", "total")

_teams = counters.alias("teams")
_infos = (
    select(
        counters.c.id,
        counters.c.name,
        _teams.c.name.label("team"),
        counters.c.limit_micro,
        counters.c.per,
        keys.c.requests_per_minute,
        keys.c.revoked_at,
        keys.c.prefix,
        counters.c.created_at,
        keys.c.sha256,
    )
    .join(keys, keys.c.counter_id == counters.c.id)
    .outerjoin(_teams, (_teams.c.id == counters.c.parent_id) & (_teams.c.scope == "team"))
)
_by_hash = _infos.where(keys.c.sha256 == bindparam("sha256"))


def hash_of(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def find_key(connection: Connection, sha256: str) -> KeyInfo | None:
    """The key whose secret has this hash, revoked or not."""
    row = connection.execute(_by_hash, {"sha256": sha256}).one_or_none()
    return _info(row) if row is not None and hmac.compare_digest(row.sha256, sha256) else None


def list_keys(connection: Connection) -> list[KeyInfo]:
    """All keys, in the order in which they were made."""
    return [_info(row) for row in connection.execute(_infos.order_by(counters.c.id))]


def add_key(
    connection: Connection,
    name: str,
    usd: float | None,
    per: Period,
    team: str | None,
    requests_per_minute: int | None,
    now: float,
) -> str:
    """Makes a key and returns its secret. Raises InputError."""
    if requests_per_minute is not None and not 1 <= requests_per_minute <= MOST_REQUESTS_PER_MINUTE:
        raise InputError(f"{requests_per_minute} requests per minute: write a number >= 1, or none for no limit")
    parent = SERVER_ID if team is None else _find(connection, "team", team).id
    if _search(connection, "key", name) is not None:
        raise InputError(f"there is a key {name!r} already")
    number = _add(connection, "key", name, usd, per, parent, now)
    secret = "lr-" + secrets.token_urlsafe(32)
    connection.execute(
        insert(keys).values(
            counter_id=number,
            sha256=hash_of(secret),
            prefix=secret[:PREFIX_LENGTH],
            requests_per_minute=requests_per_minute,
        )
    )
    return secret


def set_team(connection: Connection, name: str, usd: float | None, per: Period, now: float) -> None:
    """Makes a team, or changes its limit. Raises InputError."""
    team = _search(connection, "team", name)
    if team is None:
        _add(connection, "team", name, usd, per, SERVER_ID, now)
    else:
        _set_limit(connection, team, usd, per, now)


def set_server_limit(connection: Connection, usd: float | None, per: Period, now: float) -> None:
    """Changes the limit of all keys together; None: no limit. Raises InputError."""
    _set_limit(connection, _find(connection, "server", ""), usd, per, now)


def revoke(connection: Connection, name: str, now: float) -> None:
    """Makes a key useless; what it has reserved is settled as usual. Raises InputError."""
    number = _find(connection, "key", name).id
    connection.execute(
        update(keys).where(keys.c.counter_id == number, keys.c.revoked_at.is_(None)).values(revoked_at=now)
    )


def top_up(connection: Connection, name: str, usd: float, now: float) -> None:
    """Adds money to what a key may spend in the current period; in total, where its limit is a total."""
    row = _find(connection, "key", name)
    micro = _micro(usd)
    if row.limit_micro is None:
        raise InputError(f"key {name!r} has no limit that a top-up could raise")
    if not micro:
        raise InputError(f"${usd:g}: a top-up is at least a millionth of a dollar")
    counter = counter_of(row)
    counter.roll(now)
    if row.limit_micro + counter.extra_micro + micro > MOST_MICRO:
        raise InputError(f"${usd:g}: with it, the limit is above {MOST_MICRO / 1e6:.0f} dollars")
    if counter.per == "total":
        counter.limit_micro = row.limit_micro + micro
    else:
        counter.extra_micro += micro
    save_counters(connection, [counter])


def list_counters(connection: Connection, now: float) -> list[Counter]:
    """The server's counter, then teams and keys as they were made, as of `now`."""
    found = [counter_of(row) for row in connection.execute(select(counters).order_by(counters.c.id))]
    for counter in found:
        counter.roll(now)
    return found


def _info(row: Row) -> KeyInfo:
    return KeyInfo(
        key_id=row.id,
        name=row.name,
        team=row.team,
        micro_usd=row.limit_micro,
        per=row.per,
        requests_per_minute=row.requests_per_minute,
        revoked=row.revoked_at is not None,
        prefix=row.prefix,
        created_at=row.created_at,
    )


def _add(
    connection: Connection, scope: Scope, name: str, usd: float | None, per: Period, parent: int, now: float
) -> int:
    """The number of a new counter."""
    if not name or name != name.strip() or not name.isprintable() or len(name) > MOST_NAME:
        raise InputError(f"{scope} {name!r}: a name has 1 to {MOST_NAME} printable characters, no blanks at its ends")
    made = insert(counters).values(
        scope=scope,
        name=name,
        parent_id=parent,
        limit_micro=None if usd is None else _micro(usd),
        per=_period(per),
        period_start=period_start(per, now),
        created_at=now,
    )
    return int(connection.execute(made.returning(counters.c.id)).scalar_one())


def _set_limit(connection: Connection, row: Row, usd: float | None, per: Period, now: float) -> None:
    """Changes a limit; where its period is another now, what the ledger says was spent in it counts."""
    counter = counter_of(row)
    counter.limit_micro = None if usd is None else _micro(usd)
    if _period(per) != counter.per:
        counter.per, counter.period_start, counter.extra_micro = per, period_start(per, now), 0
        micro = ledger.c.micro_usd + (ledger.c.lost_micro_usd if counter.scope == "server" else 0)
        spent = select(func.coalesce(func.sum(micro), 0), func.count(ledger.c.request_id.distinct())).where(
            ledger.c.settled_at >= counter.period_start
        )
        if counter.scope == "team":
            members = select(counters.c.id).where(counters.c.parent_id == counter.counter_id)
            spent = spent.where(ledger.c.key_id.in_(members))
        micro_spent, queries = connection.execute(spent).one()
        counter.spent_micro, counter.queries, counter.queries_before = int(micro_spent), queries, 0
    save_counters(connection, [counter])


def _search(connection: Connection, scope: Scope, name: str) -> Row | None:
    query = select(counters).where(counters.c.scope == scope, counters.c.name == name)
    return connection.execute(query).one_or_none()


def _find(connection: Connection, scope: Scope, name: str) -> Row:
    row = _search(connection, scope, name)
    if row is None:
        names = connection.scalars(select(counters.c.name).where(counters.c.scope == scope).order_by(counters.c.id))
        close = difflib.get_close_matches(name, list(names), n=1)
        raise InputError(f"no {scope} {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return row


def _micro(usd: float) -> int:
    if not 0 <= usd <= MOST_MICRO / 1e6:
        raise InputError(f"${usd:g}: an amount is at least 0 and at most {MOST_MICRO / 1e6:.0f} dollars")
    return round(usd * 1e6)


def _period(per: Period) -> Period:
    if per not in PERIODS:
        raise InputError(f"{per!r} is no period; there are {', '.join(PERIODS)}")
    return per
