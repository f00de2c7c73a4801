"""Frames: golden bytes, every code, every single-bit flip and truncation, round trips."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire.core.errors import FrameError, ModelError
from latentwire.runtime import codec, fsq, hybrid, tlv, wire
from latentwire.runtime.codec import Codec
from latentwire.runtime.wire import Frame

MODEL = bytes([1, 2, 3, 4])
GOLDEN: dict[str, bytes] = {
    name: bytes.fromhex(text)
    for name, text in json.loads((Path(__file__).parents[1] / "golden" / "frames.json").read_text("utf-8")).items()
}
F16_GOLDEN, I8_GOLDEN, FSQ_GOLDEN = GOLDEN["f16"], GOLDEN["i8"], GOLDEN["fsq/1"]


def f16_frame() -> Frame:
    z = np.array([[1, -1, 0.5, 0], [2, -0.25, 0, 65504]], np.float32)
    return Frame(Codec.F16, codec.encode_latents(z, Codec.F16), 2, 4, MODEL)


def sealed(data: bytes, **fields: int) -> bytes:
    """Overwrite header bytes and make the checksum right again: a deliberate forgery, not damage."""
    raw = bytearray(data)
    places = {"version": 3, "codec": 4, "profile": 5, "flags": 6, "words": 7}
    for name, value in fields.items():
        raw[places[name]] = value
    struct.pack_into("<I", raw, 20, wire.checksum(bytes(raw[:20]), bytes(raw[24:])))
    return bytes(raw)


def with_extensions(region: bytes) -> bytes:
    data = f16_frame().pack()
    raw = data[:7] + bytes([len(region) // 4]) + data[8:24] + region + data[24:]
    return sealed(raw)


def raises(code: int, data: bytes) -> FrameError:
    with pytest.raises(FrameError) as caught:
        wire.unpack(data)
    assert caught.value.code == code
    return caught.value


def test_f16_golden() -> None:
    assert f16_frame().pack() == F16_GOLDEN
    back = wire.unpack(F16_GOLDEN, model_id=MODEL)
    assert back == f16_frame()
    z = codec.decode_latents(back.payload, back.codec, back.profile, back.m, back.d_z)
    assert z.tolist() == [[1, -1, 0.5, 0], [2, -0.25, 0, 65504]]


def test_fsq_golden() -> None:
    codes = np.tile(np.arange(4, dtype=np.uint8), 8).reshape(2, 16)
    frame = Frame(Codec.FSQ, fsq.pack_codes(codes, 1), 2, 256, MODEL, profile=1)
    assert frame.pack() == FSQ_GOLDEN
    assert fsq.unpack_codes(wire.unpack(FSQ_GOLDEN).payload, 1, 2).tolist() == codes.tolist()


def test_i8_golden() -> None:
    z = np.array([[1, -1, 0.5, 0], [0, -0.25, 0, 2]], np.float32)
    frame = Frame(Codec.I8, codec.encode_latents(z, Codec.I8), 2, 4, MODEL)
    assert frame.pack() == I8_GOLDEN


def slow_crc32c(data: bytes) -> int:
    """Bit by bit, to tie the golden bytes to the polynomial and not to a library."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_are_read_and_written_again(name: str) -> None:
    data = GOLDEN[name]
    assert wire.unpack(data).pack() == data
    assert struct.unpack_from("<I", data, 20)[0] == slow_crc32c(data[:20] + data[24:])


def test_goldens_cover_every_codec_profile_and_extension() -> None:
    frames = [wire.unpack(data) for data in GOLDEN.values()]
    known = {(c, p) for c, profiles in codec.PROFILES.items() for p in profiles}
    assert {(f.codec, f.profile) for f in frames} == known
    assert {t.type for f in frames for t in f.extensions} > set(tlv.NAMES)  # and one that nobody knows
    assert {f.minor for f in frames} == {0, 1}
    inner = [hybrid.parse(f.payload, f.m, f.d_z) for f in frames if f.codec == Codec.HYBRID]
    assert {(h.codec, h.profile) for h in inner} == {(c, p) for c in hybrid.INNER for p in codec.PROFILES[c]}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_flip_and_truncation_is_refused(name: str) -> None:
    data = GOLDEN[name]
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            wire.unpack(bytes(bad))
    for size in range(len(data)):
        with pytest.raises(FrameError):
            wire.unpack(data[:size])


