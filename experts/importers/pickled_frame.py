"""Reads pickled data frames safely: the unpickler allows the parts of data frames and arrays and nothing else."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

from leeroo_env.errors import InputError

# The parts of a pickled data frame, and their present names if they have moved
ALLOWED = {
    **{("pandas", name): "" for name in ("DataFrame", "Index", "RangeIndex")},
    ("pandas.core.frame", "DataFrame"): "",
    ("pandas.core.indexes.base", "Index"): "",
    ("pandas.core.indexes.base", "_new_Index"): "",
    ("pandas.core.indexes.range", "RangeIndex"): "",
    **{("pandas.core.indexes.numeric", f"{kind}Index"): "pandas.Index" for kind in ("Int64", "UInt64", "Float64")},
    ("pandas.core.internals.managers", "BlockManager"): "",
    ("pandas._libs.internals", "_unpickle_block"): "",
    ("numpy", "ndarray"): "",
    ("numpy", "dtype"): "",
    **{
        (f"numpy.{core}.{module}", name): f"numpy._core.{module}.{name}"
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
    **{(module, name): f"builtins.{name}" for module in ("builtins", "__builtin__") for name in ("slice", "bytearray")},
}


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode`, with which old pickles write bytes, for this encoding only."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"an encoding {encoding!r}")
    return text.encode("latin1")


class _FrameUnpickler(pickle.Unpickler):
    """Allows the parts of data frames only; no other name in the file is even imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        target = ALLOWED[module, name] or f"{module}.{name}"
        return super().find_class(*target.rsplit(".", 1))


def read_frame(file: Path) -> Any:
    """The data frame in a pickle file. Raises InputError for anything else, without running what the file names."""
    try:
        import pandas
    except ImportError:
        raise InputError(f"{file}: a pickled data frame needs the package pandas: pip install pandas") from None
    with file.open("rb") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            frame = _FrameUnpickler(opened).load()
            whole = isinstance(frame, pandas.DataFrame) and frame.columns.is_unique and len(frame) >= 0
        except Exception as error:  # a damaged or hostile pickle can raise anything
            hint = " (pandas 3 strings: save it as .parquet or .csv)" if "pandas.arrays" in str(error) else ""
            raise InputError(f"{file}: refused, not a plain pickled data frame: {error}{hint}") from None
    if not whole:
        raise InputError(f"{file}: refused, a pickled {type(frame).__name__}, not a data frame with distinct columns")
    return frame
