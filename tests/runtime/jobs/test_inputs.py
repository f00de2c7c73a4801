"""Inputs of every kind and from anywhere: which rows they give, where reading begins again, what is refused."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from latentwire.core.console import configure
from latentwire.core.errors import InputError, LatentWireError
from latentwire.runtime.jobs import ids, parquet_input, planner, streams
from latentwire.runtime.jobs.inputs import find_inputs
from latentwire.runtime.jobs.plan import Plan, Shard
from latentwire.runtime.jobs.planner import make_plan
from latentwire.runtime.jobs.records import Fields, Record
from latentwire.runtime.jobs.source import open_source

from .stub import StubEncoder, contents, run_plan

ROWS = 100


@pytest.fixture(autouse=True)
def quiet() -> None:
    configure(quiet=True)


def rows(count: int = ROWS, text: str = "text") -> list[dict[str, Any]]:
    return [{"custom_id": f"r{i}", "text": f"{text} number {i}", "n": i} for i in range(count)]


def lines(found: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in found)


def stops(code: int, body: Callable[[], object]) -> LatentWireError:
    with pytest.raises(LatentWireError) as caught:
        body()
    assert caught.value.code == code, caught.value
    return caught.value


def members(data: bytes, pack: Callable[[bytes], bytes], size: int) -> bytes:
    return b"".join(pack(data[i : i + size]) for i in range(0, len(data), size))


def write(kind: str, folder: Path) -> str:
    """The hundred rows as a file or folder of one kind."""
    path = folder / f"in.{kind}"
    data = lines(rows())
    if kind == "jsonl":
        path.write_bytes(b"\xef\xbb\xbf\n" + data.replace(b"\n", b"\r\n\n"))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(data))
    elif kind == "members.jsonl.gz":
        path.write_bytes(members(data, gzip.compress, 700) + bytes(100))  # padded, as on tape
    elif kind == "jsonl.zst":
        path.write_bytes(members(data, zstandard.compress, 700))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows()), path, row_group_size=30, write_page_checksum=True)
    elif kind == "footer.arrow":
        table = pa.Table.from_pylist(rows())
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=13)
    elif kind == "dataset":
        path.mkdir()
        for number in range(2):
            table = pa.Table.from_pylist(rows()[number * 50 : number * 50 + 50])
            with pa.ipc.new_stream(path / f"data-{1 - number}.arrow", table.schema) as stream:
                stream.write_table(table, max_chunksize=13)
        names = [{"filename": "data-1.arrow"}, {"filename": "data-0.arrow"}]  # their order counts, not their names
        (path / "state.json").write_text(json.dumps({"_data_files": names}))
    else:
        path.mkdir()
        for i in range(ROWS):
            (path / f"r{i:03}.txt").write_text(f"text number {i}")
    return str(path)


KINDS = [
    "jsonl",
    "jsonl.gz",
    "members.jsonl.gz",
    "jsonl.zst",
    "parquet",
    "footer.arrow",
    "dataset",
    "text",
]


def texts(found: list[Record]) -> list[str | None]:
    return [r.text for r in found]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_rows_from_anywhere(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_STEP", 512)
    name = write(kind, tmp_path)
    plan = make_plan([name], Fields(), 7)
    assert plan.rows == ROWS
    wanted = [f"text number {i}" for i in range(ROWS)]
    assert [t for s in plan.shards for t in texts(plan.read(s))] == wanted
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    backwards = [texts(again.read(s)) for s in reversed(again.shards)]  # each one has to be sought
    assert [t for part in reversed(backwards) for t in part] == wanted
    some = [texts(again.read(s)) for s in again.shards[::3]]
    assert some == [wanted[s.first : s.first + s.rows] for s in again.shards[::3]]
    plan.close()
    again.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_job_is_the_same_whatever_the_input_is(kind: str, tmp_path: Path) -> None:
    plan = make_plan([write(kind, tmp_path)], Fields(), 60 if kind != "dataset" else 50)
    run_plan(plan, tmp_path / "out")
    found = list(open_source(tmp_path / "out").rows())
    assert [r.message.text() for r in found if r.message] == [f"text number {i}" for i in range(ROWS)]
    assert [r.row_index for r in found] == list(range(ROWS))


class Heard(streams._Told):
    def close(self) -> None:
        self._file.close()
        super().close()


class Counting:
    """Counts bytes that are read of one file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self.bytes = 0
        real = module.open_binary

        def opened(name: str) -> Any:
            file = real(name)
            return Heard(file, self._add)

        monkeypatch.setattr(module, "open_binary", opened)

    def _add(self, data: bytes) -> None:
        self.bytes += len(data)


