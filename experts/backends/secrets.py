"""Takes secrets out of texts, in every form in which a server may echo them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

REDACTED = "[redacted]"
LEAST_CHARS = 8  # shorter secrets are words that an answer may well contain


def secret_forms(secrets: Iterable[str]) -> tuple[str, ...]:
    """The secrets as they stand, percent-encoded and in base64 at each of its three alignments, the longest first."""
    forms: set[str] = set()
    for secret in secrets:
        forms |= {secret, quote(secret, safe=""), quote_plus(secret)}
        if len(secret) < LEAST_CHARS:
            continue
        for offset in range(3):
            data = b"\0" * offset + secret.encode()
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                # without the characters that what stands before and after the secret shares with it
                forms.add(encode(data).decode().rstrip("=")[(0, 2, 3)[offset] : -1 if len(data) % 3 else None])
    return tuple(sorted((form for form in forms if form), key=len, reverse=True))


def secrets_of_url(url: str | None) -> list[str]:
    """The password and the values of the query of an address."""
    parts = urlsplit(url or "")
    return [secret for secret in (parts.password, *(value for _, value in parse_qsl(parts.query))) if secret]


def redact(text: str, forms: Sequence[str], least_chars: int = 0) -> str:
    """The text without the secrets, of those forms that have at least so many characters."""
    for form in forms:
        if len(form) >= least_chars:
            text = text.replace(form, REDACTED)
    return text


def shown_url(url: str) -> str:
    """An address without user, password and query."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
