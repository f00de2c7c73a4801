"""The loop: takes steps on an engine as the scheduler plans them, and tells what came of every request.

In: requests. Out: events, through each request's ``emit``: pieces of text, then an ``Answer`` or an error. One
thread. A request that goes wrong ends alone: the others are read again and go on where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.console import message
from ...core.errors import LatentWireError
from ...engines.base import Engine
from ..answer import Answer, Growing
from ..options import GenerateOptions
from ..request import Request, Sizes
from ..tokenizer import TextTokenizer
from .rows import Rows
from .sampling import Sampling, draw
from .state import Decode, Job, Limits, Prefill, Scheduler

Event = str | Answer | LatentWireError
"""A piece of the answer; its end; its end without an answer."""


@dataclass
class _Track:
    """One request under way.

    Attributes:
        stream: number of the request among those with the same seed.
        told: characters that were sent.
        seen: characters that came since it was last read; one that is read again does not send them twice.
    """

    job: Job
    request: Request
    options: GenerateOptions
    emit: Callable[[Event], None]
    stream: int
    growing: Growing
    random: np.random.Generator
    told: int = 0
    seen: int = 0


def limits_of(engine: Engine, options: GenerateOptions, **more: int | bool | None) -> Limits:
    """What a bundle and the options allow; ``more``: other fields of ``Limits``."""
    manifest = engine.bundle.manifest
    llm, fixed = manifest.llm, manifest.capacity or 0
    size = 4 if llm.dtype == "float32" else 2
    positions = max(1, options.kv_bytes // (2 * llm.num_layers * llm.num_kv_heads * llm.head_dim * size))
    rows = min(options.batch_size, engine.max_batch or options.batch_size)
    if fixed:  # every row takes the whole cache, however short its request is
        rows = min(rows, max(1, positions // fixed))
    # What reaches the cache or the layers beside the prompt belongs to a whole batch.
    whole = bool({"prefix", "cross"} & set(manifest.graphs))
    values = {"refill": not whole, **more}
    return Limits(rows, positions, Sizes(engine).window, fixed, **values)  # type: ignore[arg-type]


class Loop:
    """Requests of any lengths and options on the rows of one engine."""

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, limits: Limits, rows: Rows | None = None) -> None:
        self.scheduler = Scheduler(limits)
        self._sizes, self._tokenizer = Sizes(engine), tokenizer
        self._rows = rows or Rows(engine)
        self._eos = frozenset(engine.bundle.manifest.llm.eos)
        self._tracks: dict[int, _Track] = {}
        self._next = 0

    def add(
        self, request: Request, options: GenerateOptions, emit: Callable[[Event], None], stream: int = 0
    ) -> int | None:
        """Queue a request that fits, see ``Sizes.check``; returns its key, or None where too many wait.

        Args:
            request: prompt.
            options: limits, stop rules and draws of this request.
            emit: hears of it, from within ``step``.
            stream: tells requests with the same seed apart.
        """
        key, sizes = self._next, self._sizes
        job = Job(key, sizes.prompt(request), options.max_new_tokens, sizes.head(request), sizes.kind(request))
        if not self.scheduler.add(job):
            return None
        self._next += 1
        growing, random = self._begun(options, stream)
        self._tracks[key] = _Track(job, request, options, emit, stream, growing, random)
        return key

    def cancel(self, key: int) -> None:
        """Nobody waits for it any more; its row is free. Of a finished request: nothing."""
        if self._tracks.pop(key, None):
            self.scheduler.finish(key)

    def fail(self, error: LatentWireError) -> None:
        """End everything that waits or runs with this error."""
        for key in list(self._tracks):
            self._end(key, error)
        self._rows.drop()

    def step(self) -> bool:
        """One call of the engine; False where there is nothing to do."""
        plan = self.scheduler.plan()
        if plan is None:
            return False
        placed = plan.placed if isinstance(plan, Prefill) else plan.running
        try:
            if isinstance(plan, Prefill):
                self._rows.open(plan.rows, plan.capacity)
                self._rows.prefill([(row, self._tracks[job.key].request) for row, job in placed])
            else:
                self._rows.decode(plan.start, plan.stop, plan.idle)
            self._take(placed)
        except LatentWireError as e:
            self._recover(plan, placed, e)
        return True

    def _take(self, placed: Sequence[tuple[int, Job]]) -> None:
        """Every row's new token."""
        tokens = self._rows.tokens()
        chosen = self._drawn(placed)
        for row, job in placed:
            self._feed(self._tracks[job.key], chosen.get(row, tokens[row]))
        if chosen:
            self._rows.choose(chosen)

    def _drawn(self, placed: Sequence[tuple[int, Job]]) -> dict[int, int]:
        drawing = [(row, track) for row, job in placed if (track := self._tracks[job.key]).options.temperature > 0]
        if not drawing:
            return {}
        rows = [row for row, _ in drawing]
        wishes = [Sampling(t.options.temperature, t.options.top_k, t.options.top_p) for _, t in drawing]
        tokens = draw(self._rows.logits(rows), wishes, [t.random.random() for _, t in drawing])
        return dict(zip(rows, tokens.tolist(), strict=True))

    def _feed(self, track: _Track, token: int) -> None:
        piece = track.growing.feed(token)
        track.seen += len(piece)
        new = piece[len(piece) - (track.seen - track.told) :] if track.seen > track.told else ""
        track.told = max(track.told, track.seen)
        if track.growing.stopped:
            self._tracks.pop(track.job.key)
            self.scheduler.finish(track.job.key)
        if new:
            track.emit(new)
        if track.growing.stopped:
            track.emit(self._answer(track))

    def _answer(self, track: _Track) -> Answer:
        growing, request = track.growing, track.request
        context = request.context_positions + self._sizes.added(request)
        return Answer(growing.text, growing.stopped or "length", growing.new_tokens, track.job.prompt, context)

    def _recover(self, plan: Prefill | Decode, placed: Sequence[tuple[int, Job]], error: LatentWireError) -> None:
        """End what is at fault, and read the rest again: what a failed step left in memory may be anything."""
        involved = [job.key for _, job in placed]
        if error.code == 5003:
            tried = plan.rows if isinstance(plan, Prefill) else plan.stop - plan.start
            alone: list[int] = []
            if self.scheduler.fewer(tried):
                message(f"not enough memory for {tried} rows at once; going on with {self.scheduler.rows}")
            else:  # it is this request that is too large, not the pool
                self._end(involved[0], error)
                self.scheduler.restore()
        elif error.code == 3001 and len(involved) > 1:
            bad = self._bad(placed)
            for key in bad:
                self._end(key, error)
            alone = [] if bad else involved  # somewhere among these
        else:
            alone = []
            for key in involved:
                self._end(key, error)
        self._rows.drop()
        for _, job in self.scheduler.placed():
            self._restart(self._tracks[job.key])
        self.scheduler.again(alone)

    def _bad(self, placed: Sequence[tuple[int, Job]]) -> list[int]:
        """Requests whose logits show that they are at fault; none where the fault lay before the decoder."""
        bad = self._rows.bad([row for row, _ in placed])
        found = [job.key for row, job in placed if row in bad]
        return found if len(found) < len(placed) else []

    def _restart(self, track: _Track) -> None:
        track.growing, track.random = self._begun(track.options, track.stream)
        track.seen = 0

    def _begun(self, options: GenerateOptions, stream: int) -> tuple[Growing, np.random.Generator]:
        growing = Growing(self._tokenizer.decode, self._eos, options.stop, options.max_new_tokens)
        return growing, np.random.default_rng([options.seed, stream])

    def _end(self, key: int, error: LatentWireError) -> None:
        track = self._tracks.pop(key)
        self.scheduler.finish(key)
        track.emit(error)
