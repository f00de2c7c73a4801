"""The quantiser: levels by hand and by golden table, gradients, start, batches, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from latentwire.core.errors import ModelError
from latentwire.runtime import fsq as packing
from latentwire.training.batch import Limits, make_batch
from latentwire.training.building import build_model, open_checkpoint, start
from latentwire.training.config import Config
from latentwire.training.data import read_questions
from latentwire.training.fsq import (
    PROFILES,
    Quantiser,
    fit_quantiser,
    rounding_share,
    start_quantiser,
    to_codes,
    to_values,
)
from latentwire.training.llm import LMWrapper
from latentwire.training.stages import Stage
from latentwire.training.train import Trainer

CPU = torch.device("cpu")
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "fsq.json").read_text())


@pytest.fixture
def make(tiny_config: Callable[..., Config]) -> Callable[..., Config]:
    return partial(tiny_config, mlp_hidden=16, fsq_profile=1, fsq_hidden=8)


def test_four_levels_by_hand() -> None:
    x = torch.tensor([-1.0, -0.51, -0.5, -0.01, 0.0, 0.49, 0.5, 1.0])
    assert to_codes(x, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert to_values(torch.arange(4), 4).tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_profiles_are_those_of_the_wire() -> None:
    assert {p: (dims, 1 << bits) for p, (dims, bits) in packing.PROFILES.items()} == PROFILES


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: c["name"])
def test_codes_are_bit_exact_between_torch_and_the_wire(case: dict[str, object]) -> None:
    """Bounded values (float32, exact in hex) -> codes -> payload bytes -> codes -> level middles."""
    profile = int(str(case["profile"]))
    dims, levels = PROFILES[profile]
    values = np.array([float.fromhex(v) for v in case["bounded"]], np.float32).reshape(-1, dims)  # type: ignore[attr-defined]
    codes = to_codes(torch.from_numpy(values), levels).numpy()
    assert codes.ravel().tolist() == case["codes"]
    payload = packing.pack_codes(codes.astype(np.uint8), profile)
    assert payload.hex() == case["payload"]
    unpacked = packing.unpack_codes(payload, profile, len(codes))
    np.testing.assert_array_equal(unpacked, codes)
    middles = to_values(torch.from_numpy(unpacked.astype(np.int64)), levels).double().ravel().tolist()
    assert [v.hex() for v in middles] == case["values"]


def test_the_gradient_passes_straight_through() -> None:
    torch.manual_seed(0)
    quantiser = Quantiser(16, 1, 4)
    quantiser.bounded(z := torch.randn(2, 3, 16, requires_grad=True))
    out = quantiser(z, torch.tensor([True, False]))
    torch.testing.assert_close(out[1], z[1], atol=0, rtol=0)
    codes = quantiser.codes(z)
    torch.testing.assert_close(out[0], quantiser.latents(codes)[0])
    out[0].square().sum().backward()
    assert z.grad is not None
    # The output has unit RMS, so its own norm has no gradient: ask for a direction instead.
    z.grad = None
    (quantiser(z, torch.ones(2, dtype=torch.bool)) * torch.randn(2, 3, 16)).sum().backward()
    gradient: torch.Tensor | None = z.grad
    assert gradient is not None
    assert float(gradient.abs().min(-1).values.min()) > 0
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in quantiser.named_parameters() if "wide" not in n
    )


def test_empty_slots_stay_empty() -> None:
    quantiser = Quantiser(16, 2, 4)
    z = torch.zeros(1, 3, 16)
    z[0, 0] = 1.0
    out = quantiser(z, torch.tensor([True]))
    assert out[0, 0].square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-4)
    assert not out[0, 1:].any()


def test_the_start_uses_every_level_and_points_the_right_way() -> None:
    torch.manual_seed(1)
    z = torch.randn(4000, 24) @ torch.diag(torch.linspace(2.0, 0.3, 24)) + 1.0
    z = z / z.square().mean(-1, keepdim=True).sqrt()
    quantiser = Quantiser(24, 1, 4)
    before = torch.cosine_similarity(quantiser.latents(quantiser.codes(z[None]))[0], z, dim=-1).mean()
    start_quantiser(quantiser, z)
    codes = quantiser.codes(z[None])[0]
    share = torch.stack([(codes == level).float().mean(0) for level in range(4)])
    assert float(share.min()) > 0.15
    after = torch.cosine_similarity(quantiser.latents(codes[None])[0], z, dim=-1).mean()
    assert after > 0.9 > before


def test_fitting_brings_codes_closer_and_is_repeatable() -> None:
    torch.manual_seed(2)
    # Latents that lie on few points, as those that name tokens do: a linear map back cannot find them.
    points = torch.nn.functional.normalize(torch.randn(40, 24), dim=-1)
    z = points[torch.randint(40, (600,))] + 0.02 * torch.randn(600, 24)

    def fitted(steps: int) -> Quantiser:
        torch.manual_seed(3)
        quantiser = Quantiser(24, 1, 32)
        start_quantiser(quantiser, z)
        fit_quantiser(quantiser, z, steps)
        return quantiser

    def near(quantiser: Quantiser) -> float:
        with torch.no_grad():
            return float(torch.cosine_similarity(quantiser.latents(quantiser.codes(z[None]))[0], z, dim=-1).mean())

    assert near(fitted(200)) > near(fitted(0)) + 0.02
    one, two = fitted(20), fitted(20)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(p.grad is None for p in one.parameters())


def test_the_start_bears_few_directions() -> None:
    torch.manual_seed(1)
    flat = torch.randn(50, 3) @ torch.randn(3, 24)
    for z in (flat, flat[:4]):
        quantiser = Quantiser(24, 2, 4)
        start_quantiser(quantiser, z)
        assert torch.cosine_similarity(quantiser.latents(quantiser.codes(z[None]))[0], z, dim=-1).mean() > 0.95


def test_share_of_rounded_samples_grows_to_one() -> None:
    shares = [rounding_share(s, 90, 0.5, 1 / 3) for s in (0, 15, 30, 89)]
    assert shares == pytest.approx([0.5, 0.75, 1.0, 1.0])
    assert rounding_share(0, 90, 0.5, 0.0) == 0.5
    assert math.isclose(rounding_share(1, 90, 0.5, 0.0), 1.0)


def test_a_batch_says_who_is_rounded(tiny_llm: Path, story_file: Path) -> None:
    llm = LMWrapper(str(tiny_llm), torch.float32, CPU)
    items = read_questions([str(story_file)])
    limits = Limits(8, 2, 64, 64)
    assert not make_batch(items, llm.encode, [llm], limits, (0, 1, 2)).rounded.any()
    assert make_batch(items, llm.encode, [llm], replace(limits, rounding=1.0), (0, 1, 2)).rounded.all()
    half = [make_batch(items, llm.encode, [llm], replace(limits, rounding=0.5), (0, 1, k)).rounded for k in range(20)]
    assert 0.35 < torch.stack(half).float().mean() < 0.65
    again = make_batch(items, llm.encode, [llm], replace(limits, rounding=0.5), (0, 1, 7)).rounded
    assert torch.equal(again, half[7])


def test_a_stage_may_have_its_own_share(make: Callable[..., Config], tmp_path: Path) -> None:
    stages = (Stage("raw", steps=2, fsq_share=0.0), Stage("ramp", steps=2), Stage("wire", steps=2, fsq_share=1.0))
    maker = Trainer(make(stage=stages, steps=6, fsq_share=0.5, fsq_ramp=1.0), tmp_path).maker
    per_step = maker.config.batch // maker.config.micro_batch
    shares = [maker(n).batch.rounded.float().mean().item() for n in range(6 * per_step)]
    assert set(shares[: 2 * per_step]) == {0.0}
    assert 0 < sum(shares[2 * per_step : 4 * per_step]) < 2 * per_step
    assert set(shares[4 * per_step :]) == {1.0}


def test_it_is_trained_saved_and_part_of_the_encoder_s_name(make: Callable[..., Config], tmp_path: Path) -> None:
    trainer = Trainer(make(), tmp_path)
    quantiser = trainer.model.quantiser
    assert isinstance(quantiser, Quantiser)
    before = {n: p.detach().clone() for n, p in quantiser.named_parameters()}
    trainer.train()
    assert [n for n, p in quantiser.named_parameters() if torch.equal(p, before[n])] == []
    model, meta = open_checkpoint(tmp_path / "last", "cpu")
    ids, lengths = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([5])
    z = model.encode(ids, lengths)
    torch.testing.assert_close(model.quantised(z), trainer.model.eval().quantised(z), atol=0, rtol=0)
    assert not torch.equal(model.quantised(z), z)
    assert model.quantised(z, torch.tensor([False])).equal(z)
    with torch.no_grad():
        quantiser.up.linear.bias.add_(0.25)
    trainer.save()
    assert open_checkpoint(tmp_path / "last", "cpu")[1]["encoder"]["fingerprint"] != meta["encoder"]["fingerprint"]


def test_without_a_profile_there_is_no_quantiser(make: Callable[..., Config]) -> None:
    model = build_model(make(fsq_profile=0), CPU)
    start(model, [i.context for i in read_questions(make().data)])
    assert model.quantiser is None
    assert not [n for n in model.state_dict() if "quantiser" in n]
    z = torch.randn(1, 2, 16)
    assert model.quantised(z) is z
    with pytest.raises(ModelError, match=r"LW-3210 .*fsq_profile"):
        make(fsq_profile=3)
