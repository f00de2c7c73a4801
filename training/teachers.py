"""The teacher caches of a run, one for each LLM, and how much they will hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..core.console import message
from ..core.files import human_bytes, require_space
from .bundles import TEACHER_TERMS, weights
from .checkpoint import fingerprint
from .config import Config
from .llm import LMWrapper
from .maker import Maker
from .model import LatentModel
from .teacher_cache import FIXED, TeacherCache, position_bytes

SAMPLES = 4
"""Micro-batches of each stage that are made to say how large a cache gets."""


def facts_of(config: Config, llm: LMWrapper, model: LatentModel, started: bool) -> dict[str, Any]:
    """What a teacher's words depend on, beside the text.

    The task rows are among it: the teacher reads them, as the format stage left them.
    """
    rows = {"task": model.adapter(llm).get_parameter("task.weight").detach()}
    facts = {
        "llm_fingerprint": llm.fingerprint,
        "precision": config.precision,
        "kd_tau": config.kd_tau,
        "teacher_top": config.teacher_top,
    }
    return facts | ({"task_rows": fingerprint(rows, {})} if started else {})


class Teachers:
    """The caches of a run; without the option ``teacher_cache`` there are none and nothing is kept.

    Args:
        config: names the folder.
        model: its LLMs and task rows.
        started: the task rows are trained; otherwise files of any rows are good.

    Raises:
        ModelError: 3226, 3227 as for ``TeacherCache``.
    """

    def __init__(self, config: Config, model: LatentModel, started: bool = True) -> None:
        self.config = config
        folder = Path(config.teacher_cache)
        llms = model.llms if config.teacher_cache else []
        self.caches = {llm.name: TeacherCache(folder, llm.name, facts_of(config, llm, model, started)) for llm in llms}

    @property
    def read(self) -> int:
        """Micro-batches that a teacher has read."""
        return sum(cache.read for cache in self.caches.values())

    @property
    def recalled(self) -> int:
        """Micro-batches that no teacher had to read."""
        return sum(cache.recalled for cache in self.caches.values())

    def flush(self) -> None:
        """Write what is new."""
        for cache in self.caches.values():
            cache.flush()

    def announce(self, maker: Maker, numbers: Sequence[int]) -> None:
        """Say how large the caches get if nothing of these micro-batches is known, and refuse where it does not fit.

        Raises:
            EnvironmentFault: 5004 the disk has less room.
        """
        if not self.caches:
            return
        needed = expected_bytes(maker, numbers)
        message(f"teacher cache {self.config.teacher_cache}: at most about {human_bytes(needed)} more")
        require_space(self.config.teacher_cache, int(needed))


def expected_bytes(maker: Maker, numbers: Iterable[int]) -> float:
    """Bytes of what teachers say about micro-batches, from the first few of each stage."""
    config = maker.config
    by_stage: dict[int, list[int]] = {}
    for number in numbers:
        by_stage.setdefault(maker.span(number).start, []).append(number)
    total = 0.0
    for own in by_stage.values():
        terms = weights(maker.span(own[0]).stage.bundle or config.bundle, config.kd_weight)
        taught = [term for term in TEACHER_TERMS if term in terms]
        sample = [key for n in own[:SAMPLES] for tree in maker(n).teachers for key in tree.keys]
        sizes = [FIXED + key.size(term) * position_bytes(config.teacher_top) for key in sample for term in taught]
        total += sum(sizes) / min(SAMPLES, len(own)) * len(own)
    return total
