"""Compression inside another pipeline: every row its frames or its error, for arrays and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latentwire.core.errors import InputError
from latentwire.runtime.jobs.map_batches import ADDED, Compressor
from latentwire.runtime.options import CompressOptions
from latentwire.runtime.pipeline import Pipeline

TEXTS: list[Any] = ["one text", None, "", "words and words " * 12, 7, "three"]
CODES = [None, "LW-2004", "LW-2005", "LW-2006", "LW-2004", None]


def test_arrays_and_tables(toy_bundle: Path, pipe: Pipeline) -> None:
    compressor = Compressor(toy_bundle, CompressOptions("f16"), text="body")
    texts = np.array(TEXTS, object)
    found = compressor({"body": texts, "n": np.arange(6)})
    assert isinstance(found, dict)
    assert list(found) == ["body", "n", *ADDED]
    assert list(found["error_code"]) == CODES
    assert [f for f in found["frames"] if f] == pipe.compress(["one text", "three"], CompressOptions("f16"))
    assert "row 3" in found["error_message"][3]
    assert list(found["n_tokens"]) == [8, None, None, None, None, 5]
    strings = [t if isinstance(t, str) else None for t in TEXTS]
    table = compressor(pa.table({"body": strings}))
    assert isinstance(table, pa.Table)
    assert table["frames"].to_pylist() == list(found["frames"])
    assert table["error_code"].to_pylist() == CODES


def test_2101_other_columns(toy_bundle: Path) -> None:
    compressor = Compressor(toy_bundle)
    for wrong in ({"body": np.array(["a"])}, {"text": np.array(["a"]), "frames": np.array(["b"])}):
        with pytest.raises(InputError) as caught:
            compressor(wrong)
        assert caught.value.code == 2101
