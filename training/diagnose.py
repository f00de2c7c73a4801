"""``latentwire diagnose``: is the path sound, are the latents read, and is it worth going on.

Losses fall for many reasons; these figures move for one each. A table of gates says what to do next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.console import message, print_json, print_table
from ..core.errors import InputError
from ..core.files import atomic_write_json
from .building import open_checkpoint
from .data import Item, read_questions
from .evaluate import measure, pick
from .evaluation.fitting import BOUND, cram, overfit
from .evaluation.protocol import Protocol
from .evaluation.reading import blanks, reading
from .latents import Rule
from .llm import LMWrapper
from .model import LatentModel
from .quality import of_llm
from .report import find

CHECKS = ("answers", "reconstruction", "cloze", "overfit", "cramming")
KINDS = ("none", "shuffled", "latents", "full")


@dataclass(frozen=True)
class Gate:
    """One figure against the value from which it is worth going on.

    Attributes:
        check: the experiment, one of ``CHECKS``.
        figure: what was measured.
        value: the result; None where it could not be computed.
        needed: from which value on (with ``below``: up to which).
        below: smaller is better.
        otherwise: what to look at where it fails.
    """

    check: str
    figure: str
    value: float | None
    needed: float
    otherwise: str
    below: bool = False

    @property
    def passed(self) -> bool:
        """Whether the figure allows to go on."""
        if self.value is None:
            return False
        return self.value < self.needed if self.below else self.value > self.needed


@dataclass(frozen=True)
class Request:
    """What to diagnose.

    Attributes:
        checkpoint: folder, run or ``reference``.
        data: question files.
        questions: for the answers and the other readings.
        checks: some of ``CHECKS``; empty: all.
        llms: only these; empty: all.
        steps: of overfitting and cramming, at most.
        precision: ``fp32`` or ``bf16``.
        device: ``auto``, ``cpu`` or ``cuda``.
        out: also write the figures to this JSON file.
    """

    checkpoint: str
    data: Sequence[Path]
    questions: int = 64
    checks: tuple[str, ...] = ()
    llms: tuple[str, ...] = ()
    steps: int = 300
    precision: str = "fp32"
    device: str = "auto"
    out: Path | None = None


def diagnose(request: Request, as_json: bool) -> bool:
    """Measure, show, and say whether every gate is passed.

    Raises:
        InputError: 2111 an unknown check; 2103, 2104, 2107 from the data.
        ModelError: 3101, 3102, 3201-3223 from the checkpoint and its LLMs.
    """
    unknown = [name for name in request.checks if name not in CHECKS]
    if unknown:
        raise InputError(2111, f"unknown check {unknown[0]}", expected="expected one of " + ", ".join(CHECKS))
    items = pick(read_questions([str(path) for path in request.data]), request.questions)
    model, meta = open_checkpoint(find(request.checkpoint), request.device, request.precision, request.llms)
    llms: dict[str, Any] = {}
    for llm in model.llms:
        figures: dict[str, Any] = {}
        gates: list[Gate] = []
        for name in request.checks or CHECKS:
            found, own = RUN[name](model, llm, items, request.steps)
            figures[name] = found
            gates += own
        llms[llm.name] = {"figures": figures, "gates": [{**asdict(g), "passed": g.passed} for g in gates]}
    passed = all(gate["passed"] for own in llms.values() for gate in own["gates"])
    found = {"checkpoint": meta["encoder"]["fingerprint"], "step": meta.get("step"), "go": passed, "llms": llms}
    if request.out:
        atomic_write_json(request.out, found)
    show(found, as_json)
    return passed


def show(found: dict[str, Any], as_json: bool) -> None:
    """Gates of each LLM as a table, or everything as JSON."""
    if as_json:
        print_json(found)
        return
    for name, own in found["llms"].items():
        rows = []
        for gate in own["gates"]:
            value = "-" if gate["value"] is None else f"{gate['value']:.3f}"
            needed = f"{'<' if gate['below'] else '>'} {gate['needed']:g}"
            verdict = "go" if gate["passed"] else f"no: {gate['otherwise']}"
            rows.append([gate["check"], gate["figure"], value, needed, verdict])
        print_table(["check", "figure", "value", "needed", "verdict"], rows, title=f"{name}, step {found['step']}")
    message("go" if found["go"] else "no-go: see the verdicts, and docs/evaluation.md")


Found = tuple[dict[str, Any], list[Gate]]


def answers(model: LatentModel, llm: LMWrapper, items: Sequence[Item], steps: int) -> Found:
    """Shuffle gap and gap closed on real questions."""
    rows = {kind: measure(model, llm, items, kind) for kind in KINDS}
    figures = of_llm(rows, items, Protocol())
    gates = [
        Gate("answers", "shuffle gap, nats/token", figures["shuffle_gap"], 0.3, "the latents are not read"),
        Gate("answers", "gap closed", figures["gap_closed"], 0.35, "train on; then more latents"),
    ]
    return figures, gates


def reconstruction(model: LatentModel, llm: LMWrapper, items: Sequence[Item], steps: int) -> Found:
    """64 tokens read back, four of them to a latent, and at the checkpoint's own number of latents."""
    found: dict[str, Any] = {}
    # A few hundred crops are a steady figure, and their logits still fit into memory.
    texts = [item.context for item in items[:32]]
    if sum(len(llm.encode(text)) >= CROP for text in texts) < 2:
        return {}, [Gate("reconstruction", f"{CROP} tokens read back", None, 0.25, "no texts long enough")]
    for name, rule in (("1/4", Rule(4, True)), (str(model.config.latent_len), Rule(model.config.latent_len))):
        one = reading(model, llm, texts, rule, CROP)
        found[name] = {k: round(v, 4) for k, v in asdict(one).items()}
        found[name]["bits_per_latent"] = round(one.bits_per_latent, 2)
    own = found["1/4"]
    share = round(own["nll"] / own["unconditional"], 4)
    gates = [
        Gate("reconstruction", f"tokens right, {CROP} at 4 a latent", own["accuracy"], 0.25, "shorter crops, LR x 3"),
        Gate("reconstruction", "NLL over NLL without latents", share, 0.5, "shorter crops, LR x 3", below=True),
        Gate("reconstruction", "bits a latent", own["bits_per_latent"], 1.0, "the latents carry nothing"),
    ]
    return found, gates


