"""The table of graded answers: evidence of an answer is a column where there is any, null where an answer has none."""

from experts.collect.store import read_parts
from experts.collect.table import GradedAnswer, answer_rows
from experts.grading import Grade
from experts.types import Answer, Query
from leeroo_env import ExpertTable
from tests.experts.collecting import make_queries, run, write_pool


def graded(*logprobs):
    answers = [Answer("ok", 10, 5, 0.01, 0.1, logprob=logprob) for logprob in logprobs]
    return [GradedAnswer("one", Query(str(i), "q"), answer, Grade(1.0, "ok")) for i, answer in enumerate(answers)]


def test_evidence_is_a_column_where_there_is_any():
    assert answer_rows(graded(-0.5, None))["evidence_logprob"].to_pylist() == [-0.5, None]
    assert "evidence_logprob" not in answer_rows(graded(None, None)).column_names


def test_a_stated_confidence_becomes_evidence_and_leaves_the_answer(server, tmp_path):
    """`alpha` is asked for it, but for `alpha@plain`; one reply states it in words that are no number."""
    queries = make_queries(9)
    server.reply = lambda prompt: stated(prompt) if "Confidence: N%" in prompt else prompt[::-1]

    def stated(prompt: str) -> str:
        question = prompt.split("\n")[0]
        return f"{question[::-1]}\nConfidence: {'high' if '4' in question else f'8{question[-1]}%'}"

    pool = write_pool(tmp_path, ["alpha"], ", confidence: true, variants: {plain: {confidence: false}}")
    for _ in range(2):  # the second run finds all in the parts
        result = run(pool, tmp_path / "table", queries)
        assert result.mean_scores == {"alpha": 1 / 3, "alpha@plain": 1 / 3}
        answers = ExpertTable.load(tmp_path / "table").answers
        verbal = dict(zip(answers["expert"].to_pylist(), answers["evidence_verbal"].to_pylist(), strict=True))
        assert verbal["alpha@plain"] is None
        rows = [row for row in answers.to_pylist() if row["expert"] == "alpha"]
        expected = [None if i == 4 else (80 + i) / 100 for i in range(9)]
        assert [row["evidence_verbal"] for row in rows] == expected
        assert [row["output"] for row in rows] == [query.text[::-1] for query in queries]
        assert all(row["answer"] == query.text[::-1] for row, query in zip(rows, queries, strict=True))
    assert len(server.bodies) == 18
    assert not any("onfidence" in text for text in read_parts(tmp_path / "table.parts")["output"].to_pylist())


def test_without_the_option_nothing_is_asked_read_or_taken_out(server, tmp_path):
    server.reply = lambda prompt: f"{prompt[::-1]}\nConfidence: 83%"
    run(write_pool(tmp_path, ["alpha"]), tmp_path / "table", make_queries(3))
    answers = ExpertTable.load(tmp_path / "table").answers
    assert "evidence_verbal" not in answers.column_names
    assert all(output.endswith("Confidence: 83%") for output in answers["output"].to_pylist())
