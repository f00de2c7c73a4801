"""A byte encoder whose head follows its teacher's: what it is told, where it cuts, which strings it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentwire.core.errors import ModelError
from latentwire.export.export import Request, export_bundle
from latentwire.export.join import join
from latentwire.export.publish import publish
from latentwire.runtime import message
from latentwire.runtime.options import CompressOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.training.binding import unbind
from latentwire.training.building import open_checkpoint
from latentwire.training.config import Config
from latentwire.training.encoder_bytes import ByteLevelEncoder
from latentwire.training.keeping import Keep, follow_loss
from latentwire.training.lexicon import start_lexicon
from latentwire.training.preview import preview
from latentwire.training.stages import Stage
from latentwire.training.train import Trainer

Make = Callable[..., Config]
TEXT = b"the old bridge at Tolmin."
STRINGS = [b"the", b" old", b" bridge", b" at", b" Tolmin", b"."]


class Told(Keep):
    """A head that wants what it is told: log-odds by state."""

    def __init__(self, odds: list[float]) -> None:
        super().__init__(48)
        self.told = odds

    def forward(self, states: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.told)[: states.shape[1]].expand(len(states), -1) * inside


@pytest.fixture
def encoder() -> ByteLevelEncoder:
    made = ByteLevelEncoder(256, 48, 1, words=6, span_type="learned", places=2).eval()
    assert made.lexicon is not None
    start_lexicon(made.lexicon, STRINGS, torch.eye(6, 256), torch.tensor([1.0, 3, 4, 1, 5, 2]))
    return made


def test_loss_by_hand() -> None:
    """Two tokens in the first state, of which the likelier counts, none in the second, one in the third."""
    odds = torch.tensor([[1.5, -1.0, 2.0, 9.0]])
    told = torch.tensor([[-1.0, 1.0, 0.5, 7.0]])
    inside = torch.tensor([[True, True, True, False]])
    likely = [torch.tensor(1.0).sigmoid(), torch.tensor(0.0), torch.tensor(0.5).sigmoid()]
    expected = sum(
        torch.nn.functional.binary_cross_entropy_with_logits(o, p) for o, p in zip(odds[0], likely, strict=False)
    )
    found = follow_loss(odds, told, torch.tensor([[0, 0, 2, -1]]), inside)
    torch.testing.assert_close(found, torch.as_tensor(expected) / 3)


def names(encoder: ByteLevelEncoder, text: bytes, latents: int) -> list[bytes | None]:
    """The strings that a text's latents name, in order; None where a latent is zero."""
    with torch.no_grad():
        z = encoder(torch.tensor([list(text)]), torch.tensor([len(text)]), torch.arange(latents))[0]
    keys = torch.eye(len(STRINGS), 256)
    found = [(keys @ unbind(latent, place)) for latent in z for place in (0, 1)]
    return [STRINGS[int(score.argmax())] if score.any() else None for score in found]


@pytest.mark.parametrize(
    ("odds", "named"),
    [
        # States of 4 bytes: "the ", "old ", "brid", "ge a", "t To", "lmin", "."; " old" begins in the first, " bridge"
        # in the second, " at" in the fourth, " Tolmin" in the fifth. One latent has two pieces; the text's last state
        # ends the second.
        ([-9.0, 9, -9, -9, -9, -9, -9], [b" bridge", b" Tolmin"]),
        ([9.0, -9, -9, -9, -9, -9, -9], [b" old", b" Tolmin"]),
        ([-9.0, -9, -9, 9, -9, -9, -9], [b" at", b" Tolmin"]),
        # Nothing begins in the third and sixth, however much they are wanted.
        ([-9.0, -9, 11, 5, -9, 11, -9], [b" at", b" Tolmin"]),
        # The last piece names what is wanted most in it, not what is rarest.
        ([-9.0, 9, -9, -9, -9, -9, 8], [b" bridge", b"."]),
    ],
)
def test_it_names_what_is_wanted(encoder: ByteLevelEncoder, odds: list[float], named: list[bytes]) -> None:
    encoder.keep = Told(odds)
    assert names(encoder, TEXT, 1) == named


