"""Runs as other processes: killed and resumed, two that train together, the command line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from latentwire.training.cli import app
from latentwire.training.config import Config
from latentwire.training.curves import draw
from latentwire.training.runfolder import to_toml
from latentwire.training.stages import Stage

TRAIN = ["-m", "latentwire.cli", "train"]


@pytest.fixture
def config(make: Callable[..., Config]) -> Config:
    """A run of a few seconds."""
    return make(micro_batch=2, steps=40, save_every=3, eval_every=20, threads=1)


def _command(tmp_path: Path, config: Config, out: str, *more: str) -> list[str]:
    path = tmp_path / f"{out}.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return [*TRAIN, "--config", str(path), "--out", str(tmp_path / out), "--quiet", *more]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)


def _here(command: list[str]) -> str:
    """The same inside this process, which has everything imported; returns stdout."""
    found = CliRunner().invoke(app, command[len(TRAIN) - 1 :])
    assert found.exit_code == 0, found.output
    return found.stdout


def _records(run: Path, event: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").is_file() else []
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    return [r for r in whole if r["event"] == event]


def _losses(run: Path) -> dict[int, dict[str, Any]]:
    return {r["step"]: {k: v for k, v in r.items() if k not in ("time", "s", "speed")} for r in _records(run, "step")}


def test_a_killed_run_goes_on_as_if_nothing_had_happened(config: Config, tmp_path: Path) -> None:
    whole = _run(_command(tmp_path, config, "whole"))
    assert whole.returncode == 0, whole.stderr
    command = _command(tmp_path, config, "killed")
    at = random.Random().randint(1, 35)
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    # No limit of its own: a run that never gets there ends, and is found finished.
    while process.poll() is None and len(_records(tmp_path / "killed", "step")) < at:
        time.sleep(0.001)
    process.kill()
    process.wait()
    done = len(_records(tmp_path / "killed", "step"))
    print(f"killed after step {done}")
    assert done < 40, "the run was over before it could be killed"
    again = _run(command)
    assert again.returncode == 0, again.stderr
    assert len(_records(tmp_path / "killed", "resume")) == 1
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")
    assert {r["step"] for r in _records(tmp_path / "killed", "eval")} == {0, 20, 40}
    for part in ("last", "best"):
        for path in sorted((tmp_path / "whole" / part).glob("*.safetensors")):
            assert path.read_bytes() == (tmp_path / "killed" / part / path.name).read_bytes(), path


def test_two_processes_train_as_one(config: Config, tmp_path: Path) -> None:
    """One step is the same micro-batches whatever the number of processes; only sums are added in another order."""
    stages = (
        Stage("a", steps=3, bundle="pretrain", prose_share=1.0, train=("adapters",)),
        Stage("b", steps=5, bundle="seed"),
    )
    config = replace(config, steps=8, eval_every=4, stage=stages)
    alone = _run(_command(tmp_path, config, "alone"))
    assert alone.returncode == 0, alone.stderr
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = _command(tmp_path, config, "both")
    both = _run([*started, *command])
    assert both.returncode == 0, both.stderr
    a, b = (_losses(tmp_path / run) for run in ("alone", "both"))
    assert a.keys() == b.keys()
    worst = 0.0
    for step, record in a.items():
        assert record.keys() == b[step].keys()
        for name, value in record.items():
            if isinstance(value, float):
                worst = max(worst, abs(value - b[step][name]) / max(1.0, abs(value)))
    print(f"largest relative difference of a logged value: {worst:.1e}, tolerance 1e-3")
    assert worst < 1e-3
    # Each record once: the first process alone writes.
    assert len(_records(tmp_path / "both", "step")) == 8
    assert [r["step"] for r in _records(tmp_path / "both", "eval")] == [0, 4, 8]
    weights = [load_file(tmp_path / run / "last" / "encoder.safetensors") for run in ("alone", "both")]
    assert max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0]) < 1e-4
    # One process may go on with what two began.
    longer = replace(config, stage=(stages[0], replace(stages[1], steps=5)))
    assert _run(_command(tmp_path, longer, "both")).returncode == 0


def test_dry_run_shows_what_would_happen_and_writes_nothing(config: Config, tmp_path: Path) -> None:
    stages = (Stage("warm", share=0.5, prose_share=1.0, crops=(16, 24)), Stage("ask", share=0.5, bundle="answer"))
    found = _here(_command(tmp_path, replace(config, stage=stages), "never", "--dry-run"))
    assert not (tmp_path / "never").exists()
    for piece in ("latent_len = 8", "[[stage]]", "adapter/tiny-llama0", "answer 1, kd 0.5", "reconstruct: [2 rows]"):
        assert piece in found, piece
    assert "first micro-batch of warm" in found
    assert "Question: What is told?\\nAnswer:" in found
    assert "% of peak" in found
    assert "minutes on this machine" in found
    assert "more for the optimiser" in found


def test_the_board_and_the_curves_show_the_log(config: Config, tmp_path: Path) -> None:
    stages = (Stage("warm", share=0.5), Stage("ask", share=0.5))
    config = replace(config, steps=6, eval_every=2, stage=stages, tensorboard=True)
    _here(_command(tmp_path, config, "run"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    (name,) = (tag for tag in events.Tags()["scalars"] if tag.endswith("/ce"))
    assert [e.step for e in events.Scalars(name)] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in events.Scalars(name)] == pytest.approx(
        [next(v for k, v in r.items() if k.endswith("/ce")) for r in _records(tmp_path / "run", "step")]
    )
    assert any(tag.endswith("latents/nll") for tag in events.Tags()["scalars"])
    # Drawn while the run went on: the file is there before anybody asks for it.
    before = (tmp_path / "run" / "curves.png").stat().st_size
    assert before > 20_000
    assert draw(tmp_path / "run").stat().st_size == pytest.approx(before, rel=0.2)


def test_a_run_starts_from_another_on_the_command_line(config: Config, tmp_path: Path) -> None:
    config = replace(config, steps=2, eval_every=2)
    _here(_command(tmp_path, config, "first"))
    _here(_command(tmp_path, config, "second", "--init", str(tmp_path / "first" / "last")))
    assert _records(tmp_path / "second", "format") == []
    assert f'init = "{tmp_path}/first/last"' in (tmp_path / "second" / "config.toml").read_text()
    # A resumed run needs the same words again, and nothing else.
    (tmp_path / "first").rename(tmp_path / "gone")
    _here(_command(tmp_path, config, "second", "--init", str(tmp_path / "first" / "last")))
