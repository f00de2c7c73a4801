"""A run of its own to a bundle: what the engine answers is what the PyTorch model answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch

from latentwire.core.errors import BundleError, EnvironmentFault, ModelError
from latentwire.core.prompt import join, latent_prompt, question_ids
from latentwire.engines.opening import open_engine
from latentwire.export.export import Request, export_bundle
from latentwire.export.publish import publish
from latentwire.runtime.kept import Latent, placed
from latentwire.runtime.pipeline import Pipeline
from latentwire.training.building import open_checkpoint
from latentwire.training.config import Config
from latentwire.training.data import Item, Question
from latentwire.training.encoder import EncoderFromEmbedLayer
from latentwire.training.evaluate import measure
from latentwire.training.train import Trainer

TEXTS = [
    "The bridge at Tolmin was built by Anton Kovac in 1887.",
    "Honey.",
    "Trains to Varda leave at noon, with fish.",
]


@pytest.fixture(scope="module")
def run(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run whose context path is no longer zero."""
    config = tiny_config(encoder_layers=2, steps=5, precision="bf16", lr_new=1e-2)
    out = tmp_path_factory.mktemp("run")
    Trainer(config, out).train()
    return out / "last"


def test_the_pieces_that_are_drawn_are_those_that_the_encoder_reads(run: Path, tiny_llm: Path, tmp_path: Path) -> None:
    publish(run, tmp_path / "c", {})
    export_bundle(Request(str(tmp_path / "c"), str(tiny_llm), tmp_path / "bundle"))
    model, _ = open_checkpoint(tmp_path / "c", "cpu")
    assert model.config.span_type == "salient"
    encoder = model.encoder
    assert isinstance(encoder, EncoderFromEmbedLayer)
    sizes: list[int] = []
    with Pipeline.open(tmp_path / "bundle") as pipe:
        assert pipe.bundle.manifest.encoder.span_type == "salient"
        for text in (*TEXTS, " ".join(TEXTS)):
            ids = list(pipe.encoder_tokenizer.encode(text))
            count = min(8, len(ids))
            found = placed(pipe, [Latent(k, ()) for k in range(count)], text, 1)
            spans = encoder.cut(torch.tensor([ids]), torch.tensor([len(ids)]), torch.arange(count)).spans[0]
            starts = [*pipe.encoder_tokenizer.starts(text), len(text)]
            own = [row.nonzero()[:, 0].tolist() for row in spans]
            assert [(p.start, p.stop) for p in found] == [(starts[t[0]], starts[t[-1] + 1]) for t in own]
            sizes = [len(t) for t in own]
        # Of the last, longest text.
        assert max(sizes) > min(sizes) + 1, "cut evenly"


@pytest.mark.parametrize("latents", [8, 3])
def test_bundle_computes_what_was_trained(run: Path, tiny_llm: Path, tmp_path: Path, latents: int) -> None:
    publish(run, tmp_path / "c", {"licence": "Apache-2.0"})
    export_bundle(Request(str(tmp_path / "c"), str(tiny_llm), tmp_path / "bundle"))
    model, meta = open_checkpoint(tmp_path / "c", "cpu")
    assert meta["about"] == {"licence": "Apache-2.0"}
    llm = model.llms[0]
    ids = [llm.encode(text) for text in TEXTS]
    lengths = np.array([len(i) for i in ids], np.int64)
    padded = np.zeros((len(ids), max(lengths)), np.int64)
    for row, own in zip(padded, ids, strict=True):
        row[: len(own)] = own
    engine = open_engine(tmp_path / "bundle")
    z = engine.encode(padded, lengths, latents)
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(padded), torch.from_numpy(lengths), latents)
        np.testing.assert_allclose(z, expected.numpy(), atol=5e-4)
        rows = engine.adapt(z)
        full = model.adapter(llm)(expected)
    used = [min(latents, n) for n in lengths.tolist()]
    for b, count in enumerate(used):
        np.testing.assert_allclose(rows[b, :count], full[b, :count].numpy(), atol=5e-3)
        np.testing.assert_allclose(rows[b, latents:], full[b, latents : latents + 2].numpy(), atol=1e-6)
    prompts = [
        latent_prompt(llm.special.bos, count, latents, 2, question_ids(llm.encode, "What is told?")) for count in used
    ]
    width = max(map(len, prompts))
    token = np.zeros((3, width), np.int64)
    index = np.full((3, width), -1, np.int64)
    for b, prompt in enumerate(prompts):
        token[b, : len(prompt)], index[b, : len(prompt)] = prompt.ids, prompt.row_index
    buffers = engine.alloc(3, 64)
    engine.prefill(buffers, engine.splice(token, index, rows), np.array([len(p) for p in prompts], np.int64))
    if latents == model.config.latent_len:
        items = [Item(text, (Question("What is told?", ("x",)),)) for text in TEXTS]
        answers = measure(model, llm, items, "latents", max_new_tokens=1)
        assert [llm.tokenizer.decode([int(t)]).strip() for t in buffers.next_token] == list(answers.texts)
    assert join([llm.special.bos]).ids.tolist() == [0]


