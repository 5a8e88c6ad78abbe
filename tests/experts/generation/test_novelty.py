"""The novelty filter, also with the tiny table's own questions."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import leeroo_env.builtin
from experts.data.queries import text_id
from experts.encoder import Encoder
from experts.generation.novelty import Limits, NoveltyFilter, normal_question
from experts.generation.writers import TaskWriter
from experts.types import Query
from leeroo_env.errors import InputError
from leeroo_env.table import ExpertTable


class LetterEncoder:
    """Counts of letters and digits, so that texts with the same ones coincide; not of length 1."""

    def encode(self, texts):
        rows = [[0.1 + text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz0123456789"] for text in texts]
        return np.array(rows, np.float32).reshape(len(texts), 36)


def asked(*texts: str) -> list[Query]:
    return [Query(text_id(text), text) for text in texts]


def test_each_reason_is_counted():
    """Protects: what is dropped and why, against val and test, against known texts, and within a batch."""
    novelty = NoveltyFilter(LetterEncoder(), ["What is 12 + 47?"], ["Who wrote Faust?"], Limits(known=0.99))
    texts = {
        "what is 12+47": "reserved",
        "What is 47 + 12 ?": "close to reserved",
        "WHO wrote  Faust": "seen",
        "Wrote who Faust?": "close to seen",
        "Which zebra jumps quickly?": "",
        "Jumps which zebra quickly?": "close to seen",
        "Name a big river in Peru.": "",
    }
    filtered = novelty.filter(asked(*texts))
    assert [query.text for query in filtered.queries] == [text for text, reason in texts.items() if not reason]
    assert filtered.dropped == {"reserved": 1, "close to reserved": 1, "seen": 1, "close to seen": 2}
    assert filtered.embeddings.shape == (2, 36) and filtered.embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(filtered.embeddings, axis=1), 1, atol=1e-6)
    assert novelty.filter(filtered.queries).dropped == {"seen": 2}
    assert novelty.filter([]).embeddings.shape == (0, 36)


def test_twins_of_a_template_pass_unless_val_or_test_has_one():
    """Protects: a template's questions differ in their numbers, and a plain threshold would let one of them through."""
    novelty = NoveltyFilter(LetterEncoder(), ["Sort the digits 8652 for Ann."], limits=Limits(known=0.5))
    kept = novelty.filter(asked("Which is more, 1 or 2?", "Which is more, 1 or 3?", "Which is more, 2 or 1?")).queries
    assert [query.text for query in kept] == ["Which is more, 1 or 2?", "Which is more, 1 or 3?"]
    assert novelty.filter(asked("Please put 8652 in order for Ann.")).dropped == {"close to reserved": 1}


def test_normal_form():
    """Protects: operators, factorials and spaces between numbers make other questions; case and end marks do not."""
    assert normal_question("What is 12 + 47?") == normal_question(" what is 12+47")
    different = ["What is 12 - 47?", "What is 12 + 4 7?", "What is 1247?", "What is 12 + 47!?"]
    assert len({normal_question(text) for text in [*different, "What is 12 + 47?"]}) == 5


def test_invalid_embeddings_are_refused():
    """Protects: nothing is similar to NaN, so everything would pass."""
    broken = LetterEncoder()
    broken.encode = lambda texts: np.full((len(texts), 3), np.nan, np.float32)
    with pytest.raises(InputError, match="encoder: 1 texts gave"):
        NoveltyFilter(broken, ["a"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield Encoder(cache_dir=tmp_path_factory.mktemp("cache"))
    except InputError as error:
        pytest.skip(str(error))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def splits():
    """The tiny table's questions: texts by split."""
    path = leeroo_env.builtin.BUILTIN["tiny"]
    texts = pq.read_table(path / "queries.parquet")["text"].to_pylist()
    table = ExpertTable.load(path)
    return {split: [texts[i] for i in table.rows(split).tolist()] for split in ("train", "val", "test")}


def marks_of(text: str) -> list[str]:
    """The numbers and the weekday in a question."""
    words = text.translate(str.maketrans("?.:", "   ")).split()
    return sorted(word for word in words if word.isdigit() or word.endswith("day"))


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_near_to_val_or_test_passes(encoder, splits, seed):
    """Protects: the examination. Checked pair by pair, by other code, with val and test questions thrown in."""
    reserved = splits["val"][:300] + splits["test"][:300]
    written = TaskWriter().write(150, None, np.random.default_rng(seed)).queries
    new = written + asked(*reserved[seed::20], *(text.upper().replace(" ", "  ") for text in reserved[seed::30]))
    new = [new[i] for i in np.random.default_rng(seed).permutation(len(new))]
    novelty = NoveltyFilter(encoder, reserved, splits["train"][:100])
    filtered = novelty.filter(new)
    assert filtered.dropped["reserved"] >= 30 + 20 and len(filtered.queries) >= 100
    known = encoder.encode(reserved)
    for query, vector in zip(filtered.queries, encoder.encode([q.text for q in filtered.queries]), strict=True):
        similar = known @ vector
        assert similar.max() < 0.95 + 1e-5, query
        for j in np.flatnonzero(similar >= 0.7 + 1e-5):
            assert not marks_of(query.text) or marks_of(query.text) != marks_of(reserved[j]), (query, reserved[j])


def test_the_cut_into_calls_does_not_matter(encoder, splits, monkeypatch):
    """Protects: rounds and blocks of any size have to give the same queries."""
    monkeypatch.setattr("experts.generation.novelty.FILTER_BLOCK", 16)
    new = TaskWriter().write(60, None, np.random.default_rng(0)).queries * 2
    whole = NoveltyFilter(encoder, splits["val"][:100]).filter(new)
    novelty = NoveltyFilter(encoder, splits["val"][:100])
    parts = [novelty.filter(new[start : start + 7]) for start in range(0, len(new), 7)]
    assert [query for part in parts for query in part.queries] == whole.queries
    assert sum((part.dropped for part in parts[1:]), parts[0].dropped) == whole.dropped
