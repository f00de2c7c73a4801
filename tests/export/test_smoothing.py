"""Shifts between activations and weights: float32 is the same bit for bit, int8 comes closer, wrong ones are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentwire.engines.bundle import Bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.export.calibration import LENGTH, MOST, calibrate, pieces
from latentwire.export.decoder import build_decoder
from latentwire.export.drive import run
from latentwire.export.external import read_layout
from latentwire.export.families import read_config
from latentwire.export.findings import ParityError
from latentwire.export.gate_weights import check_weights
from latentwire.export.graph import save
from latentwire.export.parts import write_llm
from latentwire.export.precision import PRECISIONS
from latentwire.export.smoothing import Smoothing, gather, read_smoothing, spread
from latentwire.export.splice import build_splice
from latentwire.export.target import Wishes, choose
from latentwire.export.weight_file import write_decoder
from latentwire.export.weights import WeightReader
from latentwire.models.folder import ModelFolder, open_folder

KINDS = ["llama", "qwen2", "gemma3"]
LOUD = 40.0
"""How much larger some channels of the model below are."""


def written(folder: Path, llm: ModelFolder, bundle: Bundle, smoothing: Smoothing) -> Bundle:
    """The decoder of ``bundle`` once more, with these shifts."""
    folder.mkdir()
    form = PRECISIONS[bundle.manifest.precision]
    with WeightReader(llm.weights, smoothing.config) as reader:
        layout = write_decoder(folder / "decoder.safetensors", reader, smoothing.config, form, smoothing)
    save(build_decoder(smoothing.config, layout, form), folder / "decoder.onnx")
    save(build_splice(smoothing.config, layout, form), folder / "splice.onnx")
    return replace(bundle, path=folder)


def config_of(llm: ModelFolder) -> WeightReader:
    return WeightReader(llm.weights, read_config(llm.config, "config.json"))


def random_shifts(llm: ModelFolder, head: bool) -> Smoothing:
    """Of every site, from -3 to 3."""
    config, rng = config_of(llm).config, np.random.default_rng(11)
    widths = {
        "q": config.hidden_size,
        "gate": config.hidden_size,
        "o": config.num_kv_heads * config.head_dim,
        "down": config.intermediate_size,
    }
    sites = {f"layer.{i}.{site}": width for i in range(config.num_layers) for site, width in widths.items()}
    sites |= {"llm.head": config.hidden_size} if head else {}
    return Smoothing(config, {site: rng.integers(-3, 4, width).astype(np.int8) for site, width in sites.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_the_same_bit_for_bit(
    kind: str, tiny: Callable[[str], ModelFolder], precise: Callable[..., Bundle], tmp_path: Path
) -> None:
    """What is taken out of norms, v and up comes back in the matrices after them, in every family."""
    plain = precise(kind, "fp32")
    # A tied table is the head itself in float32: there is no second copy that could take shifts.
    shifted = written(
        tmp_path / "b", tiny(kind), plain, random_shifts(tiny(kind), head=not config_of(tiny(kind)).config.tied)
    )
    prompts = [[256, *range(n)] for n in (3, 17, 9)]
    ours, theirs = (run(OrtCpuEngine(b, threads=1), prompts, 4).logits for b in (shifted, plain))
    assert ours.tobytes() == theirs.tobytes()
    check_weights(shifted, tiny(kind))


def test_value_heads_are_shared(tiny: Callable[[str], ModelFolder]) -> None:
    config = config_of(tiny("llama")).config  # 4 query heads on 2 value heads of 12
    one = np.arange(24, dtype=np.float32)
    wide = spread(one, config)
    assert wide.reshape(4, 12)[:, 0].tolist() == [0, 0, 12, 12]
    wide[12:24] += 5
    assert gather(wide, config).tolist() == [*(one[:12] + 5), *one[12:]]


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[..., ModelFolder]) -> ModelFolder:
    """A model with a few channels far louder than the others, as real ones have."""
    llm = make_tiny(tmp_path_factory.mktemp("loud") / "llm", "llama", initializer_range=0.1)
    path = llm.path / "model.safetensors"
    tensors = load_file(path)
    for name, values in tensors.items():
        if name.endswith(("layernorm.weight", "model.norm.weight")):
            values[5::16] *= LOUD
        elif name.endswith(("v_proj.weight", "up_proj.weight")):
            values[3::10] *= LOUD
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            values[:, 3::10] /= LOUD
    for name, values in tensors.items():
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"):
            values[:, 5::16] /= LOUD
    save_file(tensors, path, metadata={"format": "pt"})
    return open_folder(llm.path, "loud", llm.path.parent / "again")


def test_int8_comes_closer(loud: ModelFolder, make_precise: Callable[..., Bundle], tmp_path: Path) -> None:
    """On tokens that calibration did not see; shifted and plain int8 against float32."""
    exact, plain = (make_precise(tmp_path / form, loud, form) for form in ("fp32", "int8"))
    with config_of(loud) as reader:
        prompts = [[256, *line] for line in np.random.default_rng(2).integers(0, 256, (16, 24)).tolist()]
        smoothing = calibrate(reader, loud.tokenizer_path, tmp_path, prompts=prompts)
    shifted = written(tmp_path / "s", loud, plain, smoothing)
    seen = [[256, *line] for line in np.random.default_rng(3).integers(0, 256, (24, 20)).tolist()]
    want, before, after = (run(OrtCpuEngine(b, threads=1), seen, 2).logits for b in (exact, plain, shifted))
    errors = [float(np.linalg.norm(found - want) / np.linalg.norm(want)) for found in (before, after)]
    print(f"logit error {errors[0]:.4f} without shifts, {errors[1]:.4f} with")
    assert errors[1] < errors[0] / 2
    check_weights(shifted, loud)


@pytest.mark.parametrize(
    ("site", "tensor"),
    [
        ("layer.1.q", "layer.1.attention_norm"),
        ("layer.1.o", "layer.1.v"),
        ("layer.0.gate", "layer.0.mlp_norm"),
        ("layer.2.down", "layer.2.up"),
        ("llm.head", "llm.norm"),
    ],
)
def test_a_shift_that_the_weights_did_not_take(
    site: str, tensor: str, loud: ModelFolder, make_precise: Callable[..., Bundle], tmp_path: Path
) -> None:
    """One stored shift changed: the first tensor that no longer fits it is named."""
    bundle = written(tmp_path / "b", loud, make_precise(tmp_path / "p", loud, "int8"), random_shifts(loud, head=True))
    path = bundle.path / "decoder.safetensors"
    data = bytearray(path.read_bytes())
    data[read_layout(path).places[f"{site}.shift"].offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(ParityError) as caught:
        check_weights(bundle, loud)
    assert caught.value.finding.gate == "weights"
    assert caught.value.tensor.removesuffix(".scale") in (tensor, site, f"{site.rpartition('.')[0]}.q")


def test_export_calibrates_int8_only_and_the_same_twice(
    tiny: Callable[[str], ModelFolder], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """``write_llm``: the packaged documents are read, the file is the same byte for byte, nothing else is left."""
    llm, found = tiny("qwen2-tied"), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        found.append(write_llm(llm, tmp_path / name, choose(Wishes(precision="int8"))))
    config = found[0]
    assert len({(tmp_path / name / "decoder.safetensors").read_bytes() for name in ("a", "b")}) == 1
    assert "onnxruntime" not in capfd.readouterr().err
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["decoder.onnx", "decoder.safetensors", "splice.onnx", "tokenizer.json"]
    shifts = read_smoothing(tmp_path / "a" / "decoder.safetensors", config).shifts
    assert len(shifts) == 4 * config.num_layers + 1
    every = np.concatenate(list(shifts.values()))
    assert 0 < np.abs(every).max() <= MOST
    (tmp_path / "c").mkdir()
    write_llm(llm, tmp_path / "c", choose(Wishes(precision="fp32")))
    assert not read_smoothing(tmp_path / "c" / "decoder.safetensors", config).shifts


def test_calibration_reads_pieces_of_one_length(tiny: Callable[[str], ModelFolder]) -> None:
    found = pieces(tiny("llama").tokenizer_path, (256,))
    assert {len(p) for p in found} == {LENGTH + 1}
    assert {p[0] for p in found} == {256}
    assert len({tuple(p) for p in found}) == len(found) >= 32
