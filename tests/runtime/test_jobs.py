"""Jobs: every row in its place, every bad input with its code, tables that cannot be silently wrong."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from latentwire.core.console import configure
from latentwire.core.errors import EnvironmentFault, FrameError, InputError, LatentWireError
from latentwire.runtime import message, wire
from latentwire.runtime.codec import Codec
from latentwire.runtime.jobs import reader, streams, table
from latentwire.runtime.jobs.commit import JobFolder
from latentwire.runtime.jobs.inprocess import InProcess
from latentwire.runtime.jobs.plan import Plan
from latentwire.runtime.jobs.planner import make_plan
from latentwire.runtime.jobs.reader import read_rows
from latentwire.runtime.jobs.records import Fields
from latentwire.runtime.jobs.run import RunOptions, describe, plan_job, run_job
from latentwire.runtime.jobs.source import open_source, read_frame_file
from latentwire.runtime.options import CompressOptions, Machine
from latentwire.runtime.pipeline import Pipeline

Lines = list[dict[str, Any] | bytes]


@pytest.fixture(autouse=True)
def quiet() -> None:
    configure(quiet=True)


def jsonl(path: Path, rows: Lines) -> str:
    data = b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows)
    path.write_bytes(data)
    return str(path)


def run(
    pipe: Pipeline, names: list[str], out: Path, options: CompressOptions | None = None, **kw: Any
) -> dict[str, Any]:
    fields = kw.pop("fields", Fields())
    plan = plan_job(names, fields, kw.pop("shard_rows", 4096))
    return finish(pipe, plan, out, options, **kw)


def finish(pipe: Pipeline, plan: Plan, out: Path, options: CompressOptions | None = None, **kw: Any) -> dict[str, Any]:
    job = describe(plan, pipe.bundle, options or CompressOptions())
    return run_job(job, out, InProcess(), Machine(), RunOptions(**kw))


def fine(count: int) -> Lines:
    return [{"custom_id": f"r{i}", "text": f"text number {i}"} for i in range(count)]


# --- rows -------------------------------------------------------------------------------------------------


BAD_ROWS: list[tuple[bytes, int, str, str]] = [
    (b'{"custom_id": "x", "text": "caf\xe9"}', 2001, "byte 31", "0xe9"),
    (b'{"custom_id": "x", "text": ', 2002, "", ""),
    (b'{"custom_id": "x", "text": NaN}', 2002, "", "NaN"),
    (b'["x"]', 2003, "", "list"),
    (b'{"custom_id": "x", "text": "a", "text": "b"}', 2003, "", "text"),
    (b'{"custom_id": ["x"], "text": "a"}', 2003, "", "list"),
    (b'{"custom_id": "x"}', 2004, "(id x)", "custom_id"),
    (b'{"custom_id": "x", "text": null}', 2004, "(id x)", "null"),
    (b'{"custom_id": "x", "text": 7}', 2004, "(id x)", "int"),
    (b'{"custom_id": "x", "text": ""}', 2005, "(id x)", ""),
    (b'{"custom_id": "x", "text": " \\n "}', 2005, "(id x)", ""),
    (b'{"custom_id": "x", "text": "' + b"a" * 65 + b'"}', 2006, "(id x)", "65"),
    (b'{"custom_id": "x", "text": "' + b"a" * ((16 << 20) + 1) + b'"}', 2007, "(id x)", str((16 << 20) + 1)),
    (b'{"custom_id": "x", "text": "\\ud800"}', 2009, "(id x)", ""),
    (b'{"custom_id": "\\udfff", "text": "a"}', 2009, "", ""),
    (b'{"custom_id": "x", "text": "a", "z": ' + b"[" * 200_000 + b"}", 2010, "", ""),
    (b'{"custom_id": "x", "text": "a", "z": ' + b"9" * 5000 + b"}", 2010, "", "5000"),
    (b'{"custom_id": "x", "text": "a", "z": 1e999}', 2010, "", "1e999"),
]


@pytest.mark.parametrize(
    ("line", "code", "place", "says"), BAD_ROWS, ids=[f"{c}-{i}" for i, (_, c, _, _) in enumerate(BAD_ROWS)]
)
def test_a_bad_row_stays_in_place_and_harms_nobody(
    pipe: Pipeline, tmp_path: Path, line: bytes, code: int, place: str, says: str
) -> None:
    name = jsonl(
        tmp_path / "in.jsonl", [{"custom_id": "a", "text": "before"}, line + b"\n", {"id": "b", "text": "after"}]
    )
    manifest = run(pipe, [name], tmp_path / "out")
    assert manifest["totals"]["rows"] == 3
    assert manifest["totals"]["errors_by_code"] == {f"LW-{code}": 1}
    rows = list(open_source(tmp_path / "out").rows())
    assert [r.row_index for r in rows] == [0, 1, 2]
    assert [r.custom_id for r in rows][::2] == ["a", "b"]
    assert rows[1].message is None
    assert rows[1].error_code == f"LW-{code}"
    assert rows[1].error_message.startswith(f"LW-{code} ")
    assert f"{name}:2" in rows[1].error_message
    assert place in rows[1].error_message
    assert says in rows[1].error_message
    alone = pipe.compress(["before", "after"])
    assert [r.message.pack() for r in rows if r.message] == alone
    (copy,) = (tmp_path / "out" / "errors").glob("*.jsonl")
    (again,) = read_rows(str(copy), Fields())
    assert again.custom_id == rows[1].custom_id


def test_2007_lines_are_read_with_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "ROW_LIMIT", 1000)
    name = jsonl(tmp_path / "in.jsonl", [{"text": "a" * (3 << 20)}, {"text": "after"}, b'{"text": "' + b"b" * 2000])
    first, second, third = read_rows(name, Fields())
    assert second.text == "after"
    for row, size in ((first, (3 << 20) + 13), (third, 2010)):
        assert row.error
        assert row.error.code == 2007
        assert str(size) in row.error.expected


def test_2002_says_when_the_last_line_is_cut(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "in.jsonl", [{"text": "a"}, b'{"text": "b'])
    rows = list(read_rows(name, Fields()))
    assert rows[1].error
    assert (rows[1].error.code, rows[1].error.what) == (2002, "last line is cut")


def test_error_rows_can_be_run_again(pipe: Pipeline, tmp_path: Path) -> None:
    name = jsonl(tmp_path / "in.jsonl", [{"custom_id": "a", "text": "x" * 100}, {"custom_id": "b", "text": "\ud800"}])
    run(pipe, [name], tmp_path / "out")
    copy = tmp_path / "out" / "errors" / "part-00000.jsonl"
    second = run(pipe, [str(copy)], tmp_path / "again", CompressOptions(on_too_long="chunk"))
    assert second["totals"]["errors_by_code"] == {"LW-2009": 1}
    row = next(open_source(tmp_path / "again").rows())
    assert row.custom_id == "a"
    assert row.message
    assert len(row.message.frames) == 2


def test_no_error_folder_where_all_went_well(pipe: Pipeline, tmp_path: Path) -> None:
    run(pipe, [jsonl(tmp_path / "in.jsonl", fine(3))], tmp_path / "out")
    found = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert found == ["_LOCK", "commits", "data", "job.json", "manifest.json"]


def test_missing_ids_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "in.jsonl", [b'\xef\xbb\xbf{"text": "a"}\r\n', b"\n", b"  \n", {"id": 7, "text": "b\0"}])
    rows = list(read_rows(name, Fields()))
    assert [(r.custom_id, r.source_row, r.text) for r in rows] == [(f"{name}:1", 1, "a"), ("7", 4, "b\0")]


# --- whole jobs -------------------------------------------------------------------------------------------


def stops(code: int, body: Callable[[], object]) -> LatentWireError:
    with pytest.raises(LatentWireError) as caught:
        body()
    assert caught.value.code == code
    return caught.value


def test_2004_stops_the_job_when_the_field_name_is_wrong(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "in.jsonl", [{"custom_id": f"{i}", "body": "a"} for i in range(150)])
    error = stops(2004, lambda: make_plan([name], Fields()))
    assert "custom_id, body" in error.expected
    assert "--text-field" in error.fix
    assert make_plan([name], Fields(text="body")).rows == 150
    few = jsonl(tmp_path / "few.jsonl", [{"custom_id": f"{i}", "body": "a"} for i in range(99)])
    assert make_plan([few], Fields()).rows == 99


def test_2008_duplicate_id_stops_before_any_work(pipe: Pipeline, tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a.jsonl", fine(3))
    second = jsonl(tmp_path / "b.jsonl", [{"custom_id": "new", "text": "x"}, {"id": "r1", "text": "x"}])
    error = stops(2008, lambda: run(pipe, [first, second], tmp_path / "out"))
    assert f"{second}:2" in error.where
    assert f"{first}:2" in error.where
    assert not (tmp_path / "out").exists()
    stops(2008, lambda: make_plan([first, first], Fields()))


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path, write_page_checksum=True, row_group_size=2)
    return str(path)


def test_parquet_rows(tmp_path: Path) -> None:
    name = parquet(tmp_path / "in.parquet", id=[1, 2, None, 4, 5], text=["a", None, "c", "", "e"], other=[0] * 5)
    rows = list(read_rows(name, Fields()))
    assert [r.custom_id for r in rows] == ["1", "2", f"{name}:3", "4", "5"]
    assert [r.text for r in rows] == ["a", None, "c", "", "e"]
    assert rows[1].error
    assert (rows[1].error.code, rows[1].error.where) == (2004, f"{name}:2 (id 2)")


def test_2001_parquet_with_invalid_utf8(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"caf\xe9"], pa.binary()).buffers())
    name = parquet(tmp_path / "in.parquet", text=bad)
    rows = list(read_rows(name, Fields()))
    assert rows[0].text == "ok"
    assert rows[1].error
    assert rows[1].error.code == 2001
    assert "byte 3" in rows[1].error.where


def test_2101_other_columns(tmp_path: Path) -> None:
    name = parquet(tmp_path / "in.parquet", custom_id=["a"], body=["b"])
    error = stops(2101, lambda: make_plan([name], Fields()))
    assert "body string" in error.expected
    assert make_plan([name], Fields(text="body")).rows == 1
    number = parquet(tmp_path / "n.parquet", text=[1])
    assert "text int64" in stops(2101, lambda: make_plan([number], Fields())).expected


def test_2102_damaged_parquet(tmp_path: Path) -> None:
    name = parquet(tmp_path / "in.parquet", text=["some text here"] * 50)
    raw = Path(name).read_bytes()
    Path(name).write_bytes(raw[:-20])
    stops(2102, lambda: make_plan([name], Fields()))
    Path(name).write_bytes(raw[:60] + bytes([raw[60] ^ 1]) + raw[61:])
    stops(2102, lambda: make_plan([name], Fields()))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_input(tmp_path: Path, suffix: str) -> None:
    plain = b"".join(json.dumps(r).encode() + b"\n" for r in fine(300) if isinstance(r, dict))
    pack = gzip.compress if suffix == ".gz" else zstandard.compress
    path = tmp_path / f"in.jsonl{suffix}"
    path.write_bytes(pack(plain[:2000]) + pack(plain[2000:]))  # several members are one stream
    assert [r.custom_id for r in read_rows(str(path), Fields())] == [f"r{i}" for i in range(300)]
    whole = pack(plain)
    for broken in (
        whole[:-9],
        whole[: len(whole) // 2],
        b"not packed at all",
        whole[:40] + b"\xff\xff\xff" + whole[43:],
    ):
        path.write_bytes(broken)
        assert stops(2103, lambda: list(read_rows(str(path), Fields()))).where == str(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_2103_decompression_bomb(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BOMB_FLOOR", 1 << 20)
    pack = gzip.compress if suffix == ".gz" else zstandard.compress
    path = tmp_path / f"in.jsonl{suffix}"
    path.write_bytes(pack(b'{"text": "' + bytes(6 << 20)))
    error = stops(2103, lambda: list(read_rows(str(path), Fields())))
    assert "beyond reason" in error.what


def test_2104_no_input(tmp_path: Path) -> None:
    stops(2104, lambda: make_plan([str(tmp_path)], Fields()))
    empty = jsonl(tmp_path / "in.jsonl", [b"\n"])
    stops(2104, lambda: make_plan([empty], Fields()))


def test_2105_input_changed_since_the_plan(pipe: Pipeline, tmp_path: Path) -> None:
    name = jsonl(tmp_path / "in.jsonl", fine(3))
    plan = make_plan([name], Fields())
    jsonl(tmp_path / "in.jsonl", fine(4))
    error = stops(2105, lambda: finish(pipe, plan, tmp_path / "out"))
    assert error.where == name
    stops(2108, lambda: open_source(tmp_path / "out"))


def test_2106_and_2110_unreadable_input(tmp_path: Path) -> None:
    stops(2106, lambda: make_plan([str(tmp_path / "absent.jsonl")], Fields()))
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    assert ".jsonl" in stops(2110, lambda: make_plan([str(tmp_path / "x.pdf")], Fields())).expected
    stops(2106, lambda: open_source(tmp_path / "absent"))


def test_5008_output_folder_not_empty(pipe: Pipeline, tmp_path: Path) -> None:
    name = jsonl(tmp_path / "in.jsonl", fine(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    for overwrite in (False, True):
        error = stops(5008, lambda o=overwrite: run(pipe, [name], tmp_path / "out", overwrite=o))  # type: ignore[misc]
        assert isinstance(error, EnvironmentFault)
        assert error.exit_code == 5
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("")
    stops(5008, lambda: run(pipe, [name], tmp_path / "file"))


def test_folders_text_files_and_many_shards(pipe: Pipeline, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    jsonl(docs / "b.jsonl", fine(7))
    (docs / "a.txt").write_text("a plain text file")
    (docs / "c.md").write_bytes(b"bad \xff bytes")
    (docs / "ignored.bin").write_bytes(b"x")
    manifest = run(pipe, [str(docs)], tmp_path / "out", shard_rows=3)
    assert [(s["start"], s["rows"]) for s in manifest["shards"]] == [(0, 1), (0, 3), (3, 3), (6, 1), (0, 1)]
    rows = list(open_source(tmp_path / "out").rows())
    assert [r.row_index for r in rows] == list(range(9))
    assert [r.custom_id for r in rows] == [str(docs / "a.txt"), *(f"r{i}" for i in range(7)), str(docs / "c.md")]
    assert rows[-1].error_code == "LW-2001"


def test_same_bytes_every_time(pipe: Pipeline, tmp_path: Path) -> None:
    name = jsonl(tmp_path / "in.jsonl", fine(20))
    one, two = (run(pipe, [name], tmp_path / out, shard_rows=6) for out in ("one", "two"))
    assert one == two
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file() and path.name != "_LOCK":
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_job_that_stopped_is_not_finished(pipe: Pipeline, tmp_path: Path) -> None:
    run(pipe, [jsonl(tmp_path / "in.jsonl", fine(2))], tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    assert "unfinished" in stops(2108, lambda: open_source(tmp_path / "out")).what
    (tmp_path / "out" / "manifest.json").write_text("{}")
    stops(2108, lambda: open_source(tmp_path / "out"))


# --- tables -----------------------------------------------------------------------------------------------


@pytest.fixture
def job(pipe: Pipeline, tmp_path: Path) -> Path:
    rows: Lines = [*fine(3), {"custom_id": "long", "text": "words and words " * 12}, {"custom_id": "bad", "text": ""}]
    run(pipe, [jsonl(tmp_path / "in.jsonl", rows)], tmp_path / "out", CompressOptions(on_too_long="chunk"))
    return tmp_path / "out"


def test_the_declared_schema(job: Path) -> None:
    found = pq.read_schema(job / "data" / "part-00000.parquet")
    assert {f.name: str(f.type) for f in found} == {
        "custom_id": "string",
        "row_index": "int64",
        "source_file": "string",
        "source_row": "int64",
        "status": "string",
        "error_code": "string",
        "error_message": "string",
        "codec": "uint8",
        "profile": "uint8",
        "flags": "uint8",
        "m": "int32",
        "payload": "binary",
        "payload_crc32c": "uint32",
        "n_tokens": "int32",
        "n_bytes_text": "int32",
        "n_chunks": "int32",
        "truncated": "bool",
    }


def test_frames_are_rebuilt_exactly(pipe: Pipeline, job: Path) -> None:
    texts = ["text number 0", "text number 1", "text number 2", "words and words " * 12]
    rows = list(open_source(job).rows())
    want = pipe.compress(texts, CompressOptions(on_too_long="chunk"))
    assert [r.message.pack() for r in rows if r.message] == want
    manifest = JobFolder(job).read_manifest()
    assert manifest["totals"]["wire_bytes"] == sum(map(len, want))
    assert manifest["totals"]["chunks"] == 3 + 3
    assert manifest["totals"]["text_bytes"] == sum(len(t) for t in texts)


def test_text_rows_travel_too(pipe: Pipeline, tmp_path: Path) -> None:
    rows: Lines = [{"id": "t", "text": "Grüße " * 50}]
    run(pipe, [jsonl(tmp_path / "in.jsonl", rows)], tmp_path / "out", CompressOptions(codec="text"))
    (row,) = open_source(tmp_path / "out").rows()
    assert row.message
    assert row.message.text() == "Grüße " * 50
    assert row.message.frames[0].profile == 1


def test_a_changed_table_is_refused_by_the_manifest(job: Path) -> None:
    path = job / "data" / "part-00000.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    assert str(path) in stops(2102, lambda: open_source(job)).where
    path.unlink()
    assert "missing" in stops(2102, lambda: open_source(job)).what


def test_bit_flips_and_truncations_of_a_table_are_never_silent(job: Path, tmp_path: Path) -> None:
    raw = (job / "data" / "part-00000.parquet").read_bytes()
    good = list(table.read_table(job / "data" / "part-00000.parquet"))
    rng = random.Random(5)
    path = tmp_path / "alone.parquet"
    wrong = 0
    for _ in range(150):
        bad = bytearray(raw)
        bit = rng.randrange(8 * len(raw))
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(bad))
        try:
            found = list(table.read_table(path))
        except LatentWireError:
            continue
        wrong += found != good
    assert wrong == 0
    for _ in range(30):
        path.write_bytes(raw[: rng.randrange(len(raw))])
        with pytest.raises(LatentWireError):
            list(table.read_table(path))


def write_rows(path: Path, **changes: Any) -> None:
    z = np.ones((2, 4), np.float32)
    frame = message.from_latents([z], Codec.I8, bytes(4)).frames[0]
    row: dict[str, Any] = dict.fromkeys(table.SCHEMA.names)
    row |= {"custom_id": "a", "row_index": 0, "source_file": "f", "source_row": 1, "status": "ok", "codec": 2}
    row |= {"profile": 0, "flags": 0, "m": 2, "payload": frame.payload, "n_chunks": 1, "truncated": False}
    row |= changes
    if "payload_crc32c" not in changes and row["payload"] is not None:
        row["payload_crc32c"] = wire.payload_checksum(row["payload"])
    table.write_table(path, [row], table.TableInfo("00" * 32, 4, 2, "i8"))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"payload_crc32c": 1}, 1104),
        ({"payload": b"abc"}, 1105),
        ({"m": 3}, 1105),
        ({"n_chunks": 2}, 1105),
        ({"n_chunks": 0}, 1108),
        ({"codec": 9}, 1107),
        ({"profile": 4}, 1107),
        ({"flags": 8}, 1107),
        ({"payload": None}, 1108),
        ({"payload": bytes(15) + b"\x80"}, 1108),
        ({"status": "perhaps"}, 1108),
    ],
)
def test_rows_are_checked_like_frames(tmp_path: Path, changes: dict[str, Any], code: int) -> None:
    path = tmp_path / "t.parquet"
    write_rows(path)
    (row,) = table.read_table(path)
    assert row.message
    assert row.message.latents == 2
    write_rows(path, **changes)
    with pytest.raises(FrameError) as caught:
        list(table.read_table(path))
    assert caught.value.code == code
    assert "row 0 (id a)" in caught.value.where


def test_2101_tables_that_are_not_frames(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet(path, text=["a"])
    stops(2101, lambda: table.read_info(path))
    for facts in (b"not json", b"{}", b'{"format": "latentwire-frames", "version": 9, "frame_version": 16}'):
        empty = pa.table({n: pa.array([], t.type) for n, t in zip(table.SCHEMA.names, table.SCHEMA, strict=True)})
        crc = b"%08x" % wire.payload_checksum(facts)
        pq.write_table(empty.cast(table.SCHEMA.with_metadata({table.KEY: facts, table.KEY_CRC: crc})), path)
        stops(2101, lambda: table.read_info(path))


# --- frame files ------------------------------------------------------------------------------------------


def test_frame_files(pipe: Pipeline, tmp_path: Path) -> None:
    frames = pipe.compress(["one", "words and words " * 12, "three"], CompressOptions(on_too_long="chunk"))
    path = tmp_path / "m.lwf"
    path.write_bytes(b"".join(frames))
    rows = list(open_source(path).rows())
    assert [r.custom_id for r in rows] == ["1", "2", "3"]
    assert [r.message.pack() for r in rows if r.message] == frames
    path.write_bytes(frames[0] + frames[1][:-150])
    with pytest.raises(FrameError):
        list(read_frame_file(path))
    chunk = wire.unpack_all(frames[1])[0].pack()
    path.write_bytes(chunk)
    assert stops(1102, lambda: list(read_frame_file(path))).where == str(path)
    path.write_bytes(b"")
    stops(1102, lambda: list(read_frame_file(path)))
    path.write_bytes(b"plain text, surely")
    stops(1101, lambda: list(open_source(path).rows()))


def test_input_errors_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_source(tmp_path)
