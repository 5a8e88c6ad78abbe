import datetime
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import experts.tiny.train as tiny
from experts.tiny.tasks import DIFFICULTIES, FAMILIES, draw, generate, is_held_out

SPECIALISTS = [name for name, spec in tiny.MODELS.items() if set(spec.families) != set(FAMILIES)]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def shipped():
    return {name: load(tiny.WEIGHTS / name) for name in tiny.MODELS}


def accuracy(model, tokenizer, questions):
    answers = tiny.answer(model, tokenizer, [q.text for q in questions])
    return tiny.accuracies(questions, answers)


def solve(text):
    """The answer read from the words of the question alone, by other means than the generators use."""
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if day := re.search(r"(\d+) days (after|before) (\w+day)", text):
        monday = datetime.date(2024, 1, 1)
        start = monday + datetime.timedelta(DAYS.index(day[3]))
        step = datetime.timedelta(int(day[1]))
        return DAYS[(start + step if day[2] == "after" else start - step).weekday()]
    if "largest" in text:
        if "second" in text:
            numbers.remove(max(numbers))
        return str(max(numbers))
    if letters := re.fullmatch(r"(?:How many|Count the) (\w) in (\w+)[?.]", text):
        return str(Counter(letters[2])[letters[1]])
    if word := re.fullmatch(r"(?:Reverse the word|Spell) ([a-z]+)(?: backwards)?\.", text):
        return "".join(reversed(word[1]))
    if digits := re.fullmatch(r"(?:Sort the digits|Put) (\d+)(?: in order)?\.", text):
        return "".join(str(d) * digits[1].count(str(d)) for d in range(10))
    a, b = numbers
    if "+" in text or "Add" in text:
        return str(sum((a, b)))
    if "*" in text or "Multiply" in text:
        return str(sum([a] * b))
    assert "-" in text or text.startswith("From"), text
    return str(a + ~b + 1)  # two's complement


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_right(family):
    questions = generate(300, seed=1, families=[family])
    assert {q.difficulty for q in questions} == set(DIFFICULTIES)
    for question in questions:
        assert question.domain == family
        assert solve(question.text) == question.reference, question
        assert len(question.text) <= 60
        assert len(question.reference) < tiny.MAX_ANSWER_TOKENS


def test_generate_is_a_function_of_its_arguments():
    assert generate(200, seed=3) == generate(200, seed=3)
    assert generate(200, seed=3) != generate(200, seed=4)
    assert {q.domain for q in generate(50, seed=0, families=("sort", "add"))} == {"sort", "add"}


def test_no_text_comes_twice_or_is_among_the_excluded():
    first = generate(2000, seed=0)
    texts = {q.text for q in first}
    assert len(texts) == len({q.query_id for q in first}) == 2000
    second = generate(500, seed=0, exclude=texts)
    assert texts.isdisjoint(q.text for q in second)


def test_a_used_up_family_is_an_error(monkeypatch):
    monkeypatch.setitem(FAMILIES, "one", lambda rng, difficulty: ("The only text.", "1"))
    side = is_held_out("The only text.")
    with pytest.raises(ValueError, match="'one' has no text left"):
        generate(2, seed=0, families=["one"], held_out=side)


def test_training_and_examination_never_overlap():
    rng = np.random.default_rng(0)
    trained = [draw(rng, tuple(FAMILIES), held_out=False).text for _ in range(3000)]
    examined = [q.text for q in generate(1000, seed=0)]
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, examined))
    assert set(trained).isdisjoint(examined)


def test_about_a_quarter_is_held_out():
    rng = np.random.default_rng(0)
    texts = {FAMILIES["reverse"](rng, 5)[0] for _ in range(4000)}
    assert 0.22 < np.mean([is_held_out(t) for t in texts]) < 0.28


def test_only_the_answer_is_learned():
    tokenizer = tiny.build_tokenizer()
    questions = generate(40, seed=0)
    inputs, targets = tiny.encode(questions, tokenizer.get_vocab())
    for question, row, wanted in zip(questions, inputs, targets, strict=True):
        prompt = tokenizer(tiny.prompt(question.text))["input_ids"]
        assert row[: len(prompt)].tolist() == prompt
        learned = wanted[wanted != tiny.IGNORED]
        assert tokenizer.decode(learned) == question.reference + "<eos>"
        assert (wanted[: len(prompt) - 1] == tiny.IGNORED).all()


def test_training_lowers_the_loss_and_repeats_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setitem(tiny.MODELS, "micro", tiny.Model(32, 1, 32, 60, 1e-2, ("sort",)))
    config = tiny.Config("micro", tmp_path, seed=5, batch_size=16, exam_questions=20)
    first, _, losses = tiny.train(config)
    second, _, repeated = tiny.train(config)
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert losses == repeated
    weights = second.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in first.state_dict().items())


def test_main_writes_a_model_directory(tmp_path, monkeypatch):
    monkeypatch.setitem(tiny.MODELS, "micro", tiny.Model(32, 1, 32, 60, 1e-2, ("sort",)))
    tiny.main(tiny.Config("micro", tmp_path, steps=3, batch_size=8, exam_questions=10))
    assert [p.name for p in tmp_path.iterdir()] == ["micro"]
    record = json.loads((tmp_path / "micro" / "training.json").read_text())
    model, tokenizer = load(tmp_path / "micro")
    assert record["steps"] == 3
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert model.dtype == torch.float32
    assert len(tiny.answer(model, tokenizer, ["Sort the digits 4491."])) == 1


def test_an_unknown_model_is_an_error():
    with pytest.raises(ValueError, match="'huge' is none of nano"):
        tiny.train(tiny.Config("huge"))


@pytest.mark.parametrize("name", tiny.MODELS)
def test_shipped_model_answers_easy_questions(name, shipped):
    questions = [q for q in generate(600, seed=11, families=tiny.MODELS[name].families) if q.difficulty == 1]
    model, tokenizer = shipped[name]
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert accuracy(model, tokenizer, questions)["all"] > 0.3


@pytest.mark.parametrize("name", tiny.MODELS)
def test_padding_changes_no_answer(name, shipped):
    model, tokenizer = shipped[name]
    texts = [q.text for q in generate(24, seed=12)]
    assert tiny.answer(model, tokenizer, texts) == [tiny.answer(model, tokenizer, [t])[0] for t in texts]


@pytest.mark.parametrize("name", SPECIALISTS)
def test_specialists_win_their_subjects_and_no_others(name, shipped):
    inside = tiny.MODELS[name].families
    outside = [f for f in FAMILIES if f not in inside]
    own = generate(300, seed=13, families=inside)
    score = accuracy(*shipped[name], own)["all"]
    assert all(score > accuracy(*shipped[rival], own)["all"] + 0.1 for rival in ("nano", "small"))
    assert accuracy(*shipped[name], generate(150, seed=13, families=outside))["all"] < 0.1


def test_the_largest_is_best_on_average_but_not_everywhere(shipped):
    questions = generate(600, seed=14)
    scores = {name: accuracy(*pair, questions) for name, pair in shipped.items()}
    assert max(scores, key=lambda n: scores[n]["all"]) == "large"
    assert any(scores[n][family] > scores["large"][family] for n in scores for family in FAMILIES)
