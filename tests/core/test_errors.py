"""The error tree: one form, and it survives a process border."""

from __future__ import annotations

import pickle

import pytest

from latentwire.core import errors

TREE = [
    errors.FrameError, errors.RowError, errors.InputError, errors.LatentError,
    errors.ModelError, errors.BundleError, errors.EnvironmentFault,
]  # fmt: skip


def test_message_has_four_parts() -> None:
    error = errors.RowError(2007, "text too long", where="a.jsonl:12", expected="at most 512, got 901", fix="chunk it")
    assert str(error) == "LW-2007 text too long; a.jsonl:12; at most 512, got 901; chunk it"
    assert str(errors.RowError(2005, "empty text")) == "LW-2005 empty text"


@pytest.mark.parametrize("kind", TREE)
def test_pickled_and_back(kind: type[errors.LatentWireError]) -> None:
    error = kind(5004, "full", where="x", expected="y", fix="z", exit_code=74)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (str(back), back.exit_code, back.code) == (str(error), 74, 5004)
    assert issubclass(kind, errors.LatentWireError)
