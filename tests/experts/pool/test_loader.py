"""pool.yaml: what is read, what is refused, and the error messages."""

import pytest

from experts.pool import load_pool
from experts.specs import HuggingFaceSpec, OpenAISpec
from experts.types import Query
from leeroo_env.errors import InputError

REMOTE = """
  - name: big
    backend: openai
    model: some/model
    usd_per_mtok_in: 1
    usd_per_mtok_out: 2.5
"""
SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz012345"


def write(tmp_path, text: str):
    path = tmp_path / "pool.yaml"
    path.write_text("experts:" + text)
    return path


def make_model(directory):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(bytes(300_000))
    return directory


def test_a_pool_of_two_backends(tmp_path):
    make_model(tmp_path / "models" / "small")
    local = """
  - name: small
    backend: huggingface
    model: models/small
    usd_per_second: 0.001
    prompt: "Q: {text} {not a field}"
    generation: {temperature: 0.7, stop: ["\\n"]}
"""
    big, small = load_pool(write(tmp_path, REMOTE + local)).experts
    assert isinstance(big, OpenAISpec) and isinstance(small, HuggingFaceSpec)
    assert big.price.cost_usd(1_000_000, 2_000_000, 9.0) == pytest.approx(6.0)
    assert small.price.cost_usd(1_000_000, 1_000_000, 9.0) == pytest.approx(0.009)
    assert small.directory == (tmp_path / "models" / "small").resolve()
    assert small.render(Query("q", "{x} 1")) == "Q: {x} 1 {not a field}"
    assert small.generation.stop == ("\n",) and big.generation.temperature == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("model: some/model", "model: some/model\n    colour: red"),
            r"experts\.0\.colour: there is no such field \(here 'red'\)$",
        ),
        (("usd_per_mtok_in: 1", "usd_per_mtok_in: -1"), r"experts\.0\.usd_per_mtok_in: .* not -1"),
        (("usd_per_mtok_in: 1", "usd_per_mtok_in: '1'"), r"experts\.0\.usd_per_mtok_in: .* not '1'"),
        (("usd_per_mtok_in: 1", "usd_per_second: 1"), r"experts\.0: give either"),
        (("backend: openai", "backend: openai\n    can: [sing]"), r"experts\.0\.can\.0: .*'tools'"),
        (("backend: openai", "backend: openai\n    context: 0"), r"experts\.0\.context: .*greater than 0"),
        (
            ("backend: openai", "backend: openai\n    long_context: {above_tokens: 5}"),
            r"long_context\.usd_per_mtok_in: ",
        ),
        (("    usd_per_mtok_in: 1\n    usd_per_mtok_out: 2.5\n", ""), r"experts\.0: give either"),
        (("backend: openai", "backend: opnai"), r"experts\.0: .*'opnai'.*'openai', 'huggingface', 'vllm'"),
        (("    model: some/model\n", ""), r"experts\.0\.model: Field required"),
        (("backend: openai", "backend: openai\n    prompt: hello"), r"experts\.0\.prompt: should contain \{text\}"),
        (("backend: openai", "backend: openai\n    max_tokens: 0"), r"experts\.0\.max_tokens: .* not 0"),
        (
            ("backend: openai", "backend: openai\n    generation: {heat: 1}"),
            r"experts\.0\.generation\.heat: .* \(here 1\)$",
        ),
        (
            ("backend: openai", "backend: openai\n    generation: {extra: {n: 9}}"),
            r"generation\.extra: n cannot be set",
        ),
        (("backend: openai", "backend: huggingface\n    batch_size: a"), r"experts\.0\.batch_size: .* not 'a'"),
        (("backend: openai", "backend: openai\n    base_url_env: http://x"), r"experts\.0\.base_url_env: .*'http://x'"),
    ],
)
def test_errors_name_file_field_and_value(tmp_path, change, message):
    assert change[0] in REMOTE
    with pytest.raises(InputError, match=r"pool\.yaml: .*" + message) as error:
        load_pool(write(tmp_path, REMOTE.replace(*change)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "experts: []", "experts: 3", "a: [", "experts: [{name: x}]", "\ttab: 1"])
