"""Reads the numbers in a text: digits with signs, groups, powers, fractions, percentages and words such as million."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

_LONGEST_NUMBER = 400
_LARGEST_BITS = 4_000

_MINUS = "\u2212\u2013\uff0d\ufe63\u2010\u2011\u207b"
_CHARACTERS = str.maketrans(
    {**dict.fromkeys(_MINUS, "-"), **dict.fromkeys("\u2019\u02bc\u2032\uff07\u066c", "'"), "\u066b": ".", "\u066a": "%"}
    | {
        "\u2062": "",
        "\u2215": "/",
        "\u2044": "/",
        "\u2022": "*",
        "\u22c5": "\u00b7",
        "\u2219": "\u00b7",
        "\u2715": "\u00d7",
    }
    | {"\u2716": "\u00d7", "\u2a2f": "\u00d7", "\u2217": "*"}
    | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if code not in (0xFF07, 0xFF0D)}
)
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_SUBSCRIPT = re.compile("[\u2080-\u2089]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")
_OTHER_DIGIT = re.compile(r"[^\x00-\x7f](?<=\d)")
_TEX_SPACE = re.compile(r"\\(?:[,;:> ]|quad|qquad|enspace|thinspace|hspace\{[^{}]{0,20}\})|(?<!\\)~")
_TEX_NAMES = dict.fromkeys(("dfrac", "tfrac", "cfrac"), r"\frac") | dict.fromkeys(("approx", "simeq"), "\u2248")
_TEX_NAMES |= dict.fromkeys(("left", "right", "displaystyle", "big", "Big", "bigl", "bigr"), "")
_TEX_NAMES |= {"times": "\u00d7", "cdot": "\u00b7", "ast": "*", "div": "\u00f7", "pm": "\u00b1", "degree": "\u00b0"}
_TEX_NAMES |= {"pounds": "\u00a3", "euro": "\u20ac", "texteuro": "\u20ac", "textdollar": "$", "percent": "%"}
_TEX_NAME = re.compile(rf"\\({'|'.join(_TEX_NAMES)})(?![a-zA-Z]) ?")
_TEX_TEXT = re.compile(
    r"\\(?:text\w{0,2}|math(?:rm|bf|it|sf|tt)|mbox|hbox|emph|operatorname|unit|si|boldsymbol"
    r"|bm)\*? ?\{([^{}]{0,200})\}"
)
_TEX_FRACTION = re.compile(
    r"\\frac ?(?:\{ ?(-?\d{1,30}) ?\}|(\d)) ?(?:\{ ?(\d{1,30}) ?\}|(\d))"  # \frac12 is 1/2
)
_MINUS_WORD = re.compile(
    r"(?<![\w)] )(?<![\w)])(?:\b(?:minus|negative|moins|menos|meno)\s|\u8d1f"
    r"|\u8ca0)(?=\s?[$\u20ac\u00a3]?\s?[\d.\u27e8])",
    re.IGNORECASE,
)

# Numbers as digits. Blanks are single, so that nothing here takes more than linear time.
_GROUPED = (
    r"\d{1,3}(?:(?:,\d{3})+|(?:\{,\}\d{3})+)(?![\d])(?:\.\d+)?"
    r"|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)(?:\.\d+)?"  # Indian groups
    r"|\d{1,3}(?:(?:'\d{3})+|(?: \d{3})+|(?:_\d{3})+)(?!\d)(?:[.,]\d+)?"
    r"|\d{1,3}(?:\.\d{3}){2,}(?!\d)(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d)"
)
_DECIMAL = r"\d+(?:\.\d+|,\d+)?|\.\d+"


def _exponent(name: str) -> str:
    return (
        rf"(?:\^|\*\*) ?(?:\{{ ?(?P<{name}1>[-+]?\d{{1,4}}) ?\}}|\( ?(?P<{name}2>[-+]?\d{{1,4}}) ?\)"
        rf"|(?P<{name}3>[-+]?\d{{1,4}})(?![\d.]\d))"
    )


_POWER_OF_TEN = rf"(?:[eE](?P<e>[-+]?\d{{1,3}})(?!\w|\.\d)| ?(?:[xX*\u00d7\u00b7]|\\times) ?10 ?{_exponent('t')})"
_SCALES = {  # as powers of ten
    **{
        "hundred": 2,
        "thousand": 3,
        "million": 6,
        "billion": 9,
        "trillion": 12,
        "quadrillion": 15,
        "lakh": 5,
        "crore": 7,
    },
    **{"tausend": 3, "mio": 6, "millionen": 6, "mrd": 9, "milliarde": 9, "milliarden": 9, "mille": 3, "milliard": 9},
    **{"mil": 3, "millón": 6, "millones": 6, "milhão": 6, "milhões": 6, "bilhões": 9, "milione": 6, "milioni": 6},
    **{"miliardi": 9, "mn": 6, "bn": 9, "万": 4, "萬": 4, "亿": 8, "億": 8},
}
_SCALE = rf"[ -]?(?:{'|'.join(sorted(_SCALES, key=len, reverse=True))})s?(?![^\W\d_])\.?"
_SCALE_SUFFIX = {"k": 3, "m": 6, "b": 9, "t": 12, "mm": 6}
_CURRENCY = r"[$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9]|\b(?:USD|EUR|GBP|CHF|INR|Rs\.?)"
_NUMBER = re.compile(
    rf"(?<![\w/])(?<!\d[.,:'^])(?<![\^_\\])(?<![^\W\d_]{{2}}-)"
    rf"(?P<sign>[-+])?(?P<currency>\\?(?:{_CURRENCY}) ?)?(?P<sign2>-)?(?:"
    r"(?:(?P<whole>\d{1,9})(?: | and |-(?=\d/))?)?\u27e8(?P<fn>-?\d{1,30})/(?P<fd>\d{1,30})\u27e9"
    r"|(?:(?P<whole2>\d{1,9})(?: and | |-(?=\d{1,3}/)))?(?P<n>\d{1,30}) ?/ ?(?P<d>\d{1,30})(?![\d/])(?!\.\d)"
    rf"|(?P<plain>{_GROUPED}|{_DECIMAL})(?:{_POWER_OF_TEN}|(?: ?(?:{_exponent('p')})))?"
    r"(?P<half> and (?:a half|one half|a quarter|three quarters))?)"
    rf"(?P<suffix>(?:[kmbt]|mm)(?![\w/^]))?(?P<scale>(?:{_SCALE}){{0,2}})"
    r"(?P<percent> ?\\?%| ?(?:percent|per cent|pct|Prozent|pour cent|por ciento|per cento)\b)?",
    re.IGNORECASE,
)
_ERROR = re.compile(r" ?(?:\u00b1|\+/-|\+-) ?[\d.,]+ ?%?")

_UNIT_NAMES = (
    r"[kcmdn\u00b5\u03bcMGTh]?(?:m|g|s|A|K|mol|cd|N|J|W|Hz|Pa|V|C|F|L|l|eV|bar|Wh|B|bit|cal|T|H|\u03a9)|min|h|hr|hrs"
    r"|sec|secs|mins|ms|ft|in|yd|mi|lb|lbs|oz|mph|kph|atm"
    r"|amu|u|M|rad|deg|\u00b0 ?[CFK]?|\u2103|\u2109|sq|cu|square|cubic|units?|degrees?|radians?|dollars?|cents?"
    r"|euros?|pounds?|rupees?|yen|yuan|USD|EUR"
    r"|\u20ac|\u00a3|\u00a5|\u5143|\u4e2a|\u5186|\uc6d0|met(?:er|re)s?|(?:kilo|centi|milli)met(?:er|re)s?|kilograms?"
    r"|(?:milli)?grams?|(?:milli)?lit(?:er|re)s?|seconds?|minutes?|hours?|days?|weeks?"
    r"|months?|years?|miles?|feet|foot|inch(?:es)?|yards?|newtons?|joules?|watts?|volts?|ohms?|hertz|pascals?|moles?"
    r"|kelvins?|celsius|fahrenheit|people|persons?|times"
)
_UNIT_POWER = r"(?: ?\^ ?(?:\{ ?-?\d ?\}|\(-?\d\)|-?\d)|(?<=[a-z\u03a9])-?[1-3](?!\d))?"
_UNIT = rf"(?:{_UNIT_NAMES}){_UNIT_POWER}(?![^\W_])"
UNIT = re.compile(rf"[ -]?{_UNIT}(?:(?: ?[/\u00b7*] ?| per | )\(?{_UNIT}\)?){{0,4}}")
# Behind a number: the rest of a formula or of a word, so that the number is none of its own.
_GLUE = re.compile(
    r" ?(?:\^|\*\*|\u221a|\u03c0|\\(?:sqrt|pi|frac|binom|log|ln|sin|cos|tan|exp|infty|alpha|beta|theta|lambda|omega"
    r"|cdots|ldots)\b|\\[a-z]+\{)"
    r"|(?:[:.,/'_]|-(?=\d\d?-\d))\d|\((?=[\w\\+-])|[^\W\d_]|_|!(?=[\s)]*[*/^+\u00b7\u00d7-])"
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th|\u00ba|\u00aa)(?![^\W\d_])")
_EAST_ASIAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_INSIDE = re.compile(
    r"(?:\\[a-zA-Z]{1,12} ?\{?|[\u221a^_]\{?|\b(?:[a-zA-Z]|sin|cos|tan|log|ln|exp|sqrt)\("
    r"|[\d)}] ?[\u00b7*\u00d7] ?)-?$"
)
_IMAGINARY = re.compile(r"[ij](?![\w'])")


@dataclass(frozen=True)
class Number:
    """A number in a text.

    Attributes:
        value: None if it is part of a formula or of a word, which has to be read by other means, or not at all.
        percent: whether it is a percentage, of which `value` is 50 for 50%.
        start, end: where it stands in the text, its unit excluded.
    """

    value: Fraction | None
    percent: bool
    start: int
    end: int


def plain_numerals(text: str) -> str:
    """The text with one form for each sign: LaTeX, fullwidth digits, superscripts, fractions such as one half."""
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)
        text = _SUBSCRIPT.sub(lambda m: "_" + unicodedata.normalize("NFKC", m[0]), text)
        text = _VULGAR.sub(lambda m: f"\u27e8{unicodedata.normalize('NFKC', m[0])}\u27e9".replace("\u2044", "/"), text)
        text = _OTHER_DIGIT.sub(lambda m: str(unicodedata.decimal(m[0])), text.translate(_CHARACTERS))
    if "\\" in text or "~" in text:
        text = re.sub(r"\\!|\\(?=[$%#&])", "", text)
        text = re.sub(r"\^ ?(?:\{ ?\\circ ?\}|\\circ)", "\u00b0", text)
        text = _TEX_NAME.sub(lambda m: _TEX_NAMES[m[1]], text)
        text = _TEX_SPACE.sub(" ", text)
        for _ in range(3):
            text = _TEX_TEXT.sub(r" \1 ", text)
        text = _TEX_FRACTION.sub(lambda m: f"\u27e8{m[1] or m[2]}/{m[3] or m[4]}\u27e9", text)
        text = re.sub(r"\\[()\[\]]", " ", text)
    text = re.sub(r"(?<![\w)])\*\*|\*\*(?![\w(])|(?<!\w)`|`(?!\w)", "", text)
    text = re.sub(r"\*\*(?=\d[\d.,]*(?:[^\d*][^*\n]{0,40})?\*\*)|(?<=\d)\*\*(?=[^\d(-])", "", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    return _MINUS_WORD.sub("-", text)


def numbers(text: str) -> Iterator[Number]:
    """Each number in a text that `plain_numerals` has prepared."""
    after = 0
    for match in _NUMBER.finditer(text):
        start, end = match.span()
        if start < after:
            continue
        value, percent = _value(match), match["percent"] is not None
        if _INSIDE.search(text, max(0, start - 20), start) or (_GLUE.match(text, end) and not _ends_at(text, end)):
            value = None
        if error := _ERROR.match(text, end):
            end = after = error.end()
        elif unit := UNIT.match(text, end):
            after = unit.end()  # past its powers
        yield Number(value, percent, start, end)


def _ends_at(text: str, end: int) -> bool:
    """Whether the number that ends at `end` is whole although letters follow: those of a unit, "5th" or "5\u5c81"."""
    if _ORDINAL.match(text, end) or _EAST_ASIAN.match(text, end):
        return True
    return UNIT.match(text, end) is not None


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a match of `_NUMBER`; None for a division by zero and for excessive lengths."""
    if len(match[0]) > _LONGEST_NUMBER:
        return None
    numerator, denominator = match["fn"] or match["n"], match["fd"] or match["d"]
    if denominator is not None:
        if int(denominator) == 0:
            return None
        whole = match["whole"] or match["whole2"] or "0"
        value = int(whole) + Fraction(int(numerator), int(denominator))
    else:
        value = Fraction(_without_groups(match["plain"]))
        power = match["e"] or match["t1"] or match["t2"] or match["t3"]
        value *= Fraction(10) ** int(power or 0)
        exponent = match["p1"] or match["p2"] or match["p3"]
        if exponent is not None:
            size = max(value.numerator.bit_length(), value.denominator.bit_length())
            if size * abs(int(exponent)) > _LARGEST_BITS or (value == 0 and int(exponent) <= 0):
                return None
            value **= int(exponent)
        if half := match["half"]:
            value += Fraction(1, 2) if "half" in half else Fraction(3, 4) if "three" in half else Fraction(1, 4)
    for scale in re.findall(r"[^\W\d_]+", (match["scale"] or "").casefold()):
        value *= 10 ** _SCALES.get(scale, _SCALES.get(scale.removesuffix("s"), 0))
    if suffix := (match["suffix"] or "").lower():
        if not match["currency"] and match["suffix"] != "k":
            return value if UNIT.match(match["suffix"]) else None
        value *= 10 ** _SCALE_SUFFIX[suffix]
    return -value if (match["sign"] == "-") != (match["sign2"] == "-") else value


