"""manifest.json of a bundle: dataclasses, strict reading, canonical writing.

Knows JSON only: nothing here opens a graph or hashes a file. Keys this version does not know are refused,
so that a later version may give them a meaning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, TypeVar

from ..core.errors import BundleError
from .tensors import GraphSpec, TensorSpec

FORMAT: Final = "latentwire-bundle"
VERSION: Final = 4
"""1: before flavours, fixed capacities and plans; 2: before features; 3: before span types; all are still read."""
LATER: Final[dict[int, dict[str, Any]]] = {1: {"flavour": "dual", "capacity": 0, "plans": {}}, 2: {"features": {}}}
"""Keys that came after a version, and what bundles of that version meant."""

T = TypeVar("T")


@dataclass(frozen=True)
class FileEntry:
    """One file: SHA-256 in hex, size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class EncoderInfo:
    """The encoder: frames carry the first four bytes of ``fingerprint`` as their model id.

    Attributes:
        kind: name of the encoder class in training.
        fingerprint: hex SHA-256 of the trained weights and their settings.
        d_z: size of one latent.
        latents: M used when the caller names none.
        max_tokens: longest text in encoder tokens.
        span_type: how it cuts a text, a latent for each piece: ``equal``, ``salient``, see ``core.salient``, or
            ``learned``, as its own graph says; with ``/P`` behind it, a latent for each P pieces.
    """

    kind: str
    fingerprint: str
    d_z: int
    latents: int
    max_tokens: int
    span_type: str = "equal"

    @property
    def model_id(self) -> bytes:
        """Four bytes that a frame carries to name its encoder."""
        return bytes.fromhex(self.fingerprint)[:4]


@dataclass(frozen=True)
class LlmInfo:
    """The frozen LLM. ``bos``, ``eos``: token ids; ``pad``: one id; ``max_positions``: its own limit."""

    name: str
    fingerprint: str
    family: str
    hidden_size: int
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    bos: tuple[int, ...]
    eos: tuple[int, ...]
    pad: int
    dtype: str


@dataclass(frozen=True)
class AdapterInfo:
    """The adapter: ``task_tokens`` (K) rows follow the M rows made from latents, then those of features."""

    kind: str
    task_tokens: int
    fingerprint: str


