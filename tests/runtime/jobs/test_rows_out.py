"""Jobs in other hands: index, export, merge, and programs that know nothing of this project."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from latentwire.cli import app
from latentwire.core.console import configure
from latentwire.core.errors import LatentWireError
from latentwire.runtime import message, wire
from latentwire.runtime.jobs.export_rows import export_rows
from latentwire.runtime.jobs.index import INDEX, JobIndex
from latentwire.runtime.jobs.inprocess import InProcess
from latentwire.runtime.jobs.merge import merge_jobs
from latentwire.runtime.jobs.records import Fields
from latentwire.runtime.jobs.run import RunOptions, describe, plan_job, run_job
from latentwire.runtime.jobs.source import open_source
from latentwire.runtime.jobs.table import StoredRow
from latentwire.runtime.jobs.verify import verify_job
from latentwire.runtime.options import CompressOptions, Machine
from latentwire.runtime.pipeline import Pipeline


@pytest.fixture(autouse=True)
def quiet() -> None:
    configure(quiet=True)


def stops(code: int, body: Callable[[], object]) -> LatentWireError:
    with pytest.raises(LatentWireError) as caught:
        body()
    assert caught.value.code == code, caught.value
    return caught.value


def compress(pipe: Pipeline, out: Path, codec: Any = "i8", rows: int = 20, first: int = 0, **how: Any) -> Path:
    """A job of ``rows`` rows, one of them bad and one in two chunks, in shards of eight."""
    found = [{"custom_id": f"r{i}", "text": f"text number {i}", "tag": f"t{i}"} for i in range(first, first + rows)]
    found[3]["text"] = ""
    found[5]["text"] = "words and words " * 5
    source = out.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(r) + "\n" for r in found))
    plan = plan_job([str(source)], Fields(keep=("tag",)), 8)
    options = CompressOptions(codec, on_too_long="chunk", **how)
    run_job(describe(plan, pipe.bundle, options), out, InProcess(), Machine(), RunOptions())
    return out


@pytest.fixture
def job(pipe: Pipeline, tmp_path: Path) -> Path:
    return compress(pipe, tmp_path / "job")


def rows_of(folder: Path) -> list[StoredRow]:
    return list(open_source(folder).rows())


def sound(folder: Path) -> list[tuple[StoredRow, message.Message]]:
    return [(r, r.message) for r in rows_of(folder) if r.message]


# --- index ------------------------------------------------------------------------------------------------


def test_index_finds_every_row(job: Path) -> None:
    error = stops(2106, lambda: JobIndex(job))
    assert "jobs index" in error.fix
    index = JobIndex.build(job)
    assert len(index) == 20
    for row in rows_of(job):
        assert index.find(row.custom_id) == row
    assert index.find("nobody") is None
    verify_job(job)
    assert [p.name for p in job.iterdir() if p.name.startswith(".")] == []


def test_2108_an_index_of_other_tables_is_not_used(pipe: Pipeline, job: Path, tmp_path: Path) -> None:
    JobIndex.build(job)
    other = compress(pipe, tmp_path / "other", rows=8)
    (other / INDEX).write_bytes((job / INDEX).read_bytes())
    stops(2108, lambda: JobIndex(other))
    (other / INDEX).write_bytes(b"not a data base at all" * 100)
    stops(2108, lambda: JobIndex(other))
    assert len(JobIndex.build(other)) == 8
    (job / "manifest.json").unlink()
    stops(2108, lambda: JobIndex(job))


# --- export -----------------------------------------------------------------------------------------------


def test_export_to_frames(job: Path, tmp_path: Path) -> None:
    written = export_rows(job, "frames", tmp_path / "all.lwf")
    assert (written.rows, written.left_out) == (19, 1)
    found = rows_of(tmp_path / "all.lwf")
    assert [r.custom_id for r in found] == [r.custom_id for r, _ in sound(job)]
    for row, (_, before) in zip(found, sound(job), strict=True):
        assert row.message
        assert np.array_equal(row.message.z(), before.z())
    stops(5008, lambda: export_rows(job, "frames", tmp_path / "all.lwf"))


def test_export_to_json_lines(job: Path, tmp_path: Path) -> None:
    export_rows(job, "jsonl", tmp_path / "all.jsonl")
    found = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    for line, row in zip(found, rows_of(job), strict=True):
        assert (line["custom_id"], line["row_index"], line["tag"]) == (row.custom_id, row.row_index, row.columns["tag"])
        if row.message:
            assert base64.b64decode(line["frames"]) == row.message.pack()
        else:
            assert (line["status"], line["error_code"], line["frames"]) == ("error", row.error_code, None)


@pytest.mark.parametrize(("codec", "dtype"), [("i8", np.float32), ("f16", np.float16)])
def test_export_to_arrays(pipe: Pipeline, tmp_path: Path, codec: str, dtype: Any) -> None:
    job = compress(pipe, tmp_path / "job", codec)
    written = export_rows(job, "npy", tmp_path / "npy")
    export_rows(job, "safetensors", tmp_path / "st")
    latents = np.load(tmp_path / "npy" / "latents.npy", mmap_mode="r")
    assert (latents.dtype, latents.shape) == (dtype, (written.latents, 8))
    places = [json.loads(line) for line in (tmp_path / "npy" / "rows.jsonl").read_text().splitlines()]
    parts = [load_file(p) for p in sorted((tmp_path / "st").iterdir())]
    assert len(parts) == 3
    names = [n for part in parts for n in _split(part["custom_ids"].tobytes(), part["custom_id_ends"])]
    arrays = [z for part in parts for z in np.split(part["latents"], part["latent_ends"][:-1])]
    for (row, found), place, name, array in zip(sound(job), places, names, arrays, strict=True):
        z = found.z().astype(dtype)
        assert place["custom_id"] == name.decode() == row.custom_id
        assert place["tag"] == row.columns["tag"]
        assert np.array_equal(latents[place["start"] : place["start"] + place["count"]], z)
        assert np.array_equal(array, z)


def _split(data: bytes, ends: Any) -> list[bytes]:
    return [data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def test_export_of_texts_and_of_nothing(pipe: Pipeline, tmp_path: Path) -> None:
    job = compress(pipe, tmp_path / "job", "text")
    assert export_rows(job, "npy", tmp_path / "npy").latents == 0
    assert not (tmp_path / "npy" / "latents.npy").exists()
    assert export_rows(job, "safetensors", tmp_path / "st").rows == 19
    assert load_file(tmp_path / "st" / "part-00000.safetensors")["latents"].shape == (0, 0)


def test_2111_latents_in_two_forms(pipe: Pipeline, tmp_path: Path) -> None:
    frames = [
        r.message.pack()
        for codec in ("i8", "f16")
        for r in rows_of(compress(pipe, tmp_path / codec, codec))
        if r.message
    ]
    (tmp_path / "mixed.lwf").write_bytes(b"".join(frames))
    for form in ("npy", "safetensors"):
        out = tmp_path / form
        stops(2111, lambda f=form, o=out: export_rows(tmp_path / "mixed.lwf", f, o))  # type: ignore[misc]
        assert not out.exists()


def test_1106_an_id_too_long_for_a_frame(pipe: Pipeline, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"custom_id": "x" * 2000, "text": "a"}) + "\n")
    plan = plan_job([str(source)], Fields())
    run_job(describe(plan, pipe.bundle, CompressOptions()), tmp_path / "job", InProcess(), Machine(), RunOptions())
    stops(1106, lambda: export_rows(tmp_path / "job", "frames", tmp_path / "all.lwf"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "job"]


def test_export_to_a_dataset(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from latentwire.runtime.jobs import export_dataset

    monkeypatch.setattr(export_dataset, "_FILE_ROWS", 8)
    monkeypatch.setattr(export_dataset, "_BATCH", 4)
    written = export_rows(job, "hf", tmp_path / "hf")
    found = datasets.load_from_disk(str(tmp_path / "hf"))
    assert len(found) == written.rows == 20
    assert len(list((tmp_path / "hf").glob("*.arrow"))) == 3
    for line, row in zip(found, rows_of(job), strict=True):
        assert (line["custom_id"], line["tag"], line["error_code"] or "") == (
            row.custom_id,
            row.columns["tag"],
            row.error_code,
        )
        assert line["frames"] == (row.message.pack() if row.message else None)


# --- merge ------------------------------------------------------------------------------------------------


def test_merge(pipe: Pipeline, job: Path, tmp_path: Path) -> None:
    other = compress(pipe, tmp_path / "other", rows=10, first=100)
    manifest = merge_jobs([job, other], tmp_path / "both")
    assert verify_job(tmp_path / "both")["rows"] == 30
    assert manifest["totals"]["errors"] == 2
    found = rows_of(tmp_path / "both")
    assert [r.row_index for r in found] == list(range(30))
    parts = [*rows_of(job), *rows_of(other)]
    assert [(r.custom_id, r.message, r.columns) for r in found] == [(r.custom_id, r.message, r.columns) for r in parts]
    errors = [p.read_text() for p in sorted((tmp_path / "both" / "errors").iterdir())]
    assert [json.loads(e)["custom_id"] for e in errors] == ["r3", "r103"]
    assert merge_jobs([job, other], tmp_path / "both") == manifest
    stops(2109, lambda: merge_jobs([other, job], tmp_path / "both"))


def test_a_merge_that_stopped_goes_on(pipe: Pipeline, job: Path, tmp_path: Path) -> None:
    other = compress(pipe, tmp_path / "other", rows=10, first=100)
    whole = merge_jobs([job, other], tmp_path / "whole")

    class Stop(Exception):
        pass

    def on_rows(count: int) -> None:
        if len(list((tmp_path / "both" / "commits").iterdir())) == 2:
            raise Stop

    with pytest.raises(Stop):
        merge_jobs([job, other], tmp_path / "both", on_rows)
    stops(2108, lambda: open_source(tmp_path / "both"))
    assert merge_jobs([job, other], tmp_path / "both") == whole
    for path in (tmp_path / "whole" / "data").iterdir():
        assert path.read_bytes() == (tmp_path / "both" / "data" / path.name).read_bytes()


def test_merge_refuses_other_jobs(pipe: Pipeline, other_bundle: Path, job: Path, tmp_path: Path) -> None:
    with Pipeline.open(other_bundle) as foreign:
        stranger = compress(foreign, tmp_path / "stranger", first=100)
    stops(3101, lambda: merge_jobs([job, stranger], tmp_path / "both"))
    longer = compress(pipe, tmp_path / "longer", first=100, latents=4)
    assert "latents: 8 and 4" in stops(2113, lambda: merge_jobs([job, longer], tmp_path / "both")).expected
    stops(2008, lambda: merge_jobs([job, job], tmp_path / "both"))
    (longer / "manifest.json").unlink()
    stops(2108, lambda: merge_jobs([job, longer], tmp_path / "both"))
    assert not (tmp_path / "both").exists()


# --- commands ---------------------------------------------------------------------------------------------


def test_commands(pipe: Pipeline, job: Path, tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, Any]:
        result = CliRunner().invoke(app, ["jobs", *words, "--json"], catch_exceptions=False)
        return result.exit_code, json.loads(result.stdout)

    assert run("index", str(job))[1]["rows"] == 20
    status, told = run("index", str(job), "--id", "r3", "--id", "nobody", "--id", "r4")
    assert status == 3
    assert [f["status"] for f in told["found"]] == ["LW-2005", "missing", "ok"]
    assert run("export", str(job), "--to", "npy", "-o", str(tmp_path / "npy"))[1]["left_out"] == 1
    other = compress(pipe, tmp_path / "other", first=100)
    status, told = run("merge", str(job), str(other), "-o", str(tmp_path / "both"))
    assert (status, told["rows"], told["errors"]) == (3, 40, 2)


# --- other programs ---------------------------------------------------------------------------------------

GLOB = "data/*.parquet"


def test_duckdb_reads_the_tables(job: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT custom_id, tag, n_tokens, payload FROM '{job / GLOB}' WHERE status = 'ok' ORDER BY row_index"
    _same(job, duckdb.sql(query).fetchall())


def test_pandas_reads_the_tables(job: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(job / "data")
    found = table[table.status == "ok"].sort_values("row_index")
    _same(job, list(found[["custom_id", "tag", "n_tokens", "payload"]].itertuples(index=False, name=None)))


def test_polars_reads_the_tables(job: Path) -> None:
    polars = pytest.importorskip("polars")
    found = polars.scan_parquet(str(job / GLOB)).filter(polars.col("status") == "ok").sort("row_index")
    _same(job, found.select("custom_id", "tag", "n_tokens", "payload").collect().rows())


def test_datasets_reads_the_tables(job: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset("parquet", data_files=str(job / GLOB), split="train", cache_dir=str(tmp_path / "hf"))
    lines = [line for line in found if line["status"] == "ok"]
    _same(job, [(line["custom_id"], line["tag"], line["n_tokens"], line["payload"]) for line in lines])


def _same(job: Path, found: list[Any]) -> None:
    wanted = [(r.custom_id, r.columns["tag"], r.n_tokens) for r, _ in sound(job)]
    assert [tuple(f[:3]) for f in found] == wanted
    assert [bytes(f[3]) for f in found] == pq.read_table(job / "data")["payload"].drop_null().to_pylist()


def test_a_frame_is_rebuilt_from_the_table_alone(job: Path) -> None:
    """What docs/jobs.md says of header and payload, done with struct and pyarrow only."""
    import struct

    table = pq.read_table(job / "data" / "part-00000.parquet")
    shared = json.loads(table.schema.metadata[b"latentwire"])
    row = table.to_pylist()[0]
    head = struct.pack(
        "<3sBBBBBHH", b"\x89LW", 0x10, row["codec"], row["profile"], row["flags"], 0, row["m"], shared["d_z"]
    )
    head += bytes.fromhex(shared["encoder"])[:4] + struct.pack("<I", len(row["payload"]))
    frame = head + struct.pack("<I", wire.checksum(head, row["payload"])) + row["payload"]
    (read,) = wire.read_frames(io.BytesIO(frame))
    assert sound(job)[0][1].pack() == frame == read.pack()
