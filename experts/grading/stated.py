"""Finds what an output states as its answer: the text that is graded, its boxes, and its statements of an answer."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import NamedTuple

from experts.grading.phrases import ANSWER_IS, QUESTION_WORDS
from experts.reasoning import split_reasoning
from experts.types import Query

# Of a longer answer only this is graded: models state their answer at the beginning or at the end.
HEAD_CHARS = 4_000
TAIL_CHARS = 20_000
MOST_STATEMENTS = 20  # the last ones; each is read on its own
_LINE_CHARS = 1_000
_MOST_UNCLOSED = 3  # degenerate outputs repeat "\\boxed{" thousands of times; reading each would take quadratic time

# Zero-width blanks, soft hyphens, variation selectors and marks of direction. Zero-width joiners carry meaning.
INVISIBLE = dict.fromkeys(
    (0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF)
)
INVISIBLE |= dict.fromkeys(range(0xFE00, 0xFE10))
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|end|user|return|END_RESPONSE)\|>|</s>|<eos>|<end_of_turn>"
    r"|<\uff5cend\u2581of\u2581sentence\uff5c>|<\|end_of_solution\|>|\[END FINAL RESPONSE\]|\[/INST\]"
)
_SPECIAL_TOKEN = re.compile(r"<\|[\w /-]{1,40}\|>|<s>|<bos>|<start_of_turn>")

_NEXT_QUESTION = re.compile(rf"\n[ #*_>]{{0,10}}(?:{QUESTION_WORDS})(?!\w)[^\n:\uff1a]{{0,20}}[:\uff1a]", re.IGNORECASE)
_ANNOUNCES_QUESTION = re.compile(
    r"\b(?:restat|rephras|repeat|question|problem)|\A\W{0,5}(?:sure|okay|ok|certainly|of course|absolutely|let|here"
    r"|first"
    r"|to (?:solve|answer|find|determine)|we|i will|i'll)\b",
    re.IGNORECASE,
)
_RESTATED_CHARS = 300

_STATEMENT = re.compile(
    rf"(?:{ANSWER_IS})"
    rf"(?P<rest>[^\n]{{0,{_LINE_CHARS}}}(?:\n[^\n]{{1,{_LINE_CHARS}}})?)",
    re.IGNORECASE | re.MULTILINE,
)
_KEYS = (
    r"(?:[a-z]{1,15}[_ ]){0,2}(?:answer|choice|option|letter|solution|result|prediction|response|value)"
    r"(?:[_ ][a-z]{1,15}){0,2}"
)
_JSON = re.compile(
    rf"[\"']{_KEYS}[\"'] ?: ?(?P<value>"
    r"\[ ?\"[^\"\\\n]{0,200}\" ?\]|\"(?:[^\"\\\n]|\\.){0,1000}\"|'[^'\n]{0,1000}'|[-+\w.]{1,100})",
    re.IGNORECASE,
)
_TAGGED = re.compile(
    r"<(?P<tag>(?:final_?|correct_?|my_?)?(?:answer|ans|choice|solution|result|response|option))>"
    r"(?P<value>[^<]{1,1000})(?:</|\Z)",
    re.IGNORECASE,
)
_BOX = re.compile(
    r"(?:\\|\x08)?(?:boxed|fbox|framebox|bbox|doublebox|shadowbox|[oO]valbox|tcboxmath|oxed(?<=\x08oxed)"
    r"|\\fcolorbox\{[^{}\n]{0,40}\}\{[^{}\n]{0,40}\}|\\colorbox\{[^{}\n]{0,40}\}|\\enclose\{box\})"
    r"(?: ?\[[^\[\]\n]{0,40}\]){0,2} ?(?=\{)|\\f?box(?:ed)? ?(?=[\w$-])"
)
_BARE_BOX = re.compile(r"\$?(-?\d[\d.,]*|[A-Za-z](?![a-zA-Z])|\\[a-z]+(?:\{[^{}\n]{0,40}\}){0,2})")
_BETWEEN_BOXES = re.compile(
    r"[\s$\\,;()\[\].]{0,12}(?:and|or|und|oder|et|ou|y|o)?[\s$\\()\[\]]{0,8}(?:[a-z]_?\d? ?= ?)?"
)


class Stated(NamedTuple):
    """A stretch of text that states an answer, and where it begins."""

    text: str
    start: int


def graded_text(output: str, query: Query) -> str:
    """What of an output is graded: its answer without reasoning, blanks and line ends in one form.

    Of an answer of more than `HEAD_CHARS` + `TAIL_CHARS` characters only the beginning and the end are kept. What a
    base model appends, another turn or a question of its own, is dropped.
    """
    text = split_reasoning(output)[1]
    if len(text) > HEAD_CHARS + TAIL_CHARS:
        text = f"{text[:HEAD_CHARS]}\n[...]\n{text[-TAIL_CHARS:]}"
    text = text.translate(INVISIBLE)
    end = next((end.start() for end in _END_OF_TURN.finditer(text) if text[: end.start()].strip()), len(text))
    text = _SPECIAL_TOKEN.sub(" ", text[:end])
    text = re.sub(r"[^\S\n]+", " ", text)  # no run of blanks is left on which a pattern could take quadratic time
    return first_reply(re.sub(r" ?\n\s*", "\n", text).strip(), query)


def first_reply(text: str, query: Query) -> str:
    """The text up to where a base model continues with a question of its own.

    A question that is the query's own, restated, does not count, nor one that the text before it announces.
    """
    asked = None
    for found in list(_NEXT_QUESTION.finditer(text))[:20]:
        before = text[: found.start()]
        if not before.strip():
            continue
        asked = _words(query.text) if asked is None else asked
        line = text[found.end() :].lstrip(" *_#>\n").split("\n")[0]
        restated = _words(line[:_RESTATED_CHARS])
        announced = len(before) < _RESTATED_CHARS and _ANNOUNCES_QUESTION.search(before) and not statements(before)
        if not announced and not (restated.strip() and restated in asked):
            return before
    return text


def _words(text: str) -> str:
    return " " + " ".join(re.findall(r"[^\W_]+", text.casefold())) + " "


def limit_marks(text: str) -> str:
    """The text with at most 30 combining marks in a row, as in Unicode's stream-safe format; normal forms of more take
    quadratic time.
    """
    if len(text) < 30 or text.isascii():
        return text
    kept, marks = [], 0
    for char in text:
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks <= 30:
            kept.append(char)
    return "".join(kept)


def boxed(text: str) -> Stated | None:
    r"""The content of the last complete and nonempty \boxed{...}, \fbox{...} or the like, or of "\boxed 5".

    Two boxes that only "and", "or" or a comma part are one, with both contents: "3, 5".
    """
    last = None
    unclosed = 0
    for box in reversed(list(_BOX.finditer(text))):
        start, end = box.end(), _end_of_box(text, box.end())
        if end is None:
            unclosed += 1
            if unclosed == _MOST_UNCLOSED:
                break
            continue
        content = text[start + 1 : end - 1] if text[start] == "{" else text[start:end]
        if not content.strip():
            continue
        if last is None:
            last = Stated(content, box.start())
        elif content != last.text and len(between := text[end : last.start]) < 40 and _BETWEEN_BOXES.fullmatch(between):
            return Stated(f"{content}, {last.text}", box.start())
        else:
            break
    return last


def _end_of_box(text: str, start: int) -> int | None:
    """Where the box ends whose content begins at `start`; None if it is not closed."""
    if text[start : start + 1] != "{":
        bare = _BARE_BOX.match(text, start)
        return bare.end() if bare else None
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return start + brace.end()
    return None


def statements(text: str) -> list[Stated]:
    """The text after each "answer is", "answer:" and the like, with the next nonempty line; the last one first.

    Knows the word in some 30 languages, headings, "#### 5", <answer>...</answer> and the fields of JSON objects. At
    most the last `MOST_STATEMENTS` are given. `text` is as `graded_text` leaves it.
    """
    found, position = [], 0
    while match := _STATEMENT.search(text, position):
        found.append(Stated(match["rest"].split("####")[0], match.start("rest")))
        position = max(match.start("rest"), match.start() + 1)
    found += [Stated(_json_value(match["value"]), match.start("value")) for match in _JSON.finditer(text)]
    found += [Stated(match["value"], match.start("value")) for match in _TAGGED.finditer(text)]
    return sorted(found, key=lambda stated: stated.start)[: -MOST_STATEMENTS - 1 : -1]


def _json_value(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text.strip("'")
    return str(value[0] if isinstance(value, list) else value)
