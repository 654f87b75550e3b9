"""Predictions kept in a file: what comes back is what was predicted, and nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aibit_format.errors import LoadError, WriteError
from aibit_format.torch.evaluate.perplexity import evaluate
from aibit_format.torch.evaluate.predictions import Text, predict
from aibit_format.torch.evaluate.saved_logits import SavedLogits, save_logits
from tests.support import architectures


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    architectures.save("llama-tied", folder)
    model = architectures.load("llama-tied", folder).to(request.param)
    torch.manual_seed(0)
    text = Text(torch.randint(0, model.config.vocab_size, (50,)), 16, 6)
    return model, text, save_logits(model, text, folder / "l.safetensors", name="a model")


def test_they_are_the_models_to_the_bit(saved):
    model, text, found = saved
    again = SavedLogits(found.path)
    assert again.model == "a model" and torch.equal(again.text.ids, text.ids)
    pairs = list(zip(again.predict(text), predict(model, text), strict=True))
    assert len(pairs) == len(text.windows)
    for (ids, logits), (wanted_ids, wanted) in pairs:
        assert torch.equal(ids, wanted_ids) and logits.dtype == wanted.dtype and torch.equal(logits, wanted)
    assert evaluate(model, text, again) == evaluate(model, text, model)
    with safe_open(found.path, "pt") as file:  # another reader of safetensors
        assert torch.equal(file.get_tensor("logits.1"), pairs[1][0][1])


def test_progress_is_told_in_tokens(saved, tmp_path):
    model, text, _ = saved
    seen = []
    save_logits(model, text, tmp_path / "l", on_progress=lambda *step: seen.append(step))
    assert seen[-1] == (49, 49) and len(seen) == len(text.windows)


def test_a_file_is_replaced_only_if_told_to(saved, tmp_path):
    model, text, _ = saved
    (tmp_path / "l").write_text("mine")
    with pytest.raises(WriteError, match="exists"):
        save_logits(model, text, tmp_path / "l")
    assert (tmp_path / "l").read_text() == "mine"
    save_logits(model, text, tmp_path / "l", overwrite=True)
    assert SavedLogits(tmp_path / "l").text.context == 16


def test_a_disk_without_room_is_seen_before_anything_is_written(saved, tmp_path, monkeypatch):
    model, text, _ = saved
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(WriteError, match=r"49 predictions of .* bytes, and 1,000 are free; predict fewer"):
        save_logits(model, text, tmp_path / "l")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"ids": torch.arange(50)}, {"context": 15}, {"stride": 5}], ids=str)
def test_another_text_is_refused(saved, change):
    _, text, found = saved
    asked = {"ids": text.ids, "context": text.context, "stride": text.stride} | change
    with pytest.raises(LoadError, match="predictions of 50 tokens in windows of 16, 6 apart"):
        list(found.predict(Text(**asked)))


def test_damaged_files_are_refused(saved, tmp_path):
    _, _, found = saved
    path, tensors = tmp_path / "l.safetensors", load_file(found.path)
    about = {"format": "aibit-logits", "context": "16", "stride": "6"}

    def refused(message, tensors=tensors, about=about):
        save_file(tensors, path, about)
        with pytest.raises(LoadError, match=message):
            SavedLogits(path)

    refused("holds no predictions", about={"format": "pt"})
    refused("does not say how its text was cut: 'stride'", about={"format": "aibit-logits", "context": "16"})
    refused("does not say how its text was cut: invalid", about=about | {"stride": "x"})
    refused("nothing to predict", about=about | {"stride": "17"})
    refused(r"ids are f32\[50\]", tensors | {"ids": tensors["ids"].float()})
    refused("logits.3 is missing", {name: value for name, value in tensors.items() if name != "logits.3"})
    refused(r"logits.1 is f(16|32)\[15, 99\]|logits.1 is .*needed", tensors | {"logits.1": tensors["logits.0"].clone()})
    refused("has 5 columns, the first", tensors | {"logits.1": tensors["logits.1"][:, :5].contiguous()})
    refused("floats", tensors | {"logits.0": tensors["logits.0"].to(torch.int32)})
    path.write_bytes(b"not one")
    with pytest.raises(LoadError, match="--save-logits"):
        SavedLogits(path)
