"""Texts to messages: the sending half of the pipeline.

In: texts. Out: for each its frames and counts, or the error of that text alone. Files and rows of files are
not its business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError, LatentWireError
from ..engines.base import Engine
from ..engines.bundle import EncoderInfo
from . import message
from .codec import BY_NAME, Codec
from .encode import Windowed, clean, encode, window
from .memory import Room
from .message import Message
from .options import CompressOptions
from .quantise import require_quantiser, to_codes
from .tokenizer import TextTokenizer


@dataclass(frozen=True)
class Compressed:
    """One text, compressed.

    Attributes:
        message: its frames.
        tokens: encoder tokens of the whole text.
        text_bytes: UTF-8 bytes of the whole text.
        truncated: the end was left out.
    """

    message: Message
    tokens: int
    text_bytes: int
    truncated: bool


def compress(
    engine: Engine,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    options: CompressOptions,
    names: Sequence[str] | None = None,
    room: Room | None = None,
) -> list[Compressed | LatentWireError]:
    """One result or one error per text, in the order given.

    Args:
        engine: with its encoder.
        tokenizer: the encoder's.
        texts: at most a few thousand at a time; all their latents are held at once.
        options: codec, M, and what to do with long texts.
        names: what error messages call each text; default ``text 0`` and so on.
        room: what is known about memory; None: nothing yet.

    Raises:
        InputError: 2111 more latents asked for than the encoder's window has tokens, or codes of a bundle without
            a quantiser.
        LatentError: 3002 the engine and the bundle disagree about shapes.
    """
    latents = latent_count(engine.bundle.manifest.encoder, options)
    names = [f"text {i}" for i in range(len(texts))] if names is None else names
    windowed = _windows(tokenizer, texts, names, engine.bundle.manifest.encoder.max_tokens, options)
    codec = BY_NAME[options.codec]
    chunks = [c for w in windowed if isinstance(w, Windowed) for c in w.chunks] if codec != Codec.TEXT else []
    if codec == Codec.FSQ:
        require_quantiser(engine)
    encoded = encode(engine, chunks, latents, options.batch_size, room)
    made = iter(encoded if codec != Codec.FSQ else to_codes(engine, encoded))
    out: list[Compressed | LatentWireError] = []
    for text, found in zip(texts, windowed, strict=True):
        if isinstance(found, Windowed):
            parts = [next(made) for _ in found.chunks] if codec != Codec.TEXT else []
            out.append(_pack(text, found, parts, codec, engine.bundle.manifest.encoder))
        else:
            out.append(found)
    return out


def latent_count(info: EncoderInfo, options: CompressOptions) -> int:
    """M of this encoder and these options.

    Raises:
        InputError: 2111.
    """
    latents = info.latents if options.latents is None else options.latents
    if latents > info.max_tokens:
        expected = f"expected at most the encoder's window of {info.max_tokens} tokens, got {latents}"
        raise InputError(2111, "more latents than the encoder can make", where="option latents", expected=expected)
    return latents


def _windows(
    tokenizer: TextTokenizer, texts: Sequence[str], names: Sequence[str], limit: int, options: CompressOptions
) -> list[Windowed | LatentWireError]:
    out: list[Windowed | LatentWireError] = []
    sound: list[str] = []
    for text, name in zip(texts, names, strict=True):
        try:
            sound.append(clean(text, name))
        except LatentWireError as e:
            out.append(e)
        else:
            out.append(Windowed((), 0, False))
    on_too_long = "chunk" if options.codec == "text" else options.on_too_long  # a text frame has no window
    ids = iter(tokenizer.encode_all(sound))
    for i, found in enumerate(out):
        if isinstance(found, Windowed):
            try:
                out[i] = window(next(ids), limit, on_too_long, names[i])
            except LatentWireError as e:
                out[i] = e
    return out


def _pack(
    text: str, found: Windowed, parts: Sequence[Any], codec: Codec, encoder: EncoderInfo
) -> Compressed | LatentWireError:
    text = text.removeprefix("\ufeff")
    try:
        if codec == Codec.TEXT:
            packed = message.from_text(text)
        else:
            for part in parts:
                if isinstance(part, LatentWireError):
                    raise part
            if codec == Codec.FSQ:
                packed = message.from_codes(parts, encoder.d_z, encoder.model_id, truncated=found.truncated)
            else:
                packed = message.from_latents(parts, codec, encoder.model_id, truncated=found.truncated)
    except LatentWireError as e:
        return e
    return Compressed(packed, found.tokens, len(text.encode()), found.truncated)
