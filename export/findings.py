"""What a parity gate says: a finding for the table, or an error that names the first tensor that departs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..core.errors import BundleError

Verdict = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class Finding:
    """One gate on one backend.

    Attributes:
        gate: its name, see ``parity``.
        backend: ``ort-cpu``, ``torch-ref`` and so on; ``file`` for the weights.
        verdict: what came of it.
        measured: the worst figure, or None where nothing was measured.
        limit: the most (of shares: the least) that passes, or None where the figure is only stated.
        unit: of both: ``rel L2``, ``max abs``, ``share``, ``tensors``.
        detail: the tensor that departs first, counts, or why the gate was not run.
    """

    gate: str
    backend: str
    verdict: Verdict
    measured: float | None = None
    limit: float | None = None
    unit: str = ""
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the manifest and ``--json``."""
        return {k: v for k, v in asdict(self).items() if v not in (None, "")}


class ParityError(BundleError):
    """A bundle computes something else than its reference (4010).

    Attributes:
        finding: the gate that failed.
        tensor: the first one that departs.
    """

    def __init__(self, finding: Finding, tensor: str, expected: str) -> None:
        super().__init__(
            4010,
            f"parity failed at {tensor}",
            where=f"gate {finding.gate} on {finding.backend}",
            expected=expected,
            fix="do not use this bundle; report it with this line",
        )
        self.finding = finding
        self.tensor = tensor


def departed(
    gate: str, backend: str, tensor: str, measured: float | None, limit: float | None, unit: str, where: str
) -> ParityError:
    """The error of a figure beyond its limit; ``where`` says which layer, row or step."""
    finding = Finding(gate, backend, "failed", measured, limit, unit, f"{tensor}: {where}")
    if measured is None:
        return ParityError(finding, tensor, where)
    bound = "" if limit is None else f" at {'least' if unit == 'share' else 'most'} {limit:g}"
    return ParityError(finding, tensor, f"{where}: expected {unit}{bound}, got {measured:.3g}")
