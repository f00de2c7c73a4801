"""Two encoders of one checkpoint: either's frames are read by the same adapters, and nothing stale is opened."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.core.errors import EnvironmentFault, ModelError
from latentwire.export.checkpoint import read_checkpoint
from latentwire.export.export import Request, export_bundle
from latentwire.export.join import join
from latentwire.export.publish import publish
from latentwire.runtime import message
from latentwire.runtime.options import CompressOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.training.building import open_checkpoint
from latentwire.training.checkpoint import read_meta
from latentwire.training.config import Config
from latentwire.training.report import find
from latentwire.training.train import Trainer

from .conftest import QUESTION, STORIES, MakeConfig

TEXTS = [context for context, _ in STORIES]


@pytest.fixture(scope="module")
def base(tiny_config: MakeConfig) -> Config:
    return tiny_config(mlp_hidden=16, batch=8, fsq_profile=1, fsq_hidden=16, fsq_fit=5, steps=2)


@pytest.fixture(scope="module")
def runs(base: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a``: the first encoder's run; ``b``: a byte encoder's that learned from it."""
    folder = tmp_path_factory.mktemp("runs")
    Trainer(base, folder / "a").train()
    student: dict[str, Any] = {
        "encoder_type": "bytes",
        "byte_width": 48,
        "byte_layers": 1,
        "byte_lexicon": 0,
        "span_type": "equal",
        "max_tokens": 256,
        "bundle": "latent",
    }
    Trainer(replace(base, teacher=str(folder / "a" / "last"), **student), folder / "b").train()
    return folder


@pytest.fixture(scope="module")
def joined(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "c"
    publish(runs / "a" / "last", folder, {})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert join(runs / "b" / "last", folder, {"licence": "x"}) == folder / "encoder-bytes"
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    return folder


def test_frames_of_either_encoder_are_read_by_the_same_adapters(joined: Path, tiny_llm: Path, tmp_path: Path) -> None:
    ids = [read_checkpoint(joined, kind).encoder.fingerprint for kind in ("", "bytes")]
    assert ids[0][:8] == ids[1][:8]
    assert ids[0] != ids[1]
    assert not list((joined / "encoder-bytes").glob("adapter-*"))
    for kind in ("", "bytes"):
        export_bundle(Request(str(joined), str(tiny_llm), tmp_path / f"b{kind}", encoder=kind, verify="weights"))
    with Pipeline.open(tmp_path / "b") as first, Pipeline.open(tmp_path / "bbytes") as second:
        id_of_first = first.bundle.manifest.encoder.model_id
        for codec in ("f16", "fsq"):
            own, other = (pipe.compress(TEXTS, CompressOptions(codec=codec)) for pipe in (first, second))
            assert own != other
            # Whoever reads needs to know only whose latents they are.
            answers = [pipe.generate(other, [QUESTION] * len(TEXTS)) for pipe in (first, second)]
            assert answers[0] == answers[1]
            assert all(message.unpack(frame, model_id=id_of_first).frames for frame in other)
        assert second.encoder_tokenizer.encode("é") == list("é".encode())


def test_it_opens_to_be_measured_with_the_quantiser_of_the_first(joined: Path, runs: Path) -> None:
    first, _ = open_checkpoint(find(str(joined)), "cpu")
    second, meta = open_checkpoint(find(str(joined), "bytes"), "cpu")
    assert meta["about"] == {"licence": "x"}
    assert (first.config.encoder_type, second.config.encoder_type) == ("embed_layer", "bytes")
    for one, other in ((first.adapters, second.adapters), (first.quantiser, second.quantiser)):
        assert one is not None
        assert other is not None
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    trained, _ = open_checkpoint(runs / "b" / "last", "cpu")
    for (name, a), b in zip(trained.encoder.named_parameters(), second.encoder.parameters(), strict=True):
        if not name.startswith("quantiser"):
            assert torch.equal(a.half().float(), b), name


def test_what_does_not_fit_is_refused(joined: Path, runs: Path, base: Config, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="both encoders are embed_layer") as e:
        join(runs / "a" / "last", joined, {})
    assert e.value.code == 3210
    with pytest.raises(EnvironmentFault, match="LW-5008"):
        join(runs / "b" / "last", joined, {})
    other = tmp_path / "other"
    shutil.copytree(joined, other)
    meta = read_meta(other)
    meta["config"]["latent_len"] = 4
    (other / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ModelError, match="another latent_len") as e:
        join(runs / "b" / "last", other, {}, overwrite=True)
    assert e.value.code == 3210


def test_a_checkpoint_that_was_published_again_is_not_read_with_the_old_encoder(joined: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(joined, other)
    meta = read_meta(other)
    meta["adapters"][next(iter(meta["adapters"]))]["fingerprint"] = "0" * 64
    (other / "meta.json").write_text(json.dumps(meta))
    for opens in (lambda: read_checkpoint(other, "bytes"), lambda: open_checkpoint(find(str(other), "bytes"), "cpu")):
        with pytest.raises(ModelError, match="joined to another checkpoint") as e:
            opens()
        assert e.value.code == 3101
    with pytest.raises(ModelError) as e:
        read_checkpoint(other, "runes")
    assert e.value.code == 3204
