"""A real LLM and real texts: a run that is killed and goes on brings eight texts back word for word."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from latentwire.training.building import open_checkpoint
from latentwire.training.config import Config
from latentwire.training.evaluation.reading import reading
from latentwire.training.latents import parse
from latentwire.training.runfolder import to_toml
from latentwire.training.stages import Stage

TOKENS = 32
"""Of each text; half as many latents."""
STEPS = 14


@pytest.fixture
def texts(root: Path, smollm2: Path) -> list[str]:
    """How eight documents begin."""
    lines = (root / "runtime" / "demo_documents" / "documents.jsonl").read_text("utf-8").splitlines()
    tokenizer: Tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    begins = [tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids[:TOKENS] for line in lines[:8]]
    return [tokenizer.decode(ids) for ids in begins]


def test_eight_texts_come_back_exactly(root: Path, texts: list[str], tmp_path: Path) -> None:
    prose, asked, config, run = (tmp_path / name for name in ("prose.parquet", "asked.jsonl", "run.toml", "run"))
    pq.write_table(pa.table({"text": texts}), prose)
    rows = [{"context": text, "question": "What is told?", "answers": [text.split(",")[0]]} for text in texts]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = Config(
        init=str(root / "reference"),
        span_type="learned",
        places=2,
        prose=(str(prose),),
        data=(str(asked),),
        eval_data=(str(asked),),
        eval_questions=4,
        prose_share=1.0,
        reconstruct_share=1.0,
        latent_choices=("1/2",),
        stage=(Stage("repeat", steps=STEPS, train=("adapters", "task")),),
        batch=8,
        micro_batch=8,
        steps=STEPS,
        format_steps=0,
        lr_new=3e-3,
        lookup_tau=0.03,
        k_token_weight=1.0,
        first_token_ce=0.0,
        save_every=2,
        eval_every=1000,
        precision="fp32",
        device="cpu",
    )
    config.write_text(to_toml(options), encoding="utf-8")
    command = [sys.executable, "-m", "latentwire.cli", "train", "--config", str(config), "--out", str(run), "--quiet"]

    def log() -> list[tuple[str, int]]:
        path = run / "log.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        return [(r["event"], r["step"]) for r in records if r["event"] in ("step", "resume")]

    process, at = subprocess.Popen(command, stderr=subprocess.DEVNULL), random.Random().randint(3, STEPS // 2)
    while process.poll() is None and len(log()) < at:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = len(log())
    print(f"killed after step {done}")
    assert at <= done < STEPS
    before, _ = open_checkpoint(root / "reference", "cpu", llms=("smollm2-135m",))
    start = reading(before.eval(), before.llms[0], texts, parse("1/2"), TOKENS)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    resumed, after = log()[done : done + 2]
    assert resumed[0] == "resume"
    # From the last checkpoint, of every second step; the one that was being written at the kill does not count.
    assert after in [("step", done - done % 2 + 1), ("step", done - done % 2 - 1)]
    assert log()[-1] == ("step", STEPS)
    model, _ = open_checkpoint(run / "last", "cpu")
    found = reading(model.eval(), model.llms[0], texts, parse("1/2"), TOKENS)
    print(f"tokens right: {start.accuracy:.3f} at the start, {found.accuracy:.3f} at the end; {found.latents} latents")
    assert start.accuracy < 0.95
    assert found.accuracy == 1.0
    # It is the latents that say so: another text's do not.
    assert found.shuffled > found.nll + 3.0
