"""Tokens from logits: the likeliest, and frequencies of those that are drawn."""

from __future__ import annotations

import pytest
import torch

from aibit_format.torch.graph.sampling import Sampling

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0, -1.0])


def _drawn(sampling, logits=LOGITS, count=4000):
    torch.manual_seed(0)
    return torch.bincount(torch.tensor([sampling.choose(logits) for _ in range(count)]), minlength=5) / count


def test_the_likeliest():
    assert Sampling().choose(LOGITS) == 1 and Sampling(False, -1.0).choose(LOGITS.bfloat16()) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_logits(temperature):
    wanted = (LOGITS / temperature).softmax(0)
    assert (_drawn(Sampling(True, temperature)) - wanted).abs().max() < 0.03


@pytest.mark.parametrize(
    ("sampling", "likely"),
    [(Sampling(True, top_k=2), [1, 2]), (Sampling(True, top_k=99), [0, 1, 2, 3, 4]), (Sampling(True, top_k=1), [1]),
     (Sampling(True, top_p=0.5), [1]), (Sampling(True, top_p=0.8), [1, 2]), (Sampling(True, top_p=1e-9), [1])],
)  # fmt: skip
def test_the_rest_is_never_drawn(sampling, likely):
    probabilities = LOGITS.softmax(0)
    wanted = torch.zeros(5)
    wanted[likely] = probabilities[likely] / probabilities[likely].sum()
    assert (_drawn(sampling) - wanted).abs().max() < 0.03


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match="expected above 0, at least 0, and above 0 up to 1"):
        Sampling(True, **options)
    Sampling(False, **options)


def test_logits_are_left_as_they_are():
    logits = LOGITS.clone()
    Sampling(True, 1.0, 2, 0.9).choose(logits)
    assert torch.equal(logits, LOGITS)
