"""Grades multiple-choice questions by the option letter that an output settles on."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import NamedTuple

from experts.grading.base import Grade, reference_of
from experts.grading.options import LETTERS, Options, options_of
from experts.grading.phrases import (
    CALLED,
    CHOICES,
    FILLERS,
    JOIN,
    NOT,
    NOT_BEFORE,
    RATHER,
    RIGHT_AFTER,
    SO,
    WRONG_AFTER,
)
from experts.grading.stated import HEAD_CHARS, TAIL_CHARS, boxed, graded_text, limit_marks, statements
from experts.types import Query
from leeroo_env.errors import InputError

_STATEMENT_CHARS = 600
_MOST_PHRASES = 200
_OPEN = (
    r"[\s*_$(\[{}\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb\u2039\u203a\u300c\u300e\u3010\u3014\u300a\u3008<~]{0,8}"
)
_TEX = r"(?:\\[(\[] ?|\\(?:boxed|fbox|text\w{0,2}|math\w{2}|emph|underline|bf|rm) ?\{?[\s*_$({\[]{0,4}){0,3}"
_WRAP = _OPEN + _TEX + _OPEN
_CLOSE = r"(?:\\?[\s*_$)\]}\"'`\u201c\u201d\u2019\u00ab\u00bb\u2039\u203a\u300d\u300f\u3011\u3015\u300b\u3009>~]){0,8}"
_ALONE = r"(?![0-9A-Za-z\u00c0-\u024f]|_\w|['\u2019]\w|[+#^]|-\w|\.[A-Z]\b|/\w\w)"  # no part of a word, "C++" or "C.I."
_LETTER = re.compile(rf"{_WRAP}(?P<letter>[A-Z]){_ALONE}")
_SMALL_LETTER = re.compile(rf"{_WRAP}(?:(?<=[(\[{{])(?P<a>[a-z])[)\]}}]|(?P<b>[a-z])(?={_CLOSE}(?:[.,;:)]|\s?$)))")
_SECOND_SMALL_LETTER = re.compile(rf"{_CLOSE}(?:or|and|oder|und|/|,) ?{_OPEN}[a-z]\b")
_FILLERS = re.compile(rf"(?:{_WRAP}(?:{FILLERS})[\s,:]{{0,3}}){{0,6}}")
_CLOSED = re.compile(rf"[.):]?{_CLOSE}[.:]?\s?")
_JOINED = re.compile(
    rf"[.:]?{_CLOSE}(?P<join>{JOIN}){_WRAP}(?:(?:possibly|maybe|perhaps|even|option|choice|answer)\s){{0,2}}{_WRAP}"
    rf"(?P<letter>[A-Z]){_ALONE}"
)
_JOINED_BEFORE = re.compile(rf"(?<![\w'\u2019])(?P<letter>[A-Z]){_CLOSE}(?:{JOIN}){_WRAP}(?:option |choice )?{_WRAP}$")
_ENDS = re.compile(rf"{_CLOSE}(?:[.,;:!)\n]|$|(?:and|or|und|oder)\b)")
_STRONG_END = re.compile(rf"[.)]?{_CLOSE}(?:[.!,;\n]|$| (?:because|since|as)\b)")
_NOT_BEFORE = re.compile(rf"{NOT_BEFORE}{_WRAP}$")
_WRONG_AFTER = re.compile(_CLOSE + WRONG_AFTER)
_NEGATED = re.compile(rf"{_WRAP}(?:(?:{FILLERS})[\s,:]{{0,3}}){{0,3}}{NOT}", re.IGNORECASE)
_RATHER = re.compile(rf"{RATHER}[ ,:]{{0,2}}", re.IGNORECASE)
_FUNCTION_WORD = re.compile(
    r"A (?:because|since|as|is|was|and|or|but|not|for|due|given|which|that|when|while|if|so|then|has|have|would|can"
    r"|cannot|could|may|might|must|should|will|does|in|on|at|from|to|with|by|porque|weil|da|denn|car|parce|pues|ya)\b"
)
_SPEAKER = re.compile(r"I (?!(?:is|because|since|and|or|but|not|as|which)\b)[a-z]")
_CHOICES = [re.compile(form, re.MULTILINE) for form in CHOICES]
_CONCLUSION = re.compile(rf"(?:^|(?<=[.!?\n,;] )|(?<=[.!?\n,;]))(?:(?i:{SO})[,:]? ?){{1,2}}", re.MULTILINE)
_IS_RIGHT = re.compile(
    rf"(?:^|[.,;:!?(\n*\"\uff0c\u3002]|{CALLED}"
    r"|\b(?i:makes|making|make|leaves|leaving|only|so|thus|hence|therefore|that|and|but|because|since)|故|所以) ?"
    rf"{_WRAP}(?P<letter>[A-Z]){_ALONE}[.:]?{_CLOSE}(?:{RIGHT_AFTER})",
    re.MULTILINE,
)
_LINE = re.compile(r"^[ *#>-]{0,10}\(?(?P<letter>[A-Z])[.):](?=\s|\*|$)", re.MULTILINE)
_OPENING = re.compile(r"[*_]{0,2}(?P<letter>[A-Z])[*_]{0,2}(?:,| ?[-\u2013\u2014:]| because\b| since\b)")
_SMALL_LABEL = re.compile(r"\(?[a-z][.):] (?P<option>[^\n]{1,500})")  # "b) a cartel"
_SMALL_REPLY = re.compile(r"[*_]{0,2}(?P<letter>[a-z])[.)]?[*_]{0,2}\Z")
_SAID_RIGHT = re.compile(rf"(?:{RIGHT_AFTER})[^\w]{{0,5}}\Z")  # "A market is the answer."
_MARKS = (
    re.compile(r"(?<![\w)\]}^_\\])[(\[\u3010\u300c] ?\*{0,2}(?P<letter>[A-Z])\*{0,2} ?[)\]\u3011\u300d]"),
    re.compile(r"(?:\*\*|__)\(?(?P<letter>[A-Z])(?:[.):][^*_\n]{0,300})?(?:\*\*|__)"),
    re.compile(r"^[ *#>`\"-]{0,10}(?P<letter>[A-Z])[ *#.`\"!]{0,10}$", re.MULTILINE),
    re.compile(rf"(?<![^\W\d_]){CALLED}{_WRAP}(?P<letter>[A-Z]){_ALONE}"),
    re.compile(rf"(?<![^\W\d_]){CALLED}{_WRAP}(?P<letter>[b-hj-z])(?={_CLOSE}(?:[.,;:)\n]|$))"),
    re.compile(r"(?:[\u2705\u2714\u2611\u2713]|\[[xX]\]) ?\*{0,2}\(?(?P<letter>[A-Z])\b(?!['\u2019-])"),
    re.compile(r"^[ *(]{0,4}(?P<letter>[A-Z])[).]?\*{0,2} ?[\u2705\u2714\u2611\u2713]", re.MULTILINE),
)
_HTML = re.compile(r"</?(?!(?-i:[A-Z])>)[a-z]\w{0,19}(?: [^<>\n]{0,100})?/?>", re.IGNORECASE)
_CIRCLED = {0x1F150 + i: 65 + i for i in range(26)} | {0x1F170 + i: 65 + i for i in range(26)}
_LOOKALIKES = str.maketrans("\u0410\u0412\u0421\u0415\u041d\u0391\u0392\u0395", "ABCEHABE")  # Cyrillic and Greek
_LOOKALIKE = re.compile(r"\b[\u0410\u0412\u0421\u0415\u041d\u0391\u0392\u0395]\b")


class _Choice(NamedTuple):
    """The letter that a stretch of text settles on, "" if it names two, and where."""

    letter: str
    start: int


def _readable(text: str) -> str:
    """The text in plain letters: fullwidth, circled and Cyrillic ones in one form, HTML as Markdown or left out."""
    text = re.sub(r"</?(?:b|strong)>", "**", text)
    text = re.sub(r"<(?:br|/?p|/?div|/?li|/?[uo]l) ?/?>", "\n", text)
    text = _HTML.sub("", text)
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", limit_marks(text))[-2 * (HEAD_CHARS + TAIL_CHARS) :].translate(_CIRCLED)
    return _LOOKALIKE.sub(lambda m: m[0].translate(_LOOKALIKES), text)


def _leading(text: str, options: Options) -> str | None:
    """The option that a statement begins with: its letter, "" if it names two, None if it names none."""
    text = text[:_STATEMENT_CHARS]
    if _NEGATED.match(text):
        rather = _RATHER.search(text, 0, 150)
        return None if rather is None else _leading(text[rather.end() :], options)
    fillers = _FILLERS.match(text)
    after_fillers = fillers.end() if fillers else 0
    for start in (0, after_fillers):
        if named := options.named(text[start:].strip().split("\n")[0]):
            return named
    match = _LETTER.match(text, after_fillers)
    if match and match["letter"] in options.letters and not _is_word(text[match.start("letter") :]):
        return "" if _second_letter(text, match.end(), match["letter"], options) else match["letter"]
    match = _SMALL_LETTER.match(text) or _SMALL_LETTER.match(text, after_fillers)
    if match and (letter := (match["a"] or match["b"]).upper()) in options.letters:
        return "" if _SECOND_SMALL_LETTER.match(text, match.end()) else letter
    return None


def _is_word(said: str) -> bool:
    """Whether the letter at the beginning is the word "A" or "I"."""
    if said[0] == "I":
        return _SPEAKER.match(said) is not None
    return said[0] == "A" and re.match(r"A [a-z]", said) is not None and _FUNCTION_WORD.match(said) is None


def _second_letter(text: str, end: int, letter: str, options: Options) -> bool:
    """Whether another letter is joined to the one that ends at `end`: "A or B", "(A), (B)", "A. x or B. y"."""
    own = options.texts.get(letter)
    if own and (close := _CLOSED.match(text, end)):
        said = re.compile(rf"(?:an? |the )?{re.escape(own)}", re.IGNORECASE).match(text, close.end())
        end = said.end() if said else end
    joined = _JOINED.match(text, end)
    if joined is None or joined["letter"] == letter or joined["letter"] not in options.letters:
        return False
    if _WRONG_AFTER.match(text, joined.end()):
        return False
    only_comma = not re.search(r"\w|[/&+|]", joined["join"])
    return _ENDS.match(text, joined.end()) is not None if only_comma else not _is_word(text[joined.start("letter") :])


def _denied(text: str, start: int, end: int) -> bool:
    """Whether the letter between `start` and `end` is called wrong, as in "not B" or "A and B are wrong"."""
    for _ in range(len(LETTERS)):
        joined = _JOINED.match(text, end)
        end = joined.end() if joined else end
    return _is_negated(text, start) or _WRONG_AFTER.match(text, end) is not None


def _is_negated(text: str, start: int) -> bool:
    return _NOT_BEFORE.search(text[max(0, start - 60) : start]) is not None


def _stated(text: str, options: Options) -> _Choice | None:
    """The last choice that is stated outright: after "the answer is" and the like, and in a box."""
    box = boxed(text)
    found = sorted([*statements(text), *([box] if box else [])], key=lambda one: -one.start)
    for one in found:
        letter = options.equal(one.text) or _leading(one.text, options)
        if letter is not None:
            return _Choice(letter, one.start)
    return None


def _chosen(text: str, options: Options) -> _Choice | None:
    """The last choice in other words: "I go with C", "the correct option: C", "so C.", "C is correct"."""
    phrases = [(m.end(), False) for form in _CHOICES for m in form.finditer(text) if not _is_negated(text, m.start())]
    phrases += [(m.end(), True) for m in _CONCLUSION.finditer(text)]
    chosen = _called_right(text, options)
    for end, must_end in sorted(phrases, reverse=True)[:_MOST_PHRASES]:
        if chosen and end < chosen.start:
            break
        rest = text[end : end + _STATEMENT_CHARS]
        fillers = _FILLERS.match(rest)
        match = _LETTER.match(rest, fillers.end() if fillers else 0)
        if must_end and (not match or not _STRONG_END.match(rest, match.end()) or _denied(rest, 0, match.end())):
            continue
        if (letter := _leading(rest, options)) is not None:
            return _Choice(letter, end)
    return chosen


def _called_right(text: str, options: Options) -> _Choice | None:
    """The letter that is called right; if several are, that is no choice."""
    right = [
        m
        for m in _IS_RIGHT.finditer(text)
        if m["letter"] in options.letters and not _is_negated(text, m.start("letter"))
    ]
    if not right:
        return None
    start, letters = right[-1].start("letter"), {m["letter"] for m in right}
    return _Choice("" if len(letters) > 1 or _joined_before(text, start, options) else right[-1]["letter"], start)


def _joined_before(text: str, start: int, options: Options) -> bool:
    """Whether another letter is joined to the one at `start` from before."""
    joined = _JOINED_BEFORE.search(text[max(0, start - 40) : start])
    return joined is not None and joined["letter"] in options.letters and joined["letter"] != text[start]


def _marked(text: str, options: Options) -> _Choice | None:
    """The last letter that is set off as options are: "(X)", "**X**", "X." at the start of a line, "option X"."""
    lines = [m for m in _LINE.finditer(text) if m["letter"] in options.letters]
    listed = set()  # where the options are repeated one after the other, which is no choice
    for one, two in pairwise(lines):
        if ord(two["letter"]) == ord(one["letter"]) + 1:
            listed |= {one.start("letter"), two.start("letter")}
    marks = [m.span("letter") for form in (_LINE, *_MARKS) for m in form.finditer(text)]
    if opening := _OPENING.match(text) or _SMALL_REPLY.match(text):
        marks.append(opening.span("letter"))
    lines_at = [(text.split("\n", 1)[0], 0), (text[text.rfind("\n") + 1 :], text.rfind("\n") + 1)]
    if small := _SMALL_LABEL.fullmatch(text):
        lines_at.append((small["option"], small.start("option")))
    said = [(_SAID_RIGHT.sub("", line[-_STATEMENT_CHARS:]), at) for line, at in lines_at]
    named = [(at, letter) for line, at in said if (letter := options.equal(line))]
    last_named = _Choice(named[-1][1], named[-1][0]) if named else None
    for start, end in sorted(marks, reverse=True):
        letter = text[start].upper()
        if last_named and start < last_named.start:
            break
        is_option = letter in options.letters and start not in listed and not _is_word(text[start:])
        if is_option and not _denied(text, start, end):
            is_one_of_two = _joined_before(text, start, options) or _second_letter(text, end, letter, options)
            return _Choice("" if is_one_of_two else letter, start)
    return last_named


def chosen_letter(output: str, query: Query) -> str | None:
    """The letter of the option that the output settles on; None if it settles on none, or on two.

    In this order: the last statement ("the answer is X", "Answer: X", in many languages; a box), the last choice in
    other words ("I go with X", "X is correct"), the last letter that is formatted as an option: "(X)", "**X**", "X."
    at the start of a line, "option X". In a statement the text of an option stands for its letter. What is called wrong
    ("not B") and a repeated list of the options do not count. The options are those that the query's text lists, A to J
    if it lists none. Reasoning, and text after a new "Question:", are ignored; see `graded_text`.
    """
    text, options = _readable(graded_text(output, query)), options_of(query.text)
    after = -1
    for find in (_stated, _chosen, _marked):
        choice = find(text, options)
        if choice and choice.start > after:
            if choice.letter:
                return choice.letter
            after = choice.start  # two letters: only what follows can settle it
    return None


def grade_multiple_choice(output: str, query: Query) -> Grade:
    """Whether `chosen_letter` is the letter in the reference."""
    reference = re.fullmatch(r"\W*([A-Za-z])\W*", reference_of(query))
    if reference is None:
        raise InputError(f"query {query.query_id!r}: the reference {query.reference!r} is not the letter of an option")
    letter = chosen_letter(output, query)
    return Grade(float(letter == reference[1].upper()), letter)
