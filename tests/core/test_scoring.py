"""Scores of answers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire.core.scoring import best_f1, exact, f1, grouped_interval, interval, normalise


def test_answer_scores() -> None:
    assert normalise("The  Cat, sat!") == "cat sat"
    assert f1("the red cat", "a cat") == pytest.approx(2 / 3)
    assert f1("", "") == 1.0
    assert f1("dog", "") == 0.0
    assert best_f1("the red cat", ["dog", "a cat"]) == pytest.approx(2 / 3)
    assert (exact("The cat.", ["dog", "cat"]), exact("red cat", ["cat"])) == (1.0, 0.0)


def test_interval_of_a_mean() -> None:
    low, high = interval(np.array([0.0, 1.0] * 50))
    assert 0.35 < low < 0.5 < high < 0.65
    assert interval(np.full(7, 2.0)) == (2.0, 2.0)


def test_whole_texts_are_drawn_as_in_training() -> None:
    from latentwire.training.evaluation.intervals import Bootstrap, spread

    values, groups = np.random.default_rng(3).random(40), np.arange(40) // 4
    found = grouped_interval(values, groups)
    assert [round(x, 4) for x in found] == spread(Bootstrap(groups.tolist()).means(values))
    alike = np.repeat(np.arange(10.0), 4)  # all questions of a text alike: four times the questions say no more
    assert grouped_interval(alike, groups) == interval(np.arange(10.0))
