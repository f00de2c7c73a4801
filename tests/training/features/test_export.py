"""Features from a checkpoint to a bundle: what the engine answers is what PyTorch answers, token for token in fp32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from latentwire.core.errors import BundleError, ModelError
from latentwire.core.prompt import question_ids
from latentwire.engines.bundle import Bundle, read_bundle
from latentwire.engines.opening import open_engine
from latentwire.export import reference
from latentwire.export.answers import Question, answers
from latentwire.export.checkpoint import read_checkpoint
from latentwire.export.export import Request, export_bundle
from latentwire.export.families import read_config
from latentwire.export.features import check_features
from latentwire.export.lora import Lora, lora_of, read_lora
from latentwire.export.publish import publish
from latentwire.export.recheck import Recheck, recheck
from latentwire.export.recompile import copy
from latentwire.export.target import Wishes, choose
from latentwire.export.weights import WeightReader
from latentwire.models.folder import ModelFolder
from latentwire.models.store import resolve
from latentwire.runtime.answer import Answer
from latentwire.runtime.options import CompressOptions, GenerateOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.training.building import build_model, open_checkpoint, start
from latentwire.training.checkpoint import save
from latentwire.training.config import Config
from latentwire.training.data import read_questions
from latentwire.training.evaluate import measure
from latentwire.training.features.options import LoraOptions, PrefixTuningOptions

Make = Callable[..., Config]
CPU = torch.device("cpu")
BOTH = {
    "features": ("lora", "prefix_tuning"),
    "lora": LoraOptions(rank=3, alpha=4, layers=1),
    "prefix_tuning": PrefixTuningOptions(rows=3),
}
NEW = 6


def published(config: Config, out: Path, size: float) -> Path:
    """A checkpoint whose features are off their start by ``size``, published."""
    model = build_model(config, CPU)
    start(model, [item.context for item in read_questions(config.data)])
    torch.manual_seed(1)
    for parameter in model.features.parameters():
        nn.init.normal_(parameter, std=size)
    save(out.with_name("trained"), model)
    return publish(out.with_name("trained"), out, {})


@pytest.fixture(scope="module")
def checkpoint(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tiny_config(**BOTH), tmp_path_factory.mktemp("features") / "c", 0.2)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tiny_llm: Path) -> Bundle:
    return export_bundle(Request(str(checkpoint), str(tiny_llm), checkpoint.with_name("bundle")))


def torch_answers(checkpoint: Path, stories: Path, kind: str, features: bool = True) -> tuple[str, ...]:
    model, _ = open_checkpoint(checkpoint, "cpu")
    if not features:
        model.features = nn.ModuleDict()
    return measure(model, model.llms[0], read_questions([str(stories)]), kind, max_new_tokens=NEW).texts


def bundle_answers(bundle: Bundle, stories: Path) -> tuple[str, ...]:
    asked = [Question(i.context, q.text, q.answers) for i in read_questions([str(stories)]) for q in i.questions]
    return tuple(answers(open_engine(bundle.path), asked, "latents", NEW))


def test_a_bundle_answers_as_torch_does(bundle: Bundle, checkpoint: Path, story_file: Path) -> None:
    expected = torch_answers(checkpoint, story_file, "latents")
    assert bundle_answers(bundle, story_file) == expected
    assert expected != torch_answers(checkpoint, story_file, "latents", features=False)
    m = bundle.manifest
    assert set(m.features) == {"lora", "prefix_tuning"}
    for kind, facts in m.features.items():
        assert facts["sha256"] == m.files[f"{kind}.safetensors"].sha256
    assert m.features["lora"]["scale"] == 4 / 3
    assert m.front_rows == m.features["prefix_tuning"]["rows"] == 3
    gates = {g["gate"]: g["verdict"] for g in m.quality["parity"]["gates"]}
    assert gates["weights"] == gates["states"] == gates["logits"] == gates["tokens"] == "passed"


def test_the_runtime_asks_with_the_rows_in_front(bundle: Bundle, checkpoint: Path, story_file: Path) -> None:
    items = read_questions([str(story_file)])[:3]
    expected = torch_answers(checkpoint, story_file, "latents_f16")[:3]
    with Pipeline.open(bundle.path) as pipe:
        frames = pipe.compress([item.context for item in items], CompressOptions(codec="f16"))
        texts = [item.questions[0].text for item in items]
        found = pipe.answers(frames, texts, GenerateOptions(max_new_tokens=NEW))
        asked = [len(question_ids(pipe.tokenizer.encode, text)) for text in texts]
    for own, text, question in zip(found, expected, asked, strict=True):
        assert isinstance(own, Answer)
        assert own.text.split("\n")[0].strip() == text
        # BOS, rows in front, latents, task rows, and the question.
        assert own.prompt_positions == 1 + 3 + 8 + 2 + question
        assert own.context_positions == 8


def test_the_decoder_holds_the_merged_weights(bundle: Bundle, checkpoint: Path, tiny_llm: Path) -> None:
    model, _ = open_checkpoint(checkpoint, "cpu")
    lora = model.features_of(model.llms[0])["lora"]
    own = load_file(bundle.file("decoder.safetensors"))
    for layer, changed in ((0, True), (1, False)):
        weight = model.llms[0].model.model.layers[layer].mlp.up_proj.weight
        if changed:
            weight = weight + 4 / 3 * lora.get_parameter(f"B.{layer}/up_proj") @ lora.get_parameter(
                f"A.{layer}/up_proj"
            )
        np.testing.assert_allclose(own[f"layer.{layer}.up"], weight.detach().numpy().T, atol=1e-6)


def test_a_bundle_is_judged_again_with_its_lora(bundle: Bundle, tiny_llm: Path) -> None:
    report = recheck(Recheck(bundle.path, str(tiny_llm), "transformers", ("ort-cpu",)))
    assert not report.failed
    assert report.source.endswith("with LoRA merged")
    with pytest.raises(BundleError, match=r"LW-4011 .*LoRA"):
        recheck(Recheck(bundle.path, str(tiny_llm), "recorded"))


def test_a_bundle_compiled_again_keeps_its_features(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    made = copy(bundle, choose(Wishes("tensorrt-rtx", capacity=64)), tmp_path / "out")
    assert made.manifest.features == bundle.manifest.features
    assert lora_of(made) is not None


def test_other_changes_than_the_bundles_fail_the_gates(bundle: Bundle, tiny_llm: Path, tmp_path: Path) -> None:
    """The yardstick is the merged model: against the plain one, or another LoRA, the same files fail."""
    from latentwire.export.findings import ParityError
    from latentwire.export.gate_weights import check_weights

    llm = resolve(str(tiny_llm))
    assert check_weights(bundle, llm).verdict == "passed"
    plain = Bundle(bundle.path, replace(bundle.manifest, features={}))
    with pytest.raises(ParityError, match=r"layer\.0"):
        check_weights(plain, llm)
    facts = {**bundle.manifest.features, "lora": {**bundle.manifest.features["lora"], "scale": 1.0}}
    with pytest.raises(ParityError, match=r"layer\.0"):
        check_weights(Bundle(bundle.path, replace(bundle.manifest, features=facts)), llm)


def test_merging_sums_alike_in_blocks_of_any_size(bundle: Bundle, tiny_llm: Path) -> None:
    llm = resolve(str(tiny_llm))
    config = read_config(llm.config, "config.json")
    lora = read_lora(bundle.file("lora.safetensors"), bundle.manifest.features["lora"])
    with WeightReader(llm.weights, config, lora) as reader:
        whole = reader.get("layer.0.down")
        rows = [block for _, block in reader.blocks("layer.0.down", elements=1)]
    assert len(rows) > 1
    np.testing.assert_array_equal(np.concatenate(rows, axis=1), whole)


def refused(checkpoint: Path, llm: Path, tmp_path: Path, change: Callable[[Path], None]) -> ModelError:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    change(broken)
    with pytest.raises(ModelError) as caught:
        export_bundle(Request(str(broken), str(llm), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    return caught.value


def lora_file(folder: Path) -> Path:
    (path,) = folder.glob("feature-lora-*.safetensors")
    return path


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Other tensors, and their true SHA-256 in the metadata."""
    from latentwire.core.files import sha256_file

    tensors = load_file(lora_file(folder))
    change(tensors)
    save_file(tensors, lora_file(folder))
    edit(folder, lambda m: next(iter(m["features"].values()))["lora"].update(sha256=sha256_file(lora_file(folder))))


