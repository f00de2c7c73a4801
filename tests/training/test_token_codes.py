"""Codes that name tokens: what they hold, what comes back, and that the encoder's own directions make the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from latentwire.core.errors import ModelError
from latentwire.training import token_codes
from latentwire.training.building import open_checkpoint
from latentwire.training.config import Config
from latentwire.training.fsq import Quantiser
from latentwire.training.pooling import unit
from latentwire.training.token_codes import ENTRIES, TokenQuantiser, start_token_quantiser
from latentwire.training.train import Trainer

EVERYWHERE = torch.ones(1, dtype=torch.bool)


def quantiser(entries: int = 300, d_z: int = 48) -> TokenQuantiser:
    made = TokenQuantiser(d_z, entries)
    made.table.copy_(unit(torch.randn(entries, d_z, generator=torch.Generator().manual_seed(0))))
    made.weights.copy_(torch.tensor([0.1, 0.2, 0.4, 0.8]))
    return made


def test_codes_by_hand() -> None:
    """Tokens 2 and 1 with the third weight: 2 + 1 * 2^15 + 2 * 2^30, digits of base 4 from the lowest."""
    made = TokenQuantiser(3, 3)
    made.table.copy_(torch.eye(3))
    made.weights.copy_(torch.tensor([0.1, 0.2, 0.5, 0.9]))
    codes = made.codes(torch.tensor([[[0.0, 4.0, 8.0]]]))
    assert codes[0, 0].tolist() == [2, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    back = made.latents(codes)[0, 0]
    torch.testing.assert_close(back, torch.tensor([0.0, 0.5, 1.0]) * (3 / 1.25) ** 0.5, atol=1e-5, rtol=0)


def test_what_is_two_tokens_comes_back() -> None:
    made, draw = quantiser(), torch.Generator().manual_seed(1)
    i, j = torch.randint(300, (2, 200), generator=draw)
    w = made.weights[torch.randint(4, (200,), generator=draw)]
    z = 7 * (made.table[i] + w[:, None] * made.table[j])[None]
    codes = made.codes(z)
    assert int(codes.min()) >= 0
    assert int(codes.max()) <= 3
    back = made.latents(codes)
    torch.testing.assert_close(back.square().mean(-1), torch.ones(1, 200), atol=1e-4, rtol=0)
    same = F.cosine_similarity(back, z, dim=-1)[0] > 0.999
    assert same[w < 0.5].float().mean() > 0.95
    torch.testing.assert_close(made(z, EVERYWHERE), back)


def test_blocks_of_the_table_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = quantiser()
    z = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(2))
    whole = made.codes(z)
    monkeypatch.setattr(token_codes, "BLOCK", 64)
    assert torch.equal(made.codes(z), whole)


def test_gradients_pass_and_empty_slots_stay_empty() -> None:
    made = quantiser()
    z = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(3))
    z[1, 2] = 0
    z.requires_grad_()
    out = made(z, torch.tensor([True, True]))
    assert not out[1, 2].any()
    (out * torch.arange(48.0)).sum().backward()
    torch.testing.assert_close(z.grad, torch.arange(48.0).expand(2, 3, 48))
    assert torch.equal(made(z, torch.tensor([False, False])), z)


def test_codes_that_nobody_wrote_are_read_without_a_fault() -> None:
    made = quantiser()
    assert made.latents(torch.full((1, 1, 16), 3)).isfinite().all()
    assert len(TokenQuantiser(4, ENTRIES + 5).table) == ENTRIES


def test_weights_are_the_middles_of_four_shares() -> None:
    made = TokenQuantiser(2, 2)
    z = torch.tensor([[1.0, step / 100] for step in range(1, 100)])
    start_token_quantiser(made, torch.eye(2), z)
    assert made.weights.tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=0.01)


def test_added_to_a_trained_encoder(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    """With ``init``: the table is what the trained projection makes of the tokens, and every other tensor is kept."""
    Trainer(tiny_config(steps=2, lr_projection=1e-2), tmp_path / "a").train()
    config = tiny_config(init=str(tmp_path / "a" / "last"), fsq_profile=1, quantiser_type="tokens")
    Trainer(config, tmp_path / "b")
    before, _ = open_checkpoint(tmp_path / "a" / "last", "cpu")
    after, _ = open_checkpoint(tmp_path / "b" / "last", "cpu")
    for name, tensor in before.encoder.state_dict().items():
        assert torch.equal(after.encoder.state_dict()[name], tensor), name
    made = after.quantiser
    assert isinstance(made, TokenQuantiser)
    assert 0 < made.weights[0] < made.weights[3] < 1.5
    encoder = after.encoder
    keys = unit((after.source.embedding - encoder.get_buffer("mean")) @ encoder.get_parameter("projection.weight").T)
    # The table holds the tokens in another order: those that are used.
    assert (made.table @ keys.T).amax(-1).min() > 0.9999


def test_another_quantiser_or_none_replaces_it(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    Trainer(tiny_config(steps=1, fsq_profile=1, quantiser_type="tokens"), tmp_path / "a")
    start = {"init": str(tmp_path / "a" / "last"), "steps": 1}
    for name, options, kind in (
        ("none", {}, type(None)),
        ("learned", {"fsq_profile": 1, "fsq_hidden": 8}, Quantiser),
        ("same", {"fsq_profile": 1, "quantiser_type": "tokens", "fsq_hidden": 8}, TokenQuantiser),
    ):
        Trainer(tiny_config(**start, **options), tmp_path / name)
        model, _ = open_checkpoint(tmp_path / name / "last", "cpu")
        assert type(model.quantiser) is kind


def test_only_one_profile_has_room() -> None:
    with pytest.raises(ModelError, match=r"LW-3210 .*fsq_profile; expected 1 where quantiser_type is tokens, got 2"):
        Config(quantiser_type="tokens", fsq_profile=2)
