"""Opening a bundle: every way in which it can be wrong has its own code, and nothing is run before the checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.errors import BundleError
from latentwire.engines.bundle import MANIFEST, describe, read_bundle
from latentwire.engines.manifest import body_fingerprint, parse
from latentwire.engines.toy import write_toy_bundle

NAMES = ["toy.json", "tokenizer.json", "encoder_tokenizer.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "bundle").path


def fails(folder: Path, code: int, **options: Any) -> BundleError:
    with pytest.raises(BundleError) as caught:
        read_bundle(folder, **options)
    assert caught.value.code == code, caught.value
    return caught.value


def edit(folder: Path, change: Callable[[dict[str, Any]], object], *, reseal: bool = True) -> None:
    """Change the manifest; its own fingerprint is put right unless the test is about that."""
    path = folder / MANIFEST
    body = json.loads(path.read_text())
    change(body)
    if reseal:
        body["fingerprint"] = body_fingerprint(body)
    path.write_text(json.dumps(body))


def test_round_trip(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.manifest == parse(json.dumps(bundle.manifest.to_json()).encode(), "again")
    assert bundle.manifest.fingerprint == bundle.manifest.to_json()["fingerprint"]
    assert bundle.manifest.encoder.model_id.hex() == bundle.manifest.encoder.fingerprint[:8]
    assert bundle.file("toy.json") == folder / "toy.json"


def test_same_content_same_fingerprint(tmp_path: Path) -> None:
    first, second, other = (write_toy_bundle(tmp_path / n, seed=s) for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert first.manifest.fingerprint == second.manifest.fingerprint != other.manifest.fingerprint
    assert first.manifest.encoder.model_id != other.manifest.encoder.model_id


@pytest.mark.parametrize("name", NAMES)
def test_one_byte_changed(folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    error = fails(folder, 4007)
    assert error.where == str(path)
    assert describe(path).sha256 in error.expected
    read_bundle(folder, verify="size")


@pytest.mark.parametrize("verify", ["full", "size"])
def test_one_byte_more(folder: Path, verify: str) -> None:
    with (folder / "toy.json").open("ab") as f:
        f.write(b" ")
    fails(folder, 4007, verify=verify)


@pytest.mark.parametrize("name", NAMES)
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert fails(folder, 4008).where == str(folder / name)


def test_link_in_place_of_a_file(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.json"
    (folder / "toy.json").rename(target)
    (folder / "toy.json").symlink_to(target)
    assert str(target) in fails(folder, 4002).expected


def test_link_that_nobody_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "decoder.safetensors").symlink_to(tmp_path)
    fails(folder, 4002)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file", "..", ""])
def test_path_in_place_of_a_name(folder: Path, name: str) -> None:
    edit(folder, lambda body: body["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    fails(folder, 4002)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    assert "latentwire export" in fails(tmp_path, 4001).fix
    fails(tmp_path / "nowhere", 4001)
    (tmp_path / MANIFEST).mkdir()
    fails(tmp_path, 4001)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"null", b'{"format":"other"}', b"[" * 9999]
)
def test_manifest_that_is_none(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    fails(folder, 4001)


def test_manifest_without_end(folder: Path) -> None:
    with (folder / MANIFEST).open("ab") as f:
        f.write(b" " * (4 << 20))
    assert fails(folder, 4001).what == "manifest is too long"


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.pop("encoder"),
        lambda b: b["encoder"].pop("d_z"),
        lambda b: b["encoder"].update(d_z="256"),
        lambda b: b["encoder"].update(d_z=True),
        lambda b: b["encoder"].update(fingerprint="not hex"),
        lambda b: b["llm"].update(bos=5),
        lambda b: b["llm"].update(extra=5),
        lambda b: b.update(surprise=1),
        lambda b: b.update(files=[]),
        lambda b: b["graphs"]["encoder"].update(inputs=[{"name": "x"}]),
    ],
)
def test_manifest_incomplete_or_odd(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(folder, change)
    assert fails(folder, 4001).what == "manifest is incomplete or malformed"


@pytest.mark.parametrize("version", ["1", None, 0, 1.5, True])
def test_manifest_without_a_known_version(folder: Path, version: object) -> None:
    edit(folder, lambda body: body.update(version=version))
    fails(folder, 4001)


def test_later_version(folder: Path) -> None:
    edit(folder, lambda body: body.update(version=5, anything="else"))
    fails(folder, 4009)


@pytest.mark.parametrize(
    ("version", "absent"), [(1, ("flavour", "capacity", "plans", "features")), (2, ("features",)), (3, ())]
)
def test_earlier_versions(folder: Path, version: int, absent: tuple[str, ...]) -> None:
    """Bundles written before flavours and plans, features, or span types are read as what they were."""

    def older(body: dict[str, Any]) -> None:
        body["version"] = version
        for key in absent:
            del body[key]
        del body["encoder"]["span_type"]

    edit(folder, older)
    manifest = read_bundle(folder).manifest
    assert (manifest.flavour, manifest.capacity, manifest.plans, manifest.features) == ("dual", 0, {}, {})
    assert manifest.encoder.span_type == "equal"
    edit(folder, lambda body: body["encoder"].update(kind=7))
    fails(folder, 4001)


def test_a_key_that_came_later_than_the_version(folder: Path) -> None:
    edit(folder, lambda body: (body.update(version=2), body["encoder"].pop("span_type")))
    fails(folder, 4001)
    edit(folder, lambda body: body.update(version=4))
    fails(folder, 4001)


@pytest.mark.parametrize("rows", [-1, "3", 1.5, None, True])
def test_impossible_front_rows(folder: Path, rows: object) -> None:
    edit(folder, lambda body: body.update(features={"prefix_tuning": {"rows": 3}}))
    assert read_bundle(folder).manifest.front_rows == 3
    edit(folder, lambda body: body.update(features={"prefix_tuning": {"rows": rows}}))
    fails(folder, 4001)


def test_manifest_changed_by_hand(folder: Path) -> None:
    edit(folder, lambda body: body["encoder"].update(max_tokens=999), reseal=False)
    assert fails(folder, 4007).what == "manifest was changed after export"


def test_external_data_outside(folder: Path, tmp_path: Path) -> None:
    """A graph that would make an engine read some other file is refused, with both paths."""
    entry = field(13, field(1, b"location") + field(2, b"../other.bin"))
    (folder / "decoder.onnx").write_bytes(field(7, field(5, entry)))
    listed = describe(folder / "decoder.onnx")
    edit(folder, lambda b: b["files"].update({"decoder.onnx": {"sha256": listed.sha256, "bytes": listed.bytes}}))
    error = fails(folder, 4002)
    assert "'../other.bin'" in error.expected
    assert str(tmp_path / "other.bin") in error.expected


def test_graph_that_is_no_graph(folder: Path) -> None:
    (folder / "decoder.onnx").write_bytes(b"\x3a\xff\xff\xff\xff\x0f")
    listed = describe(folder / "decoder.onnx")
    edit(folder, lambda b: b["files"].update({"decoder.onnx": {"sha256": listed.sha256, "bytes": listed.bytes}}))
    assert fails(folder, 4001).what == "graph is not an ONNX file"


def field(number: int, content: bytes) -> bytes:
    """One length-delimited protobuf field, for content under 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content
