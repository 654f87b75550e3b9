"""How well a model predicts a text: every token once, the field's formulas, and what the command says."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

from aibit_format.errors import LoadError
from aibit_format.torch.evaluate.perplexity import evaluate
from aibit_format.torch.evaluate.predictions import Text
from tests.support import architectures
from tests.support.evaluated_models import text as text


@pytest.fixture(scope="module")
def llama(fixtures):
    """The trained fixture in float32, and the ids of the text that it has not seen."""
    folder = fixtures / "models" / "tiny-llama"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (fixtures / "models" / "heldout.txt").read_text("utf-8")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), ids


def test_the_perplexity_is_what_the_fixture_says_of_itself(llama, fixtures):
    model, ids = llama
    whole = len(ids) // 256 * 256
    found = evaluate(model, Text(ids[:whole], 256, 256))
    assert found.tokens == whole - whole // 256
    assert f"| {found.perplexity:.2f} |" in (fixtures / "models" / "tiny-llama" / "README.md").read_text()
    assert found.reference_loss is None and found.divergence is None


def test_figures_are_those_of_the_formulas(llama):
    model, ids = llama
    ids = ids[:300]
    torch.manual_seed(0)
    other = AutoModelForCausalLM.from_config(model.config).eval()
    with torch.no_grad():
        for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs + 0.02 * torch.randn_like(theirs))
        logits, expected = (each(ids[None]).logits[0, :-1].double() for each in (other, model))
    seen = []
    # One window: the text is shorter than what the model sees.
    found = evaluate(other, Text(ids, 300), reference=model, on_progress=lambda *step: seen.append(step))
    losses = cross_entropy(logits, ids[1:], reduction="none")
    apart = kl_div(logits.log_softmax(1), expected.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert found.tokens == 299 and seen == [(299, 299)]
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found.loss_error == pytest.approx(float(losses.std() / 299**0.5), rel=1e-4)
    assert found.reference_loss == pytest.approx(float(cross_entropy(expected, ids[1:])), rel=1e-5)
    assert found.divergence.mean == pytest.approx(float(apart.mean()), rel=1e-3)
    assert found.divergence.largest == pytest.approx(float(apart.max()), rel=1e-3)
    assert found.divergence.same_first == pytest.approx(float((logits.argmax(1) == expected.argmax(1)).double().mean()))
    nothing = evaluate(model, Text(ids, 64, 32), reference=model).divergence
    assert (nothing.largest, nothing.same_first) == (0, 1)


def test_texts_and_models_that_do_not_fit_are_errors(llama, tmp_path):
    model, ids = llama
    for wrong in ((ids[:1], 8, 4), (ids, 1, 1), (ids, 8, 9)):
        with pytest.raises(LoadError, match="nothing to predict"):
            Text(*wrong)
    architectures.save("llama-tied", tmp_path)
    with pytest.raises(LoadError, match="vocabularies of 1024 and, in the reference, 160"):
        evaluate(model, Text(ids[:20] % 160), reference=architectures.load("llama-tied", tmp_path))
