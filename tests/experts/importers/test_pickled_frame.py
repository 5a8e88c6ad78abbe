"""Pickles that are no plain data frames are refused, and nothing in them is run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.experts.importers.importing import refused


class Hostile:
    """Whatever is in here would be called by an unguarded unpickler."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harmful(marker: Path) -> dict[str, object]:
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    inner = pickle.dumps(Hostile(os.system, command))
    return {
        "system": Hostile(os.system, command),
        "eval": Hostile(eval, code),
        "exec": Hostile(exec, code),
        "getattr": Hostile(getattr, "text", "format"),
        "loads": Hostile(pickle.loads, inner),
        "in a list": [1, {"a": (Hostile(os.system, command),)}],
        "as arguments": Hostile(bytearray, Hostile(os.system, command)),
        "numpy's unpickler": Hostile(np.load, str(marker)),
    }


NAMES = {
    "system": "posix.system",
    "eval": "eval",
    "exec": "exec",
    "getattr": "getattr",
    "loads": "pickle.loads",
    "in a list": "posix.system",
    "as arguments": "posix.system",
    "numpy's unpickler": "numpy.load",
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("place", ["alone", "in a frame"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_hostile_pickle_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, kind: str, place: str, protocol: int
):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    marker = tmp_path / "harmed"
    content = harmful(marker)[kind]
    if place == "in a frame":
        content = pandas.DataFrame([[0, content]], dtype=object)
    file = tmp_path / "wide.pkl"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    out = tmp_path / "out" / "table"
    out.parent.mkdir()
    message = refused(capsys, out, "routerbench", file)
    assert "refused" in message and NAMES[kind].replace("posix", os.name) in message
    assert not marker.exists()


def test_the_same_frame_without_harm_is_opened(tmp_path: Path, capsys: pytest.CaptureFixture):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    file = tmp_path / "wide.pkl"
    file.write_bytes(pickle.dumps(pandas.DataFrame([[0, ["a", {"b": (1.5, None)}]]], dtype=object)))
    (tmp_path / "out").mkdir()
    assert "column sample_id is missing" in refused(capsys, tmp_path / "out" / "table", "routerbench", file)


def test_the_hostile_pickles_would_do_harm(tmp_path: Path):
    for kind, content in harmful(tmp_path / "harmed").items():
        if kind in ("system", "eval", "exec", "loads", "in a list"):
            pickle.loads(pickle.dumps(content))
            assert (tmp_path / "harmed").exists(), kind
            (tmp_path / "harmed").unlink()


GLOBALS = [
    b"cpandas.core.frame\nDataFrame.eval\n.",
    b"cnumpy\ndtype\n(S'O'\ntR.",
    b"\x80\x04\x8c\x06pandas\x8c\x17io.common.os.system.foo\x93.",
    b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
    b"cbuiltins\nslice\n.",
    b"I1\n.",
    b"not a pickle",
    b"",
]


@pytest.mark.parametrize("content", GLOBALS)
def test_what_is_no_data_frame_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes):
    pytest.importorskip("pandas", reason="pandas is not installed")
    file = tmp_path / "wide.pkl"
    file.write_bytes(content)
    out = tmp_path / "out" / "table"
    out.parent.mkdir()
    assert "refused" in refused(capsys, out, "routerbench", file)
