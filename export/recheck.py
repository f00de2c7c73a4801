"""``latentwire inspect BUNDLE --parity``: a bundle that was exported earlier, perhaps elsewhere, judged here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.console import message, print_json
from ..core.errors import EXIT_MISMATCH, EXIT_OK, ModelError
from ..engines.bundle import Bundle, read_bundle
from ..models.folder import ModelFolder
from ..models.store import resolve
from .lora import KIND as LORA
from .parity import Report, verify
from .show import show_parity
from .yardstick import find_reference


@dataclass(frozen=True)
class Recheck:
    """What to judge.

    Attributes:
        bundle: folder.
        llm: the model it was made of; None: the one of that name in the store.
        reference: see ``yardstick.find_reference``.
        backends: names; None: every one that is here.
        threads: computing threads; None: all.
    """

    bundle: Path
    llm: str | None = None
    reference: str = "auto"
    backends: tuple[str, ...] | None = None
    threads: int | None = None


def recheck(request: Recheck) -> Report:
    """Every gate on every backend; a failure does not stop the others.

    Raises:
        BundleError: 4001-4009 the bundle; 4011 nothing to compare with, or nothing that runs it.
        ModelError: 3102 the model here is another version; 3201 and others: it is not here.
    """
    bundle = read_bundle(request.bundle)
    llm = _same_model(bundle, resolve(request.llm or bundle.manifest.llm.name))
    yardstick = find_reference(request.reference, llm, request.bundle, changed=LORA in bundle.manifest.features)
    return verify(bundle, llm, yardstick, threads=request.threads, only=request.backends, stop=False, quick=False)


def run(request: Recheck, as_json: bool) -> int:
    """Print the table; the exit status says whether all is well."""
    report = recheck(request)
    if as_json:
        print_json({"bundle": str(request.bundle), **report.to_json()})
    else:
        show_parity(report.to_json())
    if report.failed:
        message(f"parity failed: {', '.join(sorted({f.gate for f in report.failed}))}; do not use this bundle")
    return EXIT_MISMATCH if report.failed else EXIT_OK


def _same_model(bundle: Bundle, llm: ModelFolder) -> ModelFolder:
    info = bundle.manifest.llm
    if llm.fingerprint != info.fingerprint:
        raise ModelError(
            3102,
            "the model here is another version of the one in the bundle",
            where=f"{llm.name} in {llm.path}",
            expected=f"expected fingerprint {info.fingerprint[:12]}, got {llm.fingerprint[:12]}",
            fix="pass --llm with the folder of that version",
        )
    return llm
