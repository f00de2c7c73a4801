"""Compression as a step of somebody else's pipeline, as ``ray.data.Dataset.map_batches`` wants it.

    ds.map_batches(Compressor, fn_constructor_args=("bundle/",), batch_size=128, concurrency=2)

Every row gets its frames or its error. Order, retries and files are the pipeline's affair; a job (``run_job``)
promises those too. Does not import Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ...core.errors import InputError, LatentWireError, RowError
from ..compress import Compressed
from ..options import CompressOptions, Machine
from ..pipeline import COMPRESS_PARTS, Pipeline
from .shard import printable

ADDED: Final = ("frames", "n_tokens", "error_code", "error_message")


class Compressor:
    """Opens the encoder once, then adds columns to batches.

    ``frames`` bytes: the frames of the row's text, end to end; ``n_tokens`` int: of the text. Where a row cannot be
    compressed these are None, and ``error_code`` and ``error_message`` say why; else those are None.

    Args:
        bundle: folder of the bundle.
        options: how texts become frames.
        machine: device, engine, threads.
        text: name of the column with texts.

    Raises:
        BundleError, EnvironmentFault, InputError: as ``Pipeline.open``.
    """

    def __init__(
        self,
        bundle: str | Path,
        options: CompressOptions | None = None,
        machine: Machine | None = None,
        text: str = "text",
    ) -> None:
        where = machine or Machine()
        self._options, self._text = options or CompressOptions(), text
        self._pipe = Pipeline.open(
            bundle, device=where.device, backend=where.backend, threads=where.threads, parts=COMPRESS_PARTS
        )

    def __call__(self, batch: Mapping[str, Any] | pa.Table) -> dict[str, Any] | pa.Table:
        """The batch with the four columns: a table for a table, arrays (NumPy, of objects) for arrays.

        Raises:
            InputError: 2101 it has no such column, or one of the four already.
        """
        if isinstance(batch, Mapping):
            self._check(list(batch))
            found = self._compress(list(batch[self._text]))
            return {**batch, **{name: _objects([row[name] for row in found]) for name in ADDED}}
        self._check(batch.column_names)
        found = self._compress(batch[self._text].to_pylist())
        types = dict(zip(ADDED, (pa.binary(), pa.int32(), pa.string(), pa.string()), strict=True))
        for name, kind in types.items():
            batch = batch.append_column(name, pa.array([row[name] for row in found], kind))
        return batch

    def _check(self, names: Sequence[str]) -> None:
        taken = sorted(set(names) & set(ADDED))
        if self._text not in names or taken:
            what = f"batch has columns named {', '.join(taken)}" if taken else "batch has no column of texts"
            expected = f"expected {self._text!r} and none of {', '.join(ADDED)}, got {', '.join(names)}"
            raise InputError(2101, what, expected=expected, fix="rename the columns, or pass text=NAME")

    def _compress(self, texts: Sequence[Any]) -> list[dict[str, Any]]:
        sound = [(i, t) for i, t in enumerate(texts) if isinstance(t, str)]
        made = self._pipe.compress_rows([t for _, t in sound], self._options, [f"row {i}" for i, _ in sound])
        out: list[dict[str, Any]] = [
            _row(RowError(2004, "text is not a string", where=f"row {i}", expected=f"got {type(t).__name__}"))
            for i, t in enumerate(texts)
        ]
        for (i, _), result in zip(sound, made, strict=True):
            out[i] = _row(result)
        return out


def _row(result: Compressed | LatentWireError) -> dict[str, Any]:
    if isinstance(result, LatentWireError):
        values: tuple[Any, ...] = (None, None, result.label, printable(result))
    else:
        values = (result.message.pack(), result.tokens, None, None)
    return dict(zip(ADDED, values, strict=True))


def _objects(values: Sequence[Any]) -> Any:
    out = np.empty(len(values), object)
    out[:] = values
    return out
