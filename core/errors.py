"""The one error tree.

    LatentWireError
    ├── FrameError        1101-1199  bytes that claim to be a wire frame
    ├── RowError          2001-2099  one input row; its neighbours go on
    ├── InputError        2101-2199  an input file or folder
    ├── LatentError       3001-3099  numbers a model produced
    ├── ModelError        3101-3299  models, tokenizers, checkpoints and their fingerprints
    ├── BundleError       4001-4099  exported graphs, weights, manifests
    └── EnvironmentFault  5001-5099  device, memory, disk, network, locks

Every message has the same form, so that people and programs can read it:

    LW-2007 text too long; docs.jsonl:12 (id a7); expected at most 512 tokens, got 901; pass --on-too-long chunk
"""

from __future__ import annotations

from typing import Final

EXIT_OK: Final = 0
EXIT_ROW_ERRORS: Final = 3
EXIT_BUDGET: Final = 4
EXIT_MISMATCH: Final = 5
EXIT_ENVIRONMENT: Final = 6
EXIT_IO: Final = 74
EXIT_LOCKED: Final = 75


class LatentWireError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        code: four digits, stable for ever; listed in ``docs/errors.md``.
        what: the fault, a short phrase without a full stop.
        where: the thing: ``file:line``, row id, tensor name, byte offset.
        expected: what was expected and what came.
        fix: what the reader can do about it.
        exit_code: process exit status when this error ends a command.
    """

    exit_code: int = EXIT_MISMATCH

    def __init__(
        self,
        code: int,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        fix: str = "",
        exit_code: int | None = None,
    ) -> None:
        self.code = code
        self.what = what
        self.where = where
        self.expected = expected
        self.fix = fix
        if exit_code is not None:
            self.exit_code = exit_code
        super().__init__(str(self))

    @property
    def label(self) -> str:
        """``LW-2007``: the form in which the code is printed and stored."""
        return f"LW-{self.code:04d}"

    def __str__(self) -> str:
        parts = [f"{self.label} {self.what}", self.where, self.expected, self.fix]
        return "; ".join(p for p in parts if p)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive a process border without this.
        state = (self.code, self.what, self.where, self.expected, self.fix, self.exit_code)
        return (_rebuild, (type(self), *state))


def _rebuild(
    cls: type[LatentWireError], code: int, what: str, where: str, expected: str, fix: str, exit_code: int
) -> LatentWireError:
    return cls(code, what, where=where, expected=expected, fix=fix, exit_code=exit_code)


class FrameError(LatentWireError):
    """Bytes that claim to be a wire frame and are not a valid one (1101-1199)."""


class RowError(LatentWireError):
    """One input row is unusable; the rows beside it are unharmed (2001-2099)."""


class InputError(LatentWireError):
    """An input file or folder is unusable (2101-2199)."""


class LatentError(LatentWireError):
    """A model produced numbers that must not travel: NaN, infinity, a wrong shape (3001-3099)."""


class ModelError(LatentWireError):
    """A model, tokenizer, checkpoint or fingerprint is not what was asked for (3101-3299)."""


class BundleError(LatentWireError):
    """An exported bundle is damaged, incomplete or not trusted (4001-4099)."""


class EnvironmentFault(LatentWireError):
    """The machine cannot do it: device, memory, disk, network, lock (5001-5099)."""

    exit_code = EXIT_ENVIRONMENT
