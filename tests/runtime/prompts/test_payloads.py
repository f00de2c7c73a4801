"""Payloads of other runtimes: torch reads what is written here, and only its plain form is read back."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentwire.core.errors import InputError, LatentWireError
from latentwire.runtime.pipeline import Pipeline
from latentwire.runtime.prompts import build, emit, parse, torch_file
from latentwire.runtime.prompts.prompt import LatentPrompt
from latentwire.runtime.prompts.target import Dtype, target_of

ROWS = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)


@pytest.fixture
def prompt(pipe: Pipeline) -> LatentPrompt:
    return build.build(pipe, pipe.compress(["The bridge was opened in 1932."])[0], "When?")


def torch_bytes(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def encoded(data: bytes) -> dict[str, Any]:
    return {"model": "m", "prompt_embeds": base64.b64encode(data).decode()}


def code_of(call: Any, *args: Any) -> int:
    with pytest.raises(InputError) as caught:
        call(*args)
    return caught.value.code


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_torch_reads_what_is_written(dtype: Dtype) -> None:
    data = torch_file.pack(ROWS, dtype)
    found = torch.load(io.BytesIO(data), weights_only=True)
    want = torch.from_numpy(ROWS).to(getattr(torch, dtype))
    assert found.dtype == want.dtype
    assert torch.equal(found, want)
    assert data == torch_file.pack(ROWS, dtype)
    np.testing.assert_array_equal(torch_file.unpack(data), want.float().numpy())


@pytest.mark.parametrize("dtype", get_args(Dtype))
@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (300, 7)])
def test_what_torch_writes_is_read(dtype: Dtype, shape: tuple[int, int]) -> None:
    want = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    np.testing.assert_array_equal(torch_file.unpack(torch_bytes(want)), want.float().numpy())


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (torch.eye(4).to_sparse(), 2142),
        ([torch.eye(4)], 2142),
        (torch.nn.Parameter(torch.eye(4)), 2142),
        (torch.zeros(2, 3, 4), 2142),
        (torch.zeros(4), 2142),
        ({"a": 1}, 2140),
        (torch.zeros(3, 4, dtype=torch.int32), 2143),
        (torch.zeros(3, 4, dtype=torch.float64), 2143),
        (torch.arange(12.0).reshape(3, 4).T, 2144),
        (torch.arange(12.0).reshape(3, 4)[:, :2], 2144),
        (torch.zeros(0, 4), 2144),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, int) else str(v),
)
def test_other_objects_are_refused(value: object, code: int) -> None:
    assert code_of(torch_file.unpack, torch_bytes(value)) == code


def test_a_pickle_that_would_run_code_is_not_run(tmp_path: Any) -> None:
    import zipfile

    mark = tmp_path / "ran"
    evil = f"cos\nsystem\n(X{chr(len(f'touch {mark}'))}\0\0\0touch {mark}tR.".encode("latin1")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", evil)
        archive.writestr("archive/data/0", b"")
    assert code_of(torch_file.unpack, out.getvalue()) == 2142
    assert not mark.exists()


def test_a_bomb_is_refused_by_its_header() -> None:
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 100)
        archive.writestr("archive/data/0", b"\0" * (8 << 20))
    assert code_of(torch_file.unpack, out.getvalue()) == 2140


def test_a_compressed_part_is_refused_even_where_it_is_small() -> None:
    import zipfile

    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_file.pack(ROWS, "float32"))) as good,
        zipfile.ZipFile(out, "w") as archive,
    ):
        for name in good.namelist():
            how = zipfile.ZIP_DEFLATED if name.endswith("data.pkl") else zipfile.ZIP_STORED
            archive.writestr(name, good.read(name), how)
    assert code_of(torch_file.unpack, out.getvalue()) == 2140


@given(st.binary(max_size=200), st.integers(0, 2000))
def test_changed_bytes_never_give_another_error_type(noise: bytes, at: int) -> None:
    data = bytearray(torch_file.pack(ROWS, "float16"))
    data[at : at + len(noise)] = noise
    try:
        found = torch_file.unpack(bytes(data))
    except LatentWireError:
        return
    assert found.shape == ROWS.shape  # only the numbers were hit, in a part that has no checksum


def test_vllm_s_request_comes_back(pipe: Pipeline, prompt: LatentPrompt) -> None:
    embeds, target = emit.embeddings(pipe.engine, prompt), target_of(pipe.engine)
    body = emit.vllm_request(prompt, embeds, "m", max_tokens=4)
    assert body.keys() <= parse.VLLM_FIELDS
    found = parse.from_vllm(body, target)
    assert not found.is_token.any()
    np.testing.assert_array_equal(found.latents, embeds)
    half = replace(prompt, target=replace(target, dtype="float16"))
    np.testing.assert_allclose(parse.from_vllm(emit.vllm_request(half, embeds, "m"), target).latents, embeds, rtol=1e-3)


def test_sglang_s_request_comes_back(pipe: Pipeline, prompt: LatentPrompt) -> None:
    embeds = emit.embeddings(pipe.engine, prompt)
    found = parse.from_sglang(emit.sglang_request([embeds], max_new_tokens=4), target_of(pipe.engine))
    np.testing.assert_array_equal(found.latents, embeds)
    assert len(emit.sglang_request([embeds, embeds])["input_embeds"]) == 2


def test_vllm_s_mixed_prompt(pipe: Pipeline, prompt: LatentPrompt) -> None:
    mixed = emit.vllm(prompt)
    marks = np.array(mixed["prompt_is_token_ids"])
    assert len(marks) == len(mixed["prompt_token_ids"]) == len(mixed["prompt_embeds"])
    np.testing.assert_array_equal(mixed["prompt_embeds"][~marks], prompt.latents)
    whole = emit.embeddings(pipe.engine, prompt)
    np.testing.assert_array_equal(whole[~marks], prompt.latents)
    assert emit.vllm(prompt, whole).keys() == {"prompt_embeds"}


def test_payloads_that_are_wrong(pipe: Pipeline, prompt: LatentPrompt, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(pipe.engine)
    good = torch_file.pack(emit.embeddings(pipe.engine, prompt), "float32")
    assert code_of(parse.from_vllm, encoded(good) | {"secret": 1}, target) == 2140
    assert code_of(parse.from_vllm, {"model": "m"}, target) == 2140
    assert code_of(parse.from_vllm, {"prompt_embeds": "a b!"}, target) == 2140
    assert code_of(parse.from_vllm, {"prompt_embeds": 5}, target) == 2140
    assert code_of(parse.from_vllm, encoded(good[:-30]), target) == 2140
    assert code_of(parse.from_vllm, encoded(torch_file.pack(ROWS[:, :8], "float32")), target) == 2144
    assert code_of(parse.from_vllm, encoded(torch_file.pack(ROWS * np.float32(np.nan), "float32")), target) == 2145
    assert code_of(parse.from_vllm, encoded(torch_file.pack(ROWS * 1000, "float32")), target) == 2147
    h = target.hidden_size
    for rows, code in (
        ([], 2140),
        ("x", 2140),
        ([[1.0] * h] * (target.max_positions + 1), 2141),
        ([[1.0] * h, [1.0] * (h - 1)], 2144),
        ([[True] * h], 2143),
        ([["1"] * h], 2143),
        ([[1e60] * h], 2145),
        ([[10**400] * h], 2144),
    ):
        assert code_of(parse.from_sglang, {"input_embeds": rows}, target) == code
    monkeypatch.setattr(parse, "MAX_BYTES", 100)
    monkeypatch.setattr(torch_file, "MAX_BYTES", 100)
    assert code_of(parse.from_vllm, encoded(good), target) == 2141
    assert code_of(torch_file.unpack, good) == 2141


def test_hugging_face_pads_on_the_left(pipe: Pipeline, prompt: LatentPrompt) -> None:
    short = build.build(pipe, pipe.compress(["Short."])[0], "?")
    args = emit.hugging_face(pipe.engine, [prompt, short])
    assert args["attention_mask"].sum(axis=1).tolist() == [len(prompt), len(short)]
    np.testing.assert_array_equal(args["inputs_embeds"][1, -len(short) :], emit.embeddings(pipe.engine, short))
