"""Exact match and the normal form of texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.grading import normal_text
from tests.experts.grading.grading import grade


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("olleh", "olleh", 1),
        ("  Olleh.\n", "olleh", 1),
        ("The answer is **olleh**.", "olleh", 1),
        (r"so \boxed{\text{olleh}}", "olleh", 1),
        ("Answer: new   york", "New York", 1),
        ("olle", "olleh", 0),
        ("hello olleh", "olleh", 0),
        ("", "olleh", 0),
    ],
)
def test_exact(output: str, reference: str, score: float):
    assert grade("exact", output, reference).score == score


@given(text=st.text())
def test_normal_text_is_stable(text: str):
    assert normal_text("  " + text.upper().lower() + "\n") == normal_text(text.upper().lower())
