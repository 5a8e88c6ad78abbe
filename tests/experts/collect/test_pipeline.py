"""The collector against a real server: it resumes after kill -9, asks nothing twice and mixes nothing."""

import random
import re
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from experts.collect import scheduler, store
from experts.collect.feedback import add_feedback
from experts.collect.store import parts_directory, read_parts
from experts.pool import keys_for, load_pool
from experts.types import Query
from leeroo_env import ExpertTable
from leeroo_env.errors import InputError
from tests.conftest import KEY
from tests.experts.collecting import hold_store, make_queries, processes, run, run_in_process, write_pool
from tests.experts.openai_server import OpenAIServer, reply_to
from tests.experts.tiny_llama import make_tiny_llama

torch.set_num_threads(1)


def answers_of(out: Path) -> list[dict]:
    """The table's answers without what differs from run to run."""
    table = pq.ParquetFile(out / "answers.parquet").read().drop_columns(["latency_s"])
    return table.to_pylist()


def same_tables(one: Path, two: Path) -> bool:
    files = all((one / f).read_bytes() == (two / f).read_bytes() for f in ("queries.parquet", "embeddings.npy"))
    return files and answers_of(one) == answers_of(two)


def test_the_table(server, tmp_path):
    queries = make_queries(20)
    collected = run(write_pool(tmp_path), tmp_path / "table", queries)
    table = ExpertTable.load(tmp_path / "table")
    assert table.experts == ("alpha", "beta") and len(table) == 20
    assert table.fingerprint() == collected.table.fingerprint()
    assert collected.mean_scores == {"alpha": 0.35, "beta": 0.0} and collected.missing == 0
    assert table.scores[:, 0].tolist() == [float(i % 3 == 0) for i in range(20)]
    rows = {(row["query_id"], row["expert"]): row for row in table.answers.to_pylist()}
    row = rows["q4", "beta"]
    assert row["output"] == reply_to("beta: question 4") and row["answer"] == row["output"] and row["latency_s"] > 0
    assert (row["prompt_tokens"], row["completion_tokens"]) == (3, 3)
    assert row["cost_usd"] == pytest.approx(3 * 1e-3 + 3 * 2e-3)
    assert table.queries["reference"].to_pylist() == [q.reference for q in queries]
    assert table.info.encoder == {"model": "hash", "dim": 8}
    assert table.info.experts[0].usd_per_mtok_out == 2000
    assert collected.spent_usd == pytest.approx(sum(row["cost_usd"] for row in rows.values()))


def test_a_second_run_asks_nothing(server, tmp_path):
    pool = write_pool(tmp_path)
    run(pool, tmp_path / "table", make_queries(10))
    first = answers_of(tmp_path / "table")
    collected = run(pool, tmp_path / "table", make_queries(10))
    assert server.requests.total() == 20 and collected.spent_usd == 0.0
    assert answers_of(tmp_path / "table") == first
    run(pool, tmp_path / "table", make_queries(12))
    assert set(server.requests.values()) == {1} and server.requests.total() == 24


def test_equal_prompts_are_asked_once(server, tmp_path):
    queries = [
        Query("a", "same", reference="emas"),
        Query("b", "same", reference="no"),
        Query("c", "other", reference="x"),
    ]
    run(write_pool(tmp_path), tmp_path / "table", queries)
    assert server.requests["same"] == 1
    assert [row["score"] for row in answers_of(tmp_path / "table")][:3] == [1.0, 0.0, 0.0]


def test_failed_calls_are_recorded_and_asked_again(server, tmp_path):
    server.behaviour = lambda prompt, time: 500 if prompt == "question 3" and time == 1 else "ok"
    pool, out = write_pool(tmp_path), tmp_path / "table"
    collected = run(pool, out, make_queries(8))
    assert collected.missing == 1 and collected.queues[0].failed == 1 and len(collected.table) == 7
    assert len(pq.ParquetFile(out / "queries.parquet").read()) == 8  # the query stays, its row is missing
    assert ("q3", "alpha") not in {(row["query_id"], row["expert"]) for row in answers_of(out)}
    failed = [row for row in read_parts(parts_directory(out)).to_pylist() if row["error"]]
    assert [(row["query_id"], row["expert"], row["cost_usd"]) for row in failed] == [("q3", "alpha", 0.0)]
    assert "500" in failed[0]["error"]
    assert run(pool, out, make_queries(8)).missing == 0
    assert server.requests.pop("question 3") == 2 and set(server.requests.values()) == {1}