@pytest.mark.parametrize("kind", ["plain", "one", "many"])
def test_a_shard_is_not_read_from_the_start_of_its_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lines([{"custom_id": f"r{i}", "text": os.urandom(400).hex()} for i in range(5000)])
    path = tmp_path / ("in.jsonl" if kind == "plain" else "in.jsonl.zst")
    pack = zstandard.compress
    path.write_bytes(data if kind == "plain" else pack(data) if kind == "one" else members(data, pack, 100_000))
    plan = make_plan([str(path)], Fields(), 50)
    size = path.stat().st_size
    counting = Counting(monkeypatch, streams)
    for shard in plan.shards:
        plan.read(shard)
    assert counting.bytes <= size + (3 << 20)  # in order: once, and what was read ahead
    counting.bytes = 0
    plan.close()
    plan.read(plan.shards[-1])
    if kind == "one":
        assert counting.bytes <= size  # a single frame has to be unpacked to there
    else:
        assert counting.bytes < size / 2
    plan.close()


def test_parquet_begins_at_the_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write("parquet", tmp_path)
    plan = make_plan([name], Fields(), 7)
    asked: list[int] = []
    real = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, **how: Any) -> Any:
        asked.extend(how["row_groups"])
        return real(self, **how)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    plan.read(plan.shards[0])
    plan.read(plan.shards[9])  # rows 63 to 70
    plan.close()
    assert asked == [0, 2]


# --- places -----------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("kind", KINDS)
def test_urls(kind: str, tmp_path: Path, memory: Any) -> None:
    local = write(kind, tmp_path)
    memory.put(local, f"/bucket/in.{kind}", recursive=True)
    here, there = make_plan([local], Fields(), 30), make_plan([f"memory://bucket/in.{kind}"], Fields(), 30)
    assert [s.at for s in there.shards] == [s.at for s in here.shards]
    for ours, theirs in zip(here.shards[::-1], there.shards[::-1], strict=True):
        assert texts(here.read(ours)) == texts(there.read(theirs))
    assert there.files[0].name.startswith("memory://")
    assert kind == "text" or there.files[0].sha256 == here.files[0].sha256
    here.close()
    there.close()


def test_local_urls_patterns_and_folders(tmp_path: Path, memory: Any) -> None:
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "other.bin", ".hidden.jsonl"):
        (docs / name).write_bytes(lines([{"text": name}]))
    names = [str(docs / n) for n in ("a.jsonl", "b.jsonl", "deep/c.jsonl")]
    assert [f.name for f in find_inputs([str(docs)])] == names
    assert [f.name for f in find_inputs([str(docs / "*.jsonl")])] == names[:2]
    assert [f.name for f in find_inputs([str(docs / "**" / "*")])] == names
    assert make_plan([f"file://{docs}"], Fields()).rows == 3
    assert make_plan([f"file://{docs}/**/*.jsonl"], Fields()).rows == 3
    odd = docs / "[1].jsonl"
    odd.write_bytes(lines(rows(2)))
    assert make_plan([str(odd)], Fields()).rows == 2  # a file of that name is not a pattern
    memory.put(str(docs), "/docs", recursive=True)
    assert [f.name.rpartition("/")[2] for f in find_inputs(["memory://docs/*.jsonl"])][-2:] == ["a.jsonl", "b.jsonl"]


def test_2105_remote_input_changed(memory: Any) -> None:
    memory.pipe("/in.jsonl", lines(rows(4)))
    plan = make_plan(["memory://in.jsonl"], Fields(), 2)
    memory.pipe("/in.jsonl", lines(rows(4, "other")))
    assert stops(2105, lambda: plan.read(plan.shards[1])).where == "memory://in.jsonl"
    plan.close()


