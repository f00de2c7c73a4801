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
from . import fsq, tlv, wire
from .codec import F32, Codec
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
        return np.concatenate([codecs.decode_latents(f.payload, f.codec, f.profile, f.m, f.d_z) for f in self.frames])

    @property
    def is_codes(self) -> bool:
        """The frames carry codes, which the encoder's own quantiser turns into latents."""
        return self.frames[0].codec == Codec.FSQ

    def codes(self) -> npt.NDArray[np.uint8]:
        """Codes of all chunks, uint8 [m, D].

        Raises:
            FrameError: 1109 chunks of several profiles.
        """
        if len({f.profile for f in self.frames}) > 1:
            raise FrameError(1109, "chunks of one text differ in profile")
        return np.concatenate([fsq.unpack_codes(f.payload, f.profile, f.m) for f in self.frames])

    def text(self) -> str:
        """The text of text frames."""
        return "".join(codecs.decode_text(f.payload, f.profile) for f in self.frames)


def from_latents(chunks: Sequence[F32], codec: Codec, model_id: bytes, *, truncated: bool = False) -> Message:
    """Latents f32 [m, d_z] of every chunk to frames.

    Raises:
        LatentError: 3001 a value that the codec cannot hold.
    """
    flags = wire.TRUNCATED if truncated else 0
    frames = [
        Frame(codec, codecs.encode_latents(z, codec), len(z), z.shape[1], model_id, flags=flags, extensions=part)
        for z, part in zip(chunks, chunk_marks(len(chunks)), strict=True)
    ]
    return Message(tuple(frames))


def from_codes(
    chunks: Sequence[npt.NDArray[np.uint8]], d_z: int, model_id: bytes, *, truncated: bool = False
) -> Message:
    """Codes uint8 [m, D] of every chunk to frames; ``d_z`` is the width of the latents they stand for."""
    flags = wire.TRUNCATED if truncated else 0
    frames = []
    for codes, part in zip(chunks, chunk_marks(len(chunks)), strict=True):
        profile = fsq.profile_of(codes.shape[1])
        payload = fsq.pack_codes(codes, profile)
        frames.append(Frame(Codec.FSQ, payload, len(codes), d_z, model_id, profile, flags, part))
    return Message(tuple(frames))


def from_text(text: str) -> Message:
    """A text to one frame: zstd where that is smaller, else UTF-8."""
    payloads = [codecs.encode_text(text, profile) for profile in (0, 1)]
    profile = int(len(payloads[1]) < len(payloads[0]))
    return Message((Frame(Codec.TEXT, payloads[profile], profile=profile),))


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
