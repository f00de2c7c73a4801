"""Tables inside modules: readers get what the embedding module returns, however the bundle stores the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto

from latentwire.core.errors import BundleError
from latentwire.engines.ort_session import open_session
from latentwire.engines.specs import adapter_spec
from latentwire.export.external import Layout, Place, external_tensor, write_weights
from latentwire.export.graph import Graph, save
from latentwire.export.model_config import read_llm
from latentwire.export.modules import place_module
from latentwire.export.precision import PRECISIONS
from latentwire.export.splice import build_splice
from latentwire.export.tables import Table
from latentwire.export.weight_file import write_decoder
from latentwire.export.weights import EMBEDDING, WeightReader
from latentwire.models.folder import ModelFolder

D_Z = 6
VOCAB = 258
HIDDEN = 48
WORDS = [3, 257, 0, 3]

Array = npt.NDArray[Any]


def module(folder: Path, traced: str = "F32") -> Path:
    """An adapter that returns looked-up rows, then whole-table sums as the trained one forms its keys.

    rows [B, M+4+1, H] = [latents in the first D_Z places, else 0 | table[WORDS] | column sums of table - 1]
    """
    folder.mkdir()
    own = write_weights(folder / "m.safetensors", {"up": np.eye(D_Z, HIDDEN, dtype=np.float32)})
    g = Graph("adapter", own)
    elsewhere = Layout("elsewhere.safetensors", {EMBEDDING: Place(traced, (VOCAB, HIDDEN), 0, 0)})
    g.initializers[EMBEDDING] = external_tensor(EMBEDDING, elsewhere)
    rows = g.op("MatMul", "latents", g.weight("up"))
    words = g.op("Cast", g.op("Gather", EMBEDDING, g.constant("words", np.array(WORDS))), to=TensorProto.FLOAT)
    one = g.op("Cast", g.constant("one", np.ones(1, np.float32)), to=TensorProto.FLOAT)
    whole = g.op("Sub", g.op("Cast", EMBEDDING, to=TensorProto.FLOAT) if traced != "F32" else EMBEDDING, one)
    total = g.op("ReduceSum", whole, g.constant("axis", np.array([0], np.int64)), keepdims=1)
    both = g.op("Concat", words, total, axis=0)
    batch = g.op("Gather", g.op("Shape", "latents"), g.constant("zeroth", np.array([0], np.int64)))
    shape = g.op("Concat", batch, g.constant("task.shape", np.array([len(WORDS) + 1, HIDDEN], np.int64)), axis=0)
    g.op("Concat", rows, g.op("Expand", both, shape), out="rows", axis=1)
    (folder / "m.onnx").write_bytes(g.model(adapter_spec(D_Z, HIDDEN)).SerializeToString())
    return folder / "m.onnx"


def run(graph: Path) -> tuple[Array, Array]:
    """Looked-up rows [4,H] and sums [H] of the second batch row."""
    z = np.random.default_rng(0).standard_normal((2, 3, D_Z)).astype(np.float32)
    (found,) = open_session(graph, 1).run(None, {"latents": z})
    np.testing.assert_array_equal(found[:, :3, :D_Z], z)
    return found[1, 3:-1], found[1, -1]


@pytest.fixture
def bundle(tmp_path: Path, tiny: Callable[[str], ModelFolder]) -> Callable[[str, str], Path]:
    """``bundle(kind, precision)``: a folder with decoder, splice and the module above as its adapter."""

    def make(kind: str, name: str) -> Path:
        llm, precision, folder = tiny(kind), PRECISIONS[name], tmp_path / f"{kind}-{name}"
        folder.mkdir()
        config = read_llm(llm)
        with WeightReader(llm.weights, config) as reader:
            layout = write_decoder(folder / "decoder.safetensors", reader, config, precision)
        save(build_splice(config, layout, precision), folder / "splice.onnx")
        source = module(tmp_path / f"module-{kind}-{name}")
        table = Table(layout, config.embed_scale, precision.dtype)
        place_module(
            source,
            source.with_suffix(".safetensors"),
            folder / "adapter.onnx",
            {EMBEDDING: table},
            adapter_spec(D_Z, HIDDEN),
        )
        return folder

    return make


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_readers_get_the_modules_output(
    kind: str, name: str, bundle: Callable[[str, str], Path], tiny: Callable[[str], ModelFolder]
) -> None:
    """Bit for bit what transformers' embedding module returns for the stored table, and what splice makes of it."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, precision = bundle(kind, name), PRECISIONS[name]
    rows, sums = run(folder / "adapter.onnx")

    model = AutoModelForCausalLM.from_pretrained(tiny(kind).path, dtype=torch.float32).get_input_embeddings()
    # The table is rounded where it is stored; the module then computes in the decoder's dtype.
    stored = model.weight.data.to(torch.float16 if precision.matmul != "plain" else getattr(torch, precision.dtype))
    model.weight.data = stored.to(getattr(torch, precision.dtype))
    want = model(torch.arange(VOCAB)).detach().float().numpy()
    np.testing.assert_array_equal(rows, want[WORDS])
    np.testing.assert_allclose(sums, (want - 1).sum(axis=0), rtol=1e-5)

    ids, none = np.array([WORDS]), np.full((1, len(WORDS)), -1, np.int64)
    feeds = {"input_ids": ids, "row_index": none, "rows": np.zeros((1, 1, HIDDEN), np.float32)}
    (spliced,) = open_session(folder / "splice.onnx", 1).run(None, feeds)
    np.testing.assert_array_equal(spliced[0], rows)


