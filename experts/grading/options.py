"""Reads the options of a multiple-choice question: their letters and their texts."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_UNLISTED = LETTERS[:10]
_OPTION_FORMS = (  # one a line, else one behind the other
    re.compile(r"^[ \t*>-]{0,10}\(?\[?([A-Z])[.):\]]\*{0,2}[.):]?\*{0,2}\s", re.MULTILINE),
    re.compile(r"^[ \t*>-]{0,10}\(?([a-z])[.)]\s", re.MULTILINE),
    re.compile(r"(?<![\w(])\(?([A-Z])[.):]\s"),
    re.compile(r"(?<![\w(])\(?([a-z])\)\s"),
)
_MARKUP = re.compile(r"[*_`\"$\\{}\u201c\u201d\u2018\u2019']|(?<=\\)(?:text|mathrm|textbf|mathbf|boxed)\b")
_ARTICLE = re.compile(r"(?:an?|the) (?=\w)")
_END_OF_TEXT = re.compile(r"[.,;:!?)\]]*(?:$|[.;:!?)\]] |, (?![a-z]?\d)| ?\(| (?:because|since|as|which|for|due|so)\b)")
_TEXT_CHARS = 500


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Attributes:
        letters: "ABCD" if there are four; A to J if the question lists none.
        texts: by letter, in the form of `plain`; only those that are longer than a letter and occur once.
    """

    letters: str
    texts: dict[str, str]

    def named(self, text: str) -> str | None:
        """The option with whose text `text` begins."""
        said = plain(text[: _TEXT_CHARS * 2])
        fits = [
            (len(option), letter)
            for letter, option in self.texts.items()
            if said.startswith(option) and _END_OF_TEXT.match(said, len(option))
        ]
        return max(fits)[1] if fits else None

    def equal(self, text: str) -> str | None:
        """The option whose text this is."""
        said = plain(text[: _TEXT_CHARS * 2])
        return next((letter for letter, option in self.texts.items() if said == option), None)


def plain(text: str) -> str:
    """A text without case, markup, repeated blanks, the article at its beginning and the full stop at its end."""
    text = " ".join(_MARKUP.sub("", text).casefold().split()).rstrip(". ")
    return _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text


@functools.lru_cache(maxsize=256)
def options_of(question: str) -> Options:
    """The options that a question lists as "A. ...", "(A) ..." or "a) ...", from A on without a gap."""
    for form in _OPTION_FORMS:
        found: list[re.Match[str]] = []
        for match in form.finditer(question):
            if ord(match[1].upper()) - ord("A") == len(found):
                found.append(match)
        if len(found) >= 2:
            ends = [match.start() for match in found[1:]] + [len(question)]
            texts = [plain(question[match.end() : end][:_TEXT_CHARS]) for match, end in zip(found, ends, strict=True)]
            named = {
                LETTERS[i]: text
                for i, text in enumerate(texts)
                if texts.count(text) == 1 and not re.fullmatch(r"[a-z]?", text)
            }
            return Options(LETTERS[: len(found)], named)
    return Options(_UNLISTED, {})
