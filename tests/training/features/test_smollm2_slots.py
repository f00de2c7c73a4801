"""The embedded model with keys and values of latents in its cache: what new slots cost, and what a bundle answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentwire.core.prompt import join
from latentwire.engines.opening import open_engine
from latentwire.export.answers import Question, answers
from latentwire.export.export import Request, export_bundle
from latentwire.export.publish import publish
from latentwire.training.augment import read_before
from latentwire.training.building import build_model, open_checkpoint, start
from latentwire.training.checkpoint import save
from latentwire.training.config import Config
from latentwire.training.data import read_questions
from latentwire.training.evaluate import measure
from latentwire.training.features.deep_prefix import DeepPrefix
from latentwire.training.features.options import DeepPrefixOptions
from latentwire.training.llm import LMWrapper
from latentwire.training.tree import Branch, build

CPU = torch.device("cpu")
LLM = "smollm2-135m"
TEXT = (
    "The harbour of the old town freezes in most winters, and then people walk to the islands with sledges. In 1931 a "
    "baker opened a small shop on the ice, which sold warm bread to skaters until the end of March. His daughter kept "
    "the sign above her own door for sixty years. Today it hangs in the museum, next to a photograph of the shop."
)


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")
@torch.no_grad()
def test_new_slots_cost_next_to_nothing() -> None:
    llm = LMWrapper(LLM, torch.float32, CPU)
    ids = llm.encode(TEXT)
    tree = build([join([llm.special.bos, ids[:8]])], [[Branch(join([ids[8:10]]), tuple(ids[10:]), "answer")]])
    embeds = llm.splice(tree.ids, tree.row_index, torch.zeros(1, 1, llm.width))

    def nll(states: Tensor) -> float:
        logits = llm.logits(states.flatten(0, 1)[tree.scored])
        return float(F.cross_entropy(logits, tree.labels.flatten()[tree.scored]))

    plain = nll(llm.hidden(embeds, tree.mask(), tree.positions))
    cost = {}
    for quiet in (0.0, 6.0):
        feature = DeepPrefix(Config(deep_prefix=DeepPrefixOptions(quiet=quiet)), llm)
        slots = feature.prefix(torch.randn(1, 32, 256))
        cost[quiet] = nll(read_before(llm, tree, embeds, slots, None)) - plain
    print(f"32 new slots change {plain:.3f} nats a token by {cost[6.0]:+.4f}; with keys of zero by {cost[0.0]:+.3f}")
    assert abs(cost[6.0]) < 0.05
    assert cost[0.0] > 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")
@pytest.mark.parametrize("kind", ["deep_prefix", "coprocessor"])
def test_a_bundle_answers_as_torch_does(kind: str, story_file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"features": (kind,), "latent_len": 16, "precision": "fp32", "device": "cpu"}
    model = build_model(Config(data=(str(story_file),), eval_data=(str(story_file),), **options), CPU)
    items = read_questions([str(story_file)])
    start(model, [item.context for item in items])
    with torch.no_grad():
        for name, parameter in model.features.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.3)
    save(tmp_path / "trained", model)
    checkpoint = publish(tmp_path / "trained", tmp_path / "c", {})
    bundle = export_bundle(Request(str(checkpoint), LLM, tmp_path / "bundle", verify="weights"))
    model, _ = open_checkpoint(checkpoint, "cpu")
    wanted = list(measure(model, model.llms[0], items, "latents", max_new_tokens=12).texts)
    asked = [Question(i.context, q.text, q.answers) for i in items for q in i.questions]
    assert answers(open_engine(bundle.path), asked, "latents", 12) == wanted
    model.features = torch.nn.ModuleDict()
    assert list(measure(model, model.llms[0], items, "latents", max_new_tokens=12).texts) != wanted