def test_a_changed_prompt_or_model_makes_new_answers(server, tmp_path):
    pool, out, queries = write_pool(tmp_path), tmp_path / "table", make_queries(6)
    run(pool, out, queries)
    pool.write_text(pool.read_text().replace('"beta: {text}"', '"gamma: {text}"'))
    run(pool, out, queries)
    assert server.requests["gamma: question 0"] == 1 and server.requests.total() == 18
    outputs = [row["output"] for row in answers_of(out) if row["expert"] == "beta"]
    assert outputs == [reply_to(f"gamma: question {i}") for i in range(6)]
    pool.write_text(pool.read_text().replace("m-alpha", "m-alpha-2"))
    run(pool, out, queries)
    assert server.requests["question 0"] == 2 and server.requests.total() == 24
    pool.write_text(pool.read_text().replace("gamma", "beta").replace("m-alpha-2", "m-alpha"))
    run(pool, out, queries)
    assert server.requests.total() == 24  # the old answers are still there


def test_experts_selects_who_is_asked_and_written(server, tmp_path):
    pool, out = write_pool(tmp_path), tmp_path / "table"
    run(pool, out, make_queries(5), experts=["beta"])
    assert ExpertTable.load(out).experts == ("beta",) and server.requests.total() == 5
    run(pool, out, make_queries(5))
    assert ExpertTable.load(out).experts == ("alpha", "beta") and server.requests.total() == 10


def test_the_cap_stops_the_run_and_the_next_one_goes_on(server, tmp_path):
    pool, out, queries = write_pool(tmp_path), tmp_path / "table", make_queries(40)
    collected = run(pool, out, queries, max_usd=0.5)
    assert any(queue.capped for queue in collected.queues)
    paid = sum(row["cost_usd"] for row in read_parts(parts_directory(out)).to_pylist())
    assert 0.2 < paid <= 0.5 and collected.spent_usd == pytest.approx(paid)
    assert not any(read_parts(parts_directory(out))["error"].to_pylist())  # not asked is not failed
    assert collected.missing == 80 - server.requests.total() > 0
    assert run(pool, out, queries).missing == 0
    assert set(server.requests.values()) == {1}
    assert run(pool, tmp_path / "nothing", queries, max_usd=0.0).table is None and server.requests.total() == 80


def test_an_expert_that_only_fails_is_given_up(server, tmp_path):
    server.behaviour = lambda prompt, time: 401 if prompt.startswith("beta") else "ok"
    pool, out = write_pool(tmp_path), tmp_path / "table"
    collected = run(pool, out, make_queries(100))
    alpha, beta = collected.queues
    assert beta.given_up and not alpha.given_up and alpha.done == 100
    assert scheduler.GIVE_UP_AT_FIRST <= beta.failed < scheduler.GIVE_UP_AT_FIRST + 6
    assert collected.table is None and not out.exists()
    assert len(run(pool, out, make_queries(100), experts=["alpha"]).table) == 100
    assert server.requests["question 0"] == 1


