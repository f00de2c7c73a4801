"""A trained quantiser from its checkpoint to a bundle to a frame: the same codes everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from latentwire.core.errors import BundleError, ModelError
from latentwire.export.export import Request, export_bundle
from latentwire.export.publish import publish
from latentwire.runtime import message
from latentwire.runtime.options import CompressOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.training.building import open_checkpoint
from latentwire.training.config import Config
from latentwire.training.train import Trainer

TEXT = "The bridge at Tolmin was built by Anton Kovac in 1887. It is made of stone."


@pytest.fixture(scope="module", params=[("fsq", 2), ("tokens", 1)], ids=lambda p: p[0])
def checkpoint(
    request: pytest.FixtureRequest, tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    kind, profile = request.param
    config = tiny_config(steps=3, lr_new=1e-2, fsq_profile=profile, quantiser_type=kind, fsq_hidden=8)
    folder = tmp_path_factory.mktemp("fsq")
    Trainer(config, folder / "run").train()
    return publish(folder / "run" / "last", folder / "c", {})


def test_a_frame_holds_the_codes_that_torch_makes(checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> None:
    export_bundle(Request(str(checkpoint), str(tiny_llm), tmp_path / "bundle"))
    model, _ = open_checkpoint(checkpoint, "cpu")
    quantiser = model.quantiser
    assert quantiser is not None
    ids = model.source.encode(TEXT)
    with torch.no_grad():
        z = model.encode(torch.tensor([ids]), torch.tensor([len(ids)]))
        codes = quantiser.codes(z)[0].numpy()
        latents = quantiser.latents(quantiser.codes(z))[0].numpy()
    with Pipeline.open(tmp_path / "bundle") as pipe:
        assert set(pipe.bundle.manifest.graphs) == {
            *("encoder", "adapter", "splice", "decoder"),
            *("quantise", "dequantise"),
        }
        # One copy of the weights: both graphs read the encoder's file.
        assert {n for n in pipe.bundle.manifest.files if n.endswith(".safetensors")} == {
            f"{part}.safetensors" for part in ("encoder", "embeddings", "adapter", "decoder")
        }
        (data,) = pipe.compress([TEXT], CompressOptions(codec="fsq"))
        assert len(data) == 24 + 8 * (60 if model.config.fsq_profile == 2 else 32) // 8
        found = message.unpack(data)
        np.testing.assert_array_equal(found.codes(), codes)
        again = pipe.engine.dequantise(found.codes()[None].astype(np.int64))[0]
        np.testing.assert_allclose(again, latents, atol=2e-5)
        assert isinstance(pipe.generate([data], ["What is told?"])[0], str)


def test_half_a_quantiser_is_refused(checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "c"
    shutil.copytree(checkpoint, broken)
    (broken / "dequantise.onnx").unlink()
    with pytest.raises(ModelError, match=r"LW-3204 .*dequantise"):
        export_bundle(Request(str(broken), str(tiny_llm), tmp_path / "bundle"))


def test_a_graph_with_other_codes_is_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentwire.export import trace

    real = trace.trace_checkpoint

    def trace_then_change(model: torch.nn.Module, folder: Path) -> object:
        done = real(model, folder)  # type: ignore[arg-type]
        with torch.no_grad():
            for tensor in model.quantiser.state_dict().values():  # type: ignore[union-attr]
                tensor.copy_(tensor.roll(1, 0) if tensor.dim() else tensor)
        return done

    monkeypatch.setattr(trace, "trace_checkpoint", trace_then_change)
    with pytest.raises(BundleError, match=r"LW-4010 .*quantise"):
        publish(checkpoint, tmp_path / "again", {})
