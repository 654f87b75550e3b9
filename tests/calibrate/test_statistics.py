"""Figures of statistics, and the importance that follows from them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from aibit_format.calibrate.statistics import About, Inputs, Statistics, importance
from aibit_format.errors import SourceError

ABOUT = About("LlamaForCausalLM", "0" * 32, "1" * 32, 6, 2, 3)


def inputs(rows, experts=False):
    """Statistics of rows of inputs, f64 [G, tokens, K]."""
    rows = np.asarray(rows, np.float64)
    counts = np.array([len(each) for each in rows], np.int64)
    return Inputs(counts, np.square(rows).sum(1), rows.sum(1), np.abs(rows).sum(1),
                  np.abs(rows).max(1).astype(np.float32), rows.min((1, 2)).astype(np.float32),
                  rows.max((1, 2)).astype(np.float32), experts=experts)  # fmt: skip


def test_figures_of_known_numbers():
    found = inputs([[[1.0, 2.0], [3.0, 6.0]]])
    assert found.tokens == 2 and found.mean == 3.0 and found.std == math.sqrt(3.5)
    assert found.score(0.0) == math.exp(-3.0 / math.sqrt(3.5)) and found.extremes == (1.0, 6.0)
    assert found.importance().tolist() == [5.0, 20.0]


def test_inputs_around_zero_are_symmetric_and_constant_ones_are_not():
    assert inputs([[[-1.0, 1.0]]]).score() == 1.0
    assert inputs([[[2.0, 2.0]]]).score() == pytest.approx(0.0)
    assert inputs([[[0.0, 0.0]]]).score() == 1.0  # eps keeps it from being undefined


def test_experts_that_saw_nothing_count_alike():
    seen = inputs([[[1.0, 2.0]], [[3.0, 4.0]]], experts=True)
    found = Inputs(np.array([1, 0]), seen.sum2 * [[1], [0]], experts=True).importance()
    assert found.dtype == np.float32 and found.tolist() == [[1.0, 4.0], [1.0, 1.0]]


def test_importance_has_all_names_of_a_tied_weight():
    found = inputs([[[1.0, 2.0]]])
    values = importance(Statistics(ABOUT, {"lm_head.weight": found}, {"lm_head.weight": "embed.weight"}))
    assert sorted(values) == ["embed.weight", "lm_head.weight"]
    assert values["embed.weight"].tolist() == [1.0, 4.0]


def test_statistics_of_another_model_are_refused():
    found = Statistics(ABOUT, {"a.weight": inputs([[[1.0, 2.0]]])})
    found.check({"a.weight": 2, "b.weight": 3}, "s")
    with pytest.raises(SourceError, match=r"s: statistics of another model: tensor 'a\.weight' has 3 columns here"):
        found.check({"a.weight": 3}, "s")
    with pytest.raises(SourceError, match=r"of another model: they are of a\.weight"):
        found.check({"b.weight": 2}, "s")


def test_the_digest_is_of_values_and_of_what_they_are_of():
    one, other = inputs([[[1.0, 2.0]]]), inputs([[[1.0, 2.5]]])
    digests = {
        Statistics(ABOUT, {"a": one}).digest, Statistics(ABOUT, {"b": one}).digest,
        Statistics(ABOUT, {"a": other}).digest,
        Statistics(About("BertModel", "0" * 32, "1" * 32, 6, 2, 3), {"a": one}).digest,
    }  # fmt: skip
    assert len(digests) == 4 and Statistics(ABOUT, {"a": inputs([[[1.0, 2.0]]])}).digest in digests


@pytest.mark.parametrize(
    "change", [{"tokens": "6"}, {"tokens": True}, {"eps": None}, {"names": 5}, {"samples": -1}, {"x": 1}]
)
def test_what_a_file_says_of_itself_is_checked(change):
    assert About.parse(ABOUT.text_of, "s") == ABOUT
    with pytest.raises(SourceError, match="s: what it says"):
        About.parse(json.dumps(json.loads(ABOUT.text_of) | change), "s")
