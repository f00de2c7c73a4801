"""Latent adapters from a checkpoint to a bundle, through the whole of publish, export and the runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from latentwire.core.errors import EnvironmentFault, ModelError
from latentwire.engines.bundle import Bundle
from latentwire.engines.opening import choose
from latentwire.export.answers import Question, answers
from latentwire.export.backends import backends
from latentwire.export.export import Request, export_bundle
from latentwire.export.publish import publish
from latentwire.export.recompile import Recompile, recompile
from latentwire.export.target import Wishes
from latentwire.export.target import choose as choose_target
from latentwire.runtime.answer import Answer
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.training.building import build_model, open_checkpoint, start
from latentwire.training.checkpoint import save
from latentwire.training.config import Config
from latentwire.training.data import read_questions
from latentwire.training.evaluate import measure
from latentwire.training.features.options import LatentAdaptersOptions

Make = Callable[..., Config]
CPU = torch.device("cpu")
NEW = 6


@pytest.fixture(scope="module")
def checkpoint(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published, its gates wide open, beside a feature that changes the cache between two readings of a prompt.

    Other families are in ``tests/export/test_cross.py``.
    """
    options = LatentAdaptersOptions(rank=8, heads=2, layers=(0, 1))
    config = tiny_config(features=("coprocessor", "latent_adapters"), latent_adapters=options)
    out = tmp_path_factory.mktemp("cross") / "c"
    model = build_model(config, CPU)
    start(model, [item.context for item in read_questions(config.data)])
    torch.manual_seed(1)
    for parameter in model.features.parameters():
        nn.init.normal_(parameter, std=0.3)
    save(out.with_name("trained"), model)
    return publish(out.with_name("trained"), out, {})


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tiny_llm: Path) -> Bundle:
    return export_bundle(Request(str(checkpoint), str(tiny_llm), checkpoint.with_name("bundle")))


def _torch_answers(checkpoint: Path, stories: Path, kind: str, features: bool = True) -> tuple[str, ...]:
    """``features``: latent adapters too."""
    model, _ = open_checkpoint(checkpoint, "cpu")
    if not features:
        for own in model.features.values():
            assert isinstance(own, nn.ModuleDict)
            del own["latent_adapters"]
    return measure(model, model.llms[0], read_questions([str(stories)]), kind, max_new_tokens=NEW).texts


def test_a_bundle_answers_as_torch_does(bundle: Bundle, checkpoint: Path, story_file: Path) -> None:
    """Latents as frames carry them, and texts, in one batch of the runtime; token for token."""
    items = read_questions([str(story_file)])
    expected = _torch_answers(checkpoint, story_file, "latents_f16")
    assert expected != _torch_answers(checkpoint, story_file, "latents_f16", features=False)
    texts = [item.questions[0].text for item in items]
    options = GenerateOptions(max_new_tokens=NEW)
    with Pipeline.open(bundle.path) as pipe:
        frames = pipe.compress([item.context for item in items], CompressOptions(codec="f16"))
        alone = pipe.answers([items[0].context], texts[:1], options)[0]
        *found, mixed = pipe.answers([*frames, items[0].context], [*texts, texts[0]], options)
    for own, text in zip(found, expected, strict=True):
        assert isinstance(own, Answer)
        assert own.text.split("\n")[0].strip() == text
    assert mixed == alone


def test_what_a_quantised_export_measures(bundle: Bundle, checkpoint: Path, story_file: Path) -> None:
    items = read_questions([str(story_file)])[:4]
    asked = [Question(i.context, i.questions[0].text, i.questions[0].answers) for i in items]
    with Pipeline.open(bundle.path) as pipe:
        found = answers(pipe.engine, asked, "latents", NEW)
    assert tuple(found) == _torch_answers(checkpoint, story_file, "latents")[:4]


def test_the_gates_ran_with_latents_and_without(bundle: Bundle, checkpoint: Path) -> None:
    m = bundle.manifest
    gates = {g["gate"]: g["verdict"] for g in m.quality["parity"]["gates"] if g["backend"] == "ort-cpu"}
    for name in ("states", "logits", "tokens", "prefix", "steps", "steps, latents read", "batch, latents read"):
        assert gates[name] == "passed"
    assert m.features["latent_adapters"]["sha256"] == m.files["latent_adapters.safetensors"].sha256
    assert m.features["latent_adapters"]["layers"] == [0, 1]
    assert m.graphs["cross"].outputs == m.graphs["decoder"].inputs[-3:]


def test_other_engines_and_targets_are_refused_by_name(
    bundle: Bundle, checkpoint: Path, tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("export", "recompile"):  # as if TensorRT were there, and the other feature were not
        monkeypatch.setattr(f"latentwire.export.{module}.prepare", lambda target: target)
        monkeypatch.setattr(f"latentwire.export.{module}.check_prefix", lambda features, target: None)
    m = bundle.manifest
    alone = replace(bundle, manifest=replace(m, graphs={n: g for n, g in m.graphs.items() if n != "prefix"}))
    with pytest.raises(EnvironmentFault, match="layers read latents") as fault:
        choose(alone, "cuda", "ort")
    assert fault.value.code == 5001
    assert choose(alone, "cuda", "torch-ref") == "torch-ref"
    assert choose(alone, "cuda", "ort", ("encoder",)) == "ort"
    absent = {f.backend: f.detail for f in backends(alone, 1)[1]}
    assert "nothing but the prompt" in absent["ort-cuda"]
    wishes = Wishes("tensorrt-rtx", "fp16", gpus=("sm_89",))
    # A bundle of a precision that TensorRT takes is chosen for it.
    monkeypatch.setattr("latentwire.export.recompile.chosen", lambda source, asked: choose_target(asked))
    request = Request(str(checkpoint), str(tiny_llm), tmp_path / "b", target=choose_target(wishes))
    calls: list[Callable[[], object]] = [
        lambda: export_bundle(request),
        lambda: recompile(Recompile(bundle.path, tmp_path / "b", wishes)),
    ]
    for call in calls:
        with pytest.raises(ModelError, match="latent_adapters") as caught:
            call()
        assert caught.value.code == 3225
        assert not (tmp_path / "b").exists()


def test_damaged_weights_are_refused(checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> None:
    (path,) = checkpoint.glob("feature-latent_adapters-*.safetensors")
    weights = path.read_bytes()
    try:
        path.write_bytes(weights[:-1] + b"\x01")
        with pytest.raises(ModelError, match="latent_adapters") as caught:
            export_bundle(Request(str(checkpoint), str(tiny_llm), tmp_path / "b"))
    finally:
        path.write_bytes(weights)
    assert caught.value.code == 3224
