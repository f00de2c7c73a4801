"""What a quantised decoder costs in quality, measured at its export against its own float32 form.

The float32 form is written beside the bundle for as long as the measurement takes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ..engines.bundle import Bundle
from .answers import Question
from .loss import demo_questions, measure_loss, read_questions

QUESTIONS: Final = 200
"""Of a file that are asked, spread over it."""


def asked(what: str) -> list[Question]:
    """The questions that ``--measure`` names; none of ``none``.

    Raises:
        InputError: 2103, 2104, 2107 the file.
    """
    if what == "none":
        return []
    return demo_questions() if what == "demo" else read_questions(what, QUESTIONS)


def measured(
    bundle: Bundle, questions: Sequence[Question], write_plain: Callable[[Path], Bundle], *, threads: int | None = None
) -> dict[str, Any]:
    """Figures for the manifest, under ``precision``.

    Args:
        bundle: with a quantised decoder.
        questions: from ``asked``; without any, nothing is measured.
        write_plain: makes the same bundle in float32 in an empty folder.
        threads: computing threads; None: all.

    Raises:
        EnvironmentFault: 5004 no room for the float32 form.
    """
    if not questions:
        return {}
    with tempfile.TemporaryDirectory(dir=bundle.path.parent, prefix=".fp32-") as scratch:
        return {"precision": measure_loss(bundle, write_plain(Path(scratch)), questions, threads=threads)}
