"""A byte encoder whose head follows its teacher's: what it is told, where it cuts, which strings it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentwire.core.errors import ModelError, RowError
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
from latentwire.training.lesson import token_cut
from latentwire.training.lexicon import start_lexicon
from latentwire.training.preview import preview
from latentwire.training.stages import Stage
from latentwire.training.train import Trainer

Make = Callable[..., Config]
TEXT = b"the old bridge at Tolmin."
STRINGS = [b"the", b" old", b" bridge", b" at", b" Tolmin", b"."]


class Told(Keep):
    """A head that wants what it is told: log-odds at some bytes, -9 at the others."""

    def __init__(self, odds: dict[int, float]) -> None:
        super().__init__(48, 4)
        self.told = odds

    def forward(self, states: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        size = 4 * states.shape[1]
        return torch.tensor([self.told.get(at, -9.0) for at in range(size)]).expand(len(states), -1)


@pytest.fixture
def encoder() -> ByteLevelEncoder:
    made = ByteLevelEncoder(256, 48, 1, words=6, span_type="learned", places=2).eval()
    assert made.lexicon is not None
    start_lexicon(made.lexicon, STRINGS, torch.eye(6, 256), torch.tensor([1.0, 3, 4, 1, 5, 2]))
    return made


def test_loss_by_hand() -> None:
    """Two tokens at the first byte, of which the likelier counts, none at the second, one at the third."""
    odds = torch.tensor([[1.5, -1.0, 2.0, 9.0]])
    told = torch.tensor([[-1.0, 1.0, 0.5, 7.0]])
    inside = torch.tensor([[True, True, True, False]])
    likely = [torch.tensor(1.0).sigmoid(), torch.tensor(0.0), torch.tensor(0.5).sigmoid()]
    expected = sum(
        torch.nn.functional.binary_cross_entropy_with_logits(o, p) for o, p in zip(odds[0], likely, strict=False)
    )
    found = follow_loss(odds, told, torch.tensor([[0, 0, 2, -1]]), inside)
    torch.testing.assert_close(found, torch.as_tensor(expected) / 3)
    # The second byte twice more: more bytes, of the same three tokens.
    long = follow_loss(odds[:, [0, 1, 2, 1, 1]], told, torch.tensor([[0, 0, 2, -1]]), torch.ones(1, 5).bool())
    torch.testing.assert_close(3 * (long - found), 2 * torch.nn.functional.softplus(odds[0, 1]))


def test_a_head_of_several_tokens_a_state() -> None:
    head = Keep(24, 4)
    states, inside = torch.randn(2, 5, 24), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = head(states, inside)
    assert found.shape == (2, 20)
    torch.testing.assert_close(found[1:, :12], head(states[1:, :3], inside[1:, :3]), atol=1e-5, rtol=1e-5)


def names(encoder: ByteLevelEncoder, text: bytes, latents: int, strings: list[bytes] = STRINGS) -> list[bytes | None]:
    """The strings that a text's latents name, in order; None where a latent is zero."""
    with torch.no_grad():
        z = encoder(torch.tensor([list(text)]), torch.tensor([len(text)]), torch.arange(latents))[0]
    keys = torch.eye(len(strings), 256)
    found = [(keys @ unbind(latent, place)) for latent in z for place in (0, 1)]
    return [strings[int(score.argmax())] if score.any() else None for score in found]