def test_1101_magic() -> None:
    error = raises(1101, b"PAR1" + bytes(40))
    assert error.where == "byte 0"
    assert "89 4c 57" in error.expected


@pytest.mark.parametrize("size", [0, 2, 3, 23, 24, 39])
def test_1102_short(size: int) -> None:
    assert raises(1102, F16_GOLDEN[:size]).where == f"byte {size}"


def test_1103_future_major() -> None:
    assert raises(1103, sealed(F16_GOLDEN, version=0x20)).where == "byte 3"
    assert raises(1103, F16_GOLDEN[:3] + b"\x20").code == 1103  # said before anything else is known


def test_minor_versions_are_read() -> None:
    assert wire.unpack(sealed(F16_GOLDEN, version=0x11)).minor == 1


def test_1104_checksum() -> None:
    error = raises(1104, F16_GOLDEN[:-1] + b"\x00")
    assert error.where == "byte 20"
    assert "damaged" in error.what


def test_1105_length() -> None:
    assert raises(1105, F16_GOLDEN + b"\0").where == f"byte {len(F16_GOLDEN)}"
    with pytest.raises(FrameError) as caught:
        Frame(Codec.F16, bytes(14), 2, 4, MODEL).pack()
    assert caught.value.code == 1105
    assert caught.value.expected == "expected 16, got 14"
    raises(1105, with_extensions(struct.pack("<HH", 0x0002, 40)))


@pytest.mark.parametrize(("offset", "form", "value"), [(8, "<H", 4097), (10, "<H", 16385), (16, "<I", (64 << 20) + 1)])
def test_1106_limits_come_before_anything_is_read(offset: int, form: str, value: int) -> None:
    raw = bytearray(F16_GOLDEN)
    struct.pack_into(form, raw, offset, value)
    assert raises(1106, bytes(raw)).where == f"byte {offset}"


def test_1107_unknown_codec_profile_flag_extension() -> None:
    assert raises(1107, sealed(F16_GOLDEN, codec=9)).where == "byte 4"
    assert raises(1107, sealed(F16_GOLDEN, codec=6)).where == "byte 4"
    assert raises(1107, sealed(F16_GOLDEN, profile=1)).where == "byte 5"
    assert raises(1107, sealed(F16_GOLDEN, flags=4)).where == "byte 6"
    assert raises(1107, with_extensions(struct.pack("<HH", 0x8777, 0))).where == "byte 24"
    assert wire.unpack(with_extensions(struct.pack("<HH", 0x0777, 0))).extensions == (tlv.Tlv(0x0777, b""),)


def test_1108_not_canonical() -> None:
    with pytest.raises(FrameError) as caught:
        Frame(Codec.F16, struct.pack("<2e", 1, float("nan")), 1, 2, MODEL).pack()
    assert (caught.value.code, caught.value.where) == (1108, "payload byte 2")
    raises(1108, with_extensions(struct.pack("<HHBBBB", 4, 1, 65, 0, 7, 0)))  # padding
    raises(1108, with_extensions(struct.pack("<HHHH", 0x8005, 4, 3, 3)))  # chunk 4 of 3
    raises(1108, with_extensions(2 * struct.pack("<HHI", 2, 4, 9)))  # twice
    raises(1108, with_extensions(struct.pack("<HHI", 3, 4, 9)))  # digest of 4 bytes
    raises(1108, with_extensions(struct.pack("<HHI", 4, 4, 0xFFFFFFFF)))  # id not UTF-8
    raises(1108, with_extensions(bytes(4)))  # type 0
    for wrong in (Frame(Codec.TEXT, b"x", m=1), Frame(Codec.TEXT, b"x", model_id=MODEL), Frame(Codec.F16, b"")):
        with pytest.raises(FrameError) as caught:
            wrong.pack()
        assert caught.value.code == 1108


