"""Directories for transformers."""

import re

import bitsandbytes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers as tf
from transformers.quantizers.quantizers_utils import should_convert_module

import aibit_format as aibit
from aibit_format.errors import WriteError
from aibit_format.formats.exports import export
from aibit_format.formats.huggingface.forms import plain_name
from tests.support import architectures
from tests.support.exported_models import MODELS, config_of, convert, load, logits
from tests.support.exported_models import originals as originals

# Scheme here -> the same in transformers' words.
KINDS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4,nested=1": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
}


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_the_directory_as_if_it_had_quantized_the_model(name, scheme, originals, tmp_path):
    with convert(originals(name), tmp_path / "m.aibit", scheme) as file:
        export(file, "huggingface", tmp_path / "out", dtype="f32")
    reference = load(name, originals(name), quantization_config=tf.BitsAndBytesConfig(**KINDS[scheme]))
    reference.save_pretrained(tmp_path / "theirs")
    # The very file that transformers writes. (With more scales nested_offset may differ in the last bit: see fourbit.)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "theirs" / "model.safetensors"
    ).read_bytes()
    ours, theirs = config_of(tmp_path / "out"), config_of(tmp_path / "theirs")
    skipped = ours["quantization_config"].pop("llm_int8_skip_modules")
    assert theirs["quantization_config"].pop("llm_int8_skip_modules") is None
    assert ours == theirs and list(ours) == list(theirs)
    model = load(name, tmp_path / "out")
    linear = [n for n, module in model.named_modules() if type(module) is torch.nn.Linear]
    assert sorted(skipped) == sorted(linear)
    assert [(n, type(m).__name__) for n, m in model.named_modules()] == [
        (n, type(m).__name__) for n, m in reference.named_modules()
    ]
    expected = logits(reference, name)
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(logits(model, name), expected)


