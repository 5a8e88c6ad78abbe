"""Exact match and the normal form of texts."""
# ruff: noqa: RUF001

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


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("**Answer**: Yes", "Yes", 1),
        ("**Answer:** Yes", "Yes", 1),
        ("__Answer__: Yes", "Yes", 1),
        ("*Answer*: Yes.", "Yes", 1),
        ("**Answer: Yes**", "Yes", 1),
        ("Answer: **Yes**", "Yes", 1),
        ("### Answer\nYes", "Yes", 1),
        ("### Answer\n\n**Yes**", "Yes", 1),
        ("Final Answer: Yes", "Yes", 1),
        ("**Final Answer**: Yes", "Yes", 1),
        ("<answer>Yes</answer>", "Yes", 1),
        ('{"answer": "Yes"}', "Yes", 1),
        ('```json\n{"answer": "Yes"}\n```', "Yes", 1),
        (r"\fbox{Yes}", "Yes", 1),
        (r"\boxed{\text{Yes}}", "Yes", 1),
        (r"\boxed{\textbf{Yes}}", "Yes", 1),
        (r"$\boxed{\mathrm{Yes}}$", "Yes", 1),
        (r"\framebox{Yes}", "Yes", 1),
        (r"\boxed Yes", "Yes", 0),
        ("Answer：Yes", "Yes", 1),
        ("Antwort: Ja", "ja", 1),
        ("Réponse : Oui", "oui", 1),
        ("答案：是", "是", 1),
        ("Yes\n\nQuestion: Is it blue?\nAnswer: No", "Yes", 1),
        ("The answer is Yes.\n\nQuestion: next?\nAnswer: No", "Yes", 1),
        ("Paris\n\nQuestion: Capital of Italy?\nRome", "Paris", 1),
        ("Paris\nQ: Capital of Italy?\nA: Rome", "Paris", 1),
        ("I restate it.\n\nQuestion: which one?\n\nAnswer: Paris", "Paris", 1),
        ("Question: which one?\nAnswer: Paris", "Paris", 1),
        ("<think>London?</think>Paris", "Paris", 1),
        ("<think>London", "London", 0),
        ("Paris</s>", "Paris", 1),
        ("Paris<|eot_id|>", "Paris", 1),
        ("The answer is clearly Paris.", "Paris", 1),
        ("The answer is: Paris", "Paris", 1),
        ("The correct answer is **Paris**.", "Paris", 1),
        ("`Paris`", "Paris", 1),
        ("“Paris”", "Paris", 1),
        ("\u200bParis", "Paris", 1),
        ("Café", "Café", 1),
        (r"\(\text{Paris}\)", "Paris", 1),
        ("$Paris$", "Paris", 1),
        ("#### Paris", "Paris", 1),
        ("Answer:\nParis\nBecause it is.", "Paris", 1),
        ("Not Paris", "Paris", 0),
        ("London", "Paris", 0),
        ("Answer: New York", "new  york", 1),
        ("a question: what", "a question: what", 1),
        ("", "x", 0),
        ("Answer:", "x", 0),
        ("I can't answer this.", "x", 0),
        (r"\begin{array}", "x", 0),
        ("The answer is\n\nParis", "Paris", 1),
    ],
)
def test_the_answer_that_is_stated(output: str, reference: str, score: float):
    assert grade("exact", output, reference).score == score


@given(text=st.text())
def test_normal_text_is_stable(text: str):
    assert normal_text("  " + text.upper().lower() + "\n") == normal_text(text.upper().lower())
