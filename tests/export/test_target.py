"""Which exports are possible: defaults for each engine, and every impossible wish refused by name."""

from __future__ import annotations

import pytest

from latentwire.core.errors import InputError
from latentwire.export.target import PLAIN, Wishes, choose


def test_defaults() -> None:
    assert choose(Wishes(precision="fp32")) == PLAIN
    fast = choose(Wishes())
    assert (fast.kind, fast.precision.name, fast.flavour, fast.capacity) == ("onnx", "int8", "dual", 0)
    compiled = choose(Wishes("tensorrt-rtx", gpus=("sm_89",)))
    assert (compiled.precision.name, compiled.flavour, compiled.capacity) == ("fp16", "dual", 512)
    assert (compiled.batch, compiled.length, compiled.gpus) == (64, 512, ("sm_89",))
    assert choose(Wishes("tensorrt", length=100)).length == 100


@pytest.mark.parametrize(
    ("wishes", "where", "expected"),
    [
        (Wishes("openvino"), "--target openvino", "onnx or tensorrt or tensorrt-rtx"),
        (Wishes(precision="fp12"), "--precision fp12", "fp32, fp16"),
        (Wishes("tensorrt", precision="int8"), "--target tensorrt --precision int8", "fp16 or bf16 or fp8"),
        (Wishes("tensorrt", precision="fp32"), "--target tensorrt --precision fp32", "fp16 or bf16 or fp8"),
        (Wishes("tensorrt", flavour="gqa"), "--target tensorrt --flavour gqa", "dual or mask"),
        (Wishes(flavour="paged"), "--target onnx --flavour paged", "dual or mask or gqa"),
        (Wishes(gpus=("sm_89",)), "--gpu ('sm_89',)", "--target tensorrt beside it"),
        (Wishes(batch=4), "--batch 4", "--target tensorrt beside it"),
        (Wishes("tensorrt", batch=0), "--batch 0", "at least 1"),
        (Wishes(capacity=-1), "--capacity -1", "at least 1"),
        (Wishes("tensorrt", capacity=64, length=65), "--length 65", "at most the capacity, 64"),
    ],
)
def test_impossible_wishes(wishes: Wishes, where: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        choose(wishes)
    assert (caught.value.code, caught.value.where) == (2111, where)
    assert expected in caught.value.expected
