"""Money: keys and their limits; worst cases reserved before calls, costs settled after; in SQLite or PostgreSQL."""

from agents.server.money.ledger import Ledger
from agents.server.money.types import (
    Account,
    Budget,
    Charge,
    KeyInfo,
    LedgerRow,
    Period,
    Refused,
    Spending,
    StoreUnavailable,
    micro_of,
)

__all__ = [
    "Account",
    "Budget",
    "Charge",
    "KeyInfo",
    "Ledger",
    "LedgerRow",
    "Period",
    "Refused",
    "Spending",
    "StoreUnavailable",
    "micro_of",
]
