"""A file says how well it predicts a text."""

from __future__ import annotations

import hashlib

import pytest

import aibit_format as aibit
from aibit_format.errors import LoadError, WriteError
from aibit_format.torch.evaluate.judge import Question, judge, reference_logits
from aibit_format.torch.evaluate.record import record
from tests.support.evaluated_models import models as models
from tests.support.evaluated_models import text as text


def test_the_figures_are_those_of_judging(models, text, tmp_path):
    question = Question(text.read_text("utf-8"), 64, limit=200)
    quality, paths = record(models["int8.aibit"], str(tmp_path / "m.aibit"), models["original"], question)
    with reference_logits(models["original"], question) as reference:
        (verdict,) = judge(paths, question, reference)
    assert verdict.quality == quality
    with aibit.open(paths[0]) as file, aibit.open(models["int8.aibit"]) as before:
        found = {key: value for key, value in file.metadata.items() if key.startswith("quality.")}
        assert set(file.metadata) - set(found) == set(before.metadata)
        file.verify()
    assert found["quality.text_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert (found["quality.tokens"], found["quality.context"]) == (199, 64)
    assert found["quality.kl_mean"] == pytest.approx(quality.divergence.mean, rel=1e-5)
    assert found["quality.same_first"] == pytest.approx(quality.divergence.same_first, rel=1e-5)
    with pytest.raises(WriteError, match="exists"):
        record(models["int8.aibit"], paths[0], models["original"], question)


def test_without_a_text_there_is_nothing_to_say(models, tmp_path):
    with pytest.raises(LoadError, match="none is given"):
        record(models["int8.aibit"], str(tmp_path / "m.aibit"), models["original"], Question(None))