def test_2105_a_text_file_of_many_changed(tmp_path: Path) -> None:
    name = write("text", tmp_path)
    plan = make_plan([name], Fields(), 60)
    (tmp_path / "in.text" / "r070.txt").write_text("another text")
    assert len(plan.read(plan.shards[0])) == 60
    assert stops(2105, lambda: plan.read(plan.shards[1])).where.endswith("r070.txt")


def test_2106_and_5011_places_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stops(2106, lambda: make_plan(["memory://nowhere/in.jsonl"], Fields()))
    stops(2106, lambda: make_plan(["no-such-store://in.jsonl"], Fields()))
    stops(2104, lambda: make_plan([str(tmp_path / "*.jsonl")], Fields()))
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "pipe" in stops(2106, lambda: make_plan([str(tmp_path / "pipe.jsonl")], Fields())).expected
    (tmp_path / b"caf\xe9.jsonl".decode("utf-8", "surrogateescape")).write_bytes(lines(rows(1)))
    assert "UTF-8" in stops(2106, lambda: make_plan([str(tmp_path)], Fields())).what
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    error = stops(5011, lambda: make_plan(["memory://in.jsonl"], Fields()))
    assert "latentwire[remote]" in error.fix


def test_2106_a_link_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("key")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text("a")
    (docs / "b.txt").symlink_to(docs / "a.txt")
    assert make_plan([str(docs)], Fields()).rows == 2
    (docs / "c.txt").symlink_to(secret)
    assert "leads out" in stops(2106, lambda: make_plan([str(docs)], Fields())).what
    assert make_plan([str(docs / "c.txt")], Fields()).rows == 1  # named by the user
    (docs / "c.txt").unlink()
    (docs / "up").symlink_to(tmp_path)
    assert make_plan([str(docs)], Fields()).rows == 2  # folders behind links are not entered


# --- datasets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        "not json",
        "[]",
        '{"_data_files": [{"filename": "../data.arrow"}]}',
        '{"_data_files": [{"filename": "/etc/passwd"}]}',
        '{"_data_files": [{"filename": 7}]}',
        '{"_data_files": [{"filename": "data-0.arrow"}], "_indices_data_files": [{"filename": "i.arrow"}]}',
    ],
)
def test_2101_descriptions_of_datasets(state: str, tmp_path: Path) -> None:
    name = write("dataset", tmp_path)
    Path(name, "state.json").write_text(state)
    assert stops(2101, lambda: make_plan([name], Fields())).where.endswith("state.json")


def test_datasets_with_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write("dataset", tmp_path)
        (tmp_path / "in.dataset").rename(tmp_path / split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = find_inputs([str(tmp_path)])
    assert [Path(f.name).parent.name for f in found] == ["train", "train", "test", "test"]


def test_what_datasets_itself_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_list(rows())
    found.save_to_disk(str(tmp_path / "whole"), num_shards=3)
    datasets.DatasetDict({"train": found, "test": found.select([5, 3, 4])}).save_to_disk(str(tmp_path / "splits"))
    assert _texts(tmp_path / "whole") == [r["text"] for r in rows()]
    assert _texts(tmp_path / "splits")[-3:] == ["text number 5", "text number 3", "text number 4"]


def _texts(folder: Path) -> list[str | None]:
    plan = make_plan([str(folder)], Fields(on_duplicate_id="suffix"))
    found = [t for s in plan.shards for t in texts(plan.read(s))]
    plan.close()
    return found


def test_2102_damaged_arrow(tmp_path: Path) -> None:
    stream = str(Path(write("dataset", tmp_path), "data-0.arrow"))
    for name in (write("footer.arrow", tmp_path), stream):
        raw = Path(name).read_bytes()
        assert make_plan([name], Fields()).rows
        for size in {0, 6, 8, *range(10, len(raw), len(raw) // 60), len(raw) - 10, len(raw) - 8, len(raw) - 1}:
            Path(name).write_bytes(raw[:size])
            stops(2102, lambda: make_plan([name], Fields()))  # noqa: B023


def test_2102_arrow_with_lengths_that_lead_elsewhere(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1 << 30, 2)))
    bad = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ok")])
    with pa.ipc.new_stream(tmp_path / "in.arrow", pa.schema([("text", pa.string())])) as stream:
        stream.write_batch(pa.record_batch([bad], names=["text"]))
    stops(2102, lambda: make_plan([str(tmp_path / "in.arrow")], Fields()))


def test_2001_arrow_with_invalid_utf8(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"caf\xe9"], pa.binary()).buffers())
    with pa.ipc.new_stream(tmp_path / "in.arrow", pa.schema([("text", pa.string())])) as stream:
        stream.write_batch(pa.record_batch([bad], names=["text"]))
    (first, second) = make_plan([str(tmp_path / "in.arrow")], Fields()).read(Shard(0, 0, 0, 2, 0, (0,)))
    assert first.text == "ok"
    assert second.error
    assert second.error.code == 2001


