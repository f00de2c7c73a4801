"""Every loss term against a hand-computed case; bundles; what is read of a tree."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentwire.core.prompt import join
from latentwire.training.bundles import BUNDLES, TERMS, needs_teacher, weights
from latentwire.training.config import Config
from latentwire.training.loss import TopLogits, distillation, distillation_top, latent_losses, top_logits
from latentwire.training.objective import answer_terms
from latentwire.training.tree import KINDS, Branch, Tree, build

NLL = [1.0, 2.0, 4.0, 8.0, 16.0, 0.5, 0.25, 3.0, 5.0, 7.0, 9.0]
"""Losses of the eleven scored positions of ``tree``, in order."""


@pytest.fixture
def tree() -> Tree:
    """Row 0: an answer of three tokens, a cloze answer of two; row 1: reconstruction of two, continuation of four."""
    question = join([range(2, 4), [7, 8, 9]])
    own = [
        [Branch(question, (1, 1, 1), "answer"), Branch(join([range(2, 4), [5, 6]]), (1, 1), "cloze")],
        [Branch(join([[4]]), (1, 1), "reconstruct"), Branch(join([range(4, 6)]), (1, 1, 1, 1), "continue")],
    ]
    return build([join([[0], range(2)])] * 2, own)


def _logits() -> Tensor:
    """Two tokens; ``-log p(1)`` is ``NLL``."""
    p = torch.tensor(NLL, dtype=torch.float64).neg().exp()
    return torch.stack([(1 - p).log(), p.log()], dim=1).float()


def test_the_tree_knows_what_is_scored_and_what_is_asked(tree: Tree) -> None:
    assert tree.counts == (3, 2, 4, 2)
    assert len(tree.scored) == 11
    assert tree.labels.flatten()[tree.scored].tolist() == [1] * 11
    assert [KINDS[i] for i in tree.task.flatten()[tree.scored].tolist()] == (
        ["answer"] * 3 + ["cloze"] * 2 + ["reconstruct"] * 2 + ["continue"] * 4
    )
    # The words of both questions but their last, which predicts the answer; no cue, no row, no target.
    assert tree.ids.flatten()[tree.asked].tolist() == [7, 8, 5]


def test_every_term_by_hand(tree: Tree) -> None:
    config = Config(k=2, k_token_weight=2.0, first_token_ce=0.5)
    found = answer_terms(config, dict.fromkeys(TERMS, 1.0), _logits(), tree)
    w = [2.5, 2, 1, 2.5, 2, 2.5, 2, 2.5, 2, 1, 1]
    expected = {
        "ce": sum(a * b for a, b in zip(w, NLL, strict=True)) / sum(w),
        "answer": (2 * 1 + 2 * 2 + 1 * 4) / 5,
        "cloze": (8 + 16) / 2,
        "reconstruct": (0.5 + 0.25) / 2,
        "continue": (3 + 5 + 7 + 9) / 4,
        # The first two tokens of the answer and of the cloze answer, then the first of each.
        "k_token": (1 + 2 + 8 + 16) / 4,
        "first_token": (1 + 8) / 2,
    }
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-5)


def test_a_task_that_does_not_occur_has_no_term(tree: Tree) -> None:
    alone = build([join([[0]])], [[Branch(join([[4]]), (1, 1), "reconstruct")]])
    found = answer_terms(Config(), dict.fromkeys(TERMS, 1.0), _logits()[:2], alone)
    assert found.keys() == {"ce", "reconstruct"}


def test_top_k_distillation_by_hand() -> None:
    student = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    teacher = TopLogits(torch.tensor([[0, 2]]), torch.tensor([[0.6, 0.3]]).log())
    expected = 0.6 * math.log(0.6 / 0.5) + 0.3 * math.log(0.3 / 0.125) + 0.1 * math.log(0.1 / 0.375)
    assert distillation_top(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_top_k_distillation_of_everything_is_the_whole_kl() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 20), torch.randn(5, 20)
    whole = distillation(student, teacher, 2.0)
    assert distillation_top(student, top_logits(teacher, 2.0, 20), 2.0).item() == pytest.approx(whole.item(), rel=2e-3)
    part = [distillation_top(student, top_logits(teacher, 2.0, k), 2.0).item() for k in (1, 4, 10)]
    assert part == sorted(part)
    assert part[-1] <= whole.item() * 1.002


def test_a_teacher_that_is_certain_leaves_no_rest() -> None:
    student = torch.zeros(1, 4, requires_grad=True)
    loss = distillation_top(student, top_logits(torch.tensor([[80.0, 0.0, 0.0, 0.0]]), 1.0, 2), 1.0)
    loss.backward()
    # The part of the rest is bounded by its floor of one millionth.
    assert loss.item() == pytest.approx(math.log(4), abs=1e-4)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_latent_losses_by_hand() -> None:
    student = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[4.0, 3.0], [0.0, 1.0], [0.0, 1.0]]])
    cos, mse = latent_losses(student, teacher, torch.tensor([[True, True, False]]))
    assert cos.item() == pytest.approx(((1 - 24 / 25) + 1) / 2, rel=1e-5)
    assert mse.item() == pytest.approx((1 + 1) / 2, rel=1e-6)


def test_bundles_name_known_terms() -> None:
    assert {t for bundle in BUNDLES.values() for t in bundle} <= set(TERMS)
    assert weights("seed", 0.0) == {"k_token": 1.0, "first_token": 0.5, "kd": 0.5, "prefix_kd": 0.5}
    assert weights("default", 0.0) == {"ce": 1.0}
    assert weights("default", 0.3) == {"ce": 1.0, "kd": 0.3}
    assert [needs_teacher(weights(name, 0.0)) for name in ("default", "pretrain", "answer", "seed")] == [
        *(False, False, True, True)
    ]
