"""Loaded models saved by transformers and converted again."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.errors import LoadError
from tests.support import architectures

warnings.filterwarnings("ignore", message="MatMul8bitLt")

SCHEMES = ("int8-absmax", "int8-zp,group=32", "int8-outlier", "fp8-e4m3", "int4-group,group=32", "cluster,bits=4",
           "gguf:q8_0", "fp8-block,scale=f8_e8m0", "int-group,bits=3", "mxfp4", "nvfp4", "ternary")  # fmt: skip


def loaded(name, folder, scheme, **options):
    architectures.save(name, folder / "hf", torch.float32)
    aibit.convert(folder / "hf", folder / "m.aibit", scheme=scheme, **options)
    return aibit.load_model(folder / "m.aibit")


def saved_again(name, folder):
    """Load what ``save_pretrained`` wrote, and check that transformers found every weight, and nothing else."""
    family = architectures.MODELS[name][0]
    model, said = family.from_pretrained(folder, device_map={"": "cpu"}, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("name", ["llama-untied", "llama-tied", "gpt2"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_without_a_bitsandbytes_layer_are_saved_decoded(scheme, name, tmp_path):
    model = loaded(name, tmp_path, scheme)
    model.save_pretrained(tmp_path / "again")
    again = saved_again(name, tmp_path / "again")
    with aibit.open(tmp_path / "m.aibit") as file:
        for key, value in again.state_dict().items():
            stored = file.dequantize(key)
            assert np.array_equal(value.numpy(), stored.T if file.info(key).transposed else stored), key
    assert set(model.state_dict()) > set(again.state_dict()) - {f"{n}.weight" for n, _ in model.named_modules()}


def test_what_changed_since_loading_is_saved(tmp_path):
    model = loaded("llama-untied", tmp_path, "int8-absmax")
    with torch.no_grad():
        model.model.norm.weight.mul_(3)
        model.model.layers[0].mlp.up_proj.get_buffer("scale").mul_(2)
    model.bfloat16()
    expected = model.model.layers[0].mlp.up_proj.weight
    model.save_pretrained(tmp_path / "again", state_dict=model.state_dict())  # as Trainer calls it
    again = saved_again("llama-untied", tmp_path / "again")
    assert again.dtype == torch.bfloat16 and torch.equal(again.model.layers[0].mlp.up_proj.weight, expected)
    assert torch.equal(again.model.norm.weight, model.model.norm.weight)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_layers_of_bitsandbytes_beside_others(scheme, tmp_path):
    model = loaded("llama-untied", tmp_path, scheme, tensors={"layers.0.mlp": "int8-zp", "embed_tokens": "fp8-e4m3"})
    model.save_pretrained(tmp_path / "again")
    again = saved_again("llama-untied", tmp_path / "again")
    kinds = {type(module).__name__ for module in again.model.layers[1].modules()}
    assert ("Linear8bitLt" if scheme == "int8" else "Linear4bit") in kinds
    assert type(again.model.layers[0].mlp.up_proj) is torch.nn.Linear
    expected, found = (architectures.output(each, "llama-untied") for each in (model, again))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_two_kinds_of_bitsandbytes_layers_are_refused(tmp_path):
    model = loaded("llama-untied", tmp_path, "int8", tensors={"mlp": "nf4"})
    with pytest.raises(LoadError, match="aibit export"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_model_without_its_head_is_saved(tmp_path):
    model = loaded("llama-untied", tmp_path, "int8-absmax")
    model.model.save_pretrained(tmp_path / "again")
    again, said = transformers.LlamaModel.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    assert torch.equal(again.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("scheme", [*SCHEMES, "int8", "nf4,nested=1", "nf4-cpu"])
def test_converting_a_loaded_model_takes_the_planes_over(scheme, name, tmp_path):
    model = loaded(name, tmp_path, scheme)
    architectures.output(model, name)
    report = aibit.convert(model, tmp_path / "again.aibit")
    assert all(tensor.error is None for tensor in report.tensors)
    with aibit.open(tmp_path / "m.aibit") as file, aibit.open(tmp_path / "again.aibit", verify="full") as again:
        assert list(again) == list(file)
        for key in file:
            mine, its = file.planes(key), again.planes(key)
            if scheme == "nf4-cpu":  # bitsandbytes' layers have the canonical planes
                mine = {role: plane for role, plane in mine.items() if not role.startswith("tile")}
            else:
                assert again.info(key).scheme == file.info(key).scheme
            assert again.info(key).dtype == file.info(key).dtype and mine.keys() == its.keys()
            assert all(np.array_equal(mine[role].view(np.uint8), its[role].view(np.uint8)) for role in mine)
