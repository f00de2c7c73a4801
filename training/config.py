"""Training configuration: frozen, validated once, saved beside every checkpoint.

The first block holds the hyperparameters of the specification under their own names (lower case here:
``LATENT_LEN`` 32, ``D_Z`` 256, ``ENCODER_TYPE``, ``K`` 4, ``FIRST_TOKEN_CE`` 0.5, ``KD_TAU`` 1.0).
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..core.errors import ModelError
from ..core.salient import PLACES, SPAN_TYPES
from .bundles import BUNDLES, FOLLOW_TERM, KEEP_TERM, needs_lesson
from .calibration import KINDS as CALIBRATIONS
from .features.options import (
    CoprocessorOptions,
    DeepPrefixOptions,
    LatentAdaptersOptions,
    LoraOptions,
    PrefixTuningOptions,
    check,
)
from .fsq import PROFILES
from .latents import parse
from .lesson import STRIDE
from .stages import Span, Stage, spans
from .token_codes import BOOKS, PROFILE

ENCODER_TYPES = ("embed_layer", "bytes")
ADAPTER_TYPES = ("learned", "linear")
QUANTISER_TYPES = ("fsq", "tokens")
ANCHOR_TEXT = (
    "The old bridge over the river was opened in 1932. Every spring, people from both towns meet there, and a band "
    "plays until the evening train arrives."
)
TASKS = ("answer", "reconstruct", "continue")
"""Tasks with learned rows, in the order in which their rows stand behind the latents. New ones go to the end."""
COUNTS = (
    *("latent_len", "d_z", "k", "encoder_layers", "max_tokens", "task_tokens"),
    *("lookup_top", "mlp_hidden", "fsq_hidden", "byte_width", "byte_layers", "lookup_size", "places"),
    *("batch", "micro_batch", "steps", "save_every", "eval_every", "eval_questions"),
)
"""Options that are at least 1."""


@dataclass(frozen=True)
class Config:
    """Everything that changes a training run.

    Attributes:
        latent_len: latents of one text (M).
        latent_choices: M drawn anew for each micro-batch: numbers, or shares of the text's tokens as ``"1/4"``;
            empty: always ``latent_len``.
        d_z: width of one latent.
        encoder_type: one of ``ENCODER_TYPES``.
        adapter_type: one of ``ADAPTER_TYPES``.
        k: the first K answer tokens that ``k_token_weight`` multiplies.
        bundle: the loss, by name (see ``bundles.py``); ``default`` is ``ce``, and ``kd`` where ``kd_weight`` is not 0.
        first_token_ce: extra cross-entropy on the first answer token, as a factor.
        kd_tau: temperature of the distillation from the text-prompted teacher.
        kd_weight: weight of the distillation term of ``default``; 0 leaves the teacher out.
        teacher_top: tokens that are kept of a teacher's distribution, with one rest; 0 keeps all.
        teacher_cache: folder in which they are kept for later steps and later runs; empty: they are not. Needs
            ``teacher_top``.
        k_token_weight: weight of the first K answer tokens against the later ones.
        encoder_llm: name, folder or hub id of the LLM whose first layers start the encoder.
        llms: the frozen LLMs, one adapter each.
        encoder_layers: how many layers are copied.
        byte_width: width of the byte encoder.
        byte_layers: its transformer layers.
        byte_lexicon: strings that it knows by their bytes, taken from its teacher's vocabulary; 0: none.
        teacher: checkpoint whose encoder a byte encoder learns from and whose adapters it takes over.
        max_tokens: the encoder's window in tokens (bytes: in bytes, about four to a token).
        task_tokens: learned rows per task, placed between latents and question.
        tasks: the tasks that have rows: a beginning of ``TASKS``.
        lookup_top: vocabulary entries that the learned adapter mixes for one latent.
        lookup_tau: start of its softmax temperature (cosine units).
        lookup_size: tokens with a key of their own, where the LLM is of another family than the encoder's.
        calibration: how adapter rows are brought to the LLM's embedding statistics, see ``calibration.py``.
        anchor_text: text whose statistics ``calibration = "anchor_text"`` takes.
        span_type: how a text is cut into spans, one a latent: ``equal``, ``salient``, see ``pooling``, or ``learned``,
            see ``keeping``.
        places: tokens that a latent names, by its lookup (see ``binding``); 1: the most salient of its span.
        salience: how sharply the start prefers rare tokens inside a span.
        mlp_hidden: hidden width of the learned adapter's MLP.
        fsq_profile: quantiser trained beside the raw latents: 1 (32 bits a latent), 2 (60 bits); 0: none.
        quantiser_type: ``fsq``, learned; ``tokens``, a token and what is left of it, no gradient needed, profile 1
            only.
        fsq_hidden: width of the MLPs of ``fsq``.
        fsq_fit: steps that fit it to latents alone, before anything else.
        fsq_share: share of samples that pass it at the first step, the others stay raw.
        fsq_ramp: share of ``steps`` over which that grows to all of them.
        features: optional parts of the model, some of ``features.options.KINDS``; each has a table of its name here.
        data: question files (JSONL or JSONL.gz).
        eval_data: held-out question files, for measurements while training.
        prose: passage files (Parquet with a ``text`` column).
        batch: contexts in one optimiser step.
        micro_batch: contexts in one forward pass.
        branch_tokens: at most this many branch positions behind one context; one branch is always kept.
        prose_share: share of micro-batches that come from ``prose``.
        reconstruct_share: share of prose branches that ask for text verbatim, the others are cloze questions, of which
            each passage has at least one unless this is 1.
        continue_share: share of passages whose following 32-64 tokens are asked for; needs the task ``continue``.
        example_share: share of micro-batches of questions that open with a worked example, another question with an
            excerpt of its text, as the protocol ``one-shot`` asks.
        stage: the curriculum (see ``stages.py``); empty: one stage with the options here.
        format_steps: steps that train the task rows alone, on full text, before anything else moves.
        steps: optimiser steps after that.
        lr_new: learning rate of modules that start from nothing.
        lr_copied: learning rate of copied LLM layers.
        lr_projection: learning rate of the closed-form projections.
        lr_task: learning rate of the task rows in the format stage.
        warmup: share of ``steps`` for the linear warm-up; cosine to ``lr_floor`` follows.
        lr_floor: final learning rate as a share of the peak.
        weight_decay: AdamW weight decay on matrices.
        clip: gradient norm limit.
        precision: ``bf16`` or ``fp32`` for the frozen LLM and the encoder's matrix products.
        seed: every batch is a pure function of (seed, step).
        save_every: steps between checkpoints.
        eval_every: steps between held-out measurements.
        eval_questions: held-out questions in them.
        patience: stop after this many measurements without a better one; 0: never.
        init: checkpoint whose weights the run starts from instead of the closed-form start; empty: none. The task rows
            are trained again only for tasks that it does not know.
        workers: processes that make batches; below 0: none on a CPU, all cores but two, at most 12, beside a GPU.
        tensorboard: also write TensorBoard events into the run folder.
        threads: torch threads; 0 leaves torch's own choice.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    latent_len: int = 32
    latent_choices: tuple[int | str, ...] = ()
    d_z: int = 256
    encoder_type: str = "embed_layer"
    adapter_type: str = "learned"
    k: int = 4
    bundle: str = "default"
    first_token_ce: float = 0.5
    kd_tau: float = 1.0
    kd_weight: float = 0.0
    teacher_top: int = 0
    teacher_cache: str = ""
    k_token_weight: float = 2.0

    encoder_llm: str = "smollm2-135m"
    llms: tuple[str, ...] = ("smollm2-135m",)
    encoder_layers: int = 3
    byte_width: int = 352
    byte_layers: int = 6
    byte_lexicon: int = 49152
    teacher: str = ""
    max_tokens: int = 512
    task_tokens: int = 4
    tasks: tuple[str, ...] = TASKS[:2]
    lookup_top: int = 16
    lookup_tau: float = 0.05
    lookup_size: int = 32768
    calibration: str = "none"
    anchor_text: str = ANCHOR_TEXT
    span_type: str = "salient"
    salience: float = 2.0
    places: int = 1
    mlp_hidden: int = 1024
    fsq_profile: int = 0
    quantiser_type: str = "fsq"
    fsq_hidden: int = 512
    fsq_fit: int = 400
    fsq_share: float = 0.5
    fsq_ramp: float = 1 / 3
    features: tuple[str, ...] = ()
    lora: LoraOptions = field(default_factory=LoraOptions)
    prefix_tuning: PrefixTuningOptions = field(default_factory=PrefixTuningOptions)
    deep_prefix: DeepPrefixOptions = field(default_factory=DeepPrefixOptions)
    coprocessor: CoprocessorOptions = field(default_factory=CoprocessorOptions)
    latent_adapters: LatentAdaptersOptions = field(default_factory=LatentAdaptersOptions)

    data: tuple[str, ...] = ()
    eval_data: tuple[str, ...] = ()
    prose: tuple[str, ...] = ()
    batch: int = 16
    micro_batch: int = 8
    branch_tokens: int = 160
    prose_share: float = 0.5
    reconstruct_share: float = 0.3
    continue_share: float = 0.0
    example_share: float = 0.0
    stage: tuple[Stage, ...] = ()
    format_steps: int = 40
    steps: int = 1000
    lr_new: float = 3e-4
    lr_copied: float = 1e-4
    lr_projection: float = 5e-5
    lr_task: float = 3e-3
    warmup: float = 0.03
    lr_floor: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: str = "bf16"
    seed: int = 0
    save_every: int = 50
    eval_every: int = 100
    eval_questions: int = 160
    patience: int = 0
    init: str = ""
    workers: int = -1
    tensorboard: bool = False
    threads: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        _one_of("encoder_type", self.encoder_type, ENCODER_TYPES)
        _one_of("adapter_type", self.adapter_type, ADAPTER_TYPES)
        _one_of("span_type", self.span_type, SPAN_TYPES)
        _one_of("quantiser_type", self.quantiser_type, QUANTISER_TYPES)
        _one_of("bundle", self.bundle, tuple(BUNDLES))
        _one_of("calibration", self.calibration, CALIBRATIONS)
        _one_of("precision", self.precision, ("bf16", "fp32"))
        _one_of("device", self.device, ("auto", "cpu", "cuda"))
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise _bad(name, "at least 1", getattr(self, name))
        for name in ("kd_tau", "lookup_tau", "clip"):
            if not getattr(self, name) > 0:
                raise _bad(name, "more than 0", getattr(self, name))
        shares = ("prose_share", "reconstruct_share", "continue_share", "example_share", "warmup", "lr_floor")
        for name in (*shares, "fsq_share", "fsq_ramp"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise _bad(name, "a share from 0 to 1", getattr(self, name))
        for name in ("patience", "byte_lexicon"):
            if getattr(self, name) < 0:
                raise _bad(name, "0 or more", getattr(self, name))
        if self.batch % self.micro_batch:
            raise _bad("batch", f"a multiple of micro_batch={self.micro_batch}", self.batch)
        if self.tasks != TASKS[: max(1, len(self.tasks))]:
            raise _bad("tasks", f"the first of {', '.join(TASKS)}, in this order", self.tasks)
        if self.byte_width % 4:
            raise _bad("byte_width", "a multiple of 4", self.byte_width)
        if self.encoder_type == "bytes" and not (self.teacher or self.init):
            raise _bad("teacher", "a checkpoint to learn from (or init, to go on from one)", self.teacher)
        if self.encoder_type == "bytes" and self.span_type != "equal" and not self.byte_lexicon:
            raise _bad("span_type", "equal where byte_lexicon is 0: nothing tells which bytes are rare", self.span_type)
        bundles = {self.bundle, *(stage.bundle for stage in self.stage)}
        heads = bundles & {KEEP_TERM, FOLLOW_TERM}
        if self.span_type != "learned" and heads:
            raise _bad("span_type", f"learned where the bundle {min(heads)} is trained", self.span_type)
        if KEEP_TERM in heads and self.encoder_type == "bytes":
            raise _bad("bundle", f"{FOLLOW_TERM} where encoder_type is bytes", KEEP_TERM)
        for stage in self.stage:
            if (stage.bundle or self.bundle) in heads and "encoder" not in stage.train:
                raise _bad(f"train of stage {stage.name}", "encoder: its head is learned", list(stage.train))
        if self.places > 1 and self.encoder_type == "bytes" and not self.byte_lexicon:
            raise _bad("places", "1 where byte_lexicon is 0: nothing knows tokens by their bytes", self.places)
        if self.places > 1 and self.adapter_type != "learned":
            raise _bad("places", f"1 where adapter_type is {self.adapter_type}, which looks nothing up", self.places)
        grain = 1 if self.span_type == "learned" else self.stride
        if self.span_type != "equal" and -(-self.max_tokens // grain) > PLACES:
            most = f"at most {PLACES * grain} where span_type is {self.span_type}"
            raise _bad("max_tokens", most, self.max_tokens)
        if not self.anchor_text.strip():
            raise _bad("anchor_text", "a text", self.anchor_text)
        if self.fsq_profile not in (0, *PROFILES):
            raise _bad("fsq_profile", f"0 or one of {', '.join(map(str, PROFILES))}", self.fsq_profile)
        check(self.features)
        if self.quantiser_type == "tokens" and self.fsq_profile != PROFILE:
            raise _bad("fsq_profile", f"{PROFILE} where quantiser_type is tokens", self.fsq_profile)
        if self.fsq_profile and self.quantiser_type == "tokens" and self.places not in BOOKS:
            raise _bad("places", f"one of {', '.join(map(str, BOOKS))} where codes are tokens", self.places)
        for choice in self.latent_choices:
            parse(choice)
        continued = max([self.continue_share, *(stage.continue_share for stage in self.stage)])
        if continued > 0 and "continue" not in self.tasks:
            raise _bad("tasks", f"{list(TASKS)} where passages are continued", list(self.tasks))
        for stage in self.stage:
            for choice in stage.latent_choices:
                parse(choice)
            if strangers := sorted(set(stage.llms) - set(self.llms)):
                raise _bad(f"llms of stage {stage.name}", "some of " + ", ".join(self.llms), strangers)
        learns = sorted(name for name in bundles if name and needs_lesson(BUNDLES[name]))
        if learns and (self.encoder_type != "bytes" or not self.teacher):
            raise _bad("bundle", "encoder_type bytes and a teacher where latents or its head are learned", learns[0])
        if self.teacher_cache and self.teacher_top < 1:
            raise _bad("teacher_top", "at least 1 where a teacher_cache keeps them", self.teacher_top)
        for stage in self.stage:
            # The teacher reads the task rows; what it said behind other ones is of no use.
            if self.teacher_cache and "task" in stage.train:
                raise _bad(f"train of stage {stage.name}", "no task beside teacher_cache", list(stage.train))
        spans(self.stage, self.steps)
        if not self.llms:
            raise _bad("llms", "at least one LLM", self.llms)

    @property
    def stride(self) -> int:
        """Ids of the encoder that one of its states stands for: what lengths in tokens are multiplied by."""
        return STRIDE if self.encoder_type == "bytes" else 1

    @property
    def cut(self) -> str:
        """How texts are cut, as metadata tell it: the span type, and the pieces of a span where there are several."""
        return self.span_type if self.places == 1 else f"{self.span_type}/{self.places}"

    @property
    def window(self) -> int:
        """The encoder's window in states: about as many tokens."""
        return self.max_tokens // self.stride

    @property
    def front_rows(self) -> int:
        """Adapter rows that stand before the latents in every prompt."""
        return self.prefix_tuning.rows if "prefix_tuning" in self.features else 0

    def spans(self) -> tuple[Span, ...]:
        """The stages with their steps."""
        return spans(self.stage, self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as stored in ``meta.json``."""
        out: dict[str, Any] = _plain(asdict(self))
        return out


def _plain(value: Any) -> Any:
    """Tuples as lists, at every depth."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise _bad(name, " or ".join(allowed), value)


def _bad(name: str, expected: str, came: object) -> ModelError:
    return ModelError(3210, f"bad training option {name}", expected=f"expected {expected}, got {came!r}")


def from_mapping(values: dict[str, Any], where: str) -> Config:
    """Build a config from parsed TOML or JSON.

    Raises:
        ModelError: 3210 for an unknown name or a value of the wrong type.
    """
    config: Config = _build(Config, values, where)
    return config


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ModelError(
            3210,
            f"unknown training option {unknown[0]}",
            where=where,
            expected="expected one of " + ", ".join(sorted(known)),
        )
    return kind(**{name: _coerce(name, value, hints[name]) for name, value in values.items()})


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` says: a plain type, a union of them, ``tuple[X, ...]``, or a dataclass given as a table."""
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise _bad(name, "a list", value)
        return tuple(_coerce(name, item, get_args(hint)[0]) for item in value)
    if isinstance(hint, UnionType):
        if not isinstance(value, get_args(hint)) or (isinstance(value, bool) and bool not in get_args(hint)):
            raise _bad(name, " or ".join(t.__name__ for t in get_args(hint)), value)
        return value
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise _bad(name, "a table", value)
        return _build(hint, value, name)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _bad(name, hint.__name__, value)
    return value


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply ``key=value`` or ``table.key=value`` overrides (TOML values; bare words are strings).

    Raises:
        ModelError: 3210 for anything that is not a valid option; 3204 if the file is missing.
    """
    if not path.is_file():
        raise ModelError(3204, "no such config file", where=str(path))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ModelError(3210, "config is not TOML", where=str(path), expected=str(e)) from e
    for item in overrides:
        key, _, text = item.partition("=")
        _put(values, key.strip().split("."), _parse(text))
    return from_mapping(values, str(path))


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set ``table.name`` of nested tables; what is no table is replaced, and refused by ``_coerce`` if it must not."""
    for name in path[:-1]:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[path[-1]] = value


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
