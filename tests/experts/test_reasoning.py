"""Reasoning between tags is told from the answer, whichever of the tags there are."""

import pytest

from experts.reasoning import split_reasoning


@pytest.mark.parametrize(
    ("output", "reasoning", "answer"),
    [
        ("Paris", "", "Paris"),
        ("<think>Hm.</think>\nParis", "Hm.", "Paris"),
        ("Suppose it is A.\n</think>\n\nB", "Suppose it is A.", "B"),  # the template wrote the opening tag
        ("<think>Let me see", "Let me see", ""),
        ("<THINK>a</think>b<think>c</think>d", "abc", "d"),
        ("<think>a</think>b<think>c", "ac", "b"),
        ("if a < b and b > c", "", "if a < b and b > c"),
    ],
)
def test_split_reasoning(output, reasoning, answer):
    assert split_reasoning(output) == (reasoning, answer)
