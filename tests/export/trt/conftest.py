"""Compiled bundles, and a stand-in for the part of TensorRT that needs a GPU.

TensorRT-RTX parses and compiles here; it cannot load a plan without a driver. ``StandInContext`` takes the place
of an execution context: the same calls, the same rules about shapes, profiles and addresses, and behind them the
bundle's own ONNX file on ONNX Runtime, at the raw addresses it was given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from latentwire.engines.bundle import AdapterInfo, Bundle, EncoderInfo, Manifest, describe_files
from latentwire.engines.specs import bundle_specs
from latentwire.engines.trt_memory import ALIGNMENT, HostDevice
from latentwire.export.decoder import build_decoder
from latentwire.export.export import llm_info
from latentwire.export.families import read_config
from latentwire.export.graph import save
from latentwire.export.plan import Job, write_plan
from latentwire.export.precision import precision
from latentwire.export.splice import build_splice
from latentwire.export.target import Target
from latentwire.export.weight_file import write_decoder
from latentwire.export.weights import WeightReader

CAPACITY, BATCH, LENGTH = 64, 12, 40
GPU = "sm_89"
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "head_dim": 64}
CHANGES: dict[str, dict[str, Any]] = {
    "gemma3": {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 256}
}
"""Head sizes that TensorRT has kernels for."""

Compile = Callable[..., Bundle]


def write_bundle(folder: Path, llm: Any, form: str, flavour: Any, capacity: int) -> Bundle:
    """Decoder and splice graphs with their weights; no plan yet."""
    folder.mkdir(parents=True)
    config, p = read_config(llm.config, str(llm.path)), precision(form)
    with WeightReader(llm.weights, config) as reader:
        layout = write_decoder(folder / "decoder.safetensors", reader, config, p)
        scales = dict.fromkeys(reader.sources, 0.05)  # of fp8; one step of every input
    save(build_decoder(config, layout, p, flavour, capacity, scales), folder / "decoder.onnx")
    save(build_splice(config, layout, p), folder / "splice.onnx")
    info, mark = llm_info(llm, config, p.dtype), "00" * 32
    manifest = Manifest(
        files=describe_files(folder),
        encoder=EncoderInfo("none", mark, 6, 5, 64),
        llm=info,
        adapter=AdapterInfo("none", 2, mark),
        graphs=bundle_specs(info, 6, info.dtype),
        precision=form,
        quality={},
        versions={},
        flavour=flavour,
        capacity=capacity,
    )
    return Bundle(folder, manifest)


def job(bundle: Bundle, part: str = "decoder", **changes: Any) -> Job:
    """The job that makes one plan of a bundle."""
    m = bundle.manifest
    wanted = {"gpus": (GPU,), "batch": BATCH, "length": LENGTH} | changes
    target = Target("tensorrt-rtx", precision(m.precision), m.flavour, m.capacity, **wanted)  # type: ignore[arg-type]
    return Job(part, bundle.path, target, m.llm, m.encoder.max_tokens, m.encoder.latents, m.adapter.task_tokens)


@pytest.fixture(scope="session")
def make_job() -> Callable[..., Job]:
    return job


@pytest.fixture(scope="session")
def plain(make_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """``plain(kind, form, flavour)``: a bundle of graphs, made once; do not change the files."""
    made: dict[tuple[Any, ...], Bundle] = {}

    def make(kind: str, form: str = "fp16", flavour: str = "dual", capacity: int = CAPACITY) -> Bundle:
        key = (kind, form, flavour, capacity)
        if key not in made:
            folder = tmp_path_factory.mktemp("trt") / "x"
            llm = make_tiny(folder.parent / kind, kind, **(SIZES | CHANGES.get(kind, {})))
            made[key] = write_bundle(folder, llm, form, flavour, capacity)
        return made[key]

    return make


@pytest.fixture(scope="session")
def compiled(plain: Compile) -> Compile:
    """``compiled(kind, form, flavour)``: the same with plans of decoder and splice, by TensorRT-RTX."""
    made: dict[str, Bundle] = {}

    def make(kind: str, form: str = "fp16", flavour: str = "dual") -> Bundle:
        bundle = plain(kind, form, flavour)
        key = str(bundle.path)
        if key not in made:
            plans = {part: write_plan(job(bundle, part)) for part in ("decoder", "splice")}
            manifest = replace(bundle.manifest, plans=plans, files=describe_files(bundle.path))
            made[key] = Bundle(bundle.path, manifest)
        return made[key]

    return make


class StandInContext:
    """Behaves like ``IExecutionContext``; runs the part's ONNX file on ONNX Runtime at the given addresses."""

    def __init__(self, engine: StandInEngine) -> None:
        self.engine, self.profile, self.runs = engine, -1, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return False
        self.profile, self.shapes = profile_index, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile >= 0, "a shape before its profile"
        ranges = self.engine.get_tensor_profile_shape(name, self.profile)
        low, high = ranges[0], ranges[2]
        if len(shape) != len(low) or not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return sorted(set(self.engine.inputs) - set(self.shapes))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        known = {d: s for n, shape in self.shapes.items() for d, s in zip(self.engine.inputs[n], shape, strict=True)}
        return tuple(known.get(d, d) for d in self.engine.outputs[name])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.inputs | self.engine.outputs or memory % ALIGNMENT:
            return False
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        tensors = self.engine.inputs | self.engine.outputs
        assert not self.infer_shapes(), "a run without shapes"
        assert set(self.addresses) == set(tensors), f"no address: {set(tensors) - set(self.addresses)}"
        for out in self.engine.outputs:
            past = self.engine.get_aliased_input_tensor(out)
            assert past is None or self.addresses[out] == self.addresses[past], f"{out} is not in place"
        shared = [a for n, a in self.addresses.items() if not n.startswith("present_")]
        assert len(set(shared)) == len(shared), "two tensors at one address"
        binding = self.engine.session.io_binding()
        for name in tensors:
            bind = binding.bind_input if name in self.engine.inputs else binding.bind_output
            shape = [int(d) for d in self.get_tensor_shape(name)]
            bind(name, "cpu", 0, self.engine.dtypes[name], shape, self.addresses[name])
        self.engine.session.run_with_iobinding(binding)
        self.runs += 1
        return True


