"""Variants in pool.yaml: one entry as several experts, which share its server or its weights."""

import threading
from itertools import pairwise

import pytest

from experts.backends.huggingface import HuggingFaceExpert
from experts.backends.vllm import VllmExpert
from experts.collect.estimate import estimate
from experts.pool import keys_for, load_pool, make_experts
from experts.spending import SpendCap
from experts.types import Query
from leeroo_env import ExpertTable
from leeroo_env.errors import InputError
from leeroo_env.variants import entry_of
from tests.experts.collecting import make_queries, run, write_pool
from tests.experts.pool.test_loader import REMOTE, write
from tests.experts.tiny_llama import make_tiny_llama

QUERY = Query("q", "text")
VARIANTS = """
    system: be brief
    generation: {temperature: 0.2, stop: [x], extra: {top_k: 3, reasoning_effort: high}}
    variants:
      short: {max_tokens: 5, system: null, prompt: "Q: {text}"}
      low: {generation: {temperature: null, extra: {reasoning_effort: low}}}
      again: {}
"""


def with_variants(tmp_path, variants: str, backend: str = "openai"):
    return write(tmp_path, REMOTE.replace("openai", backend) + f"    variants: {variants}\n")


def test_a_variant_is_an_expert_with_what_it_changes(tmp_path):
    pool = load_pool(write(tmp_path, REMOTE + VARIANTS + REMOTE.replace("big", "other")))
    assert [spec.name for spec in pool.experts] == ["big", "big@short", "big@low", "big@again", "other"]
    big, short, low, again, _ = pool.experts
    assert (short.max_tokens, short.system, short.render(QUERY)) == (5, None, "Q: text")
    assert (low.max_tokens, low.system, low.generation.temperature) == (1024, "be brief", None)
    assert low.generation.stop == ("x",) and low.generation.extra == {"top_k": 3, "reasoning_effort": "low"}
    assert again.model_copy(update={"name": "big"}) == big and not any(spec.variants for spec in pool.experts)
    assert {spec.price for spec in pool.experts} == {big.price} and short.worst_usd(QUERY) < big.worst_usd(QUERY)
    assert [spec.name for spec in pool.select(["big@low", "big"])] == ["big@low", "big"]
    with pytest.raises(InputError, match=r"no expert named 'big@lo'; there are big, big@short, big@low"):
        pool.select(["big@lo"])


def test_the_key_of_the_entry_stays_and_each_variant_has_its_own(tmp_path):
    plain = load_pool(write(tmp_path, REMOTE)).experts[0]
    specs = load_pool(with_variants(tmp_path, "{a: {max_tokens: 5}, b: {}}")).experts
    keys = [keys_for(spec)(QUERY) for spec in specs]
    assert keys[0] == keys_for(plain)(QUERY) and len(set(keys)) == 3


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("[short]", r"experts\.0\.variants: should be settings by name"),
        ("null", r"experts\.0\.variants: should be settings by name"),
        ("{64: {max_tokens: 64}}", r"experts\.0\.variants: 64 cannot name a variant; .*in quotes"),
        ("{on: {}}", r"experts\.0\.variants: True cannot name a variant"),
        ("{a@b: {}}", r"experts\.0\.variants: 'a@b' cannot name a variant"),
        ("{'a,b': {}}", r"experts\.0\.variants: 'a,b' cannot name a variant"),
        ("{'': {}}", r"experts\.0\.variants: '' cannot name a variant"),
        ("{short: 5}", r"experts\.0\.variants\.short: Input should be .*, not 5"),
        ("{short: }", r"experts\.0\.variants\.short: Input should be .*, not None"),
        ("{short: {max_tokens: 0}}", r"experts\.0\.variants\.short\.max_tokens: .* not 0"),
        ("{short: {prompt: hello}}", r"experts\.0\.variants\.short\.prompt: should contain \{text\}"),
        ("{short: {generation: {temperature: -1}}}", r"variants\.short\.generation\.temperature: .* not -1"),
        ("{short: {generation: {extra: {n: 2}}}}", r"variants\.short\.generation\.extra: n cannot be set here"),
        ("{short: {generation: {extra: {tools: 2}}}}", r"variants\.short\.generation: extra: tools cannot be set here"),
        ("{short: {temperature: 1}}", r"short\.temperature: .*; did you mean generation\.temperature\?"),
        ("{short: {max_new_tokens: 1}}", r"short\.max_new_tokens: .*; did you mean max_tokens\?"),
        ("{short: {system_prompt: x}}", r"short\.system_prompt: .*; did you mean system\?"),
        ("{short: {reasoning_effort: low}}", r"; did you mean generation\.extra\.reasoning_effort\?"),
        ("{short: {generation: {temp: 1}}}", r"generation\.temp: .*; did you mean generation\.temperature\?"),
        ("{short: {generation: {max_tokens: 1}}}", r"did you mean max_tokens beside generation\?"),
        (
            "{short: {model: x}}",
            r"short\.model: .*; a variant may change max_tokens, prompt, system, generation, confidence$",
        ),
        ("{short: {usd_per_second: 1}}", r"usd_per_second: .*; a variant may change max_tokens"),
        ("{short: {variants: {}}}", r"short\.variants: there is no such field"),
        ("{short: {api_key: hunter2secret}}", r"variants\.short\.api_key: a key must not be in this file"),
    ],
)
def test_what_is_refused_in_one_line(tmp_path, variants, message):
    with pytest.raises(InputError, match=r"pool\.yaml: .*" + message) as error:
        load_pool(with_variants(tmp_path, variants))
    assert "\n" not in str(error.value) and "hunter2secret" not in str(error.value)