# --- sizes ------------------------------------------------------------------------------------------------


def test_2102_parquet_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_input, "BOMB_FLOOR", 1 << 20)
    path = tmp_path / "in.parquet"
    table = pa.table({"text": ["a" * (2 << 20)] * 2})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    assert "beyond reason" in stops(2102, lambda: make_plan([str(path)], Fields())).what


def test_a_dictionary_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["a" * (1 << 20)] * 100}), path)  # 1 MiB in the file
    monkeypatch.setattr(parquet_input, "BATCH_BYTES", 4 << 20)
    monkeypatch.setattr(planner, "SHARD_CHARACTERS", 8 << 20)
    asked: list[int] = []
    real = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, **how: Any) -> Any:
        asked.append(how["batch_size"])
        return real(self, **how)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    plan = make_plan([str(path)], Fields())
    assert max(asked) <= 4
    assert [s.rows for s in plan.shards] == [8] * 12 + [4]


def test_shards_end_early_where_texts_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "SHARD_CHARACTERS", 1000)
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines([{"text": "a" * n} for n in (400, 400, 400, 1, 1, 5000, 1)]))
    plan = make_plan([str(path)], Fields())
    assert [s.rows for s in plan.shards] == [3, 3, 1]


# --- ids --------------------------------------------------------------------------------------------------


def twice() -> list[dict[str, Any]]:
    return [{"custom_id": i, "text": f"text {n}"} for n, i in enumerate(["a", "b", "a", "c", "b", "a"])]


def test_2008_names_both_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(twice()))
    error = stops(2008, lambda: make_plan([str(path)], Fields(), 2))
    assert error.where == f"{path}:3 and {path}:1"
    assert "'a'" in error.expected
    stops(2008, lambda: make_plan([write("text", tmp_path)] * 2, Fields()))


def test_2008_first_leaves_the_others_in_place(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(twice()))
    encoder = StubEncoder()
    run_plan(make_plan([str(path)], Fields(on_duplicate_id="first"), 4), tmp_path / "out", encoder)
    found = list(open_source(tmp_path / "out").rows())
    assert [r.error_code for r in found] == ["", "", "LW-2008", "", "LW-2008", "LW-2008"]
    assert encoder.rows == 3
    errors = [
        json.loads(x) for p in sorted((tmp_path / "out" / "errors").iterdir()) for x in p.read_text().splitlines()
    ]
    assert [(e["custom_id"], e["text"]) for e in errors] == [("a", "text 2"), ("b", "text 4"), ("a", "text 5")]


def test_2008_suffix_names_the_others(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(twice()))
    plan = make_plan([str(path)], Fields(on_duplicate_id="suffix"), 4)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    del plan  # and the temporary files with it
    assert [r.custom_id for s in loaded.shards for r in loaded.read(s)] == ["a", "b", "a#2", "c", "b#2", "a#3"]
    loaded.close()
    path.write_bytes(lines([*twice(), {"custom_id": "a#3", "text": "x"}]))
    assert "'a#3'" in stops(2008, lambda: make_plan([str(path)], Fields(on_duplicate_id="suffix"))).expected
    path.write_bytes(lines([*twice(), {"custom_id": "a#4", "text": "x"}, {"custom_id": "#2", "text": "x"}]))
    assert make_plan([str(path)], Fields(on_duplicate_id="suffix")).rows == 8


