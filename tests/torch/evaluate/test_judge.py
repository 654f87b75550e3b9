"""Models of every kind judged on one text, one at a time in memory."""

from __future__ import annotations

import gc

import pytest
import transformers

from aibit_format.errors import LoadError
from aibit_format.torch.evaluate.judge import Question, judge, reference_logits
from tests.support.evaluated_models import models as models
from tests.support.evaluated_models import text as text


@pytest.fixture
def question(text):
    return Question(text.read_text("utf-8"), 64, limit=400)


def alive():
    gc.collect()
    return sum(isinstance(each, transformers.LlamaForCausalLM) for each in gc.get_objects())


def test_each_operand_is_what_it_was_made_from(models, question):
    others, seen = alive(), []
    with reference_logits(models["original"], question) as reference:
        paths = [models[name] for name in ("original", "int8.aibit", "q4.aibit", "q4.gguf", "hf")]
        verdicts = {}
        for verdict in judge(paths, question, reference, lambda *step: seen.append(step)):
            verdicts[verdict.file] = verdict
            assert alive() == others
    assert [verdicts[path].file for path in paths] == paths and seen[-1] == (399, 399, models["hf"])
    original, int8, q4, gguf, hf = (verdicts[path].quality for path in paths)
    assert original.divergence.largest == 0 and original.divergence.same_first == 1
    assert 0 < int8.divergence.mean < q4.divergence.mean and q4.divergence.mean_error > 0
    assert gguf == q4  # the same blocks
    assert hf.divergence.mean == pytest.approx(int8.divergence.mean, rel=0.2)
    for verdict in verdicts.values():
        assert verdict.bytes > 10_000 and verdict.speed.prompt == 128 and verdict.speed.token_seconds > 0


def test_saved_predictions_are_a_reference_without_its_model(models, question, tmp_path):
    with reference_logits(models["original"], question, str(tmp_path / "l.safetensors")) as reference:
        (wanted,) = judge([models["int8.aibit"]], question, reference)
    with reference_logits(str(tmp_path / "l.safetensors"), question) as reference:
        (found,) = judge([models["int8.aibit"]], question, reference)
    assert found.quality == wanted.quality and reference.model == models["original"]


def test_models_with_other_tokens_are_not_compared(models, question, fixtures):
    with reference_logits(models["original"], question) as reference:
        fewer = Question(question.text, 64, limit=300)
        with pytest.raises(LoadError, match="makes 300 tokens of the text, others than the reference's 400"):
            list(judge([models["int8.aibit"]], fewer, reference))
