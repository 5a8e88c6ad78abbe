"""Stated confidence: what is read as a probability, what is left unread, and what stays of the answer."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.backends.local import Output, Prompt, answer_locally
from experts.backends.openai import OpenAIExpert
from experts.backends.reply import reply_in
from experts.confidence import REQUEST, logprob_without, probability, split_confidence
from experts.specs import HuggingFaceSpec, OpenAISpec
from experts.spending import SpendCap
from experts.types import Query

ANSWER = "Seven is prime.\nThe answer is B."


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("83%", 0.83), ("83 %", 0.83), ("83.5%", 0.835), ("83,5 %", 0.835), ("\uff18\uff13\uff05", 0.83), ("%83",
        0.83),
        ("83", 0.83), ("100", 1.0), ("100%", 1.0), ("0%", 0.0), ("0", 0.0), ("5%", 0.05), ("0.5%", 0.005), ("1%",
        0.01),
        ("0.83", 0.83), (".83", 0.83), ("0,83", 0.83), ("1.0", 1.0), ("0.83 (83%)", 0.83), ("83% (0.83)", 0.83),
        ("8/10", 0.8), ("83/100", 0.83), ("83 / 100", 0.83), ("8 out of 10", 0.8), ("4 of 5", 0.8), ("0.83/1", 0.83),
        ("50/50", 0.5), ("50-50", 0.5), ("fifty-fifty", 0.5), ("10/10", 1.0), ("50/100", 0.5),
        ("80-90%", 0.85), ("80% - 90%", 0.85), ("80\u201390 %", 0.85), ("between 80% and 90%", 0.85), ("80 to 90",
        0.85),
        ("0.8-0.9", 0.85), ("~83%", 0.83), ("about 83%", 0.83), ("\u2248 83 %", 0.83), (">95%", 0.95),
        ("at least 95%", 0.95),
        ("83 percent", 0.83), ("83 per cent", 0.83), ("83 Prozent", 0.83), ("83 pour cent", 0.83),
        ("ninety-five percent", 0.95), ("one hundred percent", 1.0), ("Eighty Percent.", 0.8),
        ("**83%**", 0.83), ("$83\\%$", 0.83), ("\\boxed{83\\%}", 0.83), ("\\(83\\%\\)", 0.83), ("<83%>", 0.83),
        ("[83%]", 0.83),
        ("certain", 1.0), ("Absolutely certain.", 1.0), ("83% certain", 0.83), ("90%, since it is known", 0.9),
        ("high", None), ("Very high", None), ("not certain", None), ("unknown", None), ("N/A", None), ("N%", None),
        ("", None),
        ("1", None), ("7", None), ("10", None), ("9.5", None), ("150%", None), ("-5%", None), ("12/10", None),
        ("8/0", None),
        ("1000", None), ("7-9", None), ("interval", None), ("moderate (70%)", None), ("certainly not", None),
    ],
)  # fmt: skip
def test_the_probability_that_words_state(words: str, value: float | None):
    assert probability(words) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    "line",
    [
        "Confidence: 83%", "confidence: 83%", "CONFIDENCE: 83 %", "**Confidence:** 83%", "**Confidence: 83%**",
        "*Confidence*: 83%",
        "### Confidence: 83%", "- Confidence: 83%", "> Confidence: 83%", "`Confidence: 83%`", "Confidence = 83%",
        "Confidence - 83%",
        "Confidence \u2013 83%", "Confidence:\n83%", "**Confidence:**\n\n83%", "Confidence : 83 %",
        "Confidence\uff1a83%",
        "Confidence level: 83%", "Confidence Score: 0.83", "My confidence: 83%", "My confidence is 83%.",
        "Overall confidence: 83%",
        "Confidence in my answer: 83%", "Confidence in the answer: 83", "Confidence (0-100): 83",
        "Confidence (in percent): 83",
        "Certainty: 83%", "Probability that my answer is correct: 83%", "Probability that the answer is right: 0.83",
        "Answer confidence: 83%", "I am 83% confident.", "I'm about 83% sure that this is right.",
        "I am 83 % certain",
        "Confidence: 83% (I checked it twice)", "Confidence: 83%, as 3 of 4 ways agree", "Confidence: 83/100",
        "| Confidence | 83% |",
        "$\\text{Confidence: } 83\\%$", "Confidence: $83\\%$", "Confidence: \\boxed{83\\%}",
        "Confidence: about 83 percent.",
        "Confiance : 83 %", "Niveau de confiance : 83 %", "Konfidenz: 83 %", "Confianza: 83 %",
        "\u7f6e\u4fe1\u5ea6\uff1a83%",
        "\u0423\u0432\u0435\u0440\u0435\u043d\u043d\u043e\u0441\u0442\u044c: 83%", "\uc2e0\ub8b0\ub3c4: 83%",
        "<confidence>83%</confidence>",
        "Confidence: 83%\n\nConfidence: 83%", "Confidence: 83%\n\n", "(Confidence: 83%)", "[Confidence: 83%]",
    ],
)  # fmt: skip
def test_a_statement_at_the_end_is_read_and_taken_out(line: str):
    for between in ("\n", "\n\n", "\r\n"):
        text, value = split_confidence(f"{ANSWER}{between}{line}")
        assert (text, value) == (ANSWER, pytest.approx(0.83)), between


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("The answer is B. Confidence: 83%", "The answer is B."),
        ("The answer is **B** (confidence: 83%).", "The answer is **B**"),
        ("The answer is **B**. **Confidence: 83%**", "The answer is **B**."),
        ("B, confidence: 83%", "B,"),
        ("Confidence: 83%\nThe answer is B.", "The answer is B."),
        ("Confidence: 83%. The answer is B.", "The answer is B."),
        ("Confidence: 83%\n\n\\boxed{B}", "\\boxed{B}"),
        ("B\nConfidence: 83%\nI hope this helps!", "B\n\nI hope this helps!"),
        ("Confidence level: 95%\nz = 1.96\nConfidence: 83%", "Confidence level: 95%\nz = 1.96"),
        ("The 95% confidence interval: 1.2 to 3.4\nConfidence: 83%", "The 95% confidence interval: 1.2 to 3.4"),
        ('{"answer": "B", "confidence": 0.83}', '{"answer": "B"}'),
        ('{"confidence": "83%", "answer": "B"}', '{"answer": "B"}'),
        ('```json\n{\n  "answer": "B",\n  "confidence": 83\n}\n```', '```json\n{\n  "answer": "B"\n}\n```'),
        ("<answer>B</answer><confidence>0.83</confidence>", "<answer>B</answer>"),
        ("<confidence>83</confidence>\n<answer>B</answer>", "<answer>B</answer>"),
    ],
)
def test_a_statement_elsewhere(output: str, text: str):
    assert split_confidence(output) == (text, pytest.approx(0.83))


@pytest.mark.parametrize(
    "line", ["Confidence: high", "Confidence: 7", "Confidence:", "Confidence: 150%", "Confidence: N%"]
)
def test_a_statement_that_cannot_be_read_is_taken_out(line: str):
    assert split_confidence(f"{ANSWER}\n{line}") == (ANSWER, None)


@pytest.mark.parametrize(
    "output",
    [
        "", ANSWER, "The 95% confidence interval is (1.2, 3.4).",
        "We reject it at the 95% confidence level: z = 1.96",
        "95% confidence: 1.96", "Confidence: a belief in oneself, as in: she gained confidence.", "Probability: 83%",
        "Confidence level: 95%\nThe answer is 1.96.", "The test has 95% confidence.", "He is 83% sure.",
        "1. Trust\n2. Confidence",
        "Confidence interval: 83%", "overconfidence: 83%",
        'She said "confidence".', "The probability of rain is 83%.",
    ],
)  # fmt: skip
def test_what_states_no_confidence_stays_as_it_is(output: str):
    assert split_confidence(output) == (output, None)


def test_nothing_but_a_confidence_is_no_answer():
    assert split_confidence("Confidence: 83%") == ("", pytest.approx(0.83))


@pytest.mark.parametrize(
    "part", ["Confidence: ", "confidence", "Confidence: 83%\n", "I am 83% ", ', "confidence"', "(*" * 4, "\n", "1" * 9]
)
def test_long_texts_take_linear_time(part: str):
    text = part * (400_000 // len(part))
    started = time.perf_counter()
    split_confidence(text)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize("chat", [True, False])
def test_a_server_is_asked_after_the_question_and_the_reply_is_split(server, chat: bool):
    replies = {
        "one": "B\n\n**Confidence:** 83%",
        "two": "C",
        "three": "Confidence: 83%",
        "four": "<think>Confidence: 9%</think>D",
    }
    server.reply = lambda prompt: replies[prompt.split()[1]]
    spec = OpenAISpec(
        backend="openai", name="e", model="m", usd_per_second=1.0, base_url_env="TEST_URL", api_key_env="TEST_KEY",
        prompt="Q: {text}\nA:", confidence=True, chat=chat, max_retries=0,
    )  # fmt: skip
    answers = OpenAIExpert(spec, SpendCap()).answer([Query(name, name) for name in replies])
    assert server.requests[f"Q: one{REQUEST}\nA:"] == 1
    assert [(a.text, a.confidence) for a in answers] == [
        ("B", pytest.approx(0.83)),
        ("C", None),
        ("", 0.83),
        ("D", None),
    ]
    assert [a.is_empty for a in answers] == [False, False, True, False] and answers[2].lost_usd > 0
    assert answers[0].completion_tokens == 3, "what was written for it is paid for"


def test_a_local_reply_is_split():
    spec = HuggingFaceSpec(
        backend="huggingface", name="e", model="m", usd_per_second=1.0, confidence=True, batch_size=3
    )
    texts = ["B\nConfidence: 83%", "B", "Confidence: 83%"]
    tokens = [
        [("B", -2.0), ("Con", -0.1), ("fidence:", -0.1), ("83%", -0.4)],
        [("B", -1.0)],
        [("Confidence: 83", -0.5), ("%", 0.0)],
    ]
    answers = answer_locally(
        spec,
        SpendCap(),
        [Prompt([1])] * 3,
        2000,
        lambda prompts, most_tokens: [Output(text, 3, "stop", t) for text, t in zip(texts, tokens, strict=True)],
    )
    assert [a.logprob for a in answers] == [-2.0, -1.0, -0.25]
    assert [(a.text, a.confidence, a.is_empty) for a in answers] == [
        ("B", 0.83, False),
        ("B", None, False),
        ("", 0.83, True),
    ]


@pytest.mark.parametrize(
    ("tokens", "left"),
    [
        (["The", " answer", " is", " 7", ".", "\n", "Conf", "idence", ":", " ", "83", "%"], 5),
        (["7", "\n\nConfidence", ": 83%"], 1),
        (["7", "\n", "**", "Confidence:", " 83%", "**", "<|end|>"], 2),
        (["<think>", "Confidence: 83%?", "</think>", "7", "\n", "Confidence:", " 83%"], 4),
        (["Confidence:", " 83%", "\n", "The", " answer is 7"], 2),
        (['{"answer"', ': 7, "conf', 'idence"', ": 0.83", "}"], 2),
        (["The", "answer", "is", "7", "Confidence:", "83", "%"], 4),  # decoded one by one, without spaces
        (["7", " it", " is"], 3),
        (["Confidence:", " 83%"], 2),
        (["", "", ""], 3),
    ],
)
def test_tokens_that_state_a_confidence_tell_nothing_of_the_answer(tokens: list[str], left: int):
    """Each token that states it has log-probability 0, all others have -1."""
    text = "".join(tokens).removeprefix("<think>Confidence: 83%?</think>").removesuffix("<|end|>")
    text = "The answer is 7\nConfidence: 83%" if tokens[1] == "answer" else text
    kept, _ = split_confidence(text)
    places = {i for i, _ in enumerate(tokens)}
    found = {i for i in places if logprob_without([(t, -float(i == j)) for j, t in enumerate(tokens)], text, kept) != 0}
    assert len(found) == left
    assert logprob_without([], text, kept) is None


@given(st.lists(st.tuples(st.text(max_size=6), st.floats(-9, 0)), max_size=8), st.text(max_size=9), st.integers(0, 9))
def test_whatever_the_tokens_are_there_is_a_mean(tokens: list[tuple[str, float]], text: str, cut: int):
    found = logprob_without(tokens, text, text[:cut])
    assert (found is None) == (not tokens) and (found is None or -9 <= found <= 0)


@pytest.mark.parametrize("chat", [True, False])
def test_a_server_s_tokens_that_state_it_are_left_out(chat: bool):
    words = [("7", -0.5), ("\n", 0.0), ("Confidence:", -3.0), (" 83%", -3.0)]
    text = "".join(word for word, _ in words)
    message: dict = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    listed: dict = {"content": [{"token": t, "logprob": v} for t, v in words]}
    if not chat:
        listed = {"tokens": [t for t, _ in words], "token_logprobs": [v for _, v in words]}
    reply = reply_in({"choices": [message | {"finish_reason": "stop", "logprobs": listed}]})
    kept, confidence = split_confidence(reply.text)
    assert (kept, confidence, reply.logprob) == ("7", 0.83, -1.625)
    assert logprob_without(reply.tokens, reply.text, kept) == -0.5