def test_kill_at_any_moment(tmp_path, monkeypatch):
    """At 16 moments the collecting process is killed; no stored answer is asked again, and the table is whole."""
    kills, concurrency, queries = 16, 3, make_queries(250)
    context = processes()
    moments = random.Random(5)
    pool, out = write_pool(tmp_path), tmp_path / "table"
    settled: dict[str, int] = {}
    with OpenAIServer(delay_s=0.02) as server:
        arguments = (pool, out, queries, server.url, KEY)

        def check_settled() -> None:
            assert {prompt: server.requests[prompt] for prompt in settled} == settled

        for kill in range(kills):
            process = context.Process(target=run_in_process, args=arguments)
            before = server.requests.total()
            process.start()
            while kill % 2 and server.requests.total() == before and process.is_alive():
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.15 if kill % 2 else 0.3))
            assert process.is_alive(), "the queries ran out before the kills"
            process.kill()
            process.join()
            check_settled()
            for row in read_parts(parts_directory(out)).to_pylist():
                assert row["error"] is None
                prompt = queries[int(row["query_id"][1:])].text
                prompt = prompt if row["expert"] == "alpha" else f"beta: {prompt}"
                settled.setdefault(prompt, server.requests[prompt])
        assert 0 < len(settled) < 500
        process = context.Process(target=run_in_process, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == 0
        check_settled()
        assert len(server.requests) == 500
        assert server.requests.total() - 500 <= kills * 2 * scheduler.BATCHES_IN_FLIGHT * concurrency
        monkeypatch.setenv("TEST_URL", server.url)
        monkeypatch.setenv("TEST_KEY", KEY)
        run(pool, tmp_path / "uninterrupted", queries)
    assert len(ExpertTable.load(out)) == 250
    assert same_tables(out, tmp_path / "uninterrupted")
    assert not list(parts_directory(out).glob(".*"))


def test_a_kill_while_parts_are_merged_loses_and_doubles_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MERGE_ABOVE", 3)
    pool, out, queries = write_pool(tmp_path), tmp_path / "table", make_queries(20)
    run(pool, out, queries)
    parts = parts_directory(out)
    before = answers_of(out)
    assert len(list(parts.glob("*.parquet"))) > 3
    unlink, deleted = Path.unlink, []

    def die_at_the_third(path: Path, *args, **kwargs):
        deleted.append(path)
        if len(deleted) == 3:
            raise KeyboardInterrupt
        unlink(path, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", die_at_the_third)
        run(pool, out, queries)
    assert len(read_parts(parts)) > 40  # some rows appear twice now
    run(pool, out, queries)
    assert len(list(parts.glob("*.parquet"))) == 1
    assert answers_of(out) == before and server.requests.total() == 40


def test_an_unfinished_part_is_no_part(server, tmp_path):
    pool, out = write_pool(tmp_path), tmp_path / "table"
    parts_directory(out).mkdir()
    (parts_directory(out) / ".000000.parquet.tmp").write_bytes(b"PAR1 half")
    assert run(pool, out, make_queries(4)).missing == 0
    assert not list(parts_directory(out).glob(".*"))
    (parts_directory(out) / "000099.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(InputError, match=r"000099\.parquet: not a readable part"):
        run(pool, out, make_queries(4))


def test_a_second_process_is_refused(server, tmp_path):
    pool, out = write_pool(tmp_path), tmp_path / "table"
    context = processes()
    here, there = context.Pipe()
    other = context.Process(target=hold_store, args=(parts_directory(out), there))
    other.start()
    assert here.recv() == "open"
    with pytest.raises(InputError, match=r"table\.parts: another process is collecting into it"):
        run(pool, out, make_queries(4))
    assert server.requests.total() == 0
    here.send("let go")
    other.join()
    run(pool, out, make_queries(4))
    assert server.requests.total() == 8


def test_existing_directories_are_not_replaced(server, tmp_path):
    pool, out = write_pool(tmp_path), tmp_path / "table"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="exists and was not collected here"):
        run(pool, out, make_queries(3))
    assert (out / "thesis.txt").read_text() == "precious" and not parts_directory(out).exists()


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        ([], {}, "contains no queries"),
        ([Query("a", "x", reference="1"), Query("a", "y", reference="1")], {}, "'a' appears twice"),
        ([Query("a", "x")], {}, "'a' has no reference"),
        (make_queries(2), {"grader": "best"}, "no grader named 'best'"),
        (make_queries(2), {"grader": "number"}, "is not wholly a number"),
        (make_queries(2), {"grader": "judge"}, "go together"),
        (make_queries(2), {"experts": ["gamma"]}, "no expert named 'gamma'"),
        (make_queries(2), {"grader": "judge", "judge": "gamma"}, "no expert named 'gamma'"),
    ],
)
def test_bad_input_writes_nothing(server, tmp_path, queries, options, message):
    pool = write_pool(tmp_path)
    with pytest.raises(InputError, match=message):
        run(pool, tmp_path / "table", queries, **options)
    assert set(tmp_path.iterdir()) == {pool} and server.requests.total() == 0


