"""What a quantised decoder costs in quality, measured at its export against its own float32 form.

The float32 form is written beside the bundle for as long as the measurement takes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..engines.bundle import Bundle
from .loss import demo_questions, measure_loss, read_questions

QUESTIONS: Final = 200
"""Of a file that are asked, spread over it."""
SHARED: Final = ("encoder.onnx", "encoder.safetensors", "embeddings.safetensors", "encoder_tokenizer.json")
"""Files that no precision of the decoder changes."""


def measured(
    bundle: Bundle, what: str, write_plain: Callable[[Path], Bundle], *, threads: int | None = None
) -> dict[str, Any]:
    """Figures for the manifest, under ``precision``.

    Args:
        bundle: with a quantised decoder.
        what: ``demo``, a file of questions, or ``none``.
        write_plain: makes the same bundle in float32 in a folder that holds ``SHARED`` already.
        threads: computing threads; None: all.

    Raises:
        InputError: 2103, 2104, 2107 the questions.
        EnvironmentFault: 5004 no room for the float32 form.
    """
    if what == "none":
        return {}
    questions = demo_questions() if what == "demo" else read_questions(what, QUESTIONS)
    with tempfile.TemporaryDirectory(dir=bundle.path.parent, prefix=".fp32-") as scratch:
        folder = Path(scratch)
        for name in SHARED:
            shutil.copyfile(bundle.file(name), folder / name)
        return {"precision": measure_loss(bundle, write_plain(folder), questions, threads=threads)}