@dataclass(frozen=True)
class PlanInfo:
    """A graph compiled by TensorRT: machine code for the GPUs it names, loaded by the version that wrote it.

    Attributes:
        file: name in ``files``, where its SHA-256 stands.
        package: ``tensorrt`` or ``tensorrt-rtx``.
        version: of that package, in full.
        gpus: compute capabilities, such as ``sm_89``.
        batch: largest B.
        length: largest S (decoder: positions of one call; encoder: tokens of a text; splice: T).
        seconds: what the build took.
        audit: what was counted in the parsed network before the build.
    """

    file: str
    package: str
    version: str
    gpus: tuple[str, ...]
    batch: int
    length: int
    seconds: float
    audit: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """All that a bundle says about itself.

    Attributes:
        files: by file name, every file of the bundle except manifest.json.
        graphs: by part (``encoder``, ``adapter``, ``splice``, ``decoder``).
        precision: how the decoder stores and multiplies: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``w8``, ``w4`` or
            ``fp8``.
        quality: measured figures of the checkpoint, as its meta.json gave them, and of the export.
        versions: package name to version, of what wrote the bundle.
        flavour: attention node of the decoder: ``dual``, ``mask`` or ``gqa``.
        capacity: cache slots a row that the decoder graph is fixed to; 0: any.
        plans: by part, graphs compiled for TensorRT.
        features: by kind, what is at work beside the adapter where latents stand in a prompt: ``sha256`` of its weights
            in the checkpoint, and what an engine must know of it.
        fingerprint: SHA-256 of everything above; filled by ``seal``.
    """

    files: Mapping[str, FileEntry]
    encoder: EncoderInfo
    llm: LlmInfo
    adapter: AdapterInfo
    graphs: Mapping[str, GraphSpec]
    precision: str
    quality: Mapping[str, Any]
    versions: Mapping[str, str]
    flavour: str = "dual"
    capacity: int = 0
    plans: Mapping[str, PlanInfo] = field(default_factory=dict)
    features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def front_rows(self) -> int:
        """V: rows of the adapter that stand before the latents (prefix tuning); they come behind the task rows."""
        return _is(int, self.features["prefix_tuning"].get("rows")) if "prefix_tuning" in self.features else 0

    def to_json(self) -> dict[str, Any]:
        """The JSON object that the manifest holds."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "encoder": asdict(self.encoder),
            "llm": asdict(self.llm),
            "adapter": asdict(self.adapter),
            "graphs": {name: graph.to_json() for name, graph in self.graphs.items()},
            "precision": self.precision,
            "quality": dict(self.quality),
            "versions": dict(self.versions),
            "flavour": self.flavour,
            "capacity": self.capacity,
            "plans": {part: asdict(plan) for part, plan in self.plans.items()},
            "features": {kind: dict(facts) for kind, facts in self.features.items()},
        }
        return {**body, "fingerprint": body_fingerprint(body)}


def body_fingerprint(body: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without its fingerprint: JSON, keys sorted, no spaces, UTF-8."""
    rest = {k: v for k, v in body.items() if k != "fingerprint"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def parse(data: bytes, where: str) -> Manifest:
    """Read a manifest.

    Args:
        data: content of manifest.json.
        where: name for error messages.

    Raises:
        BundleError: 4001 not a manifest; 4009 a later version; 4007 fingerprint differs from the content.
    """
    try:
        body = json.loads(data)
    except (UnicodeDecodeError, ValueError, RecursionError) as e:
        raise BundleError(4001, "manifest is not JSON", where=where, expected=str(e)) from e
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise BundleError(
            4001,
            "not a bundle manifest",
            where=where,
            expected=f'expected "format": "{FORMAT}"',
            fix="give the folder that latentwire export wrote",
        )
    version = body.get("version")
    if isinstance(version, int) and version > VERSION:
        raise BundleError(
            4009,
            "bundle was written by a later version",
            where=where,
            expected=f"this version reads up to {VERSION}, the bundle is {version}",
            fix="update latentwire or export again",
        )
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(
            4001, "manifest has no version", where=where, expected=f"expected 1 to {VERSION}, got {version!r:.40}"
        )
    try:
        return _build(body)
    except (KeyError, TypeError, ValueError) as e:
        raise BundleError(4001, "manifest is incomplete or malformed", where=where, expected=str(e)) from e


def _build(body: dict[str, Any]) -> Manifest:
    absent: dict[str, Any] = {k: v for n, keys in LATER.items() if body["version"] <= n for k, v in keys.items()}
    known = {f.name for f in fields(Manifest)} | {"format", "version"}
    if unknown := set(body) - (known - set(absent)):
        raise ValueError(f"unknown keys {sorted(unknown)}")
    given = body | absent
    manifest = Manifest(
        files=_table(body["files"], lambda v: _record(FileEntry, v)),
        encoder=_record(EncoderInfo, _encoder(body)),
        llm=_record(LlmInfo, body["llm"]),
        adapter=_record(AdapterInfo, body["adapter"]),
        graphs=_table(body["graphs"], _graph),
        precision=_is(str, body["precision"]),
        quality=_is(dict, body["quality"]),
        versions=_table(body["versions"], lambda v: _is(str, v)),
        flavour=_is(str, given["flavour"]),
        capacity=_is(int, given["capacity"]),
        plans=_table(given["plans"], lambda v: _record(PlanInfo, v)),
        features=_table(given["features"], lambda v: _is(dict, v)),
        fingerprint=_is(str, body["fingerprint"]),
    )
    bytes.fromhex(manifest.encoder.fingerprint)
    if manifest.front_rows < 0:
        raise ValueError(f"prefix_tuning has {manifest.front_rows} rows")
    if body_fingerprint(body) != manifest.fingerprint:
        raise BundleError(
            4007,
            "manifest was changed after export",
            where="manifest.json",
            expected=f"expected fingerprint {body_fingerprint(body)}, got {manifest.fingerprint}",
            fix="export again or copy the bundle again",
        )
    return manifest


def _encoder(body: dict[str, Any]) -> object:
    """Its facts; before version 4 texts were cut evenly."""
    given = body["encoder"]
    if body["version"] > 3 or not isinstance(given, dict) or "span_type" in given:
        return given
    return given | {"span_type": "equal"}


def _is(kind: type[T], value: object) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"expected {kind.__name__}, got {value!r:.80}")
    return value


def _table(value: object, item: Callable[[object], T]) -> dict[str, T]:
    return {_is(str, k): item(v) for k, v in _is(dict, value).items()}


def _record(cls: type[T], value: object) -> T:
    """A flat dataclass from a JSON object whose keys are exactly its fields."""
    given = _is(dict, value)
    wanted = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
    if set(given) != set(wanted):
        raise ValueError(f"{cls.__name__} needs keys {sorted(wanted)}, got {sorted(given)}")
    read: dict[str, Callable[[object], object]] = {
        "str": lambda v: _is(str, v),
        "int": lambda v: _is(int, v),
        "float": lambda v: _is(float, v),
        "Mapping[str, Any]": lambda v: _is(dict, v),
        "tuple[str, ...]": lambda v: tuple(_is(str, i) for i in _is(list, v)),
        "tuple[int, ...]": lambda v: tuple(_is(int, i) for i in _is(list, v)),
    }
    return cls(**{name: read[kind](given[name]) for name, kind in wanted.items()})


def _graph(value: object) -> GraphSpec:
    given = _is(dict, value)
    return GraphSpec(
        tuple(_tensor(v) for v in _is(list, given["inputs"])), tuple(_tensor(v) for v in _is(list, given["outputs"]))
    )


def _tensor(value: object) -> TensorSpec:
    given = _is(dict, value)
    dims = tuple(d if isinstance(d, str) else _is(int, d) for d in _is(list, given["dims"]))
    return TensorSpec(_is(str, given["name"]), _is(str, given["dtype"]), dims)