@pytest.mark.parametrize(
    ("scales", "codes"),
    [
        ([1.0], [1, -128, 127]),
        ([1.0], [1, 2, 3]),
        ([0.0], [1, 0, 0]),
        ([-0.0], [0, 0, 0]),
        ([-1.0], [0, 0, 127]),
        ([1e-40], [0, 0, 127]),
        ([float("inf")], [0, 0, 127]),
        ([float("nan")], [0, 0, 127]),
    ],
)
def test_1108_i8(scales: list[float], codes: list[int]) -> None:
    with pytest.raises(FrameError) as caught:
        codec.check_payload(Codec.I8, 0, 1, 3, struct.pack("<f3b", *scales, *codes))
    assert caught.value.code == 1108


def test_1108_fsq_pad_bits() -> None:
    payload = bytearray(fsq.pack_codes(np.zeros((1, 20), np.uint8), 2))
    assert len(payload) == 8
    payload[-1] |= 0x10
    with pytest.raises(FrameError) as caught:
        codec.check_payload(Codec.FSQ, 2, 1, 256, bytes(payload))
    assert caught.value.code == 1108


def test_fingerprint_must_agree_with_the_model_id() -> None:
    good = tlv.fingerprint(MODEL + bytes(28))
    z = Frame(Codec.F16, bytes(8), 1, 4, MODEL, extensions=(good,))
    assert wire.unpack(z.pack()).extensions == (good,)
    with pytest.raises(FrameError) as caught:
        Frame(Codec.F16, bytes(8), 1, 4, MODEL, extensions=(tlv.fingerprint(bytes(32)),)).pack()
    assert caught.value.code == 1108


def test_3101_another_encoder() -> None:
    with pytest.raises(ModelError) as caught:
        wire.unpack(F16_GOLDEN, model_id=bytes(4))
    assert caught.value.code == 3101
    assert "00000000" in caught.value.expected
    assert "01020304" in caught.value.expected
    text = Frame(Codec.TEXT, b"any reader").pack()
    assert wire.unpack(text, model_id=MODEL).payload == b"any reader"


def test_streams_end_to_end_and_stop_after_a_bad_frame() -> None:
    stream = F16_GOLDEN + FSQ_GOLDEN + Frame(Codec.TEXT, b"t").pack()
    assert [f.codec for f in wire.read_frames(io.BytesIO(stream))] == [1, 3, 4]
    assert [f.codec for f in wire.unpack_all(stream)] == [1, 3, 4]
    bad = bytearray(stream)
    bad[len(F16_GOLDEN) + 30] ^= 1
    reader = wire.read_frames(io.BytesIO(bytes(bad)))
    assert next(reader).codec == 1
    with pytest.raises(FrameError):
        next(reader)
    with pytest.raises(StopIteration):
        next(reader)
    for cut in (len(F16_GOLDEN) + 5, len(stream) - 1):
        with pytest.raises(FrameError):
            list(wire.read_frames(io.BytesIO(stream[:cut])))
        with pytest.raises(FrameError):
            wire.unpack_all(stream[:cut])
    with pytest.raises(FrameError):
        wire.unpack_all(b"")


def test_text_zstd() -> None:
    text = "The bridge was opened in 1932. " * 40
    payload = codec.encode_text(text, 1)
    assert len(payload) < len(text) // 4
    assert codec.decode_text(wire.unpack(Frame(Codec.TEXT, payload, profile=1).pack()).payload, 1) == text
    for broken in (payload[:-1], payload + b"\0", b"\x50\x2a\x4d\x18" + bytes(4), b"plain", payload + payload):
        with pytest.raises(FrameError) as caught:
            codec.decode_text(broken, 1)
        assert caught.value.code == 1108


def test_text_zstd_bomb_is_refused_by_its_declared_size() -> None:
    huge = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + bytes(8)
    with pytest.raises(FrameError) as caught:
        codec.decode_text(huge, 1)
    assert caught.value.code == 1106


def test_text_must_be_utf8() -> None:
    with pytest.raises(FrameError) as caught:
        Frame(Codec.TEXT, b"caf\xe9").pack()
    assert (caught.value.code, caught.value.where) == (1108, "payload byte 3")