def nodes(folder: Path, part: str = "adapter") -> list[str]:
    return [n.op_type for n in onnx.load(folder / f"{part}.onnx", load_external_data=False).graph.node]


def test_no_node_where_none_is_needed(bundle: Callable[[str, str], Path], tmp_path: Path) -> None:
    traced = onnx.load(module(tmp_path / "traced"), load_external_data=False)
    assert nodes(bundle("llama", "fp32")) == [n.op_type for n in traced.graph.node]


def test_lookup_comes_before_the_cast(bundle: Callable[[str, str], Path]) -> None:
    """An engine would widen a constant table as a whole when it loads the graph."""
    model = onnx.load(bundle("gemma3", "fp16") / "adapter.onnx", load_external_data=False)
    made = {o: n for n in model.graph.node for o in n.output}
    gather = next(n for n in model.graph.node if n.op_type == "Gather" and n.input[0] == EMBEDDING)
    assert made[gather.output[0]].op_type == "Gather"
    readers = [n.op_type for n in model.graph.node if gather.output[0] in n.input]
    assert readers == ["Cast"]


def test_traced_in_half_and_stored_in_half(tmp_path: Path) -> None:
    """As the encoder reads its own table: pointed at, nothing else."""
    source = module(tmp_path / "m", "F16")
    table = np.random.default_rng(1).standard_normal((VOCAB, HIDDEN)).astype(np.float16)
    (tmp_path / "out").mkdir()
    layout = write_weights(tmp_path / "out" / "t.safetensors", {EMBEDDING: table})
    before = [n.op_type for n in onnx.load(source, load_external_data=False).graph.node]
    args = (source, source.with_suffix(".safetensors"), tmp_path / "out" / "adapter.onnx")
    place_module(*args, {EMBEDDING: Table(layout)}, adapter_spec(D_Z, HIDDEN))
    assert nodes(tmp_path / "out") == before
    np.testing.assert_array_equal(run(tmp_path / "out" / "adapter.onnx")[0], table[WORDS].astype(np.float32))


def test_table_of_another_shape(tmp_path: Path) -> None:
    source = module(tmp_path / "m")
    (tmp_path / "out").mkdir()
    layout = write_weights(tmp_path / "out" / "t.safetensors", {EMBEDDING: np.zeros((VOCAB - 1, HIDDEN), np.float16)})
    args = (source, source.with_suffix(".safetensors"), tmp_path / "out" / "adapter.onnx")
    with pytest.raises(BundleError) as caught:
        place_module(*args, {EMBEDDING: Table(layout, 2.0)}, adapter_spec(D_Z, HIDDEN))
    assert caught.value.code == 4001
    assert "[258, 48]" in caught.value.expected
