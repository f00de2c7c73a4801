"""All frames of one text: a single frame as a rule, several when a long text was sent in chunks.

In: latents of every chunk, or a text. Out: frames end to end, and back. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import FrameError
from . import codec as codecs
from . import fsq, hybrid, tlv, wire
from .codec import F32, Codec
from .hybrid import Hybrid, Span
from .wire import Frame


@dataclass(frozen=True)
class Message:
    """One text on the wire; ``frames`` are its chunks in order.

    Raises:
        FrameError: 1109 frames that are not exactly the chunks of one text.
    """

    frames: tuple[Frame, ...]

    def __post_init__(self) -> None:
        chunks = [f.chunk for f in self.frames]
        if chunks != [(i, len(chunks)) for i in range(len(chunks))] or not chunks:
            got = ", ".join(f"{i + 1} of {n}" for i, n in chunks[:8]) or "nothing"
            expected = f"expected every chunk of one text once and in order, got {got}"
            raise FrameError(1109, "frames are not the chunks of one text", expected=expected)
        if len({(f.codec == Codec.TEXT, f.d_z, f.model_id) for f in self.frames}) > 1:
            raise FrameError(1109, "chunks of one text differ in codec, d_z or model id")

    @property
    def latents(self) -> int:
        """Latents in all chunks; 0 for text."""
        return sum(f.m for f in self.frames)

    @property
    def is_text(self) -> bool:
        """The frames carry the text itself."""
        return self.frames[0].codec == Codec.TEXT

    def pack(self) -> bytes:
        """Frames end to end."""
        return b"".join(f.pack() for f in self.frames)

    def z(self) -> F32:
        """Latents of all chunks, f32 [m, d_z]; no rows for text."""
        if self.is_text:
            return np.empty((0, 0), np.float32)
        return np.concatenate([codecs.decode_latents(*self._inner(f), f.m, f.d_z) for f in self.frames])

    @property
    def codec(self) -> int:
        """Of the latents: for hybrid the inner one."""
        return self._inner(self.frames[0])[1]

    @property
    def is_codes(self) -> bool:
        """The frames carry codes, which the encoder's own quantiser turns into latents."""
        return self.codec == Codec.FSQ

    @property
    def spans(self) -> tuple[str, ...]:
        """Strings of the text that came as they are beside the latents, in its order; none but of hybrid frames."""
        found = [hybrid.parse(f.payload).spans for f in self.frames if f.codec == Codec.HYBRID]
        return tuple(dict.fromkeys(span.text for spans in found for span in spans))

    def codes(self) -> npt.NDArray[np.uint8]:
        """Codes of all chunks, uint8 [m, D].

        Raises:
            FrameError: 1109 chunks of several profiles.
        """
        inner = [self._inner(f) for f in self.frames]
        if len({(codec, profile) for _, codec, profile in inner}) > 1:
            raise FrameError(1109, "chunks of one text differ in profile")
        parts = zip(inner, self.frames, strict=True)
        return np.concatenate([fsq.unpack_codes(payload, profile, f.m) for (payload, _, profile), f in parts])

    def text(self) -> str:
        """The text of text frames."""
        return "".join(codecs.decode_text(f.payload, f.profile) for f in self.frames)

    @staticmethod
    def _inner(frame: Frame) -> tuple[bytes, int, int]:
        """Payload, codec and profile of the latents."""
        if frame.codec != Codec.HYBRID:
            return frame.payload, frame.codec, frame.profile
        found = hybrid.parse(frame.payload)
        return found.latents, found.codec, found.profile


@dataclass(frozen=True)
class Coded:
    """Latents of one chunk as bytes.

    Attributes:
        m: latents.
        payload: of ``codec`` and ``profile``.
    """

    m: int
    payload: bytes
    codec: Codec
    profile: int = 0


def code_latents(z: F32, codec: Codec) -> Coded:
    """Latents f32 [m, d_z] to bytes.

    Raises:
        LatentError: 3001 a value that the codec cannot hold.
    """
    return Coded(len(z), codecs.encode_latents(z, codec), codec)


def code_codes(codes: npt.NDArray[np.uint8]) -> Coded:
    """Codes uint8 [m, D] to bytes."""
    profile = fsq.profile_of(codes.shape[1])
    return Coded(len(codes), fsq.pack_codes(codes, profile), Codec.FSQ, profile)


def from_chunks(
    chunks: Sequence[Coded],
    d_z: int,
    model_id: bytes,
    *,
    spans: Sequence[Sequence[Span]] | None = None,
    truncated: bool = False,
) -> Message:
    """Coded latents of every chunk to frames.

    Args:
        chunks: in the order of the text.
        d_z: width of the latents they stand for.
        model_id: of the encoder.
        spans: for each chunk the strings that travel beside its latents; None: plain frames without any.
        truncated: the end of the text was left out.

    Raises:
        FrameError: 1106 spans over the limits.
    """
    flags = wire.TRUNCATED if truncated else 0
    frames = []
    for i, (part, marks) in enumerate(zip(chunks, chunk_marks(len(chunks)), strict=True)):
        codec, profile, payload = part.codec, part.profile, part.payload
        if spans is not None:
            payload = Hybrid(codec, profile, tuple(spans[i]), payload).pack()
            codec, profile = Codec.HYBRID, 0
        frames.append(Frame(codec, payload, part.m, d_z, model_id, profile, flags, marks))
    return Message(tuple(frames))


def from_latents(chunks: Sequence[F32], codec: Codec, model_id: bytes) -> Message:
    """Latents f32 [m, d_z] of every chunk to frames. Raises LatentError 3001."""
    return from_chunks([code_latents(z, codec) for z in chunks], chunks[0].shape[1], model_id)


def from_codes(chunks: Sequence[npt.NDArray[np.uint8]], d_z: int, model_id: bytes) -> Message:
    """Codes uint8 [m, D] of every chunk to frames; ``d_z`` is the width of the latents they stand for."""
    return from_chunks([code_codes(codes) for codes in chunks], d_z, model_id)


def from_text(text: str, *, fallback: bool = False) -> Message:
    """A text to one frame: zstd where that is smaller, else UTF-8. ``fallback``: latents were asked for."""
    payloads = [codecs.encode_text(text, profile) for profile in (0, 1)]
    profile = int(len(payloads[1]) < len(payloads[0]))
    flags = wire.FALLBACK if fallback else 0
    return Message((Frame(Codec.TEXT, payloads[profile], profile=profile, flags=flags),))


def chunk_marks(count: int) -> list[tuple[tlv.Tlv, ...]]:
    """Extensions of each chunk; none where the text is whole."""
    return [()] if count == 1 else [(tlv.chunk(i, count),) for i in range(count)]


def unpack(data: bytes, *, model_id: bytes | None = None) -> Message:
    """Frames of one text, checked against the reader's encoder where one is given.

    Raises:
        FrameError: 1101-1109.
        ModelError: 3101.
    """
    return Message(tuple(wire.unpack_all(data, model_id=model_id)))
