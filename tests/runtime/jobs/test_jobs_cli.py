"""``latentwire jobs run | status | verify``: exit statuses, settings from a file, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from latentwire.core.errors import InputError
from latentwire.runtime.jobs.cli import app
from latentwire.runtime.jobs.lock import job_lock
from latentwire.runtime.jobs.specfile import read_spec

ROWS = [{"custom_id": f"r{i}", "text": "" if i == 4 else f"text number {i}"} for i in range(12)]


@pytest.fixture
def docs(tmp_path: Path) -> str:
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS), encoding="utf-8")
    return str(path)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)


def refused(status: int, code: int, *words: object) -> str:
    result = call(*words)
    assert result.exit_code == status, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(f"LW-{code} ")
    assert "Traceback" not in result.stderr
    return line


def test_settings_from_a_file_and_options_that_win(docs: str, toy_bundle: Path, tmp_path: Path) -> None:
    spec, out = tmp_path / "job.toml", tmp_path / "out"
    settings = {"inputs": [docs], "out": str(out), "bundle": str(toy_bundle), "codec": "f16", "shard_rows": 5}
    spec.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()) + "json = true\nquiet = true\n")
    result = call("run", spec)
    assert result.exit_code == 3
    made = json.loads(result.stdout)
    assert (made["codec"], made["rows"], made["errors_by_code"]) == ("f16", 12, {"LW-2005": 1})
    assert len(list((out / "data").iterdir())) == 3
    assert call("run", spec).exit_code == 3
    assert "options.codec: f16 in the folder, i8 asked for" in refused(5, 2109, "run", spec, "--codec", "i8")
    assert "12" in refused(5, 2109, "run", spec, "--shard-rows", "12")
    assert json.loads(call("run", spec, "--codec", "i8", "--overwrite").stdout)["codec"] == "i8"


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("inputs = ['x']\nworker = 3\n", 2111, "'worker'"),
        ("inputs = [", 2111, "not TOML"),
        ("codec = 'i8'\n", 2104, "inputs"),
        ("inputs = []\n", 2104, "inputs"),
    ],
)
def test_2111_settings_that_cannot_be_read(tmp_path: Path, text: str, code: int, says: str) -> None:
    spec = tmp_path / "job.toml"
    spec.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_spec(spec, {"inputs", "codec", "as_json"})
    assert caught.value.code == code
    assert says in str(caught.value)
    assert str(spec) in caught.value.where


def test_2106_settings_that_are_not_there(tmp_path: Path, toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="LW-2106 cannot read the job's settings"):
        call("run", tmp_path / "absent.toml", "-o", tmp_path / "out", "-b", toy_bundle)


def test_a_wrong_value_in_the_settings_is_told_like_one_of_the_command_line(docs: str, tmp_path: Path) -> None:
    spec = tmp_path / "job.toml"
    spec.write_text(f"inputs = [{json.dumps(docs)}]\nout = 'o'\nbundle = 'b'\ncodec = 'mp3'\n", encoding="utf-8")
    result = call("run", spec)
    assert result.exit_code == 2
    assert "mp3" in result.stderr


def test_2112_status_and_going_on(docs: str, toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("run", docs, "-o", out, "-b", toy_bundle, "--shard-rows", 5, "-q")
    assert "--max-errors 0" in refused(4, 2112, *words, "--max-errors", 0)
    result = call("status", out, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert {k: found[k] for k in ("state", "shards_done", "shards_total", "rows_done", "rows_error", "rows_total")} == {
        "state": "stopped",
        "shards_done": 1,
        "shards_total": 3,
        "rows_done": 5,
        "rows_error": 1,
        "rows_total": 12,
    }
    assert "unfinished" in refused(5, 2108, "verify", out)
    refused(4, 2112, *words, "--max-error-rate", 0.05)
    with job_lock(out):
        refused(75, 5006, *words)
        running = json.loads(call("status", out, "--json").stdout)
        assert (running["state"], running["rows_done"]) == ("running", 5)
    assert call(*words, "--max-error-rate", 0.1, "--verify", "full", "--no-fsync").exit_code == 3
    result = call("status", out)
    assert result.exit_code == 3
    assert "finished" in result.stdout
    sound = json.loads(call("verify", out, "--json").stdout)
    assert (sound["shards"], sound["rows"], sound["errors"]) == (3, 12, 1)
    (out / "data" / "part-00001.parquet").unlink()
    assert "part-00001.parquet" in refused(5, 2108, "verify", out)
    (out / "data" / "stranger").write_text("x")
    assert "belongs to no shard" in refused(5, 2108, "verify", out)


def test_2108_nothing_is_here(tmp_path: Path) -> None:
    for command in ("status", "verify"):
        refused(5, 2108, command, tmp_path)
