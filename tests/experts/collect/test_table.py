"""The table of graded answers: evidence of an answer is a column where there is any, null where an answer has none."""

from experts.collect.table import GradedAnswer, answer_rows
from experts.grading import Grade
from experts.types import Answer, Query


def graded(*logprobs):
    answers = [Answer("ok", 10, 5, 0.01, 0.1, logprob=logprob) for logprob in logprobs]
    return [GradedAnswer("one", Query(str(i), "q"), answer, Grade(1.0, "ok")) for i, answer in enumerate(answers)]


def test_evidence_is_a_column_where_there_is_any():
    assert answer_rows(graded(-0.5, None))["evidence_logprob"].to_pylist() == [-0.5, None]
    assert "evidence_logprob" not in answer_rows(graded(None, None)).column_names
