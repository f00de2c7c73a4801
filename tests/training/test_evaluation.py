"""Rows of the quality table: what stands in each prompt, what it weighs, how it is asked, scored and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire.core.errors import InputError, ModelError
from latentwire.core.names import names, strings
from latentwire.core.prompt import join, question_ids, verbatim_ids
from latentwire.runtime import message
from latentwire.runtime.codec import Codec, decode_latents, encode_latents
from latentwire.runtime.hybrid import ZSTD, Hybrid, Span
from latentwire.runtime.spans import protect
from latentwire.training import quality as quality_module
from latentwire.training.batch import answer_branch, pad, task_range
from latentwire.training.building import build_model, start
from latentwire.training.config import Config
from latentwire.training.data import Item, Question, read_questions
from latentwire.training.evaluate import Answers, ask, measure
from latentwire.training.evaluation.generation import continue_greedily
from latentwire.training.evaluation.intervals import Bootstrap, spread
from latentwire.training.evaluation.kinds import TITLES, parse
from latentwire.training.evaluation.prefixes import carried, encode, prefixes, surprisal
from latentwire.training.evaluation.protocol import EXAMPLE, EXTRA, Protocol
from latentwire.training.evaluation.selection import bm25, random_tokens, sentence_tokens, surprising_tokens
from latentwire.training.evaluation.sizes import hybrid_bytes, latent_bytes, text_bytes
from latentwire.training.evaluation.store import Rows
from latentwire.training.evaluation.table import remarks, table
from latentwire.training.evaluation.untrained import untrained
from latentwire.training.latents import Rule
from latentwire.training.llm import KeyValues, LMWrapper
from latentwire.training.model import LatentModel
from latentwire.training.quality import all_rows, figures, of_llm, quality

ONE_SHOT = Protocol("one-shot")
TEXT = "The mill stands in Varda. It grinds 40 sacks of rye a day. Ines Valdo owns it."


@pytest.fixture(scope="module")
def items(story_file: Path) -> list[Item]:
    """Eight stories; the first is asked a second question."""
    found = read_questions([str(story_file)])
    extra = Question("Who keeps them?", ("Mira",))
    return [Item(found[0].context, (*found[0].questions, extra)), *found[1:]]


@pytest.fixture(scope="module")
def model(tiny_config: Callable[..., Config], items: list[Item]) -> LatentModel:
    """The closed-form start on the tiny LLM."""
    config = tiny_config()
    model = build_model(config, torch.device("cpu"))
    start(model, [i.context for i in items])
    return model.eval()


@pytest.fixture(scope="module")
def llm(model: LatentModel) -> LMWrapper:
    return model.llms[0]


def text_of(llm: LMWrapper, ids: Any) -> str:
    out: str = llm.tokenizer.decode(list(ids))
    return out


@pytest.mark.parametrize("kind", ["full", "latents", "bm25"])
@pytest.mark.parametrize("protocol", [Protocol(), ONE_SHOT])
def test_answers_from_the_cache_are_those_of_the_library(
    model: LatentModel, llm: LMWrapper, items: list[Item], kind: str, protocol: Protocol
) -> None:
    found = prefixes(model, llm, items, parse(kind))
    with torch.no_grad():
        tree = ask(llm, found, parse(kind), protocol, 2)
        cache = KeyValues()
        scored = model.score(llm, tree, found.given, cache)
        first = scored.logits[scored.rank == 0].argmax(-1)
        ours = continue_greedily(llm, tree, found.given, cache, first, 12)
    embeds = []
    for b, context in enumerate(found.contexts):
        begin = join([llm.special.bos, protocol.opening(llm), context.segment])
        for question in context.questions:
            rest = protocol.branch(llm, question, parse(kind), found.capacity, 2).prompt
            ids, index = (
                torch.from_numpy(np.concatenate([getattr(begin, n), getattr(rest, n)]))[None]
                for n in ("ids", "row_index")
            )
            embeds.append(llm.splice(ids, index, found.given.rows[b : b + 1])[0])
    theirs = [text_of(llm, ids).split("\n")[0].strip() for ids in llm.generate(embeds, 12)]
    assert ours == theirs
    assert len(set(ours)) > 1


def test_an_evaluated_prompt_is_a_trained_prompt(llm: LMWrapper) -> None:
    question = Question("Who owns it?", ("Ines Valdo",))
    rows = task_range("answer", 8, 2)
    assert Protocol().target(llm, "Ines Valdo") == answer_branch(llm, question, "Ines Valdo", rows).target
    for name, capacity in (("latents", 8), ("full", 0)):
        ours = Protocol().branch(llm, question, parse(name), capacity, 2).prompt
        theirs = answer_branch(llm, question, "Ines Valdo", task_range("answer", capacity, 2)).prompt
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ours.row_index.tolist() == theirs.row_index.tolist()


def test_one_shot_shows_an_example_and_needs_no_learned_row(llm: LMWrapper) -> None:
    question = Question("Who owns it?", ("Ines Valdo",))
    shown = text_of(llm, ONE_SHOT.opening(llm))
    assert shown == (
        f"{EXAMPLE.context}\nQuestion: {EXAMPLE.questions[0].text}\nAnswer: {EXAMPLE.questions[0].answers[0]}\n\n"
    )
    asked = ONE_SHOT.branch(llm, question, parse("full"), 0, 2)
    assert asked.prompt.ids.tolist() == question_ids(llm.encode, question.text)
    assert asked.target == tuple(llm.encode(" Ines Valdo"))  # no EOS: the example closes with a blank line
    assert (ONE_SHOT.branch(llm, question, parse("full_tuned"), 0, 2).prompt.row_index[:2] == [0, 1]).all()
    assert (ONE_SHOT.branch(llm, question, parse("latents"), 8, 2).prompt.row_index[:2] == [8, 9]).all()
    assert (Protocol().branch(llm, question, parse("full_plain"), 0, 2).prompt.row_index == -1).all()


def test_rows_of_tokens_hold_the_tokens_they_name(model: LatentModel, llm: LMWrapper) -> None:
    item = Item(TEXT, (Question("Who owns the mill?", ("Ines Valdo",)), Question("How many sacks?", ("40",))))
    ids = llm.encode(TEXT)

    def row(name: str) -> list[Any]:
        return prefixes(model, llm, [item, Item("Else.", item.questions)], parse(name)).contexts

    assert [list(row(n)[0].segment) for n in ("none", "first", "last", "full")] == [[], ids[:8], ids[-8:], ids]
    assert list(row("first@3")[0].segment) == ids[:3]
    drawn = list(row("random")[0].segment)
    assert len(drawn) == 8
    assert drawn == random_tokens(ids, 8, TEXT) != ids[:8]
    assert row("full")[0].sizes["utf8"] == len(TEXT)
    assert row("none")[0].sizes["utf8"] == 0
    owner, sacks = (text_of(llm, c.segment) for c in row("bm25@24")[:2])
    assert owner.startswith("The mill")
    assert "40 sacks" in sacks


def test_surprisal_is_the_llm_s_own(llm: LMWrapper) -> None:
    texts = [llm.encode(TEXT), llm.encode("Trains to Varda leave at noon.")]
    found = surprisal(llm, texts, block=7)
    for ids, nats in zip(texts, found, strict=True):
        logits = llm.model(torch.tensor([[0, *ids]])).logits[0, :-1].log_softmax(-1)
        expected = -logits[torch.arange(len(ids)), torch.tensor(ids)]
        torch.testing.assert_close(torch.tensor(nats), expected, atol=1e-4, rtol=1e-4)
    assert surprising_tokens([10, 11, 12, 13], 2, [0.1, 3.0, 0.2, 2.0]) == [11, 13]


def test_bm25_by_hand() -> None:
    # "rye" stands in one of two documents: idf = log(1 + 1.5 / 1.5); lengths 4 and 2, mean 3.
    expected = np.log(2.0) * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 4 / 3))
    assert bm25("the rye?", ["It grinds much rye", "Ines owns"]) == pytest.approx([expected, 0.0])
    pieces = [[1, 2, 3], [4, 5], [6]]
    texts = ["a mill", "rye and rye", "oats"]
    assert sentence_tokens("rye", pieces, texts, 3) == [4, 5, 6]
    assert sentence_tokens("rye", pieces, texts, 1) == [4]


def test_pooled_rows_are_means_of_embeddings(model: LatentModel, llm: LMWrapper) -> None:
    found = prefixes(model, llm, [Item(TEXT, ()), Item("A mill.", ())], parse("mean4"))
    ids = llm.encode(TEXT)
    torch.testing.assert_close(found.given.rows[0, 1], llm.embedding[ids[4:8]].mean(0))
    assert len(found.contexts[0].segment) == -(-len(ids) // 4) == found.capacity
    torch.testing.assert_close(found.given.rows[1, found.capacity :], model.task_rows(llm, 1).rows[0])


def test_a_share_gives_each_text_its_own_number_of_latents(model: LatentModel, llm: LMWrapper) -> None:
    texts = [llm.encode(TEXT), llm.encode("A mill."), llm.encode(TEXT[:40])]
    ids, lengths = pad(texts)
    z = encode(model, ids, lengths, Rule(4, True))
    for b, text in enumerate(texts):
        count = -(-len(text) // 4)
        alone = model.encode(torch.tensor([text]), torch.tensor([len(text)]), count)[0]
        torch.testing.assert_close(z[b, :count], alone, atol=1e-5, rtol=1e-5)
        assert not z[b, count:].any()
    found = prefixes(model, llm, [Item(TEXT, ()), Item("A mill.", ())], parse("latents@1/4"))
    assert [len(c.segment) for c in found.contexts] == [-(-len(texts[0]) // 4), -(-len(texts[1]) // 4)]
    assert found.capacity + 4 == found.given.rows.shape[1]  # two tasks of two rows


def test_bytes_are_those_of_real_frames(model: LatentModel, llm: LMWrapper) -> None:
    z = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    for codec, name in ((Codec.F16, "f16"), (Codec.I8, "i8")):
        assert len(message.from_latents([z], codec, b"abcd").pack()) == latent_bytes(8, 16)[f"frame {name}"]
        theirs = decode_latents(encode_latents(z, codec), codec, 0, 8, 16)
        np.testing.assert_array_equal(carried(model, torch.from_numpy(z), name).numpy(), theirs)
    assert latent_bytes(32, 256, 1)["frame fsq/1"] == 152
    assert not any("fsq" in form for form in latent_bytes(32, 256))
    with pytest.raises(InputError, match="LW-2111 row needs a quantiser"):
        carried(model, torch.from_numpy(z), "fsq")
    sizes = text_bytes(TEXT * 20)
    assert len(message.from_text(TEXT * 20).pack()) == min(sizes["frame text"], sizes["frame text/1"])
    assert sizes["zstd"] < sizes["utf8"] == 20 * len(TEXT)
    assert set(text_bytes("").values()) == {0}
    assert text_bytes("").keys() == sizes.keys()


@pytest.mark.parametrize("text", [TEXT, "nothing to keep here", f"{'Q' * 200} and {TEXT}"])
def test_bytes_of_a_hybrid_frame(text: str) -> None:
    kept = strings(text)
    assert kept == tuple(protect(text, "rule").text[a:b] for a, b in protect(text, "rule").ranges)
    packed = Hybrid(Codec.I8, 0, tuple(Span(min(7, n), s) for n, s in enumerate(kept)), bytes(8 * 20)).pack()
    said = hybrid_bytes(24 + 8 * 20, kept)["frame hybrid"]
    # The strings' zstd is what the writer saves.
    assert 24 + len(packed) < said if packed[2] == ZSTD else 24 + len(packed) == said


def test_equal_strings_are_kept_once() -> None:
    text = "near Varda and in Varda, and 40."
    assert [text[a:b] for a, b in names(text)] == ["Varda", "Varda", "40"]
    assert strings(text) == ("Varda", "40")


def test_strings_beside_latents_stand_in_front_of_the_question(
    model: LatentModel, llm: LMWrapper, items: list[Item]
) -> None:
    kind = parse("latents_hybrid")
    found = prefixes(model, llm, items[:2], kind)
    beside = [verbatim_ids(llm.encode, strings(item.context)) for item in items[:2]]
    assert all(beside)
    assert [list(c.verbatim) for c in found.contexts] == beside
    question = items[0].questions[0]
    branch = Protocol().branch(llm, question, kind, found.capacity, 2, found.contexts[0].verbatim)
    rows = task_range("answer", found.capacity, 2)
    want = join([rows, beside[0], question_ids(llm.encode, question.text)])
    assert branch.prompt.ids.tolist() == want.ids.tolist()
    assert branch.prompt.row_index.tolist() == want.row_index.tolist()
    plain, with_strings = (measure(model, llm, items[:2], name) for name in ("latents_i8", "latents_hybrid"))
    tokens = with_strings.positions - plain.positions
    assert tokens.tolist() == [len(beside[n]) for n, item in enumerate(items[:2]) for _ in item.questions]
    assert (with_strings.nll != plain.nll).all()
    alone = prefixes(model, llm, items[:2], parse("names"))
    assert [list(c.segment) for c in alone.contexts] == beside


def test_the_untrained_row_forgets_all_training(model: LatentModel, llm: LMWrapper, items: list[Item]) -> None:
    before = measure(model, llm, items, "latents").nll
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    try:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "task" not in name:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        assert np.abs(measure(model, llm, items, "latents").nll - before).max() > 0.01
        np.testing.assert_allclose(measure(model, llm, items, "start").nll, before, atol=1e-5)
        assert untrained(model) is untrained(model)
    finally:
        model.load_state_dict({**model.state_dict(), **kept})


@pytest.mark.parametrize(
    "name", ["latent", "first_i8", "latents@", "latents@0", "latents@2/3", "full_f16", "none_warm"]
)
def test_an_unknown_row_is_refused(name: str) -> None:
    with pytest.raises((InputError, ModelError), match=r"LW-2111 unknown row|LW-3210 bad number of latents"):
        parse(name)


def test_every_row_of_both_protocols_is_measured(model: LatentModel, items: list[Item]) -> None:
    for protocol in (Protocol(), ONE_SHOT):
        kinds = (*all_rows(protocol, model.config), "latents@1/4", "latents_f16")
        found = quality(model, items[:4], max_new_tokens=3, kinds=kinds, protocol=protocol)
        of = next(iter(found.values()))
        assert list(of["rows"]) == list(kinds)
        assert {*TITLES, *EXTRA[protocol.name]} <= set(of["rows"])
        for row in of["rows"].values():
            assert all(np.isfinite(row[name]) for name in ("nll", "f1", "em", "first_token", "first_token_top5"))
            assert row["first_token"] <= row["first_token_top5"]
        assert of["rows"]["bm25"]["query_aware"]
        assert of["gap_closed_ci"] is None or of["gap_closed_ci"][0] <= of["gap_closed_ci"][1]
        columns, rows = table(of, 8)
        assert all(len(row) == len(columns) for row in rows)
        assert rows[list(kinds).index("latents_i8")][2] == f"{24 + 8 * 20} i8"
        assert any("gap closed" in line for line in remarks(of))


def test_a_quantised_checkpoint_is_measured_through_its_codes(
    tiny_config: Callable[..., Config], items: list[Item]
) -> None:
    config = tiny_config(fsq_profile=1, fsq_hidden=8)
    model = build_model(config, torch.device("cpu")).eval()
    start(model, [i.context for i in items])
    llm, quantiser = model.llms[0], model.quantiser
    assert quantiser is not None
    found = prefixes(model, llm, items, parse("latents_fsq"))
    ids, lengths = pad([llm.encode(i.context) for i in items])
    with torch.no_grad():
        arrived = quantiser.latents(quantiser.codes(model.encode(ids, lengths)))
        torch.testing.assert_close(found.given.rows, model.adapter(llm)(arrived))
    kinds = all_rows(Protocol(), config)
    of = next(iter(quality(model, items[:4], max_new_tokens=2, kinds=kinds).values()))
    assert of["rows"]["latents_fsq"]["bytes"]["frame fsq/1"] == 24 + 8 * 4
    assert of["rows"]["latents_fsq"]["nll"] != of["rows"]["latents"]["nll"]
    assert "latents_fsq_kept" in of
    assert dict(zip(kinds, table(of, 8)[1], strict=True))["latents_fsq"][2] == "56 fsq"


def test_finished_rows_are_not_measured_again(
    model: LatentModel, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, facts = tmp_path / "a.rows.jsonl", {"data": "x"}
    kinds = ("none", "full", "latents")
    first = quality(model, items, max_new_tokens=2, kinds=kinds[:2], rows=Rows(path, facts))
    with path.open("a") as f:
        f.write('\n{"key": "cut sho')
    measured: list[str] = []

    def spy(model: Any, llm: Any, items: Any, kind: str, **rest: Any) -> Answers:
        measured.append(kind)
        return measure(model, llm, items, kind, **rest)

    monkeypatch.setattr(quality_module, "measure", spy)
    second = quality(model, items, max_new_tokens=2, kinds=kinds, rows=Rows(path, facts))
    assert measured == ["latents"]
    name = next(iter(first))
    assert {k: second[name]["rows"][k] for k in kinds[:2]} == first[name]["rows"]
    quality(model, items, max_new_tokens=2, kinds=kinds, rows=Rows(path, facts))
    assert measured == ["latents"]
    quality(model, items, max_new_tokens=2, kinds=kinds[:1], rows=Rows(path, {"data": "y"}))
    assert measured == ["latents", "none"]


def answers(nll: list[float], f1: list[float]) -> Answers:
    n = len(nll)
    return Answers(
        np.array(nll),
        np.ones(n, bool),
        np.full(n, 4),
        np.ones(n, bool),
        np.arange(n) % 3,
        {"utf8": np.full(n, 9.0)},
        np.array(f1),
        np.array(f1),
    )


def stories(golds: list[str]) -> list[Item]:
    return [Item(f"text {i}", (Question("?", (gold,)),)) for i, gold in enumerate(golds)]


def test_figures_by_hand() -> None:
    golds = stories(["Oslo", "honey", "14", "fish"])
    found = {
        "none": answers([4, 4, 4, 4], [0, 0, 0, 0]),
        "first": answers([3, 3, 3, 3], [0, 0.5, 0, 0.5]),
        "latents": answers([2, 2, 2, 2], [1, 0, 0.5, 0]),
        "shuffled": answers([3, 3.5, 3, 3.5], [0, 0, 0, 0]),
        "full": answers([1, 1, 1, 1], [1, 1, 1, 1]),
    }
    of = of_llm(found, golds, Protocol())
    assert of["gap_closed"] == pytest.approx(2 / 3, abs=1e-4)
    assert of["shuffle_gap"] == 1.25
    assert of["shuffle_gap_ci"][0] < 1.25 < of["shuffle_gap_ci"][1]
    assert of["latents_minus_first"]["nll"] == -1
    assert of["latents_minus_first"]["nll_ci"] == [-1, -1]
    assert of["f1_of_full"] == 0.375
    assert of["f1_of_first"] == 1.5
    assert (of["rows"]["latents"]["f1_named"], of["rows"]["latents"]["f1_other"]) == (0.75, 0)
    assert of["rows"]["latents"]["distinct_first_tokens"] == 75
    assert (of["beats_none"], of["beats_first"]) == (True, True)
    assert "gap_closed_plain" not in of


def test_no_gap_is_no_number() -> None:
    golds = stories(["a", "b"])
    found = {name: answers([2, 2], [0, 0]) for name in ("none", "latents", "full", "first")}
    of = of_llm(found, golds, Protocol())
    assert of["gap_closed"] is None
    assert of["gap_closed_ci"] is None
    assert of["f1_of_full"] is None
    json.dumps(of, allow_nan=False)
    assert remarks(of)[0].endswith(": -")


def test_questions_of_one_text_count_as_one_draw() -> None:
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 10)
    together = spread(Bootstrap(np.repeat(np.arange(4), 10).tolist()).means(values))
    apart = spread(Bootstrap(range(40)).means(values))
    assert together is not None
    assert apart is not None
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])
    assert figures(answers([1, 2], [0, 1]), Bootstrap([0, 1]), np.array([True, True]))["f1"] == 0.5
