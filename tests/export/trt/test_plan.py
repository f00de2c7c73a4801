"""Plans built by TensorRT-RTX on the CPU, and what cannot be built."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.errors import BundleError, EnvironmentFault, InputError
from latentwire.export.plan import build_plan, write_plan
from latentwire.export.plan_gpus import choose_gpus, gpus_of
from latentwire.export.precision import precision

pytestmark = pytest.mark.trt


@pytest.mark.parametrize(
    ("kind", "form", "flavour"),
    [
        ("llama", "fp16", "dual"),
        ("llama", "bf16", "dual"),
        ("llama", "fp16", "mask"),
        ("llama", "fp8", "dual"),
        ("llama-3.1", "fp16", "dual"),
        ("qwen2", "fp16", "dual"),
        ("qwen2-tied", "bf16", "dual"),
        ("gemma3", "fp16", "dual"),
        ("gemma3", "bf16", "dual"),
        ("gemma3", "fp16", "mask"),
    ],
)
def test_decoders_compile(kind: str, form: str, flavour: str, plain: Any, make_job: Any, rtx: Any) -> None:
    """Both profiles, two GPUs, fused attention of head size 64 and, for Gemma, 256."""
    plan, info = build_plan(make_job(plain(kind, form, flavour), gpus=("sm_89", "sm_120")))
    print(f"{kind} {form} {flavour}: {plan.nbytes} bytes, {info.seconds} s, {info.audit}")
    assert (info.package, info.version, info.gpus) == ("tensorrt-rtx", rtx.__version__, ("sm_89", "sm_120"))
    assert (info.batch, info.length, info.file) == (12, 40, "decoder.plan")
    assert info.audit["warnings"] == []
    assert info.audit["verified"] == "parser-audited, ahead-of-time compiled (RTX), not GPU-verified"
    assert plan.nbytes > 100_000


def test_plan_lies_beside_its_graph(plain: Any, make_job: Any) -> None:
    bundle = plain("llama")
    info = write_plan(make_job(bundle, "splice"))
    assert (bundle.path / "splice.plan").stat().st_size > 1000
    assert info.length == 40
    assert "kv_cache_updates" not in info.audit


def test_gpus_without_one(rtx: Any) -> None:
    assert {"sm_89", "sm_120"} <= set(gpus_of(rtx))
    assert choose_gpus(rtx, "tensorrt-rtx", ("sm_120", "sm_89")) == ("sm_120", "sm_89")


@pytest.mark.parametrize(
    ("gpu", "what", "fix"),
    [
        ("sm_90", "for data centres", "--target tensorrt on that machine"),
        ("sm_70", "cannot compile for this GPU", "choose one"),
        ("H100", "cannot compile for this GPU", "choose one"),
    ],
)
def test_gpu_it_cannot_compile_for(gpu: str, what: str, fix: str, plain: Any, make_job: Any) -> None:
    with pytest.raises(InputError) as caught:
        build_plan(make_job(plain("llama"), gpus=("sm_89", gpu)))
    assert (caught.value.code, caught.value.where) == (2111, f"--gpu {gpu}")
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert "sm_75, sm_80, sm_86, sm_89, sm_120" in caught.value.expected


def test_this_machines_gpu_where_there_is_none(plain: Any, make_job: Any) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    with pytest.raises(EnvironmentFault) as caught:
        build_plan(make_job(plain("llama"), gpus=()))
    assert caught.value.code == 5001


def test_float32_has_no_kernel(plain: Any, make_job: Any) -> None:
    job = make_job(plain("llama"))
    with pytest.raises(InputError) as caught:
        build_plan(replace(job, target=replace(job.target, precision=precision("fp32"))))
    assert (caught.value.code, caught.value.fix) == (2111, "--precision fp16")


def test_prompt_longer_than_the_cache(plain: Any, make_job: Any) -> None:
    with pytest.raises(InputError) as caught:
        build_plan(make_job(plain("llama"), length=65))
    assert (caught.value.code, caught.value.where) == (2111, "--length 65")


def test_no_kernel_for_this_shape(make_tiny: Any, tmp_path: Path, make_job: Any, plain: Any) -> None:
    """Two query heads on one key head have no fused kernel: a refusal in TensorRT's words, not a slow plan."""
    from latentwire.engines.bundle import Bundle
    from latentwire.export.decoder import build_decoder
    from latentwire.export.families import read_config
    from latentwire.export.graph import save
    from latentwire.export.weight_file import write_decoder
    from latentwire.export.weights import WeightReader

    llm = make_tiny(
        tmp_path / "llm", "llama", num_attention_heads=2, num_key_value_heads=1, head_dim=64, hidden_size=64
    )
    config, p = read_config(llm.config, "x"), precision("fp16")
    with WeightReader(llm.weights, config) as reader:
        layout = write_decoder(tmp_path / "decoder.safetensors", reader, config, p)
    save(build_decoder(config, layout, p, "dual", 64), tmp_path / "decoder.onnx")
    sample = plain("llama").manifest
    sizes = replace(sample.llm, num_layers=3, num_kv_heads=1, hidden_size=64)
    with pytest.raises(BundleError) as caught:
        build_plan(make_job(Bundle(tmp_path, replace(sample, llm=sizes))))
    assert (caught.value.code, caught.value.what) == (4012, "TensorRT cannot build the graph")
    assert "not supported by a dedicated kernel" in caught.value.expected


def test_graph_that_is_none(tmp_path: Path, plain: Any, make_job: Any) -> None:
    (tmp_path / "decoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError) as caught:
        build_plan(replace(make_job(plain("llama")), folder=tmp_path))
    assert (caught.value.code, caught.value.what) == (4012, "TensorRT cannot read the graph")


def test_build_stops_at_ctrl_c(plain: Any, make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives while TensorRT computes, which swallows exceptions, and leaves as Python's own."""
    from latentwire.export import plan
    from latentwire.export.plan_monitor import make_monitor

    # A test run in the background inherits an ignored Ctrl-C.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))

    def starts_timer(*given: Any) -> Any:
        timer.start()
        return make_monitor(*given)

    monkeypatch.setattr(plan, "make_monitor", starts_timer)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_plan(make_job(plain("gemma3"), gpus=("sm_89", "sm_120", "sm_86", "sm_80")))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert timer.finished.is_set()


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    from latentwire.export.plan_monitor import deferred_signals

    inherited = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_signals() as stop:
            signal.raise_signal(signal.SIGINT)
        assert stop.came == []
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_out_of_memory_is_ours(rtx: Any, plain: Any, make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentwire.export import plan

    class Builder:
        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def build_serialized_network(self, network: Any, config: Any) -> None:
            raise MemoryError

    make = plan.make_builder
    monkeypatch.setattr(plan, "make_builder", lambda *a: Builder(make(*a)))
    with pytest.raises(EnvironmentFault) as caught:
        build_plan(make_job(plain("llama")))
    assert (caught.value.code, caught.value.where) == (5003, "compiling decoder")