def test_broken_files(tmp_path, text):
    path = tmp_path / "pool.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"pool\.yaml: ") as error:
        load_pool(path)
    assert "\n" not in str(error.value)


def test_no_file_and_duplicate_names(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_pool(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match=r"experts\.1\.name: 'big' appears twice"):
        load_pool(write(tmp_path, REMOTE + REMOTE))


@pytest.mark.parametrize(
    "line",
    [
        f"api_key: {SECRET}",
        f"api_key_env: {SECRET}",
        "api_key: hunter2secret",
        f"generation: {{extra: {{user: {SECRET}}}}}",
        "generation: {extra: {headers: {Authorization: Basic hunter2secret}}}",
        "api_key_env: hunter2secret",
        f"prompt: 'Bearer {SECRET} {{text}}'",
    ],
)
def test_a_key_in_the_file_is_refused_and_not_shown(tmp_path, line):
    with pytest.raises(InputError, match=r"pool\.yaml: experts\.0\.") as error:
        load_pool(write(tmp_path, REMOTE.replace("backend: openai", "backend: openai\n    " + line)))
    assert SECRET not in str(error.value) and "hunter2secret" not in str(error.value)


@pytest.mark.parametrize("model", ["./models/absent", "/models/absent", "~/absent", "a/b/c", "models"])
def test_a_missing_local_model(tmp_path, model):
    make_model(tmp_path / "models" / "small")
    text = REMOTE.replace("openai", "huggingface").replace("some/model", model)
    with pytest.raises(InputError, match=r"pool\.yaml: experts\.0\.model: .* is no model directory"):
        load_pool(write(tmp_path, text))


def test_selecting_experts(tmp_path):
    pool = load_pool(write(tmp_path, REMOTE + REMOTE.replace("big", "other")))
    assert [spec.name for spec in pool.select(["other", "big"])] == ["other", "big"]
    with pytest.raises(InputError, match=r"no expert named 'bog'; there are big, other"):
        pool.select(["bog"])


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "https://api.example.com", "https://x.com/v1?api-version=2"]
)
def test_an_address_may_stand_in_the_file(tmp_path, url):
    (spec,) = load_pool(write(tmp_path, REMOTE + f"    base_url: {url}\n")).experts
    assert isinstance(spec, OpenAISpec) and spec.base_url == url


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("base_url: http://me:hunter2secret@localhost/v1", "base_url: holds a password or a key"),
        ("base_url: https://hunter2secret@localhost/v1", "base_url: holds a password or a key"),
        ("base_url: https://x.com/v1?api_key=hunter2secret", "base_url: holds a password or a key"),
        ("base_url: https://x.com/v1?sig=hunter2secret", "base_url: holds a password or a key"),
        ("base_url: https://x.com/v1#access_token=hunter2secret", "base_url: holds a password or a key"),
        ("base_url: localhost:8000/v1", "base_url: 'localhost:8000/v1' is no address"),
        ("base_url: 'http://'", "base_url: 'http://' is no address"),
        ("base_url: 'http://host:port/v1'", "base_url: is no address"),
        ("base_url: ftp://x.com", "is no address"),
        ("base_url: 'http://a b'", "is no address"),
        ("base_url: 8000", "base_url: .* not 8000"),
        ("base_url: http://x\n    base_url_env: X_URL", "give base_url or base_url_env, not both"),
    ],
)
def test_an_address_that_is_refused(tmp_path, lines, message):
    with pytest.raises(InputError, match=r"pool\.yaml: experts\.0.*" + message) as error:
        load_pool(write(tmp_path, REMOTE + f"    {lines}\n"))
    assert "hunter2secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("base_urll: http://x", "did you mean base_url?"),
        ("base-url: http://x", "did you mean base_url?"),
        ("api_base: http://x", "did you mean base_url?"),
        ("endpoint: http://x", "did you mean base_url?"),
        ("base_url_environment: X", "did you mean base_url_env?"),
        ("max_new_tokens: 9", "did you mean max_tokens?"),
        ("max_token: 9", "did you mean max_tokens?"),
        ("temperature: 1", "did you mean generation.temperature?"),
        ("temprature: 1", "did you mean generation.temperature?"),
        ("extra_body: {a: 1}", "did you mean generation.extra?"),
        ("system_prompt: x", "did you mean system?"),
        ("usd_per_mtok_input: 1", "did you mean usd_per_mtok_in?"),
        ("price_out: 1", "did you mean usd_per_mtok_out?"),
        ("timeout: 1", "did you mean timeout_s?"),
        ("retries: 1", "did you mean max_retries?"),
        ("device: cpu", "device is a field of backend huggingface"),
        ("dtype: auto", "dtype is a field of backend huggingface and vllm"),
        ("engine: {}", "engine is a field of backend vllm"),
        ("generation: {temp: 1}", "did you mean generation.temperature?"),
        ("generation: {max_tokens: 1}", "did you mean max_tokens beside generation?"),
        ("generation: {stops: [a]}", "did you mean generation.stop?"),
        ("generation: {top_k: 1}", "did you mean generation.top_p?"),
        ("colour: red", "there is no such field (here 'red')"),
    ],
)
def test_an_unknown_field_says_which_may_be_meant(tmp_path, line, hint):
    with pytest.raises(InputError, match=r"pool\.yaml: experts\.0\..*: there is no such field") as error:
        load_pool(write(tmp_path, REMOTE + f"    {line}\n"))
    assert str(error.value).endswith(hint)


