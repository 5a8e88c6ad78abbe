"""Numbers: the ways in which they are written, and which are equal."""

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from experts.grading import GRADERS, number_text
from experts.types import Query
from leeroo_env.errors import InputError
from tests.experts.grading.grading import grade


def comma(value: Decimal) -> str:
    return f"{value:,}"


FORMS: list[Callable[[Decimal], str]] = [
    str,
    comma,
    lambda v: f"{v}.",
    lambda v: str(v).replace("-", "\N{MINUS SIGN}"),
    lambda v: f"-${-v}" if v < 0 else f"${v}",
    lambda v: f"$\\${v}$" if v >= 0 else f"${v}$",
    lambda v: f"{v:e}",
    lambda v: f"{v:E}".replace("E", r" \times 10^{") + "}",
    lambda v: comma(v).replace(",", "{,}"),
    lambda v: f"**{v}** dollars",
    lambda v: rf"\boxed{{{v}}} or 99.5",
    lambda v: f"12 of 13; the answer is {v}.\nThat took 4 steps",
    lambda v: f"2 + 2 = 4\n#### {v}",
    lambda v: f"it is 8 + 9 = {v}",
]


@given(value=st.decimals(-(10**9), 10**9, places=2).filter(lambda v: v != 0), form=st.sampled_from(range(len(FORMS))))
@example(value=Decimal("1234.50"), form=1)
@example(value=Decimal("1234.50"), form=6)
def test_number_forms_mean_the_same(value: Decimal, form: int):
    found = grade("number", FORMS[form](value), str(value))
    assert found == GRADERS["number"](str(value), Query("q", "t", "", str(value)))
    assert found.score == 1
    assert found.answer is not None and Fraction(found.answer) == Fraction(value)
    assert grade("number", FORMS[form](value), str(value + max(Decimal(1), abs(value) / 1000))).score == 0


@given(numerator=st.integers(-500, 500), denominator=st.integers(1, 500))
def test_fractions_mean_the_same(numerator: int, denominator: int):
    right = f"{numerator}/{denominator}"
    sign = "-" if numerator < 0 else ""
    for written in (
        right,
        f"{sign}\\frac{{{abs(numerator)}}}{{{denominator}}}",
        f"{sign}${abs(numerator)} / {denominator}",
    ):
        found = grade("number", f"so we get {written}", right)
        assert (found.score, found.answer) == (1, number_text(Fraction(numerator, denominator)))


@given(value=st.fractions(max_denominator=10**6))
def test_normal_form_of_a_number_is_that_number(value: Fraction):
    text = number_text(value)
    assert Fraction(text) == value
    assert number_text(Fraction(text)) == text
    assert "." not in text or not text.endswith("0")


@pytest.mark.parametrize(
    ("output", "reference", "score", "answer"),
    [
        ("1,234.50", "1234.5", 1, "1234.5"),
        ("1.2345e3", "1234.5", 1, "1234.5"),
        ("$3", "3", 1, "3"),
        ("50%", "50", 1, "50"),
        ("50%", "0.5", 1, "50"),
        ("0.5", "50%", 1, "0.5"),
        ("50", "50%", 1, "50"),
        ("5%", "50%", 0, "5"),
        ("5", "50", 0, "5"),
        ("0.5", "50", 0, "0.5"),
        ("1 1/2 cups", "1.5", 1, "1.5"),
        ("-5", "\N{MINUS SIGN}5", 1, "-5"),
        ("10 - 5", "5", 1, "5"),
        ("pages 3-5", "5", 1, "5"),
        ("first 3, then 4", "4", 1, "4"),
        ("first 3, then 4", "3", 0, "4"),
        ("The answer is 3, not 4", "3", 1, "3"),
        ("The answer is 3 + 4 = 7.", "7", 1, "7"),
        (r"\boxed{3}. The answer is 4", "3", 1, "3"),
        ("0.33333", "1/3", 1, "0.33333"),
        ("0.33", "1/3", 0, "0.33"),
        ("123456", "123457", 0, "123456"),
        ("1/0", "1", 0, None),
        ("none", "1", 0, None),
        ("9" * 5000, "1", 0, None),
    ],
)
def test_numbers(output: str, reference: str, score: float, answer: str | None):
    found = grade("number", output, reference)
    assert (found.score, found.answer) == (score, answer)


def test_a_reference_without_a_number_is_refused():
    with pytest.raises(InputError, match="contains no number"):
        grade("number", "3", "three")