@pytest.mark.parametrize(
    ("odds", "named"),
    [
        # Strings begin at the bytes 0, 3, 7, 14, 17 and 24. One latent has two pieces; the last byte ends the second,
        # whose rarest is named where all are wanted alike.
        ({7: 9.0}, [b" bridge", b" Tolmin"]),
        ({3: 9.0}, [b" old", b" Tolmin"]),
        # Where nothing begins nothing is named, however much it is wanted.
        ({8: 11.0, 14: 5.0, 18: 11.0}, [b" at", b" Tolmin"]),
        # The last piece names what is wanted most in it, not what is rarest.
        ({3: 9.0, 7: 8.0, 17: -8.0}, [b" old", b" bridge"]),
        # " at" and " Tolmin" begin in neighbouring states, "the" and " old" in one: each can be cut for.
        ({14: 9.0, 17: 8.0}, [b" at", b" Tolmin"]),
        ({0: 9.0, 3: 8.0}, [b"the", b" old"]),
    ],
)
def test_it_names_what_is_wanted(encoder: ByteLevelEncoder, odds: dict[int, float], named: list[bytes]) -> None:
    encoder.keep = Told(odds)
    assert names(encoder, TEXT, 1) == named


def test_digits_of_one_state_are_told_apart() -> None:
    strings = [*(b"%d" % digit for digit in range(10)), b" in"]
    encoder = ByteLevelEncoder(256, 48, 1, words=11, span_type="learned", places=2).eval()
    assert encoder.lexicon is not None
    start_lexicon(encoder.lexicon, strings, torch.eye(11, 256), torch.ones(11))
    # "1", "8", "9" and "7" begin in the second state, all four of them wanted.
    encoder.keep = Told({4: 8.0, 5: 7.0, 6: 6.0, 7: 5.0})
    text = b" in 1897 in"
    assert text[4:8] == b"1897"
    assert names(encoder, text, 2, strings) == [b"1", b"8", b"9", b"7"]


def test_a_piece_without_a_string_names_its_neighbour_s(encoder: ByteLevelEncoder) -> None:
    # Seven latents, as many as states, have fourteen pieces: six strings, and between them their neighbours again.
    encoder.keep = Told({})
    found = names(encoder, TEXT, 7)
    assert None not in found
    assert [name for name, before in zip(found, [None, *found], strict=False) if name != before] == STRINGS
    # Before the first string there is none: the next one. And a text of nothing that is known has no latents.
    assert names(encoder, b"xyzxyz at", 2) == [b" at"] * 4
    assert names(encoder, b"xyzxyz", 1) == [None, None]


def test_no_more_latents_than_states(encoder: ByteLevelEncoder) -> None:
    ids, lengths = torch.tensor([list(TEXT), [*TEXT[:9], *[0] * 16]]), torch.tensor([len(TEXT), 9])
    with torch.no_grad():
        z = encoder(ids, lengths, torch.arange(12), torch.tensor([12, 2]))
        cut = encoder.cut(ids, lengths, torch.arange(12))
    assert z.any(-1).sum(1).tolist() == [7, 2]
    assert cut.spans.any(-1).sum(1).tolist() == [7, 3]
    # Every byte is of one span.
    assert cut.spans.sum(1).tolist() == [[1] * 25, [1] * 9 + [0] * 16]


def test_a_teacher_reads_the_cut_in_its_tokens(encoder: ByteLevelEncoder) -> None:
    encoder.keep = Told({14: 9.0})
    with torch.no_grad():
        cut = encoder.cut(torch.tensor([list(TEXT)]), torch.tensor([len(TEXT)]), torch.arange(1))
    # Tokens begin where the strings do; the first piece ends with the byte at which " at" begins.
    found = token_cut(cut, torch.tensor([[0, 3, 7, 14, 17, 24, -1]]), encoder.grain)
    assert found.pieces[0].tolist() == [[True] * 4 + [False] * 3, [False] * 4 + [True] * 2 + [False]]
    assert found.spans[0].tolist() == [[True] * 6 + [False]]


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
        # Of a text in which it knows no string there is no latent: that row is refused, or travels as text.
        with pytest.raises(
            RowError, match=r"LW-2015 the encoder knows nothing of this text; text 1; .*--fallback size"
        ):
            pipe.compress([text, "漢字"], CompressOptions(codec="i8"))
        assert message.unpack(pipe.compress(["漢字"], CompressOptions(codec="i8", fallback="size"))[0]).text() == "漢字"
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