def _without_groups(digits: str) -> str:
    """The digits of a number without the marks between thousands, with a decimal point."""
    digits = re.sub(r"['_ {}]", "", digits)
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}", digits):  # 1.234,50
        return digits.replace(".", "").replace(",", ".")
    groups = re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?", digits)
    return digits.replace(",", "" if groups else ".")  # 0,5 is a half


_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: Fraction(i) for i, word in enumerate(_ONES)} | {w: Fraction(20 + 10 * i) for i, w in enumerate(_TENS)}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_FRACTIONS = _PARTS | {f"{word}s": part for word, part in _PARTS.items()} | {"halves": 2}
_BIG = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_ANY_WORD = "|".join([*_WORDS, *_FRACTIONS, *_BIG])
_IN_WORDS = re.compile(
    rf"(?P<minus>(?:minus|negative) )?(?P<words>(?:an? (?=half|third|quarter|fifth|tenth|hundred|thousand|million"
    rf"|billion|dozen))?"
    rf"(?:{_ANY_WORD})(?:[ -](?:and )?(?:an? )?(?:{_ANY_WORD})){{0,12}})(?P<percent> percent"
    rf"| per cent)?(?![\w-])(?! of\b)",
    re.IGNORECASE,
)


def number_in_words(text: str) -> Number | None:
    """The number in English words that the text begins with, such as "minus twenty-one" or "two thirds"."""
    match = _IN_WORDS.match(text)
    if match is None:
        return None
    total, current = Fraction(0), Fraction(0)  # `current` is what the next "thousand" or "half" multiplies
    counted = False
    for word in re.findall(r"[a-z]+", match["words"].lower()):
        if word in _WORDS:
            current, counted = current + _WORDS[word], True
        elif word in _FRACTIONS:
            part = Fraction(1, _FRACTIONS[word])
            added = re.search(rf"and (?:an? )?{word}", match["words"], re.IGNORECASE)  # "two and a half"
            current, counted = current + part if added else part * (current if counted else 1), True
        elif word in ("hundred", "dozen"):
            current, counted = (current if counted else 1) * Fraction(_BIG[word]), True
        elif word in _BIG:
            total, current, counted = total + (current if counted else 1) * _BIG[word], Fraction(0), False
    value = total + current
    return Number(-value if match["minus"] else value, match["percent"] is not None, 0, match.end())
