"""What a teacher said is kept: the same losses, nothing read twice, nothing stale or damaged believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire.core import files
from latentwire.core.errors import EnvironmentFault, ModelError
from latentwire.training import model as model_module
from latentwire.training.config import Config
from latentwire.training.stages import Stage
from latentwire.training.teacher_cache import branch_keys
from latentwire.training.teachers import expected_bytes
from latentwire.training.train import Trainer

Make = Callable[..., Config]


@pytest.fixture
def kept(make: Make, tmp_path: Path) -> Make:
    base: dict[str, Any] = {"bundle": "seed", "teacher_top": 8, "teacher_cache": str(tmp_path / "cache")}
    return lambda **changes: make(**(base | changes))


def records(run: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("time", "s", "speed")} for r in found if r["event"] == event]


def read_texts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts what stands in front of a teacher: prompts without latents, while steps are done."""
    seen: list[int] = []
    original = model_module.LatentModel.task_rows

    def counted(self: Any, llm: Any, batch: int) -> Any:
        seen.append(batch)
        return original(self, llm, batch)

    monkeypatch.setattr(model_module.LatentModel, "task_rows", counted)
    return seen


def test_losses_are_the_same_and_no_text_is_read_twice(
    kept: Make, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(make(bundle="seed", teacher_top=8), tmp_path / "without").train()
    Trainer(kept(), tmp_path / "first").train()
    again = Trainer(kept(eval_every=1000), tmp_path / "again")
    seen = read_texts(monkeypatch)
    again.train(until=5)
    assert not seen
    without = records(tmp_path / "without", "step")
    assert "prefix_kd" in json.dumps(without)
    # A branch that came before beside others was rounded differently in the last place.
    for name in ("first", "again"):
        for one, other in zip(records(tmp_path / name, "step"), without, strict=False):
            assert one == pytest.approx(other, abs=2e-4)
    (counts,) = records(tmp_path / "again", "teacher")
    assert (counts["read"], counts["recalled"]) == (0, 10)
    assert again.meter.operations >= 0


def test_a_killed_run_goes_on_bit_for_bit(kept: Make, tmp_path: Path) -> None:
    Trainer(kept(teacher_cache=str(tmp_path / "a-cache")), tmp_path / "a").train()
    run = Trainer(kept(), tmp_path / "b")
    run.train(until=3)
    # Steps that no checkpoint saw: what they learned of the teacher is lost with the process.
    run.save = lambda: None  # type: ignore[method-assign]
    run.train(until=5)
    Trainer(kept(), tmp_path / "b").train()
    a, b = ({r["step"]: r for r in records(tmp_path / name, "step")} for name in "ab")
    assert a == b


def test_a_branch_is_known_by_its_text_and_its_words(kept: Make, tmp_path: Path) -> None:
    maker = Trainer(kept(), tmp_path / "run").maker
    (tree,) = maker(0).teachers
    assert tree.keys == branch_keys(tree)
    assert len({key.digest for key in tree.keys}) == len(tree.keys) >= 4
    assert sum(key.scored for key in tree.keys) == len(tree.scored)
    assert sum(key.asked for key in tree.keys) == len(tree.asked)
    tree.ids[0, 1] += 1
    changed = [a.digest != b.digest for a, b in zip(branch_keys(tree), tree.keys, strict=True)]
    branches = int(tree.branch[0].max())
    assert changed == [True] * branches + [False] * (len(changed) - branches)


def test_the_size_is_told_before_and_must_fit(
    kept: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Trainer(kept(), tmp_path / "run")
    expected = expected_bytes(run.maker, range(12))
    run.train()
    assert "teacher cache" in capfd.readouterr().err
    written = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.safetensors"))
    assert 0.3 * expected < written < 1.5 * expected + 4096
    monkeypatch.setattr(files, "_free_bytes", lambda _: 10)
    with pytest.raises(EnvironmentFault, match="disk space") as e:
        Trainer(kept(), tmp_path / "other").train()
    assert e.value.code == 5004


def test_another_setting_is_refused_by_name(kept: Make, tmp_path: Path) -> None:
    Trainer(kept(), tmp_path / "run").train(until=1)
    for changes, name in (({"kd_tau": 2.0}, "kd_tau"), ({"teacher_top": 4}, "teacher_top")):
        with pytest.raises(ModelError, match=f"another {name}") as e:
            Trainer(kept(**changes), tmp_path / "other")
        assert e.value.code == 3227
        assert not (tmp_path / "other" / "last").exists()
    with pytest.raises(ModelError, match="another task_rows") as e:
        Trainer(kept(lr_task=0.5), tmp_path / "rows").train()
    assert e.value.code == 3227


def test_damage_is_found(kept: Make, tmp_path: Path) -> None:
    Trainer(kept(), tmp_path / "run").train(until=1)
    (path, *_) = (tmp_path / "cache").rglob("*.safetensors")
    good = path.read_bytes()
    tensors = load_file(path)
    for bad in (good[:-9], b"", good[:-1] + bytes([good[-1] ^ 1]), good.replace(b"fingerprint", b"fingerprinT")):
        path.write_bytes(bad)
        with pytest.raises(ModelError, match="damaged") as e:
            Trainer(kept(), tmp_path / "other")
        assert e.value.code == 3226
    for about in ({}, {"facts": "["}, {"facts": "[]"}):
        save_file(tensors, path, about)
        with pytest.raises(ModelError, match="damaged"):
            Trainer(kept(), tmp_path / "other")


def test_options_that_cannot_work_are_refused(kept: Make) -> None:
    with pytest.raises(ModelError, match="teacher_top"):
        kept(teacher_top=0)
    with pytest.raises(ModelError, match="train of stage"):
        kept(stage=(Stage("all", share=1.0, train=("adapters", "task")),))


def test_rows_are_kept_in_half_precision(kept: Make, tmp_path: Path) -> None:
    Trainer(kept(), tmp_path / "run").train(until=1)
    (path, *_) = (tmp_path / "cache").rglob("*.safetensors")
    found = load_file(path)
    types = {name: (t.dtype, t.shape[1:]) for name, t in found.items()}
    assert types["log_p"] == (torch.float16, (8,))
    assert types["tokens"] == (torch.int32, (8,))
    assert int(found["sizes"].sum()) == len(found["tokens"])
