"""Everything that reads bytes from outside, with inputs made by structure; and all that fuzzing ever found."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentwire.core.errors import LatentWireError
from latentwire.engines import manifest
from latentwire.engines.bundle import MANIFEST, read_bundle
from latentwire.engines.toy import write_toy_bundle
from latentwire.runtime import wire

from . import targets

HERE = Path(__file__).parent
FLIPS = 1000
FINDS = sorted(p for p in (HERE / "finds").glob("*-*") if p.is_file())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("path", FINDS, ids=[p.name for p in FINDS])
def test_a_find_stays_fixed(path: Path) -> None:
    targets.check(path.name.rsplit("-", 2)[0], path.read_bytes())


def test_every_find_belongs_to_a_target() -> None:
    assert FINDS
    assert {p.name.rsplit("-", 2)[0] for p in FINDS} <= set(targets.TARGETS)


def test_a_target_notices_what_must_not_come_out(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """The harness itself: an error of another class, a foreign exception and a changed value are all finds."""
    good = targets.seeds("frame", root)[0]
    targets.check("frame", good)
    for wrong in (KeyError("x"), LatentWireError(1101, "x")):

        def fail(data: bytes, wrong: Exception = wrong) -> None:
            raise wrong

        with monkeypatch.context() as patch:
            patch.setattr(wire, "unpack_all", fail)
            with pytest.raises((KeyError, AssertionError)):
                targets.check("frame", good)
    with monkeypatch.context() as patch:
        patch.setattr(wire.Frame, "pack", lambda self: b"other")
        with pytest.raises(AssertionError):
            targets.check("frame", good)


@pytest.mark.parametrize("name", list(targets.TARGETS))
def test_damaged_inputs(name: str, root: Path) -> None:
    """Sound inputs cut, joined, doubled, and with bytes changed: 1,000 of each target."""
    rng = random.Random(name)
    seeds = targets.seeds(name, root)
    for seed in seeds:
        targets.check(name, seed)
    for _ in range(1000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(data) or 1)
            match rng.randrange(5):
                case 0:
                    data[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    del data[at : at + rng.randrange(1, 9)]
                case 2:
                    data[at:at] = data[at : at + rng.randrange(1, 40)]
                case 3:
                    data[at:at] = rng.choice(seeds)[rng.randrange(20) :][:60]
                case _:
                    data[at : at + 1] = rng.choice([b"\0", b"\x7f", b"\x80", b"\xff", b"[", b"{", b'"', b"9" * 30])
        targets.check(name, bytes(data))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for name in targets.TARGETS:
        targets.check(name, data)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(value=json_values, depth=st.sampled_from([0, 1, 500, 990, 5000]))
def test_any_json(value: object, depth: int) -> None:
    text = json.dumps({"text": "x", "format": "latentwire-bundle", "version": 1, "a": value})
    deep = text[:-1] + ', "b": ' + "[" * depth + "]" * depth + "}"
    for name in ("bundle_manifest", "record", "line"):
        targets.check(name, deep.encode())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("toy")).path


def test_no_damage_to_a_manifest_is_silently_wrong(bundle: Path) -> None:
    """Bits turned over, and cut at every byte: refused, or read as what it was."""
    raw, rng = (bundle / MANIFEST).read_bytes(), random.Random(3)
    good = manifest.parse(raw, MANIFEST)
    bad = [raw[:size] for size in range(len(raw))]
    bad += [flipped(raw, bit) for bit in rng.sample(range(8 * len(raw)), FLIPS)]
    refused = 0
    for data in bad:
        try:
            assert manifest.parse(data, MANIFEST) == good
        except LatentWireError:
            refused += 1
    assert refused >= len(bad) - 3  # the last line break, and letters that are the same in both cases


def test_no_damage_to_a_file_of_a_bundle_is_read(bundle: Path) -> None:
    rng = random.Random(4)
    for path in sorted(p for p in bundle.iterdir() if p.name != MANIFEST):
        raw = path.read_bytes()
        flips = [flipped(raw, bit) for bit in rng.sample(range(8 * len(raw)), min(FLIPS // 3, 8 * len(raw)))]
        cuts = [raw[:size] for size in rng.sample(range(len(raw)), min(50, len(raw)))]
        for data in flips + cuts:
            path.write_bytes(data)
            with pytest.raises(LatentWireError):
                read_bundle(bundle)
        path.write_bytes(raw)
    read_bundle(bundle)


def flipped(data: bytes, bit: int) -> bytes:
    """The bytes with one bit turned over."""
    raw = bytearray(data)
    raw[bit // 8] ^= 1 << bit % 8
    return bytes(raw)
