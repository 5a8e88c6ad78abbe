"""Grades short answers by equality with the reference, up to case, blanks and markup."""

from __future__ import annotations

import re
import unicodedata

from experts.grading.base import Grade, reference_of
from experts.grading.stated import INVISIBLE, boxed, graded_text, limit_marks, statements
from experts.types import Query

_SURROUNDING = " *_`\"'$\u201c\u201d\u2018\u2019"
_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|emph)\s?\{(.*)\}")
_TAG = re.compile(r"</?[a-z_]{1,12}>", re.IGNORECASE)
_ADVERB = re.compile(
    r"(?:clearly|definitely|simply|just|therefore|thus|indeed|most likely|probably)[, ] ?", re.IGNORECASE
)


def normal_text(text: str) -> str:
    """The normal form of a text, without case, repeated blanks, and the quotes, markup and full stop around it."""
    text = unicodedata.normalize("NFC", limit_marks(text.translate(INVISIBLE)))
    text = _strip(re.sub(r"\s+", " ", text))
    for _ in range(3):
        command = _COMMAND.fullmatch(text)
        text = _strip(command[1]) if command else text
    return text.removesuffix(".").strip(_SURROUNDING).casefold()


def _strip(text: str) -> str:
    """The text without the markup around it, "$...$", "\\(...\\)" and "\\[...\\]" included."""
    text = text.strip(_SURROUNDING)
    return text[2:-2].strip(_SURROUNDING) if text[:2] + text[-2:] in ("\\(\\)", "\\[\\]") and len(text) > 3 else text


def stated_text(output: str, query: Query) -> str | None:
    """The stated answer in normal form: the boxed text, the text after "answer is", else the whole answer.

    Without reasoning, and without what follows a new "Question:"; see `graded_text`.
    """
    text = graded_text(output, query)
    box, stated = boxed(text), statements(text)
    if box is not None:
        return normal_text(box.text) or None
    lines = [line for one in stated if normal_text(line := one.text.strip(" *_`:\n").split("\n")[0])]
    answer = _ADVERB.sub("", lines[0], count=1) if lines and _ADVERB.match(lines[0]) else lines[0] if lines else text
    return normal_text(_TAG.sub("", answer)) or None


def grade_exact(output: str, query: Query) -> Grade:
    """Whether `stated_text` equals the reference in normal form."""
    reference = normal_text(reference_of(query))
    answer = stated_text(output, query)
    return Grade(float((answer or "") == reference), answer)
