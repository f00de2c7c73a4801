"""The public object: texts to frames, frames and questions to answers, on one bundle.

    with Pipeline.open("bundle/") as pipe:
        frames = pipe.compress(["The bridge was opened in 1932."])
        pipe.generate(frames, ["When was the bridge opened?"])

What travels between ``compress`` and ``generate`` is bytes; they may happen on two machines. The question is
never part of the frame: it reaches the LLM as text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

from ..core.errors import InputError, LatentError, LatentWireError
from ..core.prompt import question_ids, verbatim_ids
from ..engines.base import F32, PARTS, Engine
from ..engines.opening import open_engine
from . import message, wire
from .answer import Answer
from .compress import Compressed, compress
from .encode import clean
from .generate import Generator
from .memory import Room
from .message import Message
from .options import CompressOptions, GenerateOptions
from .quantise import to_latents
from .request import Request, no_latents
from .tokenizer import TextTokenizer

if TYPE_CHECKING:
    from ..engines.bundle import Verify

COMPRESS_PARTS: Final = ("encoder", "quantise", "dequantise")
GENERATE_PARTS: Final = ("adapter", "splice", "decoder", "dequantise", "prefix", "cross")

_COMPRESS: Final = CompressOptions()
_GENERATE: Final = GenerateOptions()

Context = bytes | Message | str
"""What a question is asked about: frames, or (``str``) a text that is not compressed."""

T = TypeVar("T")


class Pipeline:
    """Everything that runs a bundle. Not safe for two threads at once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.bundle = engine.bundle
        self._room = Room()

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        device: str = "cpu",
        backend: str = "auto",
        threads: int | None = None,
        parts: Collection[str] = PARTS,
        verify: Verify = "full",
    ) -> Pipeline:
        """Open and verify a bundle folder.

        Args:
            bundle: what ``latentwire export`` wrote.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            backend: ``auto``, ``ort``, ``trt`` or ``torch-ref``.
            threads: computing threads; None: all that this process may use.
            parts: ``COMPRESS_PARTS`` or ``GENERATE_PARTS`` load only half of it.
            verify: ``size`` skips the hashes, for a bundle that was verified before.

        Raises:
            BundleError: 4001-4009.
            EnvironmentFault: 5001 no such device, or it cannot run the bundle; 5011 a package is missing.
            InputError: 2111 unknown backend.
        """
        return cls(open_engine(bundle, device=device, backend=backend, threads=threads, parts=parts, verify=verify))

    def compress(self, texts: Sequence[str], options: CompressOptions = _COMPRESS) -> list[bytes]:
        """Texts to frames, one ``bytes`` each; a chunked text is several frames end to end.

        Args:
            texts: any number, of any lengths.
            options: codec, number of latents, what to do with a text over the encoder's window.

        Returns:
            for each text the bytes that travel: at most M latents of ``d_z`` numbers each, and a header.

        Raises:
            RowError: 2005-2009 the first text that cannot be sent.
            LatentError: 3001 its latents are not finite.
        """
        return [found.message.pack() for found in raised(self.compress_rows(texts, options))]

    def generate(
        self, frames: Sequence[bytes], prompts: Sequence[str], options: GenerateOptions = _GENERATE
    ) -> list[str]:
        """Frames and one question each to answers.

        Args:
            frames: as ``compress`` made them, on this machine or another.
            prompts: as many; a frame may stand here several times.
            options: length, stop strings, draws.

        Returns:
            for each question the answer's text, without outer white space.

        Raises:
            FrameError: 1101-1109 bytes that are no frame.
            ModelError: 3101 frame of another encoder.
            RowError: 2005-2009 a question that is empty or does not fit.
            InputError: 2111 not one question for each frame.
        """
        return [found.text for found in raised(self.answers(frames, prompts, options))]

    def generate_text(
        self, texts: Sequence[str], prompts: Sequence[str], options: GenerateOptions = _GENERATE
    ) -> list[str]:
        """The same prompts with whole texts instead of latents, on the same engine: the reference path."""
        return [found.text for found in raised(self.answers(texts, prompts, options))]

    def stream(self, context: Context, prompt: str, options: GenerateOptions = _GENERATE) -> Iterator[str]:
        """One answer in pieces, as soon as they are certain; joined they are what ``generate`` returns."""
        return (piece for piece in self.pieces(context, prompt, options) if isinstance(piece, str))

    def pieces(self, context: Context, prompt: str, options: GenerateOptions = _GENERATE) -> Iterator[str | Answer]:
        """As ``stream``, and after the last piece the whole answer with its counts.

        Raises:
            FrameError, ModelError, RowError: as ``request``, before anything is computed. LatentError: 3001.
        """
        request = self.request(context, prompt, options, "prompt")
        return (event for _, event in self._generator.stream([request], options))

    def compress_rows(
        self, texts: Sequence[str], options: CompressOptions = _COMPRESS, names: Sequence[str] | None = None
    ) -> list[Compressed | LatentWireError]:
        """As ``compress``, with counts, and with an error in the place of a text that has one."""
        return compress(self.engine, self.encoder_tokenizer, texts, options, names, self._room)

    def answers(
        self,
        contexts: Sequence[Context],
        prompts: Sequence[str],
        options: GenerateOptions = _GENERATE,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Answer | LatentWireError]:
        """As ``generate``, with counts, and with an error in the place of a request that has one.

        ``done`` hears how many requests were finished, as they are.
        """
        if len(contexts) != len(prompts):
            expected = f"expected one prompt for each context, got {len(prompts)} for {len(contexts)}"
            raise InputError(2111, "contexts and prompts differ in number", expected=expected)
        requests = [self._tried(i, c, p, options) for i, (c, p) in enumerate(zip(contexts, prompts, strict=True))]
        answers = iter(self._generator.answers([r for r in requests if isinstance(r, Request)], options, done))
        return [next(answers) if isinstance(r, Request) else r for r in requests]

    def request(self, context: Context, prompt: str, options: GenerateOptions, where: str) -> Request:
        """One prompt, ready for a generator.

        Raises:
            FrameError: 1101-1109 bytes that are no frame.
            ModelError: 3101 frame of another encoder.
            RowError: 2005-2009 a question that is empty or does not fit.
        """
        question = tuple(question_ids(self.tokenizer.encode, clean(prompt, where)))
        if isinstance(context, bytes):
            context = message.unpack(context)
        if isinstance(context, Message):
            self._check_encoder(context)
        if isinstance(context, Message) and not context.is_text:
            beside = tuple(verbatim_ids(self.tokenizer.encode, context.spans))
            request = Request(self._latents(context), beside, question)
        else:
            text = context.text() if isinstance(context, Message) else clean(context, where)
            request = Request(no_latents(), tuple(self.tokenizer.encode(text)), question)
        self.check(request, options, where)
        return request

    def check(self, request: Request, options: GenerateOptions, where: str) -> None:
        """Refuse a prompt that leaves no room for its answer. Raises RowError 2006."""
        self._generator.check(request, options, where)

    def describe(self) -> dict[str, str]:
        """What computes, for the record of a job."""
        return {"engine": self.engine.name}

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def encoder_tokenizer(self) -> TextTokenizer:
        """Cuts texts for the encoder."""
        return TextTokenizer(self.bundle.file("encoder_tokenizer.json"))

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The LLM's own."""
        return TextTokenizer(self.bundle.file("tokenizer.json"))

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self.engine, self.tokenizer)

    def _tried(self, index: int, context: Context, prompt: str, options: GenerateOptions) -> Request | LatentWireError:
        try:
            return self.request(context, prompt, options, f"prompt {index}")
        except LatentWireError as e:
            return e

    def _check_encoder(self, found: Message) -> None:
        encoder = self.bundle.manifest.encoder
        for frame in found.frames:
            wire.check_model(frame, encoder.model_id)
            if frame.d_z not in (0, encoder.d_z):
                expected = f"expected d_z {encoder.d_z}, got {frame.d_z}"
                raise LatentError(3002, "latents have another size than the adapter reads", expected=expected)

    def _latents(self, context: Message) -> F32:
        # Without a quantiser ``z`` says what is missing.
        if context.is_codes and "dequantise" in self.bundle.manifest.graphs:
            return to_latents(self.engine, context.codes())
        return context.z()


def raised(found: Sequence[T | LatentWireError]) -> list[T]:
    """The results, unless one is an error: the first is raised."""
    out: list[T] = []
    for item in found:
        if isinstance(item, LatentWireError):
            raise item
        out.append(item)
    return out
