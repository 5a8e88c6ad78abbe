"""Asks for the probability that an answer is right, and takes what is stated of it out of the answer.

Stated ("verbalized") confidence: Tian et al., Just Ask for Calibration, EMNLP 2023.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

REQUEST = (
    "\n\nAfter your answer write one last line of the form\nConfidence: N%\n"
    "where N is the probability, from 0 to 100, that your answer is right."
)

_LABEL = (
    r"(?:confidence|certainty)(?:[ _](?:level|score|rating|estimate|percentage|value|probability))?"
    r"(?: (?:in|of|that|about)(?: (?:my|this|the|your))?(?: final)? answer(?: is (?:correct|right))?| of correctness)?"
    r"|probability (?:that|of)(?: (?:my|this|the))?(?: final)? answer (?:is|being) (?:correct|right)"
    r"|(?:niveau de )?confiance|konfidenz|zuversicht|sicherheit|(?:n[i\u00ed]vel de )?confian[z\u00e7]a"
    r"|fiducia|confidenza|vertrouwen|\u0443\u0432\u0435\u0440\u0435\u043d\u043d\u043e\u0441\u0442\u044c"
    r"|\u7f6e\u4fe1\u5ea6|\u7f6e\u4fe1\u6c34\u5e73|\u4fe1\u5fc3(?:\u5ea6|\u6307\u6570)?|\u81ea\u4fe1\u5ea6|\u78ba\u4fe1\u5ea6"
    r"|\u4fe1\u983c\u5ea6|\ud655\uc2e0\ub3c4|\uc2e0\ub8b0\ub3c4"
)
_MARKS = r"[*_`~\"'$\\{}\[\]()\uff08\uff09\u3010\u3011#\s]{0,8}"
_STATEMENT = re.compile(
    rf"(?<![\w%])(?<!% )(?:(?:my|overall|final|stated|estimated|answer) ){{0,2}}(?P<label>{_LABEL}){_MARKS}"
    r"(?:\((?:%|\d|in |as |out |from )[^()\n]{0,40}\))?"
    rf"{_MARKS}(?:[:\uff1a=|\u2013\u2014-]|\b(?:is|est|ist|es)\b)[*_`\s]{{0,8}}(?P<value>[^\n]*)",
    re.IGNORECASE,
)
_SURE = re.compile(
    r"\bI(?: a|['\u2019])m (?:about |around |roughly |approximately |over |at least )?"
    r"(?P<value>\d[\d.,]{0,6} ?(?:%|percent)) (?:confident|certain|sure)\b[^\n]*",
    re.IGNORECASE,
)
_IN_JSON = re.compile(
    r"(?P<before>,\s{0,20})?\"(?:stated_)?confidence(?:_(?:level|score))?\"\s{0,9}:\s{0,9}"
    r"(?P<value>\"[^\"\n]{0,40}\"|[\d.]{1,9}|null)(?(before)|(?:\s{0,9},\s{0,20})?)",
    re.IGNORECASE,
)
_IN_TAGS = re.compile(r"<confidence>(?P<value>[^<>\n]{0,60})</confidence>", re.IGNORECASE)
_LEAD = re.compile(
    r"(?:\\text\w{0,2}|[-*_`~\"'$\\{}\[\]()\uff08\u3010#>|\s\u2022])*"
)  # before a statement on a line of its own
_DANGLING = re.compile(r"(?:^|(?<=\s))(?:[(\[\uff08*_`|#>-]{1,4}|\\text\w{0,2}\{)\s*$")
_ANSWER = re.compile(r"\b(?:the |my |final )*answer\b|\\boxed", re.IGNORECASE)

_TEX = re.compile(r"\\(?:text\w{0,2}|math\w{0,2}|boxed|approx|sim|quad|[,;: ()\[\]])")
_MARKUP = re.compile(r"[*_`$\\{}\[\]()\"'|~]")
_ABOUT = (
    r"(?:(?:about|around|approximately|approx\.?|roughly|nearly|almost|at least|over|under|less than|more than|circa"
    r"|ca\.|[\u2248<>\u2264\u2265=])\s*){0,2}"
)
_NUMBER = r"(\d{1,9}(?:[.,]\d{1,9})?|\.\d{1,9})"
_PERCENT = r"\s?(%|percent\b|per cent\b|pct\b|prozent\b|procent\b|pour cent\b|por ciento\b|por cento\b|per cento\b)?"
_EVEN = re.compile(r"(?:50\s?[/-]\s?50(?!\d|\s?%)|fifty[- ]fifty)\b")
_RATIO = re.compile(rf"{_NUMBER}{_PERCENT}\s?(?:/|out of|of|von|sur)\s?{_NUMBER}")
_RANGE = re.compile(rf"(?:between )?{_NUMBER}{_PERCENT}\s?(?:[-\u2013\u2014]|to|and|bis)\s?{_ABOUT}{_NUMBER}{_PERCENT}")
_ONE = re.compile(rf"(%?)\s?{_NUMBER}{_PERCENT}")
_WORDS = re.compile(r"([a-z]+(?:[ -][a-z]+){0,3}?) ?(?:percent|per cent|%)")
_CERTAIN = re.compile(r"(?:absolute(?:ly)?|complete(?:ly)?|fully|totally|total)? ?(?:certain|certainty)\W*$")
_LEVEL = re.compile(
    r"(?:(?:very|extremely|quite|fairly|pretty|reasonably|rather|moderately|completely|absolutely|fully|not) ?)*"
    r"(?:high|low|medium|moderate|certain|uncertain|unsure|sure|confident|strong|weak|unknown|none|null|n/?a)\b|n ?%"
    r"|[+-]?\s?\d|$"
)


def split_confidence(text: str) -> tuple[str, float | None]:
    """The text without the confidence that it states, and that as a probability; None where none can be read.

    A statement is taken out where it ends the text or, in the form that `REQUEST` asks for, has a line of its own; of
    JSON the field, and the tag, `confidence`. One that can mean several numbers, as "high" or 7, is taken out and not
    read. Takes linear time.
    """
    confidence = None
    for pattern in (_IN_TAGS, _IN_JSON):
        for match in [*pattern.finditer(text)][-1:]:
            text, confidence = _without(text, match.start(), match.end()), probability(match["value"])
    for _ in range(3):  # some state it twice
        found = _last_statement(text)
        if found is None or (confidence is not None and probability(found[2]) != confidence):
            break
        start, end, value = found
        text, confidence = _without(text, start, end), probability(value)
    return text, confidence


def logprob_without(tokens: Sequence[tuple[str, float]], text: str, kept: str) -> float | None:
    """The mean log-probability of the tokens that do not state what `split_confidence` took out of `text`.

    Args:
        tokens: text and log-probability of each token written. Their texts together hold `text`, but for white space.
        text: before.
        kept: what is left of it.

    Returns:
        None without tokens. That of all tokens where nothing was taken out, or not found again.
    """
    start = _equal_chars(text, kept)
    end = len(text) - _equal_chars(text[start:][::-1], kept[start:][::-1])
    stated = "".join(text[start:end].split())
    parts = ["".join(part.split()) for part, _ in tokens]
    first = "".join(parts).rfind(stated) if stated else -1
    left, at = [], 0
    for part, (_, value) in zip(parts, tokens, strict=True):
        if first < 0 or at + len(part) <= first - (not part) or at >= first + len(stated) + (not part):
            left.append(value)
        at += len(part)
    values = left or [value for _, value in tokens]
    return math.fsum(values) / len(values) if values else None


def _equal_chars(one: str, other: str) -> int:
    """The number of characters that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _last_statement(text: str) -> tuple[int, int, str] | None:
    """Start, end and value of the last statement that counts; None if there is none."""
    end_of_text = len(text.rstrip(" \t\n\r*_`~\"'$\\}])|>.#-"))
    for match in reversed([*_STATEMENT.finditer(text), *_SURE.finditer(text)]):
        start, end, value = match.start(), match.end(), match["value"]
        line = text.rfind("\n", 0, start) + 1
        is_own_line = _LEAD.fullmatch(text, line, start) is not None
        is_last = end >= end_of_text
        plain = _plain(value)
        if is_last:
            counts = _is_stated(plain) and (is_own_line or plain != "")
        else:
            counts = is_own_line and match.re is _STATEMENT and match["label"].lower() == "confidence"
            counts = counts and _ONE.fullmatch(plain.rstrip(" .")) is not None
        if counts:
            number = re.search(r"\d", value)
            answer = _ANSWER.search(value, number.end()) if number else None  # the answer may follow on the same line
            return line if is_own_line else start, match.start("value") + answer.start() if answer else end, value
    return None