def test_a_setting_that_only_this_backend_refuses(tmp_path):
    path = with_variants(tmp_path, "{short: {generation: {extra: {reasoning_effort: low}}}}", "huggingface")
    with pytest.raises(InputError, match=r"experts\.0\.variants\.short\.generation: extra: reasoning_effort cannot"):
        load_pool(path)


def test_a_name_with_an_at_sign(tmp_path):
    dated = REMOTE.replace("big", "big@2026") + "    variants: {short: {}}\n"
    pool = load_pool(write(tmp_path, dated))
    assert [spec.name for spec in pool.experts] == ["big@2026", "big@2026@short"]
    names = {spec.name for spec in pool.experts}
    assert {entry_of(name, names) for name in names} == {"big@2026"}
    for text in (REMOTE + dated, dated + REMOTE):
        with pytest.raises(InputError, match=r"'big@2026' reads like variant '2026' of 'big'; make"):
            load_pool(write(tmp_path, text))
    with pytest.raises(InputError, match=r"experts\.1\.name: 'big@short' reads like variant 'short' of 'big'"):
        load_pool(write(tmp_path, REMOTE + "    variants: {short: {}}\n" + REMOTE.replace("big", "big@short")))


def test_variants_of_a_local_model_share_its_weights_and_answer_as_if_alone(tmp_path):
    make_tiny_llama(tmp_path / "model")
    entry = REMOTE.replace("openai", "huggingface").replace("some/model", "model") + "    max_tokens: 24\n"
    settings = ["max_tokens: 5", "generation: {temperature: 1.5, seed: 7}", "system: Be brief."]
    variants = "".join(f"      v{i}: {{{setting}}}\n" for i, setting in enumerate(settings))
    made = make_experts(load_pool(write(tmp_path, f"{entry}    variants:\n{variants}")), None, SpendCap())
    together = [expert.answer([QUERY])[0] for expert in made for _ in range(2)]
    assert all(isinstance(expert, HuggingFaceExpert) for expert in made)
    models = [expert._loaded()[1] for expert in made if isinstance(expert, HuggingFaceExpert)]
    assert len(models) == 4 and all(one is two for one, two in pairwise(models))
    for i, setting in enumerate(["", *settings]):
        changed = entry.replace("    max_tokens: 24\n", "") if setting.startswith("max_tokens") else entry
        (alone,) = make_experts(load_pool(write(tmp_path, f"{changed}    {setting}\n")), None, SpendCap())
        answer = alone.answer([QUERY])[0]
        for other in together[2 * i : 2 * i + 2]:
            assert (other.text, other.completion_tokens, other.logprob) == (
                answer.text,
                answer.completion_tokens,
                answer.logprob,
            )
    assert together[2].completion_tokens == 5 and len({answer.text for answer in together}) == 4


def test_variants_in_vllm_share_an_engine(tmp_path):
    pool = load_pool(with_variants(tmp_path, "{a: {}, b: {}}", "vllm"))
    engines = {expert._engine for expert in make_experts(pool, None, SpendCap()) if isinstance(expert, VllmExpert)}
    assert len(engines) == 1


def test_variants_on_a_server_share_its_concurrency(server, tmp_path):
    server.delay_s = 0.03
    pool = load_pool(write_pool(tmp_path, ["alpha", "beta"], ", variants: {a: {max_tokens: 2}, b: {system: S}}"))
    made = make_experts(pool, ["alpha@a", "alpha", "alpha@b"], SpendCap())
    threads = [threading.Thread(target=expert.answer, args=(make_queries(6),)) for expert in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most_at_once == 3 and len(server.bodies) == 18
    assert {body["max_tokens"] for body in server.bodies} == {2, 5}
    assert sum(body["messages"][0] == {"role": "system", "content": "S"} for body in server.bodies) == 6


def test_a_collection_with_variants_and_its_continuation(server, tmp_path):
    queries = make_queries(12)
    run(write_pool(tmp_path, ["alpha"]), tmp_path / "table", queries)
    pool = write_pool(tmp_path, ["alpha"], ", variants: {short: {max_tokens: 1}, again: {}}")
    plans = estimate(load_pool(pool), queries, tmp_path / "table")
    assert {one.expert: one.to_ask for one in plans} == {"alpha": 0, "alpha@short": 12, "alpha@again": 12}
    run(pool, tmp_path / "table", queries)
    run(pool, tmp_path / "table", queries)
    assert len(server.bodies) == 36
    table = ExpertTable.load(tmp_path / "table")
    assert list(table.experts) == ["alpha", "alpha@short", "alpha@again"]
    assert table.costs_usd[:, 1].lt(table.costs_usd[:, 0]).all() and table.costs_usd[:, 2].equal(table.costs_usd[:, 0])
    fields = [one.model_dump(exclude_none=True) for one in table.info.experts]
    assert [one.pop("name") for one in fields] == list(table.experts) and fields[0] == fields[1] == fields[2]