def test_a_checkpoint_without_its_features_is_not_exported(checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> None:
    def flip(folder: Path) -> None:
        data = bytearray(lora_file(folder).read_bytes())
        data[-1] ^= 1
        lora_file(folder).write_bytes(data)

    changes: dict[str, Callable[[Path], None]] = {
        "has no weights": lambda folder: lora_file(folder).unlink(),
        "damaged": flip,
        "among features": lambda folder: edit(folder, lambda meta: meta.pop("features")),
        "do not belong together": lambda folder: rewrite(folder, lambda t: t.pop("A.0/q_proj")),
        "NaN": lambda folder: rewrite(folder, lambda t: t["A.0/q_proj"].fill(np.nan)),
    }
    for number, (words, change) in enumerate(changes.items()):
        error = refused(checkpoint, tiny_llm, tmp_path / str(number), change)
        assert error.code == 3224
        assert words in str(error)


def test_a_lora_of_another_llm_is_refused(checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> None:
    def widen(tensors: dict[str, Any]) -> None:
        tensors["A.0/q_proj"] = np.zeros((3, 33), np.float16)

    error = refused(checkpoint, tiny_llm, tmp_path, lambda folder: rewrite(folder, widen))
    assert (error.code, "q_proj" in str(error)) == (3223, True)


def test_a_feature_that_no_bundle_holds_is_refused_by_name(checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> None:
    def rename(folder: Path) -> None:
        edit(folder, lambda meta: next(iter(meta["features"].values())).update(telepathy={"sha256": ""}))

    error = refused(checkpoint, tiny_llm, tmp_path, rename)
    assert (error.code, "telepathy" in str(error)) == (3225, True)
    check_features(read_checkpoint(checkpoint).adapters[0])


def test_gemma_matrices_are_merged_too(tiny_config: Make, tiny_gemma: Path, tmp_path: Path) -> None:
    """By the reference itself: the family's decoder against transformers with the same change."""
    config = tiny_config(llms=(str(tiny_gemma),), **BOTH)
    checkpoint = published(config, tmp_path / "c", 0.1)
    # The encoder's own LLM is found by name, and the store does not know a tiny one.
    edit(checkpoint, lambda meta: meta["encoder"].update(llm=config.encoder_llm))
    bundle = export_bundle(Request(str(checkpoint), str(tiny_gemma), tmp_path / "bundle"))
    gates = {g["gate"]: g["verdict"] for g in bundle.manifest.quality["parity"]["gates"]}
    assert gates["weights"] == gates["states"] == gates["logits"] == gates["tokens"] == "passed"


def test_a_reference_needs_the_model_it_changes(tiny_llm: Path) -> None:
    llm: ModelFolder = resolve(str(tiny_llm))
    wrong = Lora(tiny_llm, 1.0, {"layers.7.self_attn.q_proj.weight": (np.zeros((1, 32)), np.zeros((32, 1)))})
    with pytest.raises(ModelError, match="LW-3223"):
        reference.measure(llm.path, llm.fingerprint, [[0, 5]], lora=wrong)


def test_bundles_open_again(bundle: Bundle) -> None:
    assert read_bundle(bundle.path).manifest.features == bundle.manifest.features


@pytest.mark.slow
def test_smollm2_answers_from_a_bundle_as_from_torch(
    smollm2: Path, tiny_config: Make, story_file: Path, tmp_path: Path
) -> None:
    """A real model with changes in every matrix of its first eight layers."""
    changes = {**BOTH, "lora": LoraOptions(layers=8), "encoder_llm": smollm2.name, "llms": (smollm2.name,)}
    checkpoint = published(tiny_config(**changes, d_z=64, lookup_top=16), tmp_path / "c", 0.02)
    bundle = export_bundle(Request(str(checkpoint), smollm2.name, tmp_path / "bundle"))
    expected = torch_answers(checkpoint, story_file, "latents")
    print(expected)
    assert bundle_answers(bundle, story_file) == expected
    assert expected != torch_answers(checkpoint, story_file, "latents", features=False)