def test_a_published_checkpoint_tells_how_it_was_trained_and_rounds_weights_only(run: Path, tmp_path: Path) -> None:
    publish(run, tmp_path / "c", {})
    trained, published = (json.loads((f / "meta.json").read_text())["config"] for f in (run, tmp_path / "c"))
    assert {k: v for k, v in trained.items() if not k.endswith("data")} == {
        k: v for k, v in published.items() if not k.endswith("data")
    }
    assert published["data"] == ["stories.jsonl"]
    # Rotary frequencies are no weights: rounded with them, the graph would differ from the module as it is opened.
    exact = open_checkpoint(tmp_path / "c", "cpu")[0].encoder.get_submodule("rotary").get_buffer("inv_freq").numpy()
    inline = list(onnx.load(tmp_path / "c" / "encoder.onnx", load_external_data=False).graph.initializer)
    values = [onnx.numpy_helper.to_array(t) for t in inline if t.data_location != onnx.TensorProto.EXTERNAL]
    assert any(np.array_equal(v.ravel(), exact) for v in values)


def test_reductions_read_their_axes_from_constants(run: Path, tmp_path: Path) -> None:
    """TensorRT refuses axes that a node computes, even from constants."""
    publish(run, tmp_path / "c", {})
    graph = onnx.load(tmp_path / "c" / "encoder.onnx", load_external_data=False).graph
    known = {t.name for t in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
    axes = [n.input[1] for n in graph.node if n.op_type.startswith("Reduce") and len(n.input) > 1]
    assert len(axes) > 5
    assert set(axes) <= known


def test_publishing_again_keeps_the_card(run: Path, tmp_path: Path) -> None:
    publish(run, tmp_path / "c", {})
    (tmp_path / "c" / "README.md").write_text("card")
    with pytest.raises(EnvironmentFault, match="LW-5008"):
        publish(run, tmp_path / "c", {})
    publish(run, tmp_path / "c", {}, overwrite=True)
    assert (tmp_path / "c" / "README.md").read_text() == "card"


def test_a_graph_that_differs_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: a module changed after tracing is noticed and nothing is left behind."""
    from latentwire.export import trace

    real = trace.trace_checkpoint

    def trace_then_change(model: torch.nn.Module, folder: Path) -> object:
        done = real(model, folder)  # type: ignore[arg-type]
        with torch.no_grad():
            model.encoder.projection.weight[0] *= 1.5  # type: ignore[union-attr,index,operator]
        return done

    monkeypatch.setattr(trace, "trace_checkpoint", trace_then_change)
    with pytest.raises(BundleError, match=r"LW-4010 .*encoder"):
        publish(run, tmp_path / "c", {})
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_another_llm(run: Path, tiny_llm: Path, tmp_path: Path) -> None:
    publish(run, tmp_path / "c", {})
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    for about in meta["adapters"].values():
        about["llm_fingerprint"] = "0" * 64
    (tmp_path / "c" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ModelError, match="LW-3102"):
        export_bundle(replace(Request(str(tmp_path / "c"), str(tiny_llm), tmp_path / "bundle"), reference="auto"))
    assert not (tmp_path / "bundle").exists()
