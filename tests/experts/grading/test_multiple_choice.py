"""Multiple choice: the letter in outputs as models write them."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from experts.grading import grade_multiple_choice
from experts.types import Query
from leeroo_env.errors import InputError
from tests.experts.grading.grading import grade

SAMPLES = Path(os.environ.get("LEEROO_DATA", Path(__file__).parents[4] / "shared" / "data")) / "mmlu_pro"


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        ("(c)", None),
        ("The answer is (C).", "C"),
        ("The answer is: D", "D"),
        ("the answer is (b)", "B"),
        ("The answer is **B. a cartel**.", "B"),
        (r"The answer is $\boxed{D}$.", "D"),
        (r"Hence \boxed{\text{C}}", "C"),
        (r"The answer is \( A \).", "A"),
        ("Answer: A", "A"),
        ("**Final Answer:** B", "B"),
        ("The correct answer is:\n\nC. a market", "C"),
        ("The answer is option D because shops sell.", "D"),
        ("So I would go for (B), a cartel.", "B"),
        ("A. no\nB. yes\n\nI pick\n**B**", "B"),
        ("First I thought the answer is (A). Wait: the answer is (C).", "C"),
        ("The answer is (B).\n\nQuestion: Which else?\nAnswer: The answer is (D).", "B"),
        ("The answer is A common one, so (D).", "D"),
        ("The answer is (J).", None),
        ("I think a cartel. I am sure.", None),
        ("F = 3 N and C = 4", None),
        ("", None),
    ],
)
def test_multiple_choice_finds_the_letter(output: str, letter: str | None):
    found = grade("multiple-choice", output, "B")
    assert found.answer == letter
    assert found.score == float(letter == "B")


def test_options_are_counted_despite_roman_numerals_in_the_question():
    text = "Which hold?\nI. one\nII. two\nA. I only\nB. II only\nC. both\nD. neither"
    assert grade("multiple-choice", "The answer is (D).", "D", text).score == 1
    assert grade("multiple-choice", "The answer is (I).", "D", text).answer is None
    assert grade("multiple-choice", "The answer is (H).", "H", "no options listed").answer == "H"


@pytest.mark.parametrize("reference", [None, "", "a cartel", "7"])
def test_multiple_choice_refuses_a_reference_that_is_no_letter(reference: str | None):
    with pytest.raises(InputError, match="q1"):
        grade("multiple-choice", "B", reference)


def test_multiple_choice_agrees_with_published_scores():
    if not (SAMPLES / "sample_outputs.parquet").is_file():
        pytest.skip(f"{SAMPLES} is not there: set LEEROO_DATA to the directory that holds mmlu_pro")
    outputs = pq.ParquetFile(SAMPLES / "sample_outputs.parquet").read().to_pylist()
    texts = pq.ParquetFile(SAMPLES / "queries.parquet").read(["query_id", "text"]).to_pydict()
    questions = dict(zip(texts["query_id"], texts["text"], strict=True))
    agree = [
        grade("multiple-choice", row["output"], row["reference"], questions[row["query_id"]]).score == row["score"]
        for row in outputs
    ]
    print(f"multiple choice: {sum(agree)} of {len(agree)} scores agree")
    assert len(agree) == 2640
    assert sum(agree) / len(agree) >= 0.99


@pytest.mark.parametrize(
    ("output", "right"),
    [("**c**", "C"), ("A market is the answer.", "C"), ("A cartel is correct.", "B")],
)
def test_short_replies_in_small_letters_and_an_option_called_right(output, right):
    question = "Which one?\nA. a monopoly\nB. a cartel\nC. a market\nD. a shop"
    assert grade_multiple_choice(output, Query("q", question, "", "A")).answer == right
