"""Progress, tables, exit codes: what a user or a script sees of a command."""

from __future__ import annotations

import inspect
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentwire.core import console
from latentwire.core.errors import EnvironmentFault

PROLOGUE = """
import os, signal, sys, time
from latentwire.core.console import *
from latentwire.core.errors import *
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
        # A shell's background job ignores Ctrl-C, and so would everything that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    console.configure(quiet=False, debug=False, every_s=5.0)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_progress_is_json_lines_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with console.track("copy", 10, "B", every_s=0) as progress:
        progress.advance(4)
        progress.total(8)
        progress.advance(4)
    out, err = capsys.readouterr()
    assert out == ""
    shown = lines(err)
    assert [(line["step"], line["done"], line["total"]) for line in shown] == [
        ("copy", 4, 10), ("copy", 8, 8), ("copy", 8, 8),
    ]  # fmt: skip
    assert set(shown[0]) == {"step", "done", "total", "unit", "per_s", "eta_s"}
    assert shown[-1]["eta_s"] == 0


def test_progress_lines_keep_their_distance(capsys: pytest.CaptureFixture[str]) -> None:
    with console.track("count") as progress:
        for _ in range(1000):
            progress.advance()
    shown = lines(capsys.readouterr().err)
    assert [(line["done"], line["total"], line["eta_s"]) for line in shown] == [(1000, None, None)]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(quiet=True)
    with console.track("copy", 1) as progress:
        progress.advance()
        progress.total(2)
    console.message("remark")
    assert capsys.readouterr() == ("", "")
    with console.track("copy", 1, quiet=False):
        pass
    assert lines(capsys.readouterr().err)


def test_progress_is_a_bar_on_a_terminal() -> None:
    code = PROLOGUE + "with track('copy it', 4, 'B') as p:\n    p.total(5); p.advance(5)"
    parent, child = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", code], stderr=child, check=True, timeout=60)
        shown = os.read(parent, 100_000).decode()
    finally:
        os.close(child)
        os.close(parent)
    assert "copy it" in shown
    assert "5/5 bytes" in shown
    assert "{" not in shown


def test_table_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(["name", "n"], [["a", 1], ["bbbbbb", 22], [None, 3]], title="T")
    assert capsys.readouterr().out == "T\nname     n\n------  --\na        1\nbbbbbb  22\n         3\n"
    console.print_table(["name", "n"], [])
    assert capsys.readouterr().out == "name  n\n----  -\n"


def test_table_on_a_terminal() -> None:
    code = PROLOGUE + "print_table(['name', 'n'], [['[bold]', 1]])"
    parent, child = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", code], stdout=child, check=True, timeout=60)
        shown = os.read(parent, 100_000).decode()
    finally:
        os.close(child)
        os.close(parent)
    assert "name" in shown
    assert "[bold]" in shown  # data is never markup


def test_json_result(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"b": "é", "a": 1})
    assert capsys.readouterr().out == '{"a": 1, "b": "é"}\n'


def test_our_error_is_one_line_and_its_exit_code() -> None:
    code = "run_cli(lambda: (_ for _ in ()).throw(EnvironmentFault(5004, 'disk full', where='x', exit_code=74)))"
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (74, "", "LW-5004 disk full; x\n")


@pytest.mark.parametrize("how", ["environment", "argument", "configured"])
def test_debug_shows_the_traceback(how: str) -> None:
    raising = "lambda: (_ for _ in ()).throw(RowError(2001, 'bad'))"
    if how == "environment":
        done = run(f"run_cli({raising})", LATENTWIRE_DEBUG="1")
    elif how == "argument":
        done = run(f"run_cli({raising}, debug=True)")
    else:
        done = run(f"configure(debug=True); run_cli({raising})")
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("LW-2001 bad\n")
    assert done.returncode == 5


def test_our_own_mistakes_keep_their_traceback() -> None:
    done = run("run_cli(lambda: 1 / 0)")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_status_and_success() -> None:
    assert run("run_cli(lambda: 3)").returncode == 3
    assert run("run_cli(lambda: None); print('on')").stdout == "on\n"


def test_out_of_memory() -> None:
    done = run("def f():\n    raise MemoryError\nrun_cli(f)")
    assert done.returncode == 6
    assert done.stderr.startswith("LW-5003 ")


def test_disk_full_anywhere() -> None:
    done = run("def f():\n    raise OSError(28, 'No space left on device', '/x')\nrun_cli(f)")
    assert done.returncode == 74
    assert done.stderr.startswith("LW-5004 no space left to write; /x; ")


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_clean_up(number: signal.Signals, status: int, word: str, tmp_path: Path) -> None:
    code = f"""
from latentwire.core.files import atomic_folder
def main():
    with atomic_folder({str(tmp_path / "model")!r}) as folder:
        (folder / "a").write_text("1")
        os.kill(os.getpid(), {int(number)})
        time.sleep(30)
run_cli(main)
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (status, f"{word}\n")
    assert not any(tmp_path.iterdir())


def test_closed_pipe_is_no_error() -> None:
    code = "run_cli(lambda: [print('x' * 1000) for _ in range(1000)] and None)"
    child = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert child.wait(60) == 141
    assert err == ""


def test_command_keeps_the_signature() -> None:
    @console.command
    def add(name: str, count: int = 1) -> int:
        """Add it."""
        if count > 1:
            raise EnvironmentFault(5004, "full")
        return 0

    assert list(inspect.signature(add).parameters) == ["name", "count"]
    assert add.__doc__ == "Add it."
    add("a")
    with pytest.raises(SystemExit) as stopped:
        add("a", count=2)
    assert stopped.value.code == 6