def _without(text: str, start: int, end: int) -> str:
    before, after = text[:start], text[end:]
    if after.strip():
        return before + (after.lstrip() if not before.strip() else after)
    return _DANGLING.sub("", before.rstrip()).rstrip()


def probability(words: str) -> float | None:
    """The probability that these words begin with; None where they state none, or may mean several.

    Percentages, fractions, ratios, and ranges, of which it is the middle. Without a sign of percent a number above 10
    is a percentage; one from 1 to 10 may be one on another scale.
    """
    from experts.grading.numerals import number_in_words  # takes a tenth of a second, and reading a pool no numerals

    words = _plain(words)
    if _EVEN.match(words):
        return 0.5
    if match := _RATIO.match(words):
        part, whole = _float(match[1]), _float(match[3])
        return part / whole if whole > 0 and part <= whole else None
    if match := _RANGE.match(words):
        percent = bool(match[2] or match[4])
        ends = [_scaled(match[i], percent) for i in (1, 3)]
        return None if ends[0] is None or ends[1] is None else (ends[0] + ends[1]) / 2
    if match := _ONE.match(words):
        return _scaled(match[2], bool(match[1] or match[3]))
    if (match := _WORDS.match(words)) and (number := number_in_words(match[1])) and number.value is not None:
        return _scaled(str(float(number.value)), True)
    return 1.0 if _CERTAIN.match(words) else None


def _scaled(number: str, percent: bool) -> float | None:
    value = _float(number)
    if percent or value > 10:
        value /= 100
    elif value > 1 or number == "1":
        return None
    return value if value <= 1 else None


def _float(number: str) -> float:
    return float(number.replace(",", "."))


def _plain(words: str) -> str:
    """Without markup, in lower case, and without what makes a number less exact."""
    words = unicodedata.normalize("NFKC", words[:200]).lower()
    return re.sub(rf"^{_ABOUT}", "", " ".join(_MARKUP.sub("", _TEX.sub(" ", words)).split()))


def _is_stated(plain: str) -> bool:
    return _LEVEL.match(plain) is not None or probability(plain) is not None
