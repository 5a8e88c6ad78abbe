"""docs/pool.md: its tables have every field with its default, and its examples make experts."""

import json
import re
from pathlib import Path

import pydantic
import pytest
import yaml

import experts.tiny
from experts.backends.openai import OpenAIExpert
from experts.pool import load_pool, make_experts
from experts.pool.problems import public_fields
from experts.specs import BACKENDS, ExpertSpec, Generation, HuggingFaceSpec, LocalSpec, OpenAISpec, VllmSpec
from experts.spending import SpendCap

PAGE = (Path(__file__).parents[3] / "docs" / "pool.md").read_text()
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TABLES = [
    ("## Fields of every expert\n", ExpertSpec, None),
    ("## Fields of backend openai\n", OpenAISpec, ExpertSpec),
    ("## Fields of backends huggingface and vllm\n", LocalSpec, ExpertSpec),
    ("\nOnly huggingface:\n", HuggingFaceSpec, LocalSpec),
    ("\nOnly vllm:\n", VllmSpec, LocalSpec),
    ("## Fields of generation\n", Generation, None),
]


def documented(heading: str) -> dict[str, str]:
    """Field and default of the first table under a heading."""
    table = PAGE.split(heading)[1].split("|---|---|---|\n")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \| ", table, re.MULTILINE))


def default_of(field: pydantic.fields.FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = {} if isinstance(field.default, Generation) else field.default
    return f"`{json.dumps(default)}`"


@pytest.mark.parametrize(("heading", "spec", "base"), TABLES)
def test_the_tables_have_every_field_and_its_default(heading, spec, base):
    inherited = {*public_fields(base)} if base else set()
    fields = {name: default_of(spec.model_fields[name]) for name in public_fields(spec) if name not in inherited}
    fields.pop("backend", None)
    found = documented(heading)
    found.pop("backend", None)
    assert found == fields


def test_the_tables_are_of_all_backends_and_name_them():
    assert {spec for _, spec, _ in TABLES} >= set(BACKENDS.values())
    assert "`openai`, `huggingface` or `vllm`" in PAGE and list(BACKENDS) == ["openai", "huggingface", "vllm"]
    assert VllmSpec.model_fields["batch_size"].default == 256  # as the page says


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: yaml.safe_load(example)["experts"][0]["name"])
def test_the_examples_make_experts(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shipped = Path(experts.tiny.__file__).parent / "weights" / "nano"  # in place of a tokenizer on the hub
    (tmp_path / "pool.yaml").write_text(re.sub("tokenizer: [^ ]*", f"tokenizer: {shipped}", example))
    pool = load_pool(tmp_path / "pool.yaml")
    for spec in pool.experts:
        if isinstance(spec, OpenAISpec):
            if spec.api_key_env:
                monkeypatch.setenv(spec.api_key_env, "key")
            if spec.base_url_env:
                monkeypatch.setenv(spec.base_url_env, "https://user:password@host/v1")
    made = make_experts(pool, None, SpendCap())
    assert [expert.name for expert in made] == [spec.name for spec in pool.experts]
    for expert, spec in zip(made, pool.experts, strict=True):
        if isinstance(expert, OpenAIExpert) and isinstance(spec, OpenAISpec) and spec.base_url:
            assert str(expert._client.base_url).rstrip("/") == spec.base_url.rstrip("/")


def test_there_is_an_example_for_each_kind_of_server():
    addresses = [expert.get("base_url", "") for example in EXAMPLES for expert in yaml.safe_load(example)["experts"]]
    for part in (":8000/", ":11434/", ":8080/", "anthropic", "openrouter"):
        assert any(part in address for address in addresses), part