def test_a_piece_without_a_string_names_its_neighbour_s(encoder: ByteLevelEncoder) -> None:
    encoder.keep = Told([0.0] * 7)
    # As many pieces as states: those of "brid", "lmin" have no string of their own.
    assert names(encoder, TEXT, 4)[:7] == [b" old", b" bridge", b" bridge", b" at", b" Tolmin", b" Tolmin", b"."]
    # Before the first string there is none: the next one. And a text of nothing that is known has no latents.
    assert names(encoder, b"xyzxyz at", 2) == [b" at"] * 4
    assert names(encoder, b"xyzxyz", 1) == [None, None]


def test_padding_and_neighbours_change_nothing(encoder: ByteLevelEncoder) -> None:
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(1))
    ids[0, : len(TEXT)] = torch.tensor(list(TEXT))
    lengths = torch.tensor([len(TEXT), 40])
    with torch.no_grad():
        together = encoder(ids, lengths, torch.arange(3))[:1]
        alone = encoder(ids[:1, : len(TEXT)], lengths[:1], torch.arange(3))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def of_bytes(base: Config, teacher: Path, *stages: Stage) -> Config:
    """A small student of a teacher."""
    student = replace(base, encoder_type="bytes", teacher=str(teacher), max_tokens=256, stage=stages)
    return replace(student, byte_width=48, byte_layers=1, byte_lexicon=600)


def test_it_follows_its_teacher_without_an_llm(
    tiny_config: Make, tiny_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = Stage("keep", steps=30, bundle="keep", prose_share=0.0, train=("encoder",))
    base = tiny_config(steps=30, stage=(keep,), span_type="learned", places=2, d_z=32, lr_new=3e-3, eval_every=100)
    Trainer(base, tmp_path / "a").train()
    student = of_bytes(base, tmp_path / "a" / "last", Stage("follow", steps=30, bundle="follow", train=("encoder",)))
    preview(student)
    assert "no LLM reads it" in capsys.readouterr().out
    trainer = Trainer(student, tmp_path / "b")
    before = {name: value.clone() for name, value in trainer.model.encoder.state_dict().items()}
    assert trainer.maker(0).batch.trees == ()
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    found = [r["follow"] for r in records if r["event"] == "step"]
    assert len(found) == 30
    assert sum(found[-5:]) / 5 < 0.75 * found[0]
    model, meta = open_checkpoint(tmp_path / "b" / "last", "cpu")
    assert meta["encoder"]["span_type"] == "learned/2"
    after = model.encoder.state_dict()
    # Words and what latents are made of stay the teacher's; the head and the states under it moved.
    assert torch.equal(after["lexicon.keys"], before["lexicon.keys"])
    assert torch.equal(after["out.weight"], before["out.weight"])
    for name in ("keep.last.weight", "word.weight", "bytes.weight"):
        assert not torch.equal(after[name], before[name]), name
    # Beside its teacher, traced and compared; a text whose bytes are no multiple of four travels as the module says.
    publish(tmp_path / "a" / "last", tmp_path / "c", {})
    join(tmp_path / "b" / "last", tmp_path / "c", {})
    export_bundle(Request(str(tmp_path / "c"), str(tiny_llm), tmp_path / "d", encoder="bytes", verify="weights"))
    text = "The old bridge at Tolmin was built in 1887 by Anton Kovac, who liked tea."
    with Pipeline.open(tmp_path / "d") as pipe:
        latents = message.unpack(pipe.compress([text], CompressOptions(codec="f16"))[0]).z()
    ids = model.ids(text)
    assert len(ids) % 4
    with torch.no_grad():
        z = model.encode(torch.tensor([ids]), torch.tensor([len(ids)]))[0]
    torch.testing.assert_close(torch.tensor(latents), z, atol=3e-3, rtol=0)


def test_a_teacher_without_a_head(tiny_config: Make, tmp_path: Path) -> None:
    base = tiny_config(steps=1)
    Trainer(base, tmp_path / "a").train()
    student = replace(of_bytes(base, tmp_path / "a" / "last"), span_type="learned", bundle="follow")
    with pytest.raises(ModelError, match=r"LW-3210.*without a head.*expected span_type learned, got salient"):
        Trainer(student, tmp_path / "b")
    with pytest.raises(ModelError, match=r"LW-3210.*a head that nothing teaches.*bundle follow"):
        Trainer(replace(student, bundle="default"), tmp_path / "c")
