"""Several LLMs against each alone: the questions are the evaluation's, the figures are those of a hand count."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from latentwire.benchmarks.ensemble import figures
from latentwire.benchmarks.inputs import Sample
from latentwire.benchmarks.questions import load_questions
from latentwire.cli import app
from latentwire.core.errors import InputError
from latentwire.core.scoring import interval
from latentwire.engines.toy import write_toy_bundle
from latentwire.runtime.ensemble import Chosen
from latentwire.training.data import read_questions
from latentwire.training.evaluate import pick

ROWS = [
    {
        "context": f"The {i // 2}. bridge was opened in 19{i // 2}0.",
        "question": f"When {i}?",
        "answers": [f"19{i // 2}0"],
    }
    for i in range(18)
]


def write(path: Path) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    return path


def test_the_questions_are_those_of_the_evaluation(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl.gz")
    for count in (5, 18):
        theirs = pick(read_questions([str(path)]), count)
        want = [Sample(item.context, q.text, q.answers) for item in theirs for q in item.questions]
        assert load_questions(path, count) == want
    assert load_questions(path, 5, seed=1) != load_questions(path, 5)


@pytest.mark.parametrize(
    ("body", "code"), [(b"", 2104), (b'{"context": "x"}', 2111), (b"[1]", 2111), (b"{", 2111), (None, 2106)]
)
def test_files_that_hold_no_questions(tmp_path: Path, body: bytes | None, code: int) -> None:
    path = tmp_path / "q.jsonl"
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(InputError) as caught:
        load_questions(path, 5)
    assert caught.value.code == code
    (tmp_path / "cut.gz").write_bytes(write(tmp_path / "q.jsonl.gz").read_bytes()[:60])
    with pytest.raises(InputError, match="LW-2106"):
        load_questions(tmp_path / "cut.gz", 5)


def chosen(one: str, two: str, scores: tuple[tuple[float, ...], ...]) -> Chosen:
    return Chosen("", "eos", 2, 2, 1, (("a", one), ("b", two)), scores)


def test_figures_by_hand() -> None:
    samples = [Sample("x", "q", ("1932",)), Sample("x", "r", ("blue",)), Sample("y", "s", ("two",))]
    found = [
        chosen("1932", "1940", ((-1.0, -9.0), (-9.0, -2.0))),  # joint and best: a, which is right
        chosen("red", "blue", ((-3.0, -2.0), (-9.0, -4.0))),  # joint: b, right; best: a by its own score
        chosen("", "", ((), ())),  # nobody says anything
    ]
    of = figures(["a", "b"], found, samples)
    f1 = {row["answers"]: round(row["f1"], 3) for row in of["rows"]}
    assert f1 == {"a": 0.333, "b": 0.333, "joint": 0.667, "majority": 0.667, "best": 0.333}
    assert (of["best"], of["oracle"], of["agreed"]) == ("a", pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert figures(["a", "b"], found[1:2], samples[1:2])["best"] == "b"
    joint = of["rows"][2]
    assert joint["minus_best"] == pytest.approx(1 / 3)
    assert joint["minus_best_ci"] == (0.0, 0.5)  # only whole texts are drawn: y, both, or x twice
    assert "minus_best" not in of["rows"][0]
    assert of["rows"][4]["minus_best"] == 0
    assert interval(np.array([0.0, 1.0, 0.0]))[1] > 0.5  # single questions would say more than is known


def test_the_command(toy: Path, tmp_path: Path) -> None:
    data, run = write(tmp_path / "q.jsonl.gz"), CliRunner().invoke
    words = ["bench", "ensemble", "-b", str(toy), "--data", str(data), "-n", "4", "-q", "--new-tokens", "3"]
    one = run(app, words)
    assert one.exit_code == 5
    assert "LW-2111 nothing to put together" in one.stderr
    two = run(app, [*words, "-b", str(toy), "-o", str(tmp_path / "e")])
    assert two.exit_code == 0, two.output
    assert "joint" in two.stdout
    (kept,) = json.loads((tmp_path / "e.json").read_text())["reports"]
    assert kept == json.loads(two.stdout.splitlines()[-1])
    assert kept["data"]["questions"] == 4
    assert kept["data"]["agreed"] == 1.0  # the same bundle twice
    assert [r["answers"] for r in kept["data"]["rows"][2:]] == ["joint", "majority", "best"]
    assert all(r.get("minus_best", 0) == 0 for r in kept["data"]["rows"])
    assert "4 questions about 2 texts" in (tmp_path / "e.md").read_text()


def test_bundles_of_two_encoders_are_refused(toy: Path, tmp_path: Path) -> None:
    data, other = write(tmp_path / "q.jsonl.gz"), write_toy_bundle(tmp_path / "other", seed=1).path
    words = ["bench", "ensemble", "-b", str(toy), "-b", str(other), "--data", str(data), "-n", "4"]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 5
    assert "LW-3101" in said.stderr