def test_ids_wait_on_the_disk() -> None:
    store = ids.IdStore()
    for row in range(20_000):
        store.add(f"id {row % 19_999}", row)
    assert list(store.again()) == [ids.Again(19_999, 2, 0)]
    assert len(store._waiting) == 0
    store.forget(19_999)
    assert list(store.again()) == []
    store._base.execute("PRAGMA max_page_count = 1")

    def more() -> None:
        for row in range(50_000):
            store.add(f"more {row}", row)

    assert stops(5004, more).exit_code == 74
    store.close()


# --- columns to keep, equal texts, files to skip ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "dataset", "text"])
def test_columns_to_keep(kind: str, tmp_path: Path) -> None:
    plan = make_plan([write(kind, tmp_path)], Fields(keep=("n",)), 60)
    run_plan(plan, tmp_path / "out")
    found = list(open_source(tmp_path / "out").rows())
    assert [r.columns["n"] for r in found] == [None if kind == "text" else str(i) for i in range(ROWS)]
    table = pq.read_table(tmp_path / "out" / "data")
    assert table.schema.field("n").type == pa.string()


def test_columns_of_every_kind_of_value(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    values = ["é", 1.5, None, [1, {"a": "b"}], True, "\ud800"]
    path.write_bytes(lines([{"text": "x", "v": v} for v in values] + [{"text": "bad", "other": 1}]))
    run_plan(make_plan([str(path)], Fields(keep=("v", "w"))), tmp_path / "out")
    found = list(open_source(tmp_path / "out").rows())
    assert [r.columns["v"] for r in found] == ["é", "1.5", None, '[1, {"a": "b"}]', "true", None, None]
    assert [r.error_code for r in found] == [""] * 5 + ["LW-2009", "LW-2005"]
    assert {r.columns["w"] for r in found} == {None}


def test_2111_and_2101_columns_that_cannot_be_kept(tmp_path: Path) -> None:
    stops(2111, lambda: Fields(keep=("a", "a")))
    stops(2111, lambda: Fields(on_duplicate_id="never"))  # type: ignore[arg-type]
    stops(2111, lambda: Fields(on_bad_file="never"))  # type: ignore[arg-type]
    plan = make_plan([write("jsonl", tmp_path)], Fields(keep=("status",)))
    assert "status" in stops(2111, lambda: run_plan(plan, tmp_path / "out")).expected
    stops(2101, lambda: make_plan([write("parquet", tmp_path)], Fields(keep=("nowhere",))))


def test_equal_texts_are_compressed_once(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        lines([{"custom_id": f"r{i}", "text": t} for i, t in enumerate(["a", "b", "a", "bad", "bad"] * 60)])
    )
    plain, once = StubEncoder(), StubEncoder()
    for encoder, dedupe, out in ((plain, False, "plain"), (once, True, "once")):
        run_plan(make_plan([str(path)], Fields(dedupe=dedupe), 150), tmp_path / out, encoder)
    assert plain.rows == 300
    assert once.rows <= 10  # two shards; a bad text is tried once for each group of rows
    names = [n for n in contents(tmp_path / "plain") if n.startswith(("data", "errors"))]
    assert [contents(tmp_path / "plain")[n] for n in names] == [contents(tmp_path / "once")[n] for n in names]


def test_damaged_files_can_be_left_out(tmp_path: Path) -> None:
    good, bad, last = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", tmp_path / "c.jsonl"
    good.write_bytes(lines(rows(5)))
    bad.write_bytes(
        gzip.compress(lines([{"custom_id": os.urandom(400).hex(), "text": "x"} for _ in range(3000)]))[:-900_000]
    )
    last.write_bytes(lines([{"custom_id": f"c{i}", "text": "x"} for i in range(5)]))
    names = [str(good), str(bad), str(last)]
    stops(2103, lambda: make_plan(names, Fields()))
    plan = make_plan(names, Fields(on_bad_file="skip"), 3)
    assert plan.skipped == (str(bad),)
    assert [s.first for s in plan.shards] == [0, 3, 5, 8]
    found = [r.custom_id for s in plan.shards for r in plan.read(s)]
    assert found == [*(f"r{i}" for i in range(5)), *(f"c{i}" for i in range(5))]
    plan.close()
    with pytest.raises(InputError):
        make_plan([str(bad)], Fields(on_bad_file="skip"))
