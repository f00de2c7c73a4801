"""Latents with strings beside them: the payload, and what the rule and the marks protect."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire.core.errors import FrameError, RowError
from latentwire.core.prompt import verbatim_ids
from latentwire.runtime import hybrid, message, wire
from latentwire.runtime.answer import Answer
from latentwire.runtime.codec import Codec
from latentwire.runtime.compress import Compressed
from latentwire.runtime.hybrid import Hybrid, Span
from latentwire.runtime.options import CompressOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.span_dictionary import SPAN_DICTIONARY
from latentwire.runtime.spans import Placed, Protected, place, protect

TEXT = "The Sydney Harbour Bridge was opened on 19 March 1932 (order A-113). It has eight lanes."
LANES = Span(3, "A-113")
PAYLOAD = Hybrid(Codec.FSQ, 1, (Span(0, "1932"), LANES), bytes(16)).pack()


def strings(text: str, how: str = "both") -> list[str]:
    found = protect(text, how)  # type: ignore[arg-type]
    return [found.text[a:b] for a, b in found.ranges]


def refused(code: int, payload: bytes, m: int | None = 4, d_z: int | None = 256) -> FrameError:
    with pytest.raises(FrameError) as caught:
        hybrid.parse(payload, m, d_z)
    assert caught.value.code == code
    return caught.value


def changed(at: int, value: int) -> bytes:
    raw = bytearray(PAYLOAD)
    raw[at] = value
    return bytes(raw)


spans_of = st.lists(
    st.tuples(st.integers(0, 200), st.text(st.characters(codec="utf-8"), min_size=1, max_size=200)), max_size=30
).map(lambda found: tuple(Span(slot, text) for slot, text in sorted(found, key=lambda s: s[0])))


@given(spans=spans_of)
def test_round_trip(spans: tuple[Span, ...]) -> None:
    made = Hybrid(Codec.FSQ, 1, spans, bytes(4 * 201))
    payload = made.pack()
    assert hybrid.parse(payload, 201, 256) == made
    assert hybrid.latents_in(payload, 256) == 201
    assert hybrid.overhead(spans) == len(payload) - 4 * 201
    frame = wire.Frame(Codec.HYBRID, payload, 201, 256, b"abcd")
    assert wire.unpack(frame.pack()) == frame


def test_repeated_names_cost_less_than_their_bytes() -> None:
    texts = ["United States", "January 2014", "National Institutes of Health", "President of the United States"]
    made = Hybrid(Codec.FSQ, 1, tuple(Span(0, t) for t in texts), bytes(4)).pack()
    assert made[2] == hybrid.ZSTD
    assert len(made) < sum(len(t) for t in texts)
    assert PAYLOAD[2] == hybrid.PLAIN  # too short to gain anything


def test_the_dictionary_is_part_of_the_format(root: Path) -> None:
    digest = hashlib.sha256(SPAN_DICTIONARY).hexdigest()
    assert digest == "23e3b8fbd8b6ef95e6e437fa60db29105b13331cd3557dda14ad1ea2c37f48fa"
    assert digest in (root / "docs" / "frame.md").read_text(encoding="utf-8")


def test_1105_lengths() -> None:
    for size in range(len(PAYLOAD)):
        with pytest.raises(FrameError) as caught:
            hybrid.parse(PAYLOAD[:size], 4, 256)
        assert caught.value.code == 1105
    refused(1105, PAYLOAD + b"\0")
    refused(1105, changed(6, 99))  # length of the first span
    assert "room" in refused(1105, changed(4, 100)).what  # number of spans
    refused(1105, PAYLOAD, m=5)


def test_1106_limits_come_before_anything_is_read() -> None:
    head = bytes([3, 1, 0, 0])
    refused(1106, head + b"\xff\xff\x7f" + PAYLOAD[5:])  # spans
    refused(1106, head + b"\x01\x00\xff\xff\x7f" + PAYLOAD[5:])  # bytes of one span
    refused(1106, head + b"\xff\xff\xff\x01" + PAYLOAD[5:])  # a number of four bytes
    with pytest.raises(FrameError) as caught:
        Hybrid(Codec.I8, 0, (Span(0, "x" * (hybrid.MAX_SPAN_BYTES + 1)),), b"").pack()
    assert caught.value.code == 1106


def test_1107_inner_codec_profile_and_coding() -> None:
    for inner in (0, Codec.TEXT, Codec.HYBRID, 9):
        refused(1107, changed(0, inner))
    refused(1107, changed(1, 3))
    refused(1107, changed(2, 2))


def test_1108_not_canonical() -> None:
    refused(1108, changed(3, 1))
    refused(1108, PAYLOAD[:4] + b"\x82\x00" + PAYLOAD[5:])  # 2 in two bytes
    refused(1108, changed(9, 0xFF))  # first letter
    assert "latent 3 of 3" in refused(1108, PAYLOAD[:-4], m=3).what
    refused(1108, bytes([3, 1, 0, 0, 1, 0, 0]) + bytes(16))  # an empty span
    refused(1108, bytes([3, 1, 1, 0, 0, 1, 0]) + bytes(16))  # nothing, coded
    not_finite = Hybrid(Codec.F16, 0, (), struct.pack("<4e", 1, 2, 3, float("inf"))).pack()
    refused(1108, not_finite, m=1, d_z=4)


def test_a_bomb_is_refused_whatever_it_declares() -> None:
    import zstandard

    for sized in (0, 1):
        how = zstandard.ZstdCompressionParameters.from_level(
            3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=sized
        )
        small = zstandard.ZstdCompressor(compression_params=how).compress(bytes(8 << 20))
        assert len(small) < 1000
        table = bytes([3, 1, 1, 0, 1, 0, 5, len(small) & 0x7F | 0x80, len(small) >> 7])
        with pytest.raises(FrameError) as caught:
            hybrid.parse(table + small + bytes(16), 4, 256)
        assert caught.value.code == 1108


def test_the_rule() -> None:
    assert strings(TEXT) == ["The Sydney Harbour Bridge", "19", "March", "1932", "A-113"]
    assert strings("It cost $3.5m, i.e. 12% of 4,000 (see ISO-9001).") == ["$3.5m", "12%", "4,000", "ISO-9001"]
    assert strings("Ask ann@example.org or https://example.org/a?b=1.") == [
        "ann@example.org",
        "https://example.org/a?b=1",
    ]
    assert strings("They met. Later they saw NASA and Ada Lovelace of London, England.") == [
        "NASA",
        "Ada Lovelace of London",
        "England",
    ]
    assert strings("Paris is big. He loves Paris.") == ["Paris"]
    assert strings("Nothing here, I say. Or there.") == []
    assert strings("Grüße aus Köln: am 3 Mai. Ärger") == ["Köln", "3", "Mai"]


def test_marks() -> None:
    found = protect("call <keep>the red door</keep> now, room 7", "marks")
    assert found == Protected("call the red door now, room 7", ((5, 17),))
    assert strings("call <keep>the red door</keep> now, room 7") == ["the red door", "7"]
    assert strings("a <keep></keep>b<keep>c</keep>", "marks") == ["c"]
    assert protect("<keep>x", "rule").text == "<keep>x"
    assert strings("<keep>in 1932 it</keep> was 1932") == ["in 1932 it", "1932"]  # the rule does not cut a mark


@pytest.mark.parametrize("text", ["<keep>a", "a</keep>", "<keep>a<keep>b</keep></keep>", "</keep>a<keep>"])
def test_2013_marks_without_partner(text: str, pipe: Pipeline) -> None:
    with pytest.raises(RowError) as caught:
        protect(text, "both", "docs.jsonl:3 (id a)")
    assert caught.value.code == 2013
    assert caught.value.where.startswith("docs.jsonl:3 (id a)")
    assert "--protect rule" in caught.value.fix
    good, bad = pipe.compress_rows(["fine 7", text], CompressOptions("hybrid"))
    assert isinstance(good, Compressed)
    assert isinstance(bad, RowError)
    assert bad.code == 2013


@given(text=st.text(st.characters(codec="utf-8"), max_size=300), marks=st.booleans())
def test_ranges_are_sound_for_any_text(text: str, marks: bool) -> None:
    try:
        found = protect(text, "both" if marks else "rule")
    except RowError:
        return
    assert marks or found.text == text
    ends = 0
    for start, stop in found.ranges:
        assert ends <= start < stop <= len(found.text)
        ends = stop
    assert len({found.text[a:b] for a, b in found.ranges}) == len(found.ranges)


def test_strings_stand_at_the_latent_that_reads_them() -> None:
    found = Protected("ab cd ef gh", ((0, 2), (6, 8), (9, 11)))
    assert place(found, [0, 2, 5, 8], [2, 2]) == [[Placed(0, "ab")], [Placed(0, "ef"), Placed(1, "gh")]]
    assert place(found, [0, 2, 5, 8], [2]) == [[Placed(0, "ab")]]  # the rest was cut off
    assert [Placed(t, "").slot(4, 8) for t in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_hybrid_frame_on_the_toy_engine(pipe: Pipeline) -> None:
    options = CompressOptions("hybrid", on_too_long="chunk")
    (found,) = pipe.compress_rows([TEXT], options)
    (plain,) = pipe.compress_rows([TEXT], CompressOptions("i8", on_too_long="chunk"))
    assert isinstance(found, Compressed)
    assert isinstance(plain, Compressed)
    assert {f.codec for f in found.message.frames} == {Codec.HYBRID}
    assert len(found.message.frames) == 2
    assert list(found.message.spans) == strings(TEXT)
    np.testing.assert_array_equal(found.message.z(), plain.message.z())
    again = message.unpack(found.message.pack(), model_id=pipe.bundle.manifest.encoder.model_id)
    assert again == found.message
    for frame in again.frames:
        for span in hybrid.parse(frame.payload).spans:
            assert span.slot < frame.m
    first = hybrid.parse(again.frames[0].payload).spans
    assert [s.slot for s in first] == sorted(s.slot for s in first)


def test_strings_reach_the_prompt_behind_the_latents(pipe: Pipeline) -> None:
    found, plain = (
        pipe.compress_rows([TEXT], CompressOptions(name, on_too_long="chunk"))[0] for name in ("hybrid", "i8")
    )
    assert isinstance(found, Compressed)
    assert isinstance(plain, Compressed)
    with_strings, without = pipe.answers([found.message, plain.message.pack()], ["When?", "When?"])
    line = verbatim_ids(pipe.tokenizer.encode, found.message.spans)
    assert pipe.tokenizer.decode(line) == "\nNames and numbers: The Sydney Harbour Bridge; 19; March; 1932; A-113"
    assert isinstance(with_strings, Answer)
    assert isinstance(without, Answer)
    assert with_strings.prompt_positions == without.prompt_positions + len(line)
    assert with_strings.context_positions == found.message.latents + len(line)
    assert with_strings.text != without.text
    assert "".join(pipe.stream(found.message, "When?")) == with_strings.text
    none = pipe.compress_rows(["nothing at all"], CompressOptions("hybrid"))[0]
    assert isinstance(none, Compressed)
    assert none.message.spans == ()
    assert not verbatim_ids(pipe.tokenizer.encode, ())


def test_codes_inside_hybrid(tmp_path: Path) -> None:
    from latentwire.engines.toy import write_toy_bundle

    with Pipeline.open(write_toy_bundle(tmp_path / "b", quantiser=True).path) as pipe:
        texts = [TEXT, "Water boils at 100 degrees."]
        hybrids, codes = (pipe.compress(texts, CompressOptions(c, on_too_long="chunk")) for c in ("hybrid", "fsq"))
        for one, two in zip(hybrids, codes, strict=True):
            a, b = message.unpack(one), message.unpack(two)
            assert a.is_codes
            np.testing.assert_array_equal(a.codes(), b.codes())
        assert len(pipe.generate(hybrids, ["Where?", "When?"])) == 2


def test_a_table_gives_hybrid_frames_back(pipe: Pipeline, tmp_path: Path) -> None:
    from latentwire.runtime.jobs.records import Record
    from latentwire.runtime.jobs.shard import compress_rows
    from latentwire.runtime.jobs.table import TableInfo, read_table, write_table

    texts = [TEXT, "7", "none"]
    options = CompressOptions("hybrid", on_too_long="chunk")
    records = [Record(f"r{i}", "in", i, text) for i, text in enumerate(texts)]
    rows = [row for row, _ in compress_rows(records, pipe, options, 8)]
    encoder = pipe.bundle.manifest.encoder
    write_table(tmp_path / "t.parquet", rows, TableInfo(encoder.fingerprint, encoder.d_z, 8, "hybrid"))
    found = [row.message.pack() if row.message else b"" for row in read_table(tmp_path / "t.parquet")]
    assert found == pipe.compress(texts, options)


def test_hostile_payloads_inside_sound_frames(root: Path) -> None:
    """Every byte of every hybrid golden set to every edge value, and the checksum made right again."""
    goldens = json.loads((root / "tests" / "golden" / "frames.json").read_text(encoding="utf-8"))
    read, codes = 0, set()
    for name, text in goldens.items():
        data = bytes.fromhex(text)
        if not name.startswith("hybrid") or len(data) > 200:
            continue
        for at in range(24, len(data)):
            for value in (0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1):
                raw = bytearray(data)
                raw[at] = value
                struct.pack_into("<I", raw, 20, wire.checksum(bytes(raw[:20]), bytes(raw[24:])))
                try:
                    assert wire.unpack(bytes(raw)).pack() == bytes(raw)
                    read += 1
                except FrameError as e:
                    codes.add(e.code)
    assert read > 100
    assert codes == {1105, 1107, 1108}
