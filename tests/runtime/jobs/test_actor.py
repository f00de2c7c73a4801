"""What runs on a node of a cluster, without a cluster."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.console import configure
from latentwire.core.errors import LatentWireError
from latentwire.runtime.jobs.backend import Runner, open_backend
from latentwire.runtime.jobs.pipes import Lines, error_from_json, error_to_json, pack, unpack
from latentwire.runtime.jobs.poison import Work
from latentwire.runtime.jobs.shard_actor import ShardActor
from latentwire.runtime.jobs.task import VERSIONS, Done, Failed, JobSpec

from .stub import contents
from .test_local import golden, run, texts


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(quiet=True)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


class OneActor:
    """A backend of one actor in this process."""

    def __init__(self, encoder: str = "open_encoder", **other: Any) -> None:
        self.encoder, self.other = encoder, other
        self.actor = ShardActor()

    def run(self, spec: JobSpec, shards: Any, on_rows: Any) -> Any:
        opening = {"spec": spec.to_json(), "encoder": f"rogue:{self.encoder}", "quiet": True, "debug": False}
        kind, value = unpack(self.actor.open(pack("open", {**opening, "versions": VERSIONS, **self.other})))
        if kind == "refused":
            raise error_from_json(value)
        assert (kind, value) == ("ready", {})
        for shard in shards:
            kind, value = unpack(self.actor.run(pack("work", Work(shard).to_json())))
            yield Done(shard, value) if kind == "done" else Failed(shard, error_from_json(value))
            assert self.actor.rows() > 0

    def close(self) -> None:
        pass


def test_same_bytes(tmp_path: Path) -> None:
    name = texts(tmp_path, (3, ""))
    run(name, tmp_path / "out", OneActor())
    assert contents(tmp_path / "out") == golden(name, tmp_path / "golden")


def refused(backend: OneActor, tmp_path: Path) -> LatentWireError:
    with pytest.raises(LatentWireError) as caught:
        run(texts(tmp_path, (3, "disk")), tmp_path / "out", backend)
    return caught.value


def test_5013_nodes_that_cannot_take_part(tmp_path: Path) -> None:
    error = refused(OneActor(versions={"latentwire": "0.0.1"}), tmp_path)
    assert (error.code, error.exit_code) == (5013, 6)
    assert "0.0.1" in error.expected
    plan = {"folder": "/elsewhere", "plan": "/elsewhere/plan.json"}
    error = refused(OneActor(spec=plan), tmp_path)
    assert (error.code, error.where) == (5013, "/elsewhere")


def test_errors_come_through(tmp_path: Path) -> None:
    assert refused(OneActor("refuse"), tmp_path).code == 5001
    error = refused(OneActor(), tmp_path)
    assert (error.code, error.where, error.exit_code) == (5004, "here", 74)


@pytest.mark.parametrize(("word", "says"), [("raise", "ZeroDivisionError: our own mistake"), ("gpu", "LW-5001")])
def test_what_another_process_may_do_better_is_broken(tmp_path: Path, word: str, says: str) -> None:
    found: list[tuple[str, Any]] = []

    class Broken(OneActor):
        def run(self, spec: JobSpec, shards: Any, on_rows: Any) -> Any:
            it = super().run(spec, [], on_rows)
            assert list(it) == []
            found.append(unpack(self.actor.run(pack("work", Work(0).to_json()))))
            return iter(())

    with pytest.raises(LatentWireError):  # the job is not finished
        run(texts(tmp_path, (3, word)), tmp_path / "out", Broken())
    assert found[0][0] == "broken"
    assert says in found[0][1]


def test_5011_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name == "ray":
            raise ModuleNotFoundError("no ray", name="ray")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(LatentWireError) as caught:
        open_backend(Runner("ray"))
    assert caught.value.code == 5011
    assert "latentwire[ray]" in caught.value.fix


def test_lines_in_any_pieces() -> None:
    whole = b"".join(pack("rows", i) for i in range(50))
    for size in (1, 7, 1000):
        lines, found = Lines(), []
        for at in range(0, len(whole), size):
            found += list(lines.feed(whole[at : at + size]))
        assert [unpack(line) for line in found] == [("rows", i) for i in range(50)]


@pytest.mark.parametrize("bad", [b"nonsense", b"[]", b'{"a": 1, "b": 2}', b"\xff"])
def test_what_is_no_message(bad: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(bad)


def test_an_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.runtime.jobs.pipes.LONGEST", 100)
    with pytest.raises(ValueError, match="endless"):
        Lines().feed(b"x" * 101)


def test_errors_survive_a_pipe() -> None:
    from latentwire.core.errors import InputError

    error = InputError(2105, "changed", where="a:1", expected="b", fix="c", exit_code=74)
    again = error_from_json(error_to_json(error))
    assert type(again) is InputError
    assert (str(again), again.exit_code) == (str(error), 74)
    assert error_from_json({**error_to_json(error), "class": "Unheard"}).code == 2105
