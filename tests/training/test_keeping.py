"""The head that says what of a text is worth a latent: its labels, its loss, and that texts are cut by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentwire.core.errors import ModelError
from latentwire.export.publish import publish
from latentwire.training.building import open_checkpoint
from latentwire.training.config import Config
from latentwire.training.data import Question
from latentwire.training.encoder import EncoderFromEmbedLayer
from latentwire.training.keeping import UNKNOWN, Keep, as_salience, keep_loss, wanted_tokens
from latentwire.training.stages import Stage
from latentwire.training.train import Trainer

Make = Callable[..., Config]


def words(text: str) -> list[int]:
    """A token for each word, with the space before it."""
    return list(range(len(text.split())))


def test_labels_by_hand() -> None:
    context = "The bridge at Tolmin was built by Anton Kovac in 1887 ."
    asked = (Question("Who?", ("Anton Kovac",)), Question("When?", ("in 1888", "1887")), Question("What?", ("a ship",)))
    labels = wanted_tokens(context, asked, words, 12)
    assert [context.split()[i] for i, wanted in enumerate(labels) if wanted] == ["Anton", "Kovac", "1887"]
    # A window that ends before the answers, and a passage of which nobody asks anything.
    assert wanted_tokens(context, asked, words, 8) == [0] * 7 + [1]
    assert wanted_tokens(context, (), words, 3) == [UNKNOWN] * 3


def test_labels_with_a_real_tokenizer(tiny_llm: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_llm / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    context = "The bridge was built by Anton Kovac, in 1887."
    ids = encode(context)
    labels = wanted_tokens(context, (Question("Who?", ("Anton Kovac",)),), encode, len(ids))
    named = tokenizer.decode([i for i, wanted in zip(ids, labels, strict=True) if wanted])
    assert named.strip() == "Anton Kovac"


def test_loss_by_hand() -> None:
    odds = torch.tensor([[0.0, 2.0, -1.0]])
    wanted = torch.tensor([[1, 0, UNKNOWN]])
    expected = (torch.log(torch.tensor(2.0)) + torch.log(1 + torch.exp(torch.tensor(2.0)))) / 2
    torch.testing.assert_close(keep_loss(odds, wanted), expected)
    assert keep_loss(odds, torch.full((1, 3), UNKNOWN)) == 0


def test_salience_keeps_the_order_and_its_range() -> None:
    odds = torch.linspace(-14, 14, 50)
    salience = as_salience(odds)
    assert salience.min() == 0
    assert salience.max() == pytest.approx(127.75)
    assert (salience.diff() >= 0).all()


def test_padding_changes_no_odds() -> None:
    torch.manual_seed(0)
    head = Keep(24)
    states = torch.randn(2, 9, 24)
    inside = torch.arange(9)[None, :] < torch.tensor([[9], [5]])
    together = head(states, inside)
    torch.testing.assert_close(together[1, :5], head(states[1:, :5], inside[1:, :5])[0])


def test_texts_are_cut_at_what_is_wanted(tiny_config: Make, tmp_path: Path) -> None:
    """Trained by its own bundle, without an LLM; published, traced, compared; then the adapters go on from there."""
    stages = (
        Stage("keep", steps=30, bundle="keep", prose_share=0.0, train=("encoder",)),
        Stage("answer", steps=2, train=("adapters",)),
    )
    config = tiny_config(steps=32, stage=stages, span_type="learned", places=2, d_z=32, lr_new=3e-3, eval_every=100)
    trainer = Trainer(config, tmp_path / "a")
    assert trainer.maker(0).batch.trees == ()
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    found = [r["keep"] for r in records if r["event"] == "step" and "keep" in r]
    assert len(found) == 30
    assert sum(found[-5:]) < 0.7 * sum(found[:5])
    model, meta = open_checkpoint(tmp_path / "a" / "last", "cpu")
    assert meta["encoder"]["span_type"] == "learned/2"
    encoder = model.encoder
    assert isinstance(encoder, EncoderFromEmbedLayer)
    ids = torch.tensor([model.ids(trainer.maker.items[0][0].context)])
    lengths = torch.tensor([ids.shape[1]])
    with torch.no_grad():
        odds = encoder.odds(ids, lengths)[0]
        cut = encoder.cut(ids, lengths, torch.arange(2))
    ends = {int(piece.nonzero()[-1]) for piece in cut.pieces[0] if piece.any()}
    # Four pieces: the last token and the three that are wanted most.
    wanted = odds[:-1].topk(3).indices.tolist()
    assert len(ends) == 4
    assert min(odds[sorted(ends)[:-1]]) >= min(odds[wanted]) - 0.2
    publish(tmp_path / "a" / "last", tmp_path / "c", {})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bundle": "keep"}, "span_type; expected learned where the bundle keep is trained"),
        ({"bundle": "follow"}, "span_type; expected learned where the bundle follow is trained"),
        ({"bundle": "follow", "span_type": "learned"}, "bundle; expected encoder_type bytes and a teacher"),
        (
            {"encoder_type": "bytes", "teacher": "t", "span_type": "learned", "bundle": "keep"},
            "bundle; expected follow where encoder_type is bytes, got 'keep'",
        ),
    ],
)
def test_what_nothing_could_learn(options: dict[str, object], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        Config(**options)  # type: ignore[arg-type]
