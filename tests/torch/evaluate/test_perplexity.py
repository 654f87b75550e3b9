"""How well a model predicts a text: every token once, the field's formulas, and what the command says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.torch.evaluate.perplexity import _windows, evaluate
from tests.support import architectures
from tests.support.command import run


@given(st.integers(2, 200), st.integers(2, 60), st.data())
def test_every_token_is_predicted_once_from_as_many_as_there_can_be(count, context, data):
    stride = data.draw(st.integers(1, context))
    found = []
    for start, first, end in _windows(count, context, stride):
        assert 0 <= start < first < end <= count and end - start <= context
        assert first - start >= max(1, min(first, context - stride))
        found += range(first, end)
    # Where windows do not overlap, the first token of each has nothing before it.
    left_out = set() if stride < context else set(range(0, count, stride))
    assert found == [i for i in range(1, count) if i not in left_out]


@pytest.fixture(scope="module")
def text(fixtures):
    return fixtures / "models" / "heldout.txt"


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
    found = evaluate(model, ids[:whole], 256, 256)
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
    found = evaluate(other, ids, 300, reference=model, on_progress=lambda *step: seen.append(step))
    losses = cross_entropy(logits, ids[1:], reduction="none")
    apart = kl_div(logits.log_softmax(1), expected.log_softmax(1), log_target=True, reduction="none").sum(1)
    assert found.tokens == 299 and seen == [(299, 299)]
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found.loss_error == pytest.approx(float(losses.std() / 299**0.5), rel=1e-4)
    assert found.reference_loss == pytest.approx(float(cross_entropy(expected, ids[1:])), rel=1e-5)
    assert found.divergence.mean == pytest.approx(float(apart.mean()), rel=1e-3)
    assert found.divergence.largest == pytest.approx(float(apart.max()), rel=1e-3)
    assert found.divergence.same_first == pytest.approx(float((logits.argmax(1) == expected.argmax(1)).double().mean()))
    nothing = evaluate(model, ids, 64, 32, reference=model).divergence
    assert (nothing.largest, nothing.same_first) == (0, 1)


def test_texts_and_models_that_do_not_fit_are_errors(llama, tmp_path):
    model, ids = llama
    for wrong in ((ids[:1], 8, 4), (ids, 1, 1), (ids, 8, 9)):
        with pytest.raises(LoadError, match="nothing to predict"):
            evaluate(model, *wrong)
    architectures.save("llama-tied", tmp_path)
    with pytest.raises(LoadError, match="vocabularies of 1024 and, in the reference, 160"):
        evaluate(model, ids[:20] % 160, reference=architectures.load("llama-tied", tmp_path))


# The command


@pytest.fixture(scope="module")
def files(fixtures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    for scheme in ("bf16", "int8", "nf4"):
        aibit.convert(fixtures / "models" / "tiny-llama", folder / f"{scheme}.aibit", scheme=scheme)
    return folder


def test_fewer_bits_are_further_from_the_original(files, fixtures, text, capsys):
    original, found = fixtures / "models" / "tiny-llama", {}
    for scheme in ("bf16", "int8", "nf4"):
        asked = (files / f"{scheme}.aibit", "--text", text, "--ref", original, "--context", 256, "--limit", 2000)
        status, out, err = run("eval", *asked, "--json", capsys=capsys)
        found[scheme] = json.loads(out)
        assert (status, err) == (0, "")
    assert found["bf16"]["divergence"]["largest"] == 0 and found["bf16"]["divergence"]["same_first"] == 1
    assert found["bf16"]["perplexity"] == found["bf16"]["reference_perplexity"]
    means = [found[scheme]["divergence"]["mean"] for scheme in ("bf16", "int8", "nf4")]
    assert means == sorted(means) and means[1] < 2e-3 < 5e-3 < means[2] < 5e-2
    assert found["int8"]["divergence"]["same_first"] > 0.95 and found["nf4"]["tokens"] == 1999
    status, out, _ = run("eval", *asked, capsys=capsys)
    assert status == 0 and "1,999 tokens predicted" in out and "same first" in out and "ratio" in out
    status, out, _ = run("eval", files / "int8.aibit", "--text", text, "--context", 256, "--limit", 300, capsys=capsys)
    assert status == 0 and "perplexity" in out and "reference" not in out
    status, out, _ = run("eval", *asked[:3], "--ref", files / "bf16.aibit", *asked[5:], "--json", capsys=capsys)
    assert json.loads(out)["divergence"] == found["nf4"]["divergence"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "--text"),
        (["--text", "{text}", "--context", "1"], 2, "2 or more"),
        (["--text", "{text}", "--context", "9", "--stride", "10"], 2, "from 1 to --context"),
        (["--text", "{text}", "--context", "257"], 2, "the model takes 256 tokens"),
        (["--text", "nowhere", "--context", "256"], 1, "No such file"),
        (["--text", "{latin}", "--context", "256"], 1, "no UTF-8 at byte 1"),
        (["--text", "{empty}", "--context", "256"], 1, "two or more are needed"),
        (["--text", "{text}", "--context", "256", "--ref", "{empty}"], 3, "AIB-E101"),
        (["--text", "{text}", "--context", "256", "--ref", "{folder}"], 1, "transformers cannot load it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_use_gets_a_message_and_a_status(arguments, status, message, files, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(text, tmp_path / "text")
    (tmp_path / "latin").write_bytes("aé".encode("latin-1"))
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    places = {name: tmp_path / name for name in ("text", "latin", "empty", "folder")}
    given = [argument.format(**places) for argument in arguments]
    found, out, err = run("eval", files / "int8.aibit", *given, capsys=capsys)
    assert found == status and message in err and out == "" and "Traceback" not in err