def test_a_judge_is_asked_once_and_pays_from_the_same_spend_cap(server, tmp_path):
    def reply(prompt: str) -> str:
        code = re.search(r"VERDICT-(\w+):", prompt)
        right = "CORRECT" if "2 noitseuq" in prompt else "INCORRECT"
        return f"ANSWER-{code[1]}: x\nVERDICT-{code[1]}: {right}" if code else reply_to(prompt)

    server.reply = reply
    pool, out, queries = write_pool(tmp_path, ["alpha", "referee"]), tmp_path / "table", make_queries(5)
    options = {"grader": "judge", "judge": "referee", "experts": ["alpha"]}
    collected = run(pool, out, queries, **options)
    assert [row["score"] for row in answers_of(out)] == [0.0, 0.0, 1.0, 0.0, 0.0]
    paid = [row["cost_usd"] for row in read_parts(parts_directory(out)).to_pylist()]
    assert len(paid) == 10 and collected.spent_usd == pytest.approx(sum(paid))
    assert run(pool, out, queries, **options).spent_usd == 0.0
    assert set(server.requests.values()) == {1}
    capped = run(pool, tmp_path / "capped", queries, max_usd=sum(paid[:5]) + 0.3, **options)
    assert capped.missing == 5 and capped.table is None  # what a judge may cost did not fit any more


def test_what_users_said_is_the_score_and_no_judge_is_asked(server, tmp_path):
    pool, out, queries = write_pool(tmp_path, ["alpha", "referee"]), tmp_path / "table", make_queries(2)
    keys = [keys_for(load_pool(pool).select(["alpha"])[0])(query) for query in queries]
    parts_directory(out).mkdir()
    add_feedback(parts_directory(out), {keys[0]: 0.5})
    run(pool, out, queries, experts=["alpha"])
    assert [(row["score"], row["answer"]) for row in answers_of(out)] == [(0.0, "1 noitseuq"), (0.5, "0 noitseuq")]
    add_feedback(parts_directory(out), {keys[1]: 1.0})
    run(pool, out, queries, grader="judge", judge="referee", experts=["alpha"])
    assert [row["score"] for row in answers_of(out)] == [0.5, 1.0] and server.requests.total() == 2
    (parts_directory(out) / "feedback.json").write_text('{"x": 2}')
    with pytest.raises(InputError, match=r"feedback\.json"):
        run(pool, out, queries, experts=["alpha"])


def test_a_judge_without_verdicts_grades_nothing(server, tmp_path):
    pool, out, queries = write_pool(tmp_path, ["alpha", "referee"]), tmp_path / "table", make_queries(70)
    collected = run(pool, out, queries, grader="judge", judge="referee", experts=["alpha"])
    assert collected.table is None and collected.missing == 70
    assert sum(prompt.startswith("referee: ") for prompt in server.requests) == 32  # and then it is given up


def test_local_models_side_by_side_with_a_server(server, tmp_path):
    make_tiny_llama(tmp_path / "models" / "one", seed=1)
    make_tiny_llama(tmp_path / "models" / "two", seed=2)
    pool = write_pool(tmp_path, ["alpha"])
    for name in ("one", "two"):
        with pool.open("a") as stream:
            stream.write(f"  - {{name: {name}, backend: huggingface, model: models/{name}, usd_per_mtok_in: 1,\n")
            stream.write("     usd_per_mtok_out: 2, max_tokens: 8, batch_size: 4}\n")
    run(pool, tmp_path / "table", make_queries(10), grade_empty=True)  # models without training may say nothing
    table = ExpertTable.load(tmp_path / "table")
    assert table.experts == ("alpha", "one", "two") and len(table) == 10
    assert str(tmp_path) not in (tmp_path / "table" / "table.json").read_text()
    make_tiny_llama(tmp_path / "models" / "two", seed=3)  # the same name with other weights is another model
    outputs = {row["expert"]: row["output"] for row in answers_of(tmp_path / "table")}
    run(pool, tmp_path / "table", make_queries(10), grade_empty=True)
    again = {row["expert"]: row["output"] for row in answers_of(tmp_path / "table")}
    assert again["one"] == outputs["one"] and again["two"] != outputs["two"]
    assert set(server.requests.values()) == {1}
