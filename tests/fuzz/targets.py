"""What is fuzzed: functions of bytes that end silently, or raise what no reader may let out.

Each target reads untrusted bytes twice: as they are, and with checksums, seals and fingerprints made right, so that the
code behind them is reached too. Used by ``scripts/fuzz`` (guided by coverage) and by the tests here (by structure).
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

from latentwire.core.errors import BundleError, FrameError, InputError, LatentWireError, RowError
from latentwire.engines import manifest
from latentwire.runtime import hybrid, spans, tlv, wire
from latentwire.runtime.choices import Protect
from latentwire.runtime.encode import clean
from latentwire.runtime.jobs import parse, sealed
from latentwire.runtime.message import Message

Target = Callable[[bytes], None]


def resealed(data: bytes) -> bytes:
    """The bytes with the frame checksum that belongs to them."""
    if len(data) < wire.HEADER_SIZE:
        return data
    return data[:20] + struct.pack("<I", wire.checksum(data[:20], data[24:])) + data[24:]


def framed(data: bytes) -> bytes:
    """A frame of version 1 whose length fits: two bytes choose codec, flags and so on, the rest is payload."""
    head = data[:8].ljust(8, b"\0")
    payload = data[8:]
    fixed = wire.MAGIC + bytes([0x10, head[0] % 7, head[1] % 4, head[2] % 8, 0])
    fixed += struct.pack("<HH4sI", head[3] % 9, head[4] or 8, bytes(4), len(payload))
    return resealed(fixed + bytes(4) + payload)


def frame(data: bytes) -> None:
    """Frames, and messages of them."""
    for form in (data, resealed(data), framed(data)):
        try:
            found = wire.unpack_all(form)
        except FrameError:
            continue
        assert b"".join(f.pack() for f in found) == form
        assert list(wire.read_frames(io.BytesIO(form))) == found
        try:
            _use(Message(tuple(found)))
        except FrameError:
            continue


def _use(found: Message) -> None:
    for one in found.frames:
        for item in one.extensions:
            tlv.describe(item)
    if found.is_text:
        found.text()
        return
    assert found.latents >= 1
    assert all(found.spans)
    if found.is_codes:
        assert len(found.codes()) == found.latents
    else:
        assert len(found.z()) == found.latents


def payload(data: bytes) -> None:
    """Payloads of codec hybrid, whose lengths and codings lie inside one another."""
    for form in (data, bytes([3, 1, len(data) & 1, 0]) + data):
        try:
            found = hybrid.parse(form)
        except FrameError:
            continue
        again = hybrid.parse(found.pack())
        assert again == found
        if form[2] == hybrid.PLAIN and found.pack()[2] == hybrid.PLAIN:
            assert found.pack() == form
        try:
            assert hybrid.latents_in(form, 8) >= 1
        except FrameError:
            continue


def bundle_manifest(data: bytes) -> None:
    """manifest.json of a bundle."""
    for form in _with_digest(data, "fingerprint", manifest.body_fingerprint):
        try:
            found = manifest.parse(form, "manifest.json")
        except BundleError:
            continue
        again = manifest.parse(json.dumps(found.to_json()).encode(), "again")
        # An earlier version of the format has another fingerprint than the same facts in today's.
        assert replace(again, fingerprint="") == replace(found, fingerprint="")


def record(data: bytes) -> None:
    """job.json, commit records and the manifest of a job."""
    for form in (data, *_sealed(data)):
        try:
            facts = sealed.parse_sealed(form, "job.json")
        except InputError:
            continue
        assert sealed.seal(facts) == form


def line(data: bytes) -> None:
    """A line of JSONL, as far as the text that is compressed."""
    try:
        row = parse.parse_object(data, "docs.jsonl:1")
        for step in (parse.take_id, parse.take_text):
            step(row, "custom_id" if step is parse.take_id else "text", "docs.jsonl:1")
        parse.take_columns(row, list(row)[:4], "docs.jsonl:1")
        text = clean(row["text"], "docs.jsonl:1")
        for how in get_args(Protect):
            found = spans.protect(text, how)
            assert all(found.text[a:b] for a, b in found.ranges)
    except RowError as e:
        assert 2001 <= e.code <= 2013  # noqa: PT017
        str(e).encode("utf-8", "backslashreplace")


def _with_digest(data: bytes, key: str, digest: Callable[[dict[str, object]], str]) -> Iterator[bytes]:
    yield data
    try:
        body = json.loads(data)
        if isinstance(body, dict):
            yield json.dumps({**body, key: digest(body)}).encode()
    except (ValueError, RecursionError):
        return


def _sealed(data: bytes) -> Iterator[bytes]:
    try:
        body = json.loads(data)
        if isinstance(body, dict):
            body.pop(sealed.KEY, None)
            yield sealed.seal(body)
    except (ValueError, RecursionError):
        return


TARGETS: Final[dict[str, Target]] = {t.__name__: t for t in (frame, payload, bundle_manifest, record, line)}


def seeds(name: str, root: Path) -> list[bytes]:
    """Sound inputs to start from."""
    goldens = json.loads((root / "tests" / "golden" / "frames.json").read_text(encoding="utf-8"))
    raw = [bytes.fromhex(text) for text in goldens.values()]
    if name == "frame":
        return raw
    if name == "payload":
        return [wire.unpack(r).payload for r in raw if r[4] == 5]
    if name == "bundle_manifest":
        return [_toy_manifest()]
    if name == "record":
        return [sealed.seal({"format": "latentwire-frames", "rows": 5, "shards": [{"sha256": "00" * 32}], "x": None})]
    return [
        b'{"custom_id": "a7", "text": "The <keep>red</keep> bridge of 1932, na\\u00efve"}',
        b'{"id": 7, "text": "\xc3\xa9"}',
    ]


def _toy_manifest() -> bytes:
    import tempfile

    from latentwire.engines.toy import write_toy_bundle

    with tempfile.TemporaryDirectory() as folder:
        return (write_toy_bundle(Path(folder) / "b").path / "manifest.json").read_bytes()


def check(name: str, data: bytes) -> None:
    """Run a target; whatever comes out of it is a find."""
    try:
        TARGETS[name](data)
    except LatentWireError as e:
        raise AssertionError(f"{name} lets {type(e).__name__} {e.code} out") from e