class StandInEngine:
    """Behaves like ``ICudaEngine`` of one part."""

    def __init__(self, bundle: Bundle, part: str) -> None:
        self.bundle, self.part, self.aliased = bundle, part, True
        model = onnx.load(str(bundle.path / f"{part}.onnx"), load_external_data=False)
        self.inputs = {v.name: _dims(v) for v in model.graph.input}
        self.outputs = {v.name: _dims(v) for v in model.graph.output}
        self.dtypes = {
            v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
            for v in (*model.graph.input, *model.graph.output)
        }
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = 2 if part == "decoder" else 1
        self.contexts: list[StandInContext] = []
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(bundle.path / f"{part}.onnx"), options, ["CPUExecutionProvider"])

    def get_tensor_name(self, index: int) -> str:
        names: list[str] = [*self.inputs, *self.outputs]
        return names[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(d, str) else d for d in (self.inputs | self.outputs)[name])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        plan = self.bundle.manifest.plans[self.part]
        top = {"B": plan.batch, "S": plan.length if profile_index == 0 else 1, "T": plan.length, "R": 7}
        return [
            tuple(d if isinstance(d, int) else (1 if i == 0 else top[d]) for d in self.inputs[name]) for i in range(3)
        ]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.replace("present", "past") if name.startswith("present_") and self.aliased else None

    def create_execution_context(self, strategy: Any) -> StandInContext:
        self.contexts.append(StandInContext(self))
        return self.contexts[-1]


def _dims(value: Any) -> list[Any]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]


class StandInModule:
    """The real TensorRT-RTX module, with a ``Runtime`` that needs no driver."""

    def __init__(self, real: Any, bundle: Bundle) -> None:
        self._real = real
        self.engines: dict[str, StandInEngine] = {}
        known = {e.sha256: n.removesuffix(".plan") for n, e in bundle.manifest.files.items() if n.endswith(".plan")}

        class Runtime:
            def __init__(self, logger: Any) -> None:
                assert isinstance(logger, real.ILogger)

            def deserialize_cuda_engine(_, data: bytes) -> StandInEngine | None:  # noqa: N805
                part = known.get(hashlib.sha256(data).hexdigest())
                if part is None:
                    return None
                self.engines[part] = made = StandInEngine(bundle, part)
                return made

        self.Runtime = Runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture(scope="session")
def rtx() -> Any:
    """The installed TensorRT-RTX."""
    from latentwire.engines.trt_module import load

    return load("tensorrt-rtx")


@pytest.fixture
def stand_in(rtx: Any) -> Callable[[Bundle], StandInModule]:
    return lambda bundle: StandInModule(rtx, bundle)


@pytest.fixture
def host() -> HostDevice:
    return HostDevice(GPU)


@pytest.fixture
def prompts(byte_prompts: list[list[int]]) -> list[list[int]]:
    """Prompts that fit the plan, of all lengths."""
    return [p for p in byte_prompts if len(p) <= LENGTH][:11]


def ragged(splice: Callable[..., Any], prompts: list[list[int]]) -> tuple[Any, Any]:
    """Embeddings [B,T,H], right padded, and true lengths [B]."""
    lengths = np.array([len(p) for p in prompts], np.int64)
    ids = np.zeros((len(prompts), int(lengths.max())), np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    rows = np.zeros((len(prompts), 1, 128), np.float32)
    return splice(ids, np.full_like(ids, -1), rows), lengths


@pytest.fixture
def embed() -> Callable[..., Any]:
    return ragged
