"""What a caller may choose, as frozen dataclasses that are checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

from ..core.errors import InputError
from .choices import CodecName, Fallback, Protect, TooLong
from .codec import MAX_LATENTS, MAX_PAYLOAD

MAX_TEXT_BYTES: Final = 16 << 20
"""UTF-8 bytes of one text; longer ones are refused before they are tokenised."""


@dataclass(frozen=True)
class Machine:
    """What runs a bundle.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        backend: ``auto``, or an engine by name, see ``engines.opening.BACKENDS``.
        threads: computing threads; None: all that this process may use.
    """

    device: str = "cpu"
    backend: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class CompressOptions:
    """How texts become frames.

    Attributes:
        codec: ``f16`` keeps every latent to 11 bits, ``i8`` halves the bytes, ``fsq`` sends 4 or 8 bytes a
            latent where the bundle's encoder was trained for it, ``hybrid`` sends names, numbers and marked strings
            as they are beside the latents (fsq, or i8 where there is no quantiser), ``text`` the text itself.
        latents: M, latents of a text or chunk; None: the bundle's own number. A shorter text gets fewer.
        on_too_long: what to do with a text over the encoder's window: refuse it, cut it, or send several frames.
        batch_size: texts or chunks that the encoder reads at once.
        ratio: UTF-8 bytes of a text divided by bytes of its frames must reach this; a text gets as many latents,
            up to M, as that allows, and an error where not even one fits.
        max_bytes: the same with bytes of a text's frames, which must not exceed this.
        protect: what travels verbatim in codec hybrid, see ``spans``.
        fallback: when a text is sent as text instead: never; when that takes fewer bytes or is all that fits
            (``size``); also when the latents do not survive their codec (``check``).
        min_fidelity: for ``check``: mean cosine between the encoder's latents and what the receiver will decode.
    """

    codec: CodecName = "i8"
    latents: int | None = None
    on_too_long: TooLong = "error"
    batch_size: int = 16
    ratio: float | None = None
    max_bytes: int | None = None
    protect: Protect = "both"
    fallback: Fallback = "off"
    min_fidelity: float = 0.9

    def __post_init__(self) -> None:
        _one_of("codec", self.codec, get_args(CodecName))
        _one_of("protect", self.protect, get_args(Protect))
        _one_of("fallback", self.fallback, get_args(Fallback))
        _within("min_fidelity", self.min_fidelity, 0, 1)
        if self.ratio is not None:
            _within("ratio", self.ratio, 0.01, 10_000)
        if self.max_bytes is not None:
            _within("max_bytes", self.max_bytes, 1, MAX_PAYLOAD)
        _one_of("on_too_long", self.on_too_long, get_args(TooLong))
        _within("batch_size", self.batch_size, 1, 4096)
        if self.latents is not None:
            _within("latents", self.latents, 1, MAX_LATENTS)


@dataclass(frozen=True)
class GenerateOptions:
    """How answers are made. Decoding is greedy unless ``temperature`` is above 0.

    Attributes:
        max_new_tokens: longest answer in tokens of the LLM.
        stop: an answer ends before the first of these strings.
        batch_size: most prompts that run together.
        kv_bytes: most memory for keys and values of one batch, bytes; long prompts run in smaller batches.
        temperature: logits are divided by it before a token is drawn; 0: always the likeliest.
        top_k: draw among so many likeliest tokens; 0: all.
        top_p: draw among the likeliest tokens that together have this probability.
        seed: of the draws; with the same seed a request is answered the same, whatever runs beside it.
    """

    max_new_tokens: int = 16
    stop: tuple[str, ...] = ("\n",)
    batch_size: int = 16
    kv_bytes: int = 512 << 20
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _within("max_new_tokens", self.max_new_tokens, 1, 4096)
        _within("batch_size", self.batch_size, 1, 4096)
        _within("kv_bytes", self.kv_bytes, 1, 1 << 50)
        _within("temperature", self.temperature, 0, 100)
        _within("top_k", self.top_k, 0, 1 << 20)
        _within("top_p", self.top_p, 1e-6, 1)
        _within("seed", self.seed, 0, (1 << 63) - 1)
        if "" in self.stop:
            raise InputError(2111, "an empty stop string would end every answer", where="option stop")


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        expected = f"expected one of {', '.join(known)}, got {value!r}"
        raise InputError(2111, "unknown option value", where=f"option {name}", expected=expected)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        expected = f"expected {low}..{high}, got {value}"
        raise InputError(2111, "option value out of range", where=f"option {name}", expected=expected)
