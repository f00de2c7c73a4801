"""Which reference an export is measured against: transformers now, or a recorded run of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.console import message
from ..core.errors import BundleError
from ..models.folder import ModelFolder
from . import reference
from .checkpoint import REFERENCE, file_stem
from .lora import Lora
from .recorded import Recorded, read_recorded


@dataclass(frozen=True)
class Reference:
    """Which yardstick: a file that was recorded, or None for transformers now."""

    path: Path | None


def find_reference(kind: str, llm: ModelFolder, checkpoint: Path, *, changed: bool = False) -> Reference:
    """Choose the yardstick before the work starts.

    Args:
        kind: ``auto`` (transformers where installed), ``transformers`` or ``recorded``.
        llm: the model.
        checkpoint: folder that may hold ``golden-NAME.json``; the shipped folder is looked at too.
        changed: LoRA changes the model, so that no recorded run of it is a yardstick.

    Raises:
        BundleError: 4011 nothing to compare with.
    """
    if kind in ("auto", "transformers") and reference.available():
        return Reference(None)
    if changed:
        raise BundleError(
            4011,
            "nothing to check the export against: LoRA changes the LLM, and a recorded run is of the plain one",
            where=f"LLM {llm.name}, reference {kind}",
            expected="expected torch and transformers",
            fix="pip install 'latentwire[train]'",
        )
    name = f"golden-{file_stem(llm.name)}.json"
    shipped = Path(__file__).resolve().parent.parent / REFERENCE
    found = [folder / name for folder in (checkpoint, shipped) if (folder / name).is_file()]
    if kind in ("auto", "recorded") and found:
        return Reference(found[0])
    raise BundleError(
        4011,
        "nothing to check the export against",
        where=f"LLM {llm.name}, reference {kind}",
        expected=f"expected torch and transformers, or {name} in the checkpoint",
        fix="pip install 'latentwire[train]'",
    )


def run_reference(
    choice: Reference, llm: ModelFolder, bos: Sequence[int], room: int = 0, lora: Lora | None = None
) -> Recorded:
    """What the yardstick answers.

    Args:
        choice: which one.
        llm: the model.
        bos: token ids that begin a prompt.
        room: positions that a prompt and its answer have; longer prompts are cut where the yardstick runs now. 0: any.
        lora: changes the model's weights; only where the yardstick runs now.

    Raises:
        BundleError: 4011 the recorded run is of another version of the model.
    """
    if choice.path is None:
        prompts = reference.sentence_prompts(llm.tokenizer_path, bos)
        if room:
            prompts = [p[: max(2, room - reference.NEW_TOKENS)] for p in prompts]
        message(f"parity: running transformers on {len(prompts)} prompts")
        return reference.measure(llm.path, llm.fingerprint, prompts, lora=lora)
    recorded = read_recorded(choice.path)
    if recorded.llm_fingerprint != llm.fingerprint:
        raise BundleError(
            4011,
            "reference was recorded with another version of the LLM",
            where=str(choice.path),
            expected=f"expected fingerprint {llm.fingerprint[:12]}, got {recorded.llm_fingerprint[:12]}",
            fix="pip install 'latentwire[train]' to compare with transformers itself",
        )
    return replace(recorded, source=f"a recorded run of {recorded.source}")
