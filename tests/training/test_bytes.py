"""The byte encoder: any text, spans shared with a teacher, distillation, publishing, frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from latentwire.core.errors import ModelError, RowError
from latentwire.export.export import Request, export_bundle
from latentwire.export.publish import publish
from latentwire.runtime import message
from latentwire.runtime.options import CompressOptions
from latentwire.runtime.pipeline import Pipeline
from latentwire.training.building import open_checkpoint
from latentwire.training.checkpoint import read_meta, save
from latentwire.training.config import Config
from latentwire.training.data import read_questions
from latentwire.training.encoder import EncoderFromEmbedLayer
from latentwire.training.encoder_bytes import ByteLevelEncoder
from latentwire.training.evaluate import measure
from latentwire.training.lesson import byte_ids, lesson, states_of, token_cut, token_spans
from latentwire.training.lexicon import hash_of, start_lexicon
from latentwire.training.model import build_encoder
from latentwire.training.pooling import span_weights
from latentwire.training.train import Trainer

TEXTS = [
    "The bridge at Tolmin was built by Anton Kovac in 1887.",
    "这座桥建于一九三二年，每年春天人们都在那里相聚。",
    "Ünïcödé 🚂🌉 and more 👩‍👩‍👧",
    "a",
    "Ten bytes.",
]
Make = Callable[..., Config]


@pytest.fixture(scope="module")
def base(tiny_config: Make) -> Config:
    return tiny_config(mlp_hidden=16, batch=8, format_steps=2)


@pytest.fixture(scope="module")
def teacher(base: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    Trainer(base, folder).train()
    return folder / "last"


@pytest.fixture
def make(base: Config, teacher: Path) -> Make:
    student = replace(
        base,
        encoder_type="bytes",
        teacher=str(teacher),
        byte_width=48,
        byte_layers=1,
        byte_lexicon=600,
        max_tokens=256,
        bundle="latent",
        lr_new=3e-3,
    )
    return lambda **changes: replace(student, **changes)


def padded(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [byte_ids(t) for t in texts]
    lengths = torch.tensor([len(r) for r in rows])
    ids = torch.randint(0, 256, (len(rows), int(lengths.max())))
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = torch.tensor(own)
    return ids, lengths


def test_ten_million_parameters() -> None:
    config = Config(encoder_type="bytes", teacher="x", max_tokens=2048)
    count = sum(p.numel() for p in build_encoder(config).parameters())
    assert 9_000_000 < count < 11_000_000
    assert (config.stride, config.window) == (4, 512)


def test_any_language_and_no_neighbour_changes_a_text() -> None:
    torch.manual_seed(0)
    encoder = ByteLevelEncoder(16, 48, 2).eval()
    ids, lengths = padded(TEXTS)
    with torch.no_grad():
        together = encoder(ids, lengths, torch.arange(8))
        for b, n in enumerate(lengths.tolist()):
            alone = encoder(ids[b : b + 1, :n], lengths[b : b + 1], torch.arange(8))[0]
            torch.testing.assert_close(together[b], alone, atol=1e-5, rtol=1e-4)
    used = together.any(-1).sum(1).tolist()
    assert used == [min(8, -(-n // 4)) for n in lengths.tolist()]
    rms = together.square().mean(-1).sqrt()
    torch.testing.assert_close(rms[rms > 0], torch.ones(int((rms > 0).sum())), atol=1e-3, rtol=0)
    # Three different texts, three different latents.
    assert len({tuple(z.round(decimals=3).tolist()) for z in together[:3, 0]}) == 3


def test_the_lookup_path_by_hand() -> None:
    encoder = ByteLevelEncoder(4, 48, 1, words=4, salience=2.0).eval()
    assert encoder.lexicon is not None
    idf = torch.tensor([0.0, 0.5, 1.0, 3.0])
    strings = [b"the", b" old", b" bridge", b"."]
    start_lexicon(encoder.lexicon, strings, torch.eye(4), idf)
    text = b"the old bridge.xxxx"
    ids, lengths, slots = torch.tensor([list(text)]), torch.tensor([len(text)]), torch.arange(3)
    # Five states of four bytes in three spans: bytes 0-7, 8-15 and 16-18. " bridge" begins in the first.
    first = (2 * torch.tensor([0.0, 0.5, 1.0])).softmax(0)
    wanted = torch.stack([torch.nn.functional.pad(first, (0, 1)), torch.tensor([0.0, 0, 0, 1]), torch.zeros(4)])
    wanted = wanted * torch.rsqrt(wanted.square().mean(-1, keepdim=True) + 1e-6)
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids, lengths, slots)[0], wanted, atol=1e-4, rtol=1e-4)
        # A learned score moves the choice within a span: that of the string's last byte.
        encoder._states = lambda *_: torch.eye(5, 48)[None]  # type: ignore[method-assign]
        encoder.score.weight[text.index(b"the") + 2, 0] = 50.0
        found = encoder(ids, lengths, slots)[0, 0]
        torch.testing.assert_close(found, torch.tensor([2.0, 0, 0, 0]), atol=1e-3, rtol=0)


def test_it_starts_with_its_teacher_s_words(make: Make, teacher: Path, tmp_path: Path) -> None:
    trainer = Trainer(make(steps=1), tmp_path)
    encoder, taught, source = trainer.model.encoder, trainer.model.teacher, trainer.model.source
    assert isinstance(encoder, ByteLevelEncoder)
    assert encoder.lexicon is not None
    assert encoder.sharpness.item() == taught.sharpness.item()
    rows = {int(h): row for row, h in enumerate(encoder.lexicon.hashes.tolist())}
    table = source.embedding.cpu()
    found = 0
    for token in range(len(table)):
        text = source.tokenizer.decode([token])
        row = rows.get(hash_of(text.encode()))
        if row is None or source.tokenizer.encode(text, add_special_tokens=False).ids != [token]:
            continue
        key = taught.projection(table[token] - taught.get_buffer("mean"))
        torch.testing.assert_close(encoder.lexicon.keys[row], key / key.norm(), atol=1e-5, rtol=1e-4)
        assert encoder.lexicon.idf[row] == taught.get_buffer("idf")[token]
        found += 1
    assert found > 100


def test_another_run_goes_on_from_its_words_and_weights(make: Make, tmp_path: Path) -> None:
    first = Trainer(make(steps=1, eval_every=1000), tmp_path / "first")
    first.train()
    second = Trainer(
        make(steps=1, init=str(tmp_path / "first" / "last"), teacher="", bundle="default"), tmp_path / "second"
    )
    came = second.model.encoder.state_dict()
    for name, tensor in first.model.encoder.state_dict().items():
        assert torch.equal(came[name], tensor), name


def test_each_text_may_have_its_own_number_of_latents() -> None:
    encoder = ByteLevelEncoder(16, 48, 1).eval()
    ids, lengths = padded(TEXTS[:2])
    counts = torch.tensor([3, 5])
    with torch.no_grad():
        found = encoder(ids, lengths, torch.arange(5), counts)
        alone = encoder(ids[:1], lengths[:1], torch.arange(3))
    assert found.any(-1).sum(1).tolist() == [3, 5]
    torch.testing.assert_close(found[:1, :3], alone, atol=1e-5, rtol=1e-4)


def test_tokens_know_their_bytes(tiny_llm: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_llm / "tokenizer.json"))
    found = lesson(tokenizer, TEXTS)
    assert found.lengths.tolist() == [len(tokenizer.encode(t).ids) for t in TEXTS]
    for text, row, n in zip(TEXTS, found.starts, found.lengths.tolist(), strict=True):
        starts = row[:n].tolist()
        assert starts == sorted(starts)
        assert starts[0] == 0
        assert row[n:].eq(-1).all()
        # Each start is the first byte of a character.
        edges = {len(text[:i].encode()) for i in range(len(text))}
        assert set(starts) <= edges
    plain = found.starts[0, : found.lengths[0]].tolist()
    pieces = [tokenizer.decode([i]) for i in found.input_ids[0, : found.lengths[0]].tolist()]
    assert plain == [len("".join(pieces[:i])) for i in range(len(pieces))]


def test_spans_of_bytes_by_hand() -> None:
    starts = torch.tensor([[0, 3, 9, 14, -1], [0, 1, 2, 3, 4]])
    # 16 bytes are 4 states, two a span; 5 bytes are 2 states.
    states = span_weights(states_of(torch.tensor([16, 5])), torch.arange(3), 4, torch.tensor([2, 3]))
    spans = token_spans(states, starts, 4)
    assert spans[0].tolist() == [[True, True, False, False, False], [False, False, True, True, False], [False] * 5]
    assert spans[1].tolist() == [[True, True, True, True, False], [False, False, False, False, True], [False] * 5]
    # The same tokens where the student cuts between bytes: at the 3rd, 9th and 10th of 16.
    owner = torch.tensor([0] * 3 + [1] * 6 + [2] + [3] * 6)
    bits = owner[None, :] == torch.arange(4)[:, None]
    assert token_spans(bits[None], starts[:1], 1)[0].tolist() == [[i == j for j in range(5)] for i in range(4)]
    assert states_of(torch.tensor([0, 1, 4, 5])).tolist() == [0, 1, 1, 2]


def test_it_learns_the_teacher_s_latents_without_an_llm(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(make(steps=60, eval_every=1000, save_every=1000), tmp_path)
    work = trainer.maker(0)
    assert work.batch.trees == ()
    assert work.batch.lesson is not None
    monkeypatch.setattr(trainer, "evaluate", lambda kinds: None)

    def never(*_: object) -> None:
        raise AssertionError("an LLM was asked")

    monkeypatch.setattr(trainer.model, "states", never)
    before = {n: p.detach().clone() for n, p in trainer.model.teacher.named_parameters()}
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["event"] == "step"]
    assert steps[-1]["latent_cos"] < 0.5 * steps[0]["latent_cos"]
    assert steps[-1]["latent_mse"] < 0.6 * steps[0]["latent_mse"]
    for name, parameter in trainer.model.teacher.named_parameters():
        assert torch.equal(parameter, before[name])
    assert not [n for n in trainer.model.state_dict() if "teacher" in n]


def test_a_student_names_what_its_teacher_names(make: Make, base: Config, tmp_path: Path) -> None:
    """Two tokens a latent: the teacher reads the student's pieces, and the student starts with the teacher's shares."""
    two = Trainer(replace(base, places=2, steps=1), tmp_path / "t")
    teacher = two.model.encoder
    assert isinstance(teacher, EncoderFromEmbedLayer)
    with torch.no_grad():
        teacher.naming.share.fill_(0.4)
    save(tmp_path / "two", two.model)
    trainer = Trainer(make(steps=1, places=2, teacher=str(tmp_path / "two")), tmp_path / "s")
    encoder, batch = trainer.model.encoder, trainer.maker(0).batch
    assert isinstance(encoder, ByteLevelEncoder)
    assert encoder.naming.share.item() == pytest.approx(0.4)
    assert batch.lesson is not None
    cut = token_cut(
        encoder.cut(batch.input_ids, batch.lengths, batch.slots, batch.counts), batch.lesson.starts, encoder.grain
    )
    assert cut.pieces.shape[1] == 2 * len(batch.slots)
    for b, length in enumerate(batch.lesson.lengths.tolist()):
        assert cut.pieces[b].sum(0).tolist() == [1] * length + [0] * (cut.pieces.shape[2] - length)
    goal = trainer.model.teacher(batch.lesson.input_ids, batch.lesson.lengths, batch.slots, cut=cut)
    assert goal.shape == (len(batch.lengths), len(batch.slots), base.d_z)
    with pytest.raises(ModelError, match="a teacher of another places"):
        Trainer(make(steps=1, teacher=str(tmp_path / "two")), tmp_path / "other")


def test_terms_by_hand(make: Make, tmp_path: Path) -> None:
    from latentwire.training.objective import latent_terms

    trainer = Trainer(make(steps=1), tmp_path)
    batch = trainer.maker(0).batch
    assert batch.lesson is not None
    encoder = trainer.model.encoder
    assert isinstance(encoder, ByteLevelEncoder)
    cut = token_cut(
        encoder.cut(batch.input_ids, batch.lengths, batch.slots, batch.counts), batch.lesson.starts, encoder.grain
    )
    goal = trainer.model.teacher(batch.lesson.input_ids, batch.lesson.lengths, batch.slots, cut=cut)
    same = latent_terms(trainer.model, batch, goal)
    assert same["latent_cos"].item() == pytest.approx(0, abs=1e-6)
    assert same["latent_mse"].item() == pytest.approx(0, abs=1e-6)
    opposite = latent_terms(trainer.model, batch, -goal)
    # Both have an RMS of 1: the cosine is -1, and every number is off by twice itself.
    assert opposite["latent_cos"].item() == pytest.approx(2, abs=1e-4)
    assert opposite["latent_mse"].item() == pytest.approx(4, abs=1e-2)


def test_then_it_is_tuned_through_the_llm_and_resumes(make: Make, teacher: Path, tmp_path: Path) -> None:
    from latentwire.training.stages import Stage

    stages = (Stage("latents", steps=2, bundle="latent"), Stage("answers", steps=2, bundle="default"))
    config = make(stage=stages, steps=4)
    whole = Trainer(config, tmp_path / "a")
    # It starts with what the teacher's adapters know, task rows too: there is no format stage.
    taught, _ = open_checkpoint(teacher, "cpu")
    for own, theirs in zip(whole.model.adapters.parameters(), taught.adapters.parameters(), strict=True):
        assert torch.equal(own, theirs)
    assert '"event": "format"' not in (tmp_path / "a" / "log.jsonl").read_text()
    # Its layers are no copies: they learn at the rate of what is new.
    assert {group["rate"] for group in whole.optimizer.param_groups} == {"lr_new", "lr_projection"}
    whole.train()
    Trainer(config, tmp_path / "b").train(until=1)
    again = Trainer(config, tmp_path / "b")
    again.train()
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
    model, meta = open_checkpoint(tmp_path / "a" / "last", "cpu")
    assert meta["encoder"]["kind"] == "bytes"
    items = read_questions(config.data)
    found, expected = (measure(m.eval(), m.llms[0], items, "latents").nll for m in (model, whole.model))
    np.testing.assert_array_equal(found, expected)
    assert read_meta(tmp_path / "a" / "last")["encoder"]["max_tokens"] == 256


def test_several_m_count_groups_of_four_bytes(make: Make, tmp_path: Path) -> None:
    trainer = Trainer(make(latent_choices=("1/4",), steps=1), tmp_path)
    batch = trainer.maker(0).batch
    assert batch.counts.tolist() == [(n + 15) // 16 for n in batch.lengths.tolist()]
    assert len(batch.slots) == int(batch.counts.max())


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"teacher": ""}, "teacher"), ({"byte_width": 50}, "byte_width"), ({"encoder_type": "embed_layer"}, "bundle")],
)
def test_bad_options(make: Make, changes: dict[str, object], what: str) -> None:
    with pytest.raises(ModelError, match=f"LW-3210 .*{what}"):
        make(**changes)


def test_bad_teachers(make: Make, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"LW-3210 .*d_z"):
        Trainer(make(d_z=8), tmp_path / "a")
    with pytest.raises(ModelError, match=r"LW-3210 .*quantiser"):
        Trainer(make(fsq_profile=1), tmp_path / "b")
    with pytest.raises(ModelError, match="LW-3204"):
        Trainer(make(teacher=str(tmp_path / "none")), tmp_path / "c")
    Trainer(make(steps=1), tmp_path / "e").train()
    with pytest.raises(ModelError, match=r"LW-3210 .*encoder_type"):
        Trainer(make(teacher=str(tmp_path / "e" / "last")), tmp_path / "f")


def test_any_text_travels_as_the_module_says(make: Make, tiny_llm: Path, tmp_path: Path) -> None:
    """Checkpoint, graphs, bundle, tokenizer of bytes, frame: the latents of torch, whatever the language."""
    Trainer(make(fsq_profile=0, steps=2), tmp_path / "run").train()
    publish(tmp_path / "run" / "last", tmp_path / "c", {})
    assert json.loads((tmp_path / "c" / "meta.json").read_text())["config"]["teacher"] == "last"
    export_bundle(Request(str(tmp_path / "c"), str(tiny_llm), tmp_path / "bundle"))
    model, _ = open_checkpoint(tmp_path / "c", "cpu")
    assert not (tmp_path / "bundle" / "embeddings.safetensors").exists()
    with Pipeline.open(tmp_path / "bundle") as pipe:
        assert [pipe.encoder_tokenizer.encode(t) for t in TEXTS] == [byte_ids(t) for t in TEXTS]
        # A text that spells the name of a special token is those characters.
        assert pipe.encoder_tokenizer.encode("<bos>") == byte_ids("<bos>")
        frames = pipe.compress(TEXTS, CompressOptions(codec="f16"))
        for text, data in zip(TEXTS, frames, strict=True):
            found = message.unpack(data).z()
            ids = model.ids(text)
            with torch.no_grad():
                z = model.encode(torch.tensor([ids]), torch.tensor([len(ids)]))[0]
            used = min(8, -(-len(ids) // 4))
            assert found.shape == (used, 16)
            np.testing.assert_allclose(found, z[:used].numpy(), atol=3e-3)
        assert len(pipe.generate(frames, ["What is told?"] * len(TEXTS))) == len(TEXTS)
        with pytest.raises(RowError, match="LW-2006"):
            pipe.compress(["x" * 257])
