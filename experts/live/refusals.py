"""Says what kind of fault it is that a server replies with, and whether the call may be billed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from experts.backends.http import MAY_BE_BILLED
from experts.backends.reply import error_of, read_json
from experts.live.body import DISPENSABLE
from experts.live.types import Kind, UpstreamError

NOT_TAKEN = ("unsupported_parameter", "unsupported_value", "unknown_parameter")  # unlike a value out of range


def error_in(value: dict[str, Any] | None) -> tuple[int, str] | None:
    """Status and message of an error in a reply with status 200, also of one that cuts an answer short."""
    return error_of(value | {"choices": None} if value and value.get("error") else value)


def error_inside(status: int, words: str) -> UpstreamError:
    """The error that stands in a reply with status 200."""
    return UpstreamError(_kind_of(status), f"{status}: {words}", status=status, may_be_billed=status in MAY_BE_BILLED)


def refused(status: int, headers: Mapping[str, str], body: bytes, most_chars: int) -> UpstreamError:
    """The error of a reply with another status than 200."""
    if status // 100 == 3:
        words = "the server redirects, which is not followed; correct its address"
    else:
        error = error_of(read_json(body))
        words = error[1] if error else body[:most_chars].decode("utf-8", "replace")
    return UpstreamError(
        _kind_of(status),
        f"{status}: {words}",
        status=status,
        retry_after_s=_retry_after_s(headers),
        may_be_billed=status in MAY_BE_BILLED,
    )


def _kind_of(status: int) -> Kind:
    if status == 429:
        return "rate limit"
    if status == 408:
        return "timeout"
    return "bad request" if status in (400, 413, 415, 422) else "server"


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that `Retry-After` names, or that are left until its date."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * scale
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def refused_setting(status: int, value: dict[str, Any] | None, body: dict[str, Any]) -> str | None:
    """The setting that a server does not take, whatever its value, if the answer can do without it."""
    if status not in (400, 422) or value is None:
        return None
    error = value.get("error")
    fields = error if isinstance(error, dict) else {}
    named = fields.get("param")
    if isinstance(named, str) and named in DISPENSABLE and named in body and fields.get("code") in NOT_TAKEN:
        return named
    if "stream_options" not in body or "stream_options" not in json.dumps(value):
        return None
    own = {name: field for name, field in body.items() if name != "stream_options"}
    return None if "stream_options" in json.dumps(own) else "stream_options"  # the server may quote the request
