"""Keys and values of latents from a checkpoint to a bundle: engines answer what PyTorch answers, token for token."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire.core.errors import BundleError, ModelError
from latentwire.engines.base import Engine
from latentwire.engines.bundle import Bundle
from latentwire.engines.opening import open_engine
from latentwire.export.answers import Question, answers
from latentwire.export.export import Request, export_bundle
from latentwire.export.prefix import check_prefix
from latentwire.export.publish import publish
from latentwire.export.target import PLAIN
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.training.building import build_model, open_checkpoint, start
from latentwire.training.checkpoint import save
from latentwire.training.config import Config
from latentwire.training.data import read_questions
from latentwire.training.evaluate import measure
from latentwire.training.features.options import CoprocessorOptions, DeepPrefixOptions, PrefixTuningOptions
from latentwire.training.model import LatentModel

Make = Callable[..., Config]
CASES: dict[str, dict[str, Any]] = {
    "before": {"features": ("deep_prefix",), "deep_prefix": DeepPrefixOptions(rank=8, groups=2, quiet=0.0)},
    "onto": {
        "features": ("prefix_tuning", "coprocessor"),
        "coprocessor": CoprocessorOptions(rank=8),
        "prefix_tuning": PrefixTuningOptions(rows=3),
    },
}
NEW = 6


def trained(config: Config) -> LatentModel:
    """Weights of the closed-form start; the gates of features wide open."""
    model = build_model(config, torch.device("cpu"))
    start(model, [item.context for item in read_questions(config.data)])
    with torch.no_grad():
        for name, parameter in model.features.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(1.0)
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CASES[request.param]


@pytest.fixture(scope="module")
def checkpoint(case: dict[str, Any], tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cached")
    save(folder / "trained", trained(tiny_config(**case)))
    return publish(folder / "trained", folder / "c", {})


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tiny_llm: Path) -> Bundle:
    return export_bundle(Request(str(checkpoint), str(tiny_llm), checkpoint.with_name("bundle")))


def test_engines_answer_what_torch_answers(checkpoint: Path, bundle: Bundle, story_file: Path) -> None:
    model, _ = open_checkpoint(checkpoint, "cpu")
    items = read_questions([str(story_file)])
    wanted = list(measure(model, model.llms[0], items, "latents", max_new_tokens=NEW).texts)
    model.features = torch.nn.ModuleDict()
    assert list(measure(model, model.llms[0], items, "latents", max_new_tokens=NEW).texts) != wanted
    asked = [Question(i.context, q.text, q.answers) for i in items for q in i.questions]
    for backend in ("ort", "torch-ref"):
        engine = open_engine(bundle.path, backend=backend)
        assert answers(engine, asked, "latents", NEW) == wanted
        engine.close()
    with Pipeline.open(bundle.path) as pipe:
        frames = pipe.compress([q.context for q in asked], CompressOptions(codec="f16"))
        options = GenerateOptions(max_new_tokens=NEW)
        assert len(pipe.generate(frames, [q.text for q in asked], options)) == len(wanted)
        texts = pipe.generate_text([q.context for q in asked], [q.text for q in asked], options)
    plain = list(measure(model, model.llms[0], items, "full", max_new_tokens=NEW).texts)
    assert texts == plain


def test_gates_ran_on_it(bundle: Bundle) -> None:
    found = {g["gate"]: g for g in bundle.manifest.quality["parity"]["gates"] if g["backend"] == "ort-cpu"}
    print({name: found[name].get("measured") for name in ("prefix", "steps", "logits")})
    for name in ("prefix", "steps", "batch", "logits", "tokens", "cache"):
        assert found[name]["verdict"] == "passed"


class _Forgetful:
    """An engine whose second row loses a slot."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def insert(self, buffers: Any, prefix: Any) -> None:
        keys = prefix.keys.copy()
        if len(keys) > 1:
            keys[1, -1, :, 0] += 3.0
        self._engine.insert(buffers, replace(prefix, keys=keys))


def test_the_gate_sees_a_slot_in_the_wrong_place(bundle: Bundle) -> None:
    from latentwire.export.gate_prefix import check_prefix as gate
    from latentwire.export.gate_same import Sample

    rows = [[0, *range(40, 52)], [0, *range(60, 75)], [0, *range(50, 60)]]
    engine = open_engine(bundle.path)
    assert gate(engine, Sample(rows, rows, 1e-4)).verdict == "passed"
    with pytest.raises(BundleError, match="prefix") as caught:
        gate(_Forgetful(engine), Sample(rows, rows, 1e-4))
    assert caught.value.code == 4010


def test_the_part_is_what_torch_computes(checkpoint: Path, bundle: Bundle) -> None:
    from latentwire.export.trace_prefix import prefix_feature, prefix_module

    model, _ = open_checkpoint(checkpoint, "cpu")
    llm = model.llms[0]
    feature = prefix_feature(model, llm)
    assert feature is not None
    engine = open_engine(bundle.path)
    for latents in (1, 4, 7):
        z = torch.randn(3, latents, model.config.d_z)
        z[1, 1:] = 0
        with torch.no_grad():
            wanted = prefix_module(model, llm, feature)(z)
            slots = feature.prefix(z)
            assert slots is not None
        found = engine.prefix(z.numpy())
        for have, want in zip(found, wanted, strict=True):
            for b, count in enumerate(slots.counts.tolist()):
                np.testing.assert_allclose(have[b, :, :, :count], want[b, :, :, :count].numpy(), atol=2e-5, rtol=1e-4)


def test_targets_whose_cache_is_closed_are_refused_by_name(
    checkpoint: Path, case: dict[str, Any], tiny_llm: Path, tmp_path: Path
) -> None:
    for target in (replace(PLAIN, flavour="gqa"), replace(PLAIN, kind="tensorrt")):
        with pytest.raises(ModelError, match=case["features"][-1]) as caught:
            check_prefix(case["features"], target)
        assert caught.value.code == 3225
        check_prefix(("lora",), target)
    request = Request(str(checkpoint), str(tiny_llm), tmp_path / "b", target=replace(PLAIN, flavour="gqa"))
    with pytest.raises(ModelError, match="LW-3225"):
        export_bundle(request)


def test_a_checkpoint_that_was_never_traced_is_refused(checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> None:
    broken = tmp_path / "c"
    shutil.copytree(checkpoint, broken)
    (path,) = broken.glob("feature-*.onnx")
    path.unlink()
    with pytest.raises(ModelError, match="LW-3204") as caught:
        export_bundle(Request(str(broken), str(tiny_llm), tmp_path / "bundle"))
    assert path.name in str(caught.value)


def test_a_graph_that_computes_something_else_is_not_published(
    tiny_config: Make, case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentwire.export import trace_prefix

    save(tmp_path / "trained", trained(tiny_config(**case)))
    real = trace_prefix.trace_prefix

    def trace_then_change(model: Any, llm: Any, feature: Any, folder: Path) -> Path:
        path = real(model, llm, feature, folder)
        with torch.no_grad():
            feature.head.gate += 0.3
        return path

    monkeypatch.setattr(trace_prefix, "trace_prefix", trace_then_change)
    with pytest.raises(BundleError, match=r"LW-4010 .*feature-"):
        publish(tmp_path / "trained", tmp_path / "c", {})