def test_four_bit_layers_compute_in_the_models_dtype_unless_told(originals, tmp_path):
    with convert(originals("untied"), tmp_path / "m.aibit", "nf4") as file:
        export(file, "huggingface", tmp_path / "a")
        export(file, "huggingface", tmp_path / "b", dtype="bf16")
    found = [config_of(tmp_path / x)["quantization_config"]["bnb_4bit_compute_dtype"] for x in "ab"]
    assert found == ["float16", "bfloat16"]


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("name", ["tied", "gpt2"])
def test_a_quantized_directory_comes_back_as_it_was(name, scheme, originals, tmp_path):
    pytest.importorskip("aibit_format.formats.huggingface.bitsandbytes")
    reference = load(name, originals(name), quantization_config=tf.BitsAndBytesConfig(**KINDS[scheme]))
    reference.save_pretrained(tmp_path / "in")
    with convert(tmp_path / "in", tmp_path / "m.aibit", None) as file:
        export(file, "huggingface", tmp_path / "out")
    before, after = (safetensors.torch.load_file(tmp_path / x / "model.safetensors") for x in ("in", "out"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype and torch.equal(value, after[key]), key


def test_nf4_cpu_is_exported_as_nf4(originals, tmp_path):
    with convert(originals("untied"), tmp_path / "a.aibit", "nf4") as file:
        export(file, "huggingface", tmp_path / "a")
    with convert(originals("untied"), tmp_path / "b.aibit", "nf4-cpu") as file:
        export(file, "huggingface", tmp_path / "b")
    a, b = ((tmp_path / x / "model.safetensors").read_bytes() for x in "ab")
    assert a == b


REFUSED = {
    # A quantized embedding that the head is tied to; a Linear that T5 keeps in float32; a kind in the minority.
    "tied": ("int8", {"embed_tokens": "int8"}, "model.embed_tokens.weight"),
    "t5": ("int8", {r"encoder\.block\.0.*wo": "int8"}, "encoder.block.0.layer.1.DenseReluDense.wo.weight"),
    "untied": ("nf4", {r"layers\.1.*up_proj": "int8"}, "model.layers.1.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_without_a_layer_are_named_or_dequantized(name, originals, tmp_path):
    scheme, rules, tensor = REFUSED[name]
    file = convert(originals(name), tmp_path / "m.aibit", scheme, rules)
    with pytest.raises(WriteError, match=re.escape(repr(tensor))) as error:
        export(file, "huggingface", tmp_path / "out")
    assert "--to safetensors" in str(error.value) and "--dequantize" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.aibit"]
    export(file, "huggingface", tmp_path / "out", dequantize=True, dtype="f32")
    model = load(name, tmp_path / "out")
    assert any("bit" in type(module).__name__ for module in model.modules())
    rounded = np.float32 if name == "t5" else np.float16
    assert np.array_equal(model.get_parameter(tensor).detach().float(), rounded(file.dequantize(tensor)))
    assert torch.isfinite(logits(model, name)).all()


def test_a_head_that_is_quantized_stays_quantized(originals, tmp_path):
    file = convert(originals("untied"), tmp_path / "m.aibit", "int8", {"lm_head": "int8"})
    export(file, "huggingface", tmp_path / "out")
    assert config_of(tmp_path / "out")["quantization_config"]["llm_int8_skip_modules"] == []
    model = load("untied", tmp_path / "out")
    assert type(model.lm_head).__name__ == "Linear8bitLt"
    assert torch.equal(logits(model, "untied"), logits(aibit.load_model(file), "untied"))


def test_four_bit_schemes_may_be_mixed(originals, tmp_path):
    """Every layer has a state of its own: the kind of code, the block size, nested or not."""
    rules = {r"layers\.1.*_proj": "fp4", r"up_proj": "nf4,block_size=128,nested=1", "q_proj": "bf16"}
    file = convert(originals("untied"), tmp_path / "m.aibit", "nf4", rules)
    export(file, "huggingface", tmp_path / "out", dtype="f32")
    model = load("untied", tmp_path / "out")
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    kinds = set()
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.weight.quant_state
            kinds.add((state.quant_type, state.blocksize, state.nested))
            # Blocks of 128 do not fit rows of 64, so bitsandbytes' own CPU decoding is of no use here.
            values = bitsandbytes.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset \
                if state.nested else state.absmax  # fmt: skip
            codes = module.weight.data.reshape(-1)
            codes = torch.stack([codes >> 4, codes & 15], 1).reshape(-1, state.blocksize).long()
            found = (state.code[codes] * values[:, None]).reshape(state.shape)
            assert np.array_equal(found, file.dequantize(f"{name}.weight")), name
    assert kinds == {("nf4", 64, False), ("fp4", 64, False), ("nf4", 128, True)}


def test_a_skipped_name_does_not_take_others_with_it():
    """To transformers a plain name also means every module whose name ends with it."""
    found = [plain_name("head", ["a.head"])]
    assert found == ["^head$"]
    assert should_convert_module("a.head", found) and not should_convert_module("head", found)


@pytest.mark.parametrize(
    "options",
    [{"load_in_8bit": True, "llm_int8_threshold": 2.5},
     {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}],
    ids=["threshold", "compute dtype"],
)  # fmt: skip
def test_what_layers_compute_with_comes_through(options, tmp_path):
    """From a saved directory, through a file, into a model here, and into a directory again."""
    family, _ = architectures.MODELS["llama-untied"]
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    config = tf.BitsAndBytesConfig(**options)
    saved = family.from_pretrained(tmp_path / "hf", quantization_config=config, device_map="cpu").eval()
    saved.save_pretrained(tmp_path / "saved")
    expected = architectures.output(saved, "llama-untied")
    aibit.convert(tmp_path / "saved", tmp_path / "m.aibit")
    aibit.convert(tmp_path / "m.aibit", tmp_path / "again.aibit")
    with aibit.open(tmp_path / "again.aibit") as file:
        model = aibit.load_model(file)
        export(file, "huggingface", str(tmp_path / "out"))
    assert torch.equal(architectures.output(model, "llama-untied"), expected)
    again = family.from_pretrained(tmp_path / "out", device_map="cpu").eval()
    assert torch.equal(architectures.output(again, "llama-untied"), expected)
    layer = next(m for m in model.modules() if hasattr(m, "state") or hasattr(m, "compute_dtype"))
    assert layer.state.threshold == 2.5 if "load_in_8bit" in options else layer.compute_dtype == torch.float32
