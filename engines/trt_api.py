"""The part of TensorRT's Python interface that this project uses, as types.

``tensorrt`` and ``tensorrt_rtx`` are two compiled packages with nearly the same names and no type information.
These protocols are checked against both, name by name and argument by argument, in
tests/engines/test_trt_bindings.py. Nothing here imports either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Enum = Any
"""A member of one of TensorRT's enumerations; ``.name`` is its name."""


class Tensor(Protocol):
    """``ITensor``: a tensor of a network under construction."""

    name: str
    dtype: Enum
    shape: Any

    @property
    def is_network_input(self) -> bool: ...
    @property
    def is_network_output(self) -> bool: ...


class Layer(Protocol):
    """``ILayer``. Python sees every layer as this base class; see ``audit.as_class``."""

    name: str
    metadata: str

    @property
    def type(self) -> Enum: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    def get_input(self, index: int) -> Tensor | None: ...
    def get_output(self, index: int) -> Tensor | None: ...


class KvCacheUpdate(Layer, Protocol):
    """``IKVCacheUpdateLayer``: inputs cache, update, write indices."""

    cache_mode: Enum


class Attention(Protocol):
    """``IAttention``, which an attention input layer belongs to."""

    norm_op: Enum
    causal_kind: Enum
    decomposable: bool
    mask: Tensor | None
    query_lengths: Tensor | None
    key_value_lengths: Tensor | None
    name: str

    def get_input(self, index: int) -> Tensor | None: ...


class AttentionInput(Layer, Protocol):
    """``IAttentionInputLayer``."""

    @property
    def attention(self) -> Attention: ...


class Network(Protocol):
    """``INetworkDefinition``."""

    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    def get_input(self, index: int) -> Tensor: ...
    def get_output(self, index: int) -> Tensor: ...
    def get_layer(self, index: int) -> Layer: ...


class ParserError(Protocol):
    """``ParserError``; these are methods."""

    def desc(self) -> str: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...


class OnnxParser(Protocol):
    """``OnnxParser``."""

    @property
    def num_errors(self) -> int: ...
    def parse_from_file(self, model: str) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class OptimizationProfile(Protocol):
    """``IOptimizationProfile``."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:  # noqa: A002
        """Range of one input's shape."""


class BuilderConfig(Protocol):
    """``IBuilderConfig``. The two names about compute capabilities exist in TensorRT-RTX only."""

    progress_monitor: Any
    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Enum, index: int) -> bool: ...
    def add_optimization_profile(self, profile: OptimizationProfile) -> int: ...
    def set_memory_pool_limit(self, pool: Enum, pool_size: int) -> None: ...


class HostMemory(Protocol):
    """``IHostMemory``: bytes behind the buffer protocol."""

    @property
    def nbytes(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...


class Builder(Protocol):
    """``Builder``."""

    def create_network(self, flags: int = 0) -> Network: ...
    def create_builder_config(self) -> BuilderConfig: ...
    def create_optimization_profile(self) -> OptimizationProfile: ...
    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None: ...


class Context(Protocol):
    """``IExecutionContext``."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def infer_shapes(self) -> list[str]: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class CudaEngine(Protocol):
    """``ICudaEngine``."""

    @property
    def num_io_tensors(self) -> int: ...
    @property
    def num_optimization_profiles(self) -> int: ...
    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Enum: ...
    def get_tensor_dtype(self, name: str) -> Enum: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...
    def get_aliased_input_tensor(self, name: str) -> str | None: ...
    def create_execution_context(self, strategy: Enum) -> Context | None: ...


class Runtime(Protocol):
    """``Runtime``."""

    def deserialize_cuda_engine(self, serialized_engine: bytes | memoryview) -> CudaEngine | None: ...


class BuilderClass(Protocol):
    """Makes a ``Builder``; needs a GPU in ``tensorrt``, none in ``tensorrt_rtx``."""

    def __call__(self, logger: Any) -> Builder: ...


class ParserClass(Protocol):
    """Makes an ``OnnxParser`` that fills a network."""

    def __call__(self, network: Network, logger: Any) -> OnnxParser: ...


class RuntimeClass(Protocol):
    """Makes a ``Runtime``."""

    def __call__(self, logger: Any) -> Runtime: ...


class TensorRt(Protocol):
    """The module itself. ``ILogger`` and ``IProgressMonitor`` are base classes for classes of ours."""

    __name__: str
    __version__: str
    Builder: BuilderClass
    OnnxParser: ParserClass
    Runtime: RuntimeClass
    ILogger: Any
    IProgressMonitor: Any
    IKVCacheUpdateLayer: Any
    IAttentionInputLayer: Any
    LayerType: Any
    DataType: Any
    MemoryPoolType: Any
    TensorIOMode: Any
    NetworkDefinitionCreationFlag: Any
    ExecutionContextAllocationStrategy: Any


CLASSES: dict[str, type] = {
    "ITensor": Tensor,
    "ILayer": Layer,
    "IKVCacheUpdateLayer": KvCacheUpdate,
    "IAttention": Attention,
    "IAttentionInputLayer": AttentionInput,
    "INetworkDefinition": Network,
    "ParserError": ParserError,
    "OnnxParser": OnnxParser,
    "IOptimizationProfile": OptimizationProfile,
    "IBuilderConfig": BuilderConfig,
    "IHostMemory": HostMemory,
    "Builder": Builder,
    "IExecutionContext": Context,
    "ICudaEngine": CudaEngine,
    "Runtime": Runtime,
}
"""TensorRT's class -> the protocol that describes it."""

RTX_ONLY = {("IBuilderConfig", "num_compute_capabilities"), ("IBuilderConfig", "set_compute_capability")}
"""(class, member) that ``tensorrt`` does not have."""

ENUMS: dict[str, tuple[str, ...]] = {
    "LayerType": ("CAST", "CONSTANT", "KV_CACHE_UPDATE", "ATTENTION_INPUT", "QUANTIZE", "DEQUANTIZE"),
    "DataType": ("FLOAT", "HALF", "BF16", "FP8", "INT32", "INT64"),
    "MemoryPoolType": ("WORKSPACE",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "KVCacheMode": ("LINEAR",),
    "CausalMaskKind": ("NONE", "UPPER_LEFT", "LOWER_RIGHT"),
    "AttentionNormalizationOp": ("SOFTMAX",),
    "ExecutionContextAllocationStrategy": ("ON_PROFILE_CHANGE",),
}
"""Members that are compared with, by name."""
