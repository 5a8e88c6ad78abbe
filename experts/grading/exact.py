"""Grades short answers by equality with the reference, up to case, blanks and markup."""

from __future__ import annotations

import re
import unicodedata

from experts.grading.base import Grade, boxed, first_reply, reference_of, statements
from experts.types import Query

_SURROUNDING = " *_`\"'$\u201c\u201d\u2018\u2019"


def normal_text(text: str) -> str:
    """The normal form of a text, without case, repeated blanks, and the quotes, markup and full stop around it."""
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()
    text = re.sub(r"^\\(?:text|mathrm|textbf|mathbf)\{(.*)\}$", r"\1", text)
    return text.strip(_SURROUNDING).removesuffix(".").strip(_SURROUNDING).casefold()


def stated_text(output: str, query: Query) -> str | None:
    """The stated answer in normal form: the boxed text, the text after "answer is", else the whole output."""
    text = first_reply(output)
    answer, stated = boxed(text), statements(text)
    if answer is None:
        answer = stated[0].strip().split("\n")[0] if stated else output
    return normal_text(answer) or None


def grade_exact(output: str, query: Query) -> Grade:
    """Whether `stated_text` equals the reference in normal form."""
    reference = normal_text(reference_of(query))
    answer = stated_text(output, query)
    return Grade(float((answer or "") == reference), answer)
