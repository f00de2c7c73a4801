"""Several tokens in one latent: which of a span's are named, where they stand, and that adapters read them there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire.core.errors import ModelError
from latentwire.core.salient import span_starts
from latentwire.export.publish import publish
from latentwire.training.adapter import LearnedAdapter, TableAdapter
from latentwire.training.binding import Naming, bind, group, piece_slots, unbind
from latentwire.training.building import open_checkpoint
from latentwire.training.config import Config
from latentwire.training.encoder_bytes import ByteLevelEncoder
from latentwire.training.lexicon import start_lexicon
from latentwire.training.pooling import salient_spans, span_weights, unit
from latentwire.training.train import Trainer

Make = Callable[..., Config]


def test_binding_comes_off_again_and_hides_a_key() -> None:
    keys = unit(torch.randn(400, 256, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(bind(keys, 0), keys)
    for place in (1, 2, 3):
        assert torch.equal(unbind(bind(keys, place), place), keys)
        assert (bind(keys, place) * keys).sum(-1).abs().max() < 0.3
    assert bind(torch.arange(256.0), 1)[97] == 0


def test_latents_take_pieces_in_turn() -> None:
    """Three latents of two places over texts of 6, 4, 2 and no tokens, each token a piece."""
    lengths, slots = torch.tensor([6, 4, 2, 0]), torch.arange(3)
    pieces = span_weights(lengths, piece_slots(slots, 2), 6)
    cut = group(pieces, lengths, slots, None, 2)
    named = [[p[b].float().argmax(-1).tolist() for p in cut.places] for b in range(3)]
    assert named[0] == [[0, 2, 4], [1, 3, 5]]
    # Four pieces for three latents: two latents have one, which they name twice.
    assert named[1] == [[0, 2, 3], [1, 2, 3]]
    assert [p[2, :2].float().argmax(-1).tolist() for p in cut.places] == [[0, 1], [0, 1]]
    assert not cut.places[1][2, 2].any()
    assert not cut.spans[3].any()
    assert cut.spans.sum(-1).tolist() == [[2, 2, 2], [2, 1, 1], [1, 1, 0], [0, 0, 0]]


@settings(deadline=None)
@given(st.data())
def test_every_state_is_in_one_span_whose_pieces_are_named_in_order(data: st.DataObject) -> None:
    places, latents = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    length = data.draw(st.integers(1, 40))
    count = data.draw(st.integers(1, latents))
    idf = torch.tensor(data.draw(st.lists(st.floats(0, 9), min_size=length, max_size=length)))
    lengths, slots = torch.tensor([length]), torch.arange(latents)
    counts = torch.tensor([count])
    pieces = salient_spans(idf[None], lengths, piece_slots(slots, places), counts * places)
    cut = group(pieces, lengths, slots, counts, places)
    assert cut.spans[0].sum(0).tolist() == [1] * length
    assert cut.spans[0].any(-1).sum() == min(count, length)
    starts = [int(span.nonzero()[0, 0]) for span in cut.spans[0] if span.any()]
    assert starts == sorted(starts) == span_starts(idf.numpy(), min(count, length), places)
    order = [int(p[0, m].float().argmax()) for m in range(min(count, length)) for p in cut.places]
    assert order == sorted(order)
    if places > 1:
        assert set(order) == set(range(min(places * count, length)))


def test_tokens_are_named_by_hand() -> None:
    """Two pieces, tokens 1 and 2 of weight 1: the second key stands 97 dimensions to the right, 0.85 as loud."""
    slots, lengths = torch.arange(1), torch.tensor([4])
    cut = group(span_weights(lengths, piece_slots(slots, 2), 4), lengths, slots, None, 2)
    weights = torch.tensor([[[0.0, 1, 0, 0], [0, 0, 1, 0]]])
    with torch.no_grad():
        named = Naming(2)(torch.eye(4, 256)[None], weights, cut)[0, 0]
    expected = torch.zeros(256)
    expected[1], expected[2 + 97] = 16.0, 0.85 * 16.0
    torch.testing.assert_close(named, expected)
    assert not list(Naming(1).parameters())


def test_a_lookup_finds_both_tokens() -> None:
    adapter = LearnedAdapter(256, 300, 24, task_tokens=1, top=4, tau=0.01, hidden=4, places=2).eval()
    table = torch.randn(300, 24, generator=torch.Generator().manual_seed(2))
    adapter.set_table(table)
    with torch.no_grad():
        keys = adapter.keys()
        z = 16 * unit(keys[[7, 20]] + 0.7 * bind(keys[[90, 7]], 1))
        rows = adapter.plain(z[None])[0]
    torch.testing.assert_close(rows, table[[7, 20]] + 0.5 * table[[90, 7]], atol=2e-2, rtol=0)
    with_gradient = adapter.plain(z[None])[0]
    torch.testing.assert_close(with_gradient, rows, atol=1e-5, rtol=0)


def test_the_mlp_reads_each_token_apart() -> None:
    """The same two tokens in the other order: other hidden units, of tokens at an RMS of 1."""
    adapter = LearnedAdapter(256, 300, 24, task_tokens=1, top=1, tau=0.01, hidden=24, places=2).eval()
    adapter.set_table(3 * torch.randn(300, 24, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        adapter.up.weight.zero_()
        adapter.up.bias.fill_(20.0)  # where GELU is the identity
        adapter.reads[0].weight.copy_(torch.eye(24))  # type: ignore[operator]
        adapter.reads[1].weight.copy_(-torch.eye(24))  # type: ignore[operator]
        adapter.down.weight.copy_(torch.eye(24))
        keys = adapter.keys()
        z = 16 * unit(keys[[7, 90]] + 0.7 * bind(keys[[90, 7]], 1))
        rows = adapter.plain(z[None])[0]
    one, two = adapter.llm_embedding[7], adapter.llm_embedding[90]
    expected = torch.stack([2 * one - 0.5 * two, 2 * two - 0.5 * one]) + 20 * adapter.rms
    torch.testing.assert_close(rows, expected, atol=1e-4, rtol=1e-4)


def test_bytes_name_strings_of_their_lexicon() -> None:
    encoder = ByteLevelEncoder(256, 48, 1, words=4, salience=50.0, span_type="salient", places=2).eval()
    assert encoder.lexicon is not None
    strings = [b"the", b" old", b" bridge", b"."]
    start_lexicon(encoder.lexicon, strings, torch.eye(4, 256), torch.tensor([0.0, 3, 4, 2]))
    text = b"the old bridge."
    with torch.no_grad():
        z = encoder(torch.tensor([list(text)]), torch.tensor([len(text)]), torch.arange(1))[0, 0]
    one, two = (unit(unbind(z, place))[:4] for place in (0, 1))
    # The text is cut behind the group of bytes that " bridge" begins in, its rarest but the last.
    assert one.argmax() == 2
    assert two.argmax() == 3
    assert one.max() / two.max() == pytest.approx(1 / 0.85, rel=1e-2)


def test_added_to_a_checkpoint_trained_published_and_read(tiny_config: Make, tmp_path: Path) -> None:
    """A row begins as its first token and half of the second; what was trained is published and gone on from."""
    base = tiny_config(steps=2, d_z=32)
    Trainer(base, tmp_path / "a").train()
    more = replace(base, places=2, init=str(tmp_path / "a" / "last"), fsq_profile=1, quantiser_type="tokens")
    more = replace(more, weight_decay=0.0)
    trainer = Trainer(more, tmp_path / "b")
    adapter = trainer.model.adapter(trainer.model.llms[0])
    assert isinstance(adapter, LearnedAdapter)
    first, second = adapter.places.parameters()
    assert not first.any()
    assert torch.equal(second, 0.5 * torch.eye(len(second)))
    matrices = [*adapter.places.parameters(), *adapter.reads.parameters()]
    start = [matrix.detach().clone() for matrix in matrices]
    trainer.train()
    # The MLP begins at zero, so what it reads moves from the second step on.
    assert not any(torch.equal(a, b) for a, b in zip(start, matrices, strict=True))
    model, meta = open_checkpoint(tmp_path / "b" / "last", "cpu")
    assert meta["encoder"]["span_type"] == f"{base.span_type}/2"
    # Publishing traces the graphs and compares each with its module.
    publish(tmp_path / "b" / "last", tmp_path / "c", {})
    # And on from there: nothing is lost on the way.
    again = Trainer(replace(more, init=str(tmp_path / "b" / "last")), tmp_path / "d").model
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"places": 0}, "places; expected at least 1, got 0"),
        ({"places": 2, "adapter_type": "linear"}, "places; expected 1 where adapter_type is linear"),
        (
            {"places": 2, "encoder_type": "bytes", "teacher": "t", "byte_lexicon": 0, "span_type": "equal"},
            "places; expected 1 where byte_lexicon is 0",
        ),
    ],
)
def test_places_that_nothing_would_read(options: dict[str, object], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        Config(**options)  # type: ignore[arg-type]


def test_another_family_reads_places_too() -> None:
    adapter = TableAdapter(256, 40, 24, task_tokens=1, top=2, tau=0.01, hidden=4, size=10, places=2).eval()
    keys = unit(torch.randn(10, 256, generator=torch.Generator().manual_seed(3)))
    adapter.set_table(torch.randn(40, 24, generator=torch.Generator().manual_seed(4)))
    adapter.set_keys(torch.arange(20, 30), keys)
    with torch.no_grad():
        rows = adapter.plain((keys[3] + 0.7 * bind(keys[8], 1))[None, None])[0, 0]
    torch.testing.assert_close(rows, adapter.llm_embedding[23] + 0.5 * adapter.llm_embedding[28], atol=2e-2, rtol=0)
