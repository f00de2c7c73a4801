"""Codes that name tokens: what they hold, what comes back, and that the encoder's own directions make the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from latentwire.core.errors import ModelError
from latentwire.training import token_codes
from latentwire.training.binding import bind
from latentwire.training.building import open_checkpoint
from latentwire.training.config import Config
from latentwire.training.fsq import Quantiser
from latentwire.training.pooling import unit
from latentwire.training.token_codes import BOOKS, ENTRIES, TokenQuantiser, start_token_quantiser
from latentwire.training.train import Trainer

EVERYWHERE = torch.ones(1, dtype=torch.bool)


def quantiser(entries: int = 300, d_z: int = 48) -> TokenQuantiser:
    made, draw = TokenQuantiser(d_z, entries), torch.Generator().manual_seed(0)
    made.table.copy_(unit(torch.randn(entries, d_z, generator=draw)))
    # Each book holds smaller entries than the one before.
    for book, size in zip(made.books.split(BOOKS[1]), (0.4, 0.1, 0.02), strict=True):
        book.copy_(size * unit(torch.randn(len(book), d_z, generator=draw)))
    made.share.fill_(0.9)
    return made


def test_codes_by_hand() -> None:
    """Token 2, then entries 5, 3 and 1: 2 + 5 * 2^15 + 3 * 2^21 + 1 * 2^27, digits of base 4 from the lowest."""
    made = TokenQuantiser(4, 3)
    made.table.copy_(torch.eye(3, 4))
    made.share.fill_(0.5)
    first, second, third = made.books.split(BOOKS[1])
    first[5], second[3], third[1] = torch.tensor([[0.0, 0, 0, 0.5], [0.25, 0, 0, 0], [0, 0.125, 0, 0]])
    z = torch.tensor([[[0.25, 0.125, 0.5, 0.5]]])
    word = 2 + 5 * 2**15 + 3 * 2**21 + 1 * 2**27
    # Longer than a unit vector by the root of 0.578: the token's share and the first book's entry are what is nearest.
    made.share.fill_(0.5 / float(z.norm()))
    made.books /= z.norm()
    codes = made.codes(8 * z)
    assert codes[0, 0].tolist() == [word // 4**k % 4 for k in range(16)]
    torch.testing.assert_close(made.latents(codes), 2 * unit(z), atol=1e-5, rtol=0)


def test_what_is_a_token_and_entries_comes_back() -> None:
    made, draw = quantiser(), torch.Generator().manual_seed(1)
    parts = [made.share * made.table[torch.randint(300, (200,), generator=draw)]]
    parts += [book[torch.randint(len(book), (200,), generator=draw)] for book in made.books.split(BOOKS[1])]
    z = torch.stack(parts).sum(0)[None]
    codes = made.codes(7 * z)
    assert int(codes.min()) >= 0
    assert int(codes.max()) <= 3
    back = made.latents(codes)
    torch.testing.assert_close(back.square().mean(-1), torch.ones(1, 200), atol=1e-4, rtol=0)
    # A greedy choice need not find the entries again, only something near.
    assert F.cosine_similarity(back, z, dim=-1).mean() > 0.95
    torch.testing.assert_close(made(7 * z, EVERYWHERE), back)


def test_each_book_brings_codes_nearer() -> None:
    made = TokenQuantiser(24, 200)
    draw = torch.Generator().manual_seed(4)
    keys = unit(torch.randn(200, 24, generator=draw))
    # Latents beside one token have much in common, as an encoder's have.
    common = 0.5 * torch.randn(6, 24, generator=draw)
    z = keys[torch.randint(200, (900,), generator=draw)] + common[torch.randint(6, (900,), generator=draw)]
    start_token_quantiser(made, keys, z)
    kept = made.books.clone()
    found = []
    for known in (0, BOOKS[1][0], sum(BOOKS[1][:2]), sum(BOOKS[1])):
        made.books.copy_(kept)
        made.books[known:] = 0
        found.append(float(F.cosine_similarity(made.latents(made.codes(z[None]))[0], z, dim=-1).mean()))
    assert found == sorted(found)
    assert found[0] < 0.8
    assert found[-1] > 0.95


def test_few_samples_and_none() -> None:
    made = TokenQuantiser(4, 3)
    start_token_quantiser(made, torch.eye(3, 4), torch.randn(5, 4, generator=torch.Generator().manual_seed(5)))
    assert made.books.isfinite().all()
    assert made.latents(made.codes(torch.randn(1, 2, 4))).isfinite().all()


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
    assert 0 < made.share < 1
    assert made.books.any()
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


def test_a_checkpoint_with_codes_of_before_gets_new_ones(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    options = {"fsq_profile": 1, "quantiser_type": "tokens", "steps": 1}
    Trainer(tiny_config(**options), tmp_path / "a")
    path = tmp_path / "a" / "last" / "encoder.safetensors"
    tensors = load_file(path)
    older = {name: tensor for name, tensor in tensors.items() if name not in ("quantiser.share", "quantiser.books")}
    save_file(older | {"quantiser.weights": torch.ones(4)}, path)
    Trainer(tiny_config(init=str(path.parent), **options), tmp_path / "b")
    model, _ = open_checkpoint(tmp_path / "b" / "last", "cpu")
    assert isinstance(model.quantiser, TokenQuantiser)
    torch.testing.assert_close(model.quantiser.books, tensors["quantiser.books"])


def test_only_one_profile_has_room() -> None:
    with pytest.raises(ModelError, match=r"LW-3210 .*fsq_profile; expected 1 where quantiser_type is tokens, got 2"):
        Config(quantiser_type="tokens", fsq_profile=2)


def test_two_tokens_by_hand() -> None:
    """Token 2, token 1 at the second place, entry 3: 2 + 1 * 2^15 + 3 * 2^30."""
    made = TokenQuantiser(256, 3, places=2)
    made.table.copy_(torch.eye(3, 256))
    made.share.fill_(0.8)
    made.shares.fill_(0.5)
    made.books[3, 255] = 0.2
    z = torch.zeros(1, 1, 256)
    # The key of token 1 stands 97 dimensions to the right of its own.
    z[0, 0, 2], z[0, 0, 1 + 97], z[0, 0, 255] = 0.8, 0.5, 0.2
    size = float(z.norm())
    for part in (made.share, made.shares, made.books):
        part /= size
    word = 2 + 1 * 2**15 + 3 * 2**30
    codes = made.codes(5 * z)
    assert codes[0, 0].tolist() == [word // 4**k % 4 for k in range(16)]
    torch.testing.assert_close(made.latents(codes), 16 * unit(z), atol=1e-4, rtol=1e-3)
    assert made.latents(torch.full((1, 1, 16), 3)).isfinite().all()


def test_two_tokens_come_back_from_what_names_two() -> None:
    draw = torch.Generator().manual_seed(6)
    keys = unit(torch.randn(500, 128, generator=draw))
    first, second = (torch.randint(500, (800,), generator=draw) for _ in range(2))
    z = keys[first] + 0.7 * bind(keys[second], 1) + 0.02 * torch.randn(800, 128, generator=draw)
    made, one = TokenQuantiser(128, 500, places=2), TokenQuantiser(128, 500)
    for each in (made, one):
        start_token_quantiser(each, keys, z)
    tokens, _ = made.named(z[None])
    assert (tokens[0][0] == first).float().mean() > 0.99
    assert (tokens[1][0] == second).float().mean() > 0.95
    near = [float(F.cosine_similarity(each.latents(each.codes(z[None]))[0], z, dim=-1).mean()) for each in (made, one)]
    assert near[0] > 0.95
    assert near[0] > near[1] + 0.05


def test_codes_name_two_tokens_at_most() -> None:
    with pytest.raises(ModelError, match=r"LW-3210 .*places; expected one of 1, 2 where codes are tokens, got 3"):
        Config(quantiser_type="tokens", fsq_profile=1, places=3)