@pytest.mark.parametrize(
    ("backend", "hint"),
    [
        ("ollama", "did you mean openai, with the server's address as base_url?"),
        ("Anthropic", "did you mean openai, with the server's address as base_url?"),
        ("transformers", "did you mean huggingface?"),
        ("hugging-face", "did you mean huggingface?"),
        ("vLLM", "did you mean vllm?"),
        ("x", "'vllm'"),
        ("null", "'vllm'"),
    ],
)
def test_an_unknown_backend_says_which_may_be_meant(tmp_path, backend, hint):
    with pytest.raises(InputError, match=r"experts\.0: ") as error:
        load_pool(write(tmp_path, REMOTE.replace("openai", backend)))
    assert str(error.value).endswith(hint)


def test_a_missing_backend_and_an_unknown_field_of_the_file(tmp_path):
    with pytest.raises(InputError, match=r"experts\.0\.backend: is missing; one of openai, huggingface, vllm$"):
        load_pool(write(tmp_path, REMOTE.replace("backend: openai", "revision: main")))
    with pytest.raises(InputError, match=r"pool\.yaml: expert: there is no such field; did you mean experts\?$"):
        load_pool(write(tmp_path, REMOTE + "expert: []\n"))


@pytest.mark.parametrize("line", ["base_url_env: http://me:hunter2@x/v1", "base_url_env: https://x/v1?k=hunter2"])
def test_an_address_in_the_place_of_its_variable(tmp_path, line):
    with pytest.raises(InputError, match=r"base_url_env: .*; an address goes into base_url$") as error:
        load_pool(write(tmp_path, REMOTE + f"    {line}\n"))
    assert "hunter2" not in str(error.value)


def test_what_a_pool_may_not_pass_on(tmp_path):
    for line, message in (
        ("generation: {extra: {custom_generate: ./code}}", "generation: extra: custom_generate .* it can run code"),
        ("engine: {worker_cls: code.Worker}", "engine: worker_cls cannot be set here, it can run code"),
    ):
        text = REMOTE.replace("openai", "vllm") + f"    {line}\n"
        with pytest.raises(InputError, match=rf"experts\.0\.{message}"):
            load_pool(write(tmp_path, text))


def test_a_tokenizer_beside_the_pool(tmp_path):
    (tmp_path / "tokenizers" / "x").mkdir(parents=True)
    for name, expected in (("tokenizers/x", str(tmp_path / "tokenizers" / "x")), ("org/name", "org/name")):
        (spec,) = load_pool(write(tmp_path, REMOTE + f"    tokenizer: {name}\n")).experts
        assert isinstance(spec, OpenAISpec) and spec.tokenizer == expected