@pytest.mark.parametrize("value", [70000.0, float("nan"), float("inf")])
def test_3001_latents_that_cannot_travel(value: float) -> None:
    from latentwire.core.errors import LatentError

    z = np.full((1, 4), value, np.float32)
    with pytest.raises(LatentError) as caught:
        codec.encode_latents(z, Codec.F16)
    assert caught.value.code == 3001


def test_fsq_latents_need_their_quantiser() -> None:
    with pytest.raises(FrameError) as caught:
        codec.decode_latents(bytes(8), Codec.FSQ, 1, 2, 256)
    assert caught.value.code == 1107


latents = st.tuples(st.integers(1, 5), st.integers(1, 7)).flatmap(
    lambda shape: st.lists(
        st.floats(-6e4, 6e4, width=32), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]
    ).map(lambda v: np.array(v, np.float32).reshape(shape))
)
extensions = st.lists(
    st.one_of(
        st.builds(tlv.text_bytes, st.integers(0, 2**32 - 1)),
        st.builds(tlv.text_digest, st.binary(min_size=32, max_size=32)),
        st.builds(tlv.custom_id, st.text(st.characters(codec="utf-8"), max_size=60)),
        st.builds(tlv.Tlv, st.integers(0x0100, 0x7FFF), st.binary(max_size=50)),
    ),
    unique_by=lambda t: t.type,
    max_size=5,
).map(tuple)


@given(z=latents, extra=extensions, flags=st.integers(0, 3), kind=st.sampled_from([Codec.F16, Codec.I8]))
def test_round_trip(z: np.ndarray, extra: tuple[tlv.Tlv, ...], flags: int, kind: Codec) -> None:
    frame = Frame(kind, codec.encode_latents(z, kind), z.shape[0], z.shape[1], MODEL, flags=flags, extensions=extra)
    data = frame.pack()
    back = wire.unpack(data)
    assert back == frame
    assert back.pack() == data
    assert codec.latents_in(kind, 0, z.shape[1], len(frame.payload)) == z.shape[0]
    y = codec.decode_latents(back.payload, kind, 0, z.shape[0], z.shape[1])
    step = np.abs(z).max(axis=1, keepdims=True) / (127 if kind == Codec.I8 else 1024)
    assert (np.abs(y - z) <= 0.502 * step + 1e-7).all()


@given(codes=st.integers(1, 9).flatmap(lambda m: st.lists(st.integers(0, 7), min_size=20 * m, max_size=20 * m)))
def test_fsq_round_trip(codes: list[int]) -> None:
    wide = np.array(codes, np.uint8).reshape(-1, 20)
    narrow = (wide & 3)[:, :16].astype(np.uint8)
    tables: list[tuple[int, npt.NDArray[np.uint8]]] = [(1, narrow), (2, wide)]
    for profile, table in tables:
        payload = fsq.pack_codes(table, profile)
        assert codec.latents_in(Codec.FSQ, profile, 256, len(payload)) == len(table)
        fsq.check_padding(profile, len(table), payload)
        assert (fsq.unpack_codes(payload, profile, len(table)) == table).all()


@given(text=st.text(st.characters(codec="utf-8"), max_size=200), profile=st.sampled_from([0, 1]))
def test_text_round_trip(text: str, profile: int) -> None:
    if profile == 1 and not text:
        return
    frame = Frame(Codec.TEXT, codec.encode_text(text, profile), profile=profile)
    assert codec.decode_text(wire.unpack(frame.pack()).payload, profile) == text


@given(data=st.binary(max_size=120), prefix=st.sampled_from([0, 3, 8, 24, 30]))
def test_hostile_bytes_raise_frame_errors_only(data: bytes, prefix: int) -> None:
    raw = bytearray(F16_GOLDEN[:prefix] + data)
    if len(raw) >= 24:
        struct.pack_into("<I", raw, 20, wire.checksum(bytes(raw[:20]), bytes(raw[24:])))
    try:
        frame = wire.unpack(bytes(raw))
    except FrameError:
        return
    assert frame.pack() == bytes(raw)
