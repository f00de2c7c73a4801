"""Reading GGUF: what gguf's own reader says, and a clear error for every damaged file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from latentwire.core.errors import ModelError
from latentwire.models.gguf_file import read_gguf


def test_reads_what_the_gguf_package_reads(tiny_gguf: Path) -> None:
    ours, theirs = read_gguf(tiny_gguf), gguf.GGUFReader(tiny_gguf)
    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == expected
    assert [(t.name, t.shape, t.ggml_type, t.start) for t in ours.tensors] == [
        (t.name, tuple(int(n) for n in reversed(t.shape)), int(t.tensor_type), int(t.data_offset))
        for t in theirs.tensors
    ]


def test_every_truncation_of_the_header_is_noticed(tiny_gguf: Path, tmp_path: Path) -> None:
    content = tiny_gguf.read_bytes()
    end = min(tensor.start for tensor in read_gguf(tiny_gguf).tensors) - 32
    path = tmp_path / "cut.gguf"
    for length in [*range(64), *range(64, end, 97)]:
        path.write_bytes(content[:length])
        with pytest.raises(ModelError) as error:
            read_gguf(path)
        assert error.value.code == 3202


def test_flipped_bytes_give_our_error_or_a_readable_file(tiny_gguf: Path, tmp_path: Path) -> None:
    content = bytearray(tiny_gguf.read_bytes())
    end = min(tensor.start for tensor in read_gguf(tiny_gguf).tensors)
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.gguf"
    codes = set()
    for at in rng.integers(0, end, 1000):
        changed = bytearray(content)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            read_gguf(path)
        except ModelError as error:
            codes.add(error.code)
    assert codes == {3202}


@pytest.mark.parametrize(
    ("start", "expected"),
    [(b"PK\x03\x04" + bytes(40), "'GGUF'"), (b"GGUF\x09" + bytes(40), "version"), (b"GGUF", "4 bytes")],
)
def test_other_files(start: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(start)
    with pytest.raises(ModelError) as error:
        read_gguf(path)
    assert error.value.code == 3202
    assert expected in str(error.value)
    assert str(path) in str(error.value)
