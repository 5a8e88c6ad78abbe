"""Reasoning between tags is told from the answer, whichever of the tags there are."""

import time

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
        ("<think>\n\n</think>\n\nParis", "", "Paris"),
        ("<think>a <think> b</think> c</think> d", "a  b c", "d"),
        ("The answer is B. <think>Let me check: yes</think>", "Let me check: yes", "The answer is B."),
        ("B <think>or C", "or C", "B"),
        ("</think>B", "", "B"),
        ("<think>a</think>", "a", ""),
        ("<thinking>a</thinking>b", "a", "b"),
        ("<think>a</thinking>b", "a", "b"),
        ("<thought>a</thought>b", "a", "b"),
        ("<reasoning>\na\n</reasoning>\n<answer>b</answer>", "a", "<answer>b</answer>"),
        ("<analysis>a</analysis>b", "a", "b"),
        ("<reflection>a</reflection>b", "a", "b"),
        ("<scratchpad>a</scratchpad>b", "a", "b"),
        ("<seed:think>a</seed:think>b", "a", "b"),
        ("< think >a</ think >b", "a", "b"),
        ("&lt;think&gt;a&lt;/think&gt;b", "a", "b"),
        ("\u25c1think\u25b7a\u25c1/think\u25b7b", "a", "b"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("[THINK]a", "a", ""),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "a", "b"),
        ("<|START_THINKING|>a<|END_THINKING|>b", "a", "b"),
        ("<unused94>thought\na<unused95>b", "a", "b"),
        ("<|channel>thought\na<channel|>b", "a", "b"),
        ("Here is my thought process: a\nHere is my response: b", "a", "b"),
        ("Here are my reasoning steps:\na\n[BEGIN FINAL RESPONSE]\nb", "a", "b"),
        ("Thinking...\na\n...done thinking.\n\nb", "a", "b"),
        ('<details type="reasoning" done="true">\na\n</details>\nb', "a", "b"),
        ("<details>\na\n</details>\nb", "", "<details>\na\n</details>\nb"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>", "a", "b"),
        ("<|channel|>analysis<|message|>a", "a", ""),
        ("analysisWe think a.assistantfinalb", "We think a.", "b"),
        ("analysisWe think a", "We think a", ""),
        ("Wrap it in `<think>` and `</think>`.", "", "Wrap it in `<think>` and `</think>`."),
        ("I think </b> and <thinker> stay.", "", "I think </b> and <thinker> stay."),
    ],
)
def test_split_reasoning(output, reasoning, answer):
    assert split_reasoning(output) == (reasoning, answer)


@pytest.mark.parametrize(
    "piece",
    [
        "<think>",
        "</think>",
        "<think>a</think>b",
        "</think>B",
        "<",
        "<think ",
        "<|channel|>",
        "<|channel|>final<|message|>",
        " ",
        "&lt;",
        "\n",
        "`",
    ],
)
def test_it_takes_linear_time(piece: str):
    began = time.perf_counter()
    split_reasoning(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - began < 5