CROP = 64
"""LLM tokens of a crop to be read back."""


def blanked(model: LatentModel, llm: LMWrapper, items: Sequence[Item], steps: int) -> Found:
    """Blanks of the text itself: no annotator, no answer format to learn."""
    asked = blanks(items)
    if len(asked) < 2:
        return {}, [Gate("cloze", "gap closed", None, 0.35, "no sentences to blank in this data")]
    figures = of_llm({kind: measure(model, llm, asked, kind) for kind in KINDS}, asked, Protocol())
    rows = figures["rows"]
    none, own = rows["none"]["first_token"], rows["latents"]["first_token"]
    ratio = round(own / none, 4) if none else None
    gates = [
        Gate("cloze", "gap closed", figures["gap_closed"], 0.35, "train on; the mix needs more prose"),
        Gate("cloze", "first token right, over no context", ratio, 2.0, "train on; the mix needs more prose"),
    ]
    return figures, gates


def overfitted(model: LatentModel, llm: LMWrapper, items: Sequence[Item], steps: int) -> Found:
    """Eight texts to the letter."""
    fit = overfit(model, llm, items[:8], steps)
    why = "gradients do not arrive: wiring, learning rates"
    gates = [
        Gate("overfit", "nats a token, 8 texts", round(fit.nll, 4), BOUND, why, below=True),
        Gate("overfit", "exact answers", round(fit.exact, 4), 0.99, why),
    ]
    return asdict(fit), gates


def crammed(model: LatentModel, llm: LMWrapper, items: Sequence[Item], steps: int) -> Found:
    """32 free vectors for each of four texts."""
    fit = cram(llm, [item.context for item in items[:4]], steps)
    why = "the LLM's own path: positions, mask, scale of the rows"
    return asdict(fit), [Gate("cramming", "tokens right, 32 free vectors", round(fit.exact, 4), 0.9, why)]


Check = Callable[[LatentModel, LMWrapper, Sequence[Item], int], Found]
RUN: dict[str, Check] = {
    "answers": answers,
    "reconstruction": reconstruction,
    "cloze": blanked,
    "overfit": overfitted,
    "cramming": crammed,
}
