"""The tables of the ledger, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    event,
    insert,
    inspect,
    select,
    text,
)

from leeroo_env.errors import InputError

VERSION = 1
SERVER_ID = 1  # the counter of the whole server; locked by whoever writes, so that there are no deadlocks
METADATA = MetaData()
BIG = BigInteger().with_variant(Integer, "sqlite")  # which numbers rows in columns of this type only

versions = Table("schema_version", METADATA, Column("version", Integer, primary_key=True))

# One row for each limit: the server (which is first), teams, keys. `parent_id`: whose limit counts as well.
counters = Table(
    "counters",
    METADATA,
    Column("id", BIG, primary_key=True),
    Column("scope", String, nullable=False),
    Column("name", String, nullable=False),
    Column("parent_id", BIG, ForeignKey("counters.id")),
    Column("limit_micro", BigInteger),
    Column("per", String, nullable=False),
    Column("extra_micro", BigInteger, nullable=False, default=0),
    Column("period_start", BigInteger, nullable=False),
    Column("spent_micro", BigInteger, nullable=False, default=0),
    Column("reserved_micro", BigInteger, nullable=False, default=0),
    Column("queries", BigInteger, nullable=False, default=0),
    Column("queries_before", BigInteger, nullable=False, default=0),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("scope", "name"),
)

keys = Table(
    "keys",
    METADATA,
    Column("counter_id", BIG, ForeignKey("counters.id"), primary_key=True),
    Column("sha256", String, nullable=False, unique=True),
    Column("prefix", String, nullable=False),
    Column("requests_per_minute", Integer),
    Column("revoked_at", Double),
)

# Requests of the last minute of keys with a rate.
admissions = Table(
    "admissions",
    METADATA,
    Column("id", BIG, primary_key=True),
    Column("key_id", BIG, nullable=False),
    Column("at", Double, nullable=False),
    Index("admissions_by_key", "key_id", "at"),
)

# What is reserved and not yet settled. Who settles deletes the row: that is what makes it happen once.
reservations = Table(
    "reservations",
    METADATA,
    Column("id", String, primary_key=True),
    Column("key_id", BIG, nullable=False),
    Column("request_id", String, nullable=False),
    Column("expert", String, nullable=False),
    Column("worst_micro", BigInteger, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
)

ledger = Table(
    "ledger",
    METADATA,
    Column("id", BIG, primary_key=True),
    Column("reservation_id", String, nullable=False, unique=True),
    Column("request_id", String, nullable=False),
    Column("key_id", BIG, nullable=False),
    Column("expert", String, nullable=False),
    Column("worst_micro", BigInteger, nullable=False),
    Column("micro_usd", BigInteger, nullable=False),
    Column("lost_micro_usd", BigInteger, nullable=False),
    Column("input", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("cache_write", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("usage", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("latency_s", Double, nullable=False),
    Column("price_version", String, nullable=False),
    Column("settled_at", Double, nullable=False, index=True),
    Column("settled_hour", BigInteger, nullable=False),
)

for statement in ("UPDATE", "DELETE"):
    event.listen(
        ledger,
        "after_create",
        DDL(
            f"CREATE TRIGGER ledger_no_{statement.lower()} BEFORE {statement} ON ledger "
            "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )
event.listen(
    ledger,
    "after_create",
    DDL(
        "CREATE FUNCTION ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$; "
        "CREATE TRIGGER ledger_append_only BEFORE UPDATE OR DELETE ON ledger "
        "FOR EACH STATEMENT EXECUTE FUNCTION ledger_append_only()"
    ).execute_if(dialect="postgresql"),
)


def create_schema(connection: Connection, now: float) -> None:
    """Makes what is missing, within a transaction. Raises InputError if a newer version has written the tables."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7215401)"))  # of several workers that start at once
    if inspect(connection).has_table(versions.name):
        found = connection.scalar(select(versions.c.version))
        if found != VERSION:
            raise InputError(f"the ledger has version {found} of its tables; this program knows version {VERSION}")
        return
    METADATA.create_all(connection)
    connection.execute(insert(versions).values(version=VERSION))
    server = insert(counters).values(scope="server", name="", per="total", period_start=0, created_at=now)
    if connection.execute(server).inserted_primary_key != (SERVER_ID,):
        raise InputError("the tables of the ledger are not empty")
