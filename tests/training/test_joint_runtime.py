"""Joint rescoring of two LLM families: the runtime on exported bundles chooses as the evaluation does in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from latentwire.export.export import Request, export_bundle
from latentwire.export.publish import publish
from latentwire.runtime.ensemble import Chosen, Ensemble, log_likelihoods
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import Pipeline, raised
from latentwire.training.building import build_model, open_checkpoint, start
from latentwire.training.checkpoint import save
from latentwire.training.config import Config
from latentwire.training.data import Item, read_questions
from latentwire.training.evaluate import measure
from latentwire.training.evaluation.protocol import Protocol
from latentwire.training.evaluation.rescoring import _scores, ensemble
from latentwire.training.model import LatentModel

NEW = 8


def checkpoint(config: Config, out: Path) -> Path:
    model = build_model(config, torch.device("cpu"))
    start(model, [item.context for item in read_questions(config.data)])
    save(out / "trained", model)
    return publish(out / "trained", out / "published", {})


def test_the_runtime_chooses_as_training_does(
    tiny_config: Callable[..., Config],
    tiny_llm: Path,
    tiny_gemma: Path,
    story_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_llm.parent)  # a checkpoint knows the LLM of its encoder by name
    # With lookup_top 4 two entries with the same key tie for the last place, and either may be taken.
    path = checkpoint(tiny_config(llms=(str(tiny_llm), str(tiny_gemma)), lookup_top=8), tmp_path)
    model, _ = open_checkpoint(path, "cpu")
    items = read_questions([str(story_file)])
    bundles = []
    for llm in (tiny_llm, tiny_gemma):
        wanted = Request(str(path), str(llm), tmp_path / llm.name, verify="weights")
        bundles.append(export_bundle(wanted).path)
    with Pipeline.open(bundles[0]) as first, Pipeline.open(bundles[1]) as second:
        frames = first.compress([item.context for item in items], CompressOptions(codec="f16"))
        asked = [item.questions[0].text for item in items]
        options = GenerateOptions(max_new_tokens=NEW)
        found = raised(Ensemble([first, second]).answers(frames, asked, options))
        chosen = [c for c in found if isinstance(c, Chosen)]
        assert {p[0] for c in chosen for p in c.proposals} == {llm.name for llm in model.llms}
        scores = torch_scores(model, items, chosen)
        ours = np.concatenate([np.sum(c.scores, axis=0) for c in chosen])
        print(f"maximum difference {np.abs(ours - scores).max():.2e}, mean {np.abs(ours - scores).mean():.2e} nats")
        np.testing.assert_allclose(ours, scores, atol=2e-3)
        assert np.ptp(scores) > 1  # they do differ
        # Gold answers, which nobody proposed, are scored alike too.
        golds = [[item.questions[0].answers[0]] for item in items]
        for pipe, wrapper in zip((first, second), model.llms, strict=True):
            nll = measure(model, wrapper, items, "latents_f16").nll
            np.testing.assert_allclose(np.ravel(raised(log_likelihoods(pipe, frames, asked, golds))), -nll, atol=2e-3)
    proposed = {llm.name: measure(model, llm, items, "latents_f16", max_new_tokens=NEW) for llm in model.llms}
    assert [list(row) for row in zip(*(a.texts for a in proposed.values()), strict=True)] == [
        [text for _, text in c.proposals] for c in chosen
    ]
    theirs = ensemble(model, items, proposed, Protocol(), kind="latents_f16")
    share = {llm.name: np.mean([dict(c.proposals)[llm.name] == c.text for c in chosen]) for llm in model.llms}
    assert theirs["chosen"] == {name: round(float(value), 4) for name, value in share.items()}


def torch_scores(model: LatentModel, items: list[Item], chosen: list[Chosen]) -> list[float]:
    options = [tuple(dict.fromkeys(t for _, t in c.proposals if t)) for c in chosen]
    return [s for row in _scores(model, items, options, Protocol(), "latents_f16", 4) for s in row]
