"""Checkpoints that bitsandbytes has quantized."""

from __future__ import annotations

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import torch
import transformers as tf
from bitsandbytes import functional
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file

import aibit_format as aibit
from aibit_format.convert.convert import convert
from aibit_format.errors import SourceError
from aibit_format.formats.huggingface import bitsandbytes
from aibit_format.interop import to_numpy
from tests.support import architectures
from tests.support.saved_models import (
    NF4,
    QUANTIZED,
    Q,
    config,
    first,
    put,
    quantized_model,
    refused,
    same_files,
    text,
    with_config,
)
from tests.support.saved_models import folder as folder
from tests.support.saved_models import saved as saved


@pytest.mark.parametrize("key", QUANTIZED)
def test_what_bitsandbytes_has_quantized_is_taken_over_bit_for_bit(key, saved, tmp_path):
    report = convert(saved / key, tmp_path / "m.aibit")
    left = {name: to_numpy(value)[0] for name, value in load_file(saved / key / "model.safetensors").items()}
    assert all(tensor.error is None for tensor in report.tensors)
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        assert file.metadata["source.kind"] == "bitsandbytes" and file.metadata["quantization.recipe"] == ["*=keep"]
        for name in file:
            info, planes = file.info(name), file.planes(name)
            if info.alias_of:
                continue
            codes = left.pop(name)
            if info.scheme.name == "int8":
                owner = name.removesuffix(".weight")
                assert np.array_equal(planes["codes"], codes) and codes.dtype == np.int8
                assert np.array_equal(planes["row_absmax"], left.pop(f"{owner}.SCB"))
                assert left.pop(f"{owner}.weight_format") == 0
            elif info.scheme.name in ("nf4", "fp4"):
                kind = info.scheme.name
                state = json.loads(left.pop(f"{name}.quant_state.bitsandbytes__{kind}").tobytes())
                assert planes["codes"].tobytes() == codes.tobytes() and tuple(state["shape"]) == info.shape
                assert planes["absmax"].tobytes() == left.pop(f"{name}.absmax").tobytes()
                assert {"f16": "float16", "f32": "float32"}[info.dtype] == state["dtype"]
                left.pop(f"{name}.quant_map")
                if info.scheme.nested:
                    assert np.array_equal(planes["nested_absmax"], left.pop(f"{name}.nested_absmax"))
                    assert planes["nested_offset"].tolist() == [state["nested_offset"]]
                    left.pop(f"{name}.nested_quant_map")
            else:
                assert np.array_equal(planes["values"], codes)
            assert info.transposed == (key.startswith("gpt2") and info.scheme.name in ("int8", "nf4"))
        wanted = {"8bit": ("int8", 0), "nf4": ("nf4", 1), "fp4": ("fp4", 0)}[key.split("-")[1]]
        found = {(s.name, s.parameters[1] if s.parameters else 0) for s in file.tables.schemes}
        assert wanted in found and len(found) == 2
    assert not left


@pytest.mark.parametrize("key", ["llama-8bit", "gpt2-8bit"])
def test_a_saved_8_bit_model_computes_what_transformers_computes(key, saved, tmp_path):
    convert(saved / key, tmp_path / "m.aibit")
    ours = aibit.load_model(tmp_path / "m.aibit")
    theirs = architectures.MODELS[QUANTIZED[key][0]][0].from_pretrained(saved / key, device_map="cpu").eval()
    name = QUANTIZED[key][0]
    assert torch.equal(architectures.output(ours, name), architectures.output(theirs, name))


def test_quantized_weights_can_be_stored_otherwise(saved, tmp_path):
    convert(saved / "gpt2-nf4", tmp_path / "m.aibit", tensors={r"c_fc\.weight": "f32", r"c_attn\.weight": "int8"})
    stored = load_file(saved / "gpt2-nf4" / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    parts = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
    state = functional.QuantState.from_dict(parts, device="cpu")
    wanted = functional.dequantize_4bit(stored[name], state)
    with aibit.open(tmp_path / "m.aibit") as file:
        assert file.info(name).shape == (64, 256) and not file.info(name).transposed
        assert np.array_equal(file.planes(name)["values"], wanted.numpy().T)
        assert file.info(name.replace("mlp.c_fc", "attn.c_attn")).transposed


def drop(*names):
    def change(tensors, _):
        for name in names:
            del tensors[name]

    return change


def state(**changes):
    """Another quant state; ``None`` leaves a key out."""

    def change(tensors, _):
        name = f"{Q}.weight.quant_state.bitsandbytes__nf4"
        value = json.loads(tensors[name].tobytes()) | changes
        text = json.dumps({key: item for key, item in value.items() if item is not None})
        tensors[name] = np.frombuffer(text.encode(), np.uint8)

    return change


EIGHT = {
    "no scales": (drop(f"{Q}.SCB", f"{Q}.weight_format"), r"q_proj.weight': i8\[64, 64\] codes, but no .SCB"),
    "only a format": (drop(f"{Q}.SCB"), "q_proj"),
    "no weight": (drop(f"{Q}.weight"), "q_proj.weight' is missing"),
    "too few scales": (put(f"{Q}.SCB", lambda a: a[:-1]), r"SCB': f32\[63\].*row_absmax f32\[64\]"),
    "scales of rank 2": (put(f"{Q}.SCB", lambda a: a[:, None]), r"SCB': f32\[64, 1\]"),
    "scales in f16": (put(f"{Q}.SCB", lambda a: a.astype(np.float16)), r"SCB': f16\[64\]"),
    "codes unsigned": (put(f"{Q}.weight", lambda a: a.view(np.uint8)), r"u8\[64, 64\].*i8\[64, 64\]"),
    "a vector": (put(f"{Q}.weight", lambda a: a.reshape(-1)), "q_proj.weight'.*rank 2"),
    "turned round": (
        put("model.layers.0.self_attn.k_proj.weight", lambda a: a.T), r"k_proj.SCB': f32\[32\].*f32\[64\]"),
    "another shape than the config's": (
        lambda t, _: t.update({f"{Q}.weight": t[f"{Q}.weight"][:, :32].copy()}), r"\[64, 32\].*wants \[64, 64\]"),
    "format 1": (put(f"{Q}.weight_format", lambda a: np.array(1, np.uint8)), "weight format 1, expected 0"),
    "format of 3": (put(f"{Q}.weight_format", lambda a: np.zeros(3, np.uint8)), r"weight_format': u8\[3\]"),
    "infinite": (put(f"{Q}.SCB", first(np.inf)), "q_proj.SCB: a scale is not finite"),
    "not a number": (put(f"{Q}.SCB", first(np.nan)), "q_proj.SCB: a scale is not finite"),
    "negative": (put(f"{Q}.SCB", first(-1)), "q_proj.SCB: a scale is negative"),
    "beyond f16": (put(f"{Q}.SCB", first(1e6)), "q_proj.SCB: a scale is beyond"),
    "said to be 4 bit": (config(load_in_8bit=False, load_in_4bit=True), "is int8, config.json says nf4 or fp4"),
    "another dtype": (lambda _, said: said.update(dtype="float64"), "dtype 'float64' of quantized weights"),
}  # fmt: skip
W = f"{Q}.weight"
FOUR = {
    "no absmax": (drop(f"{W}.absmax"), "q_proj.weight.absmax' is missing"),
    "no codes": (drop(W), "q_proj.weight' is missing"),
    "no codebook": (drop(f"{W}.quant_map"), "quant_map' is missing"),
    "no state": (drop(f"{W}.quant_state.bitsandbytes__nf4"), "belongs to no quantized weight"),
    "codes alone": (drop(*(f"{W}.{part}" for part in (
        "absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4"))),
        r"q_proj.weight': u8\[2048, 1\] codes, but no .SCB and no .quant_state"),
    "no nested scales": (drop(f"{W}.nested_absmax"), "keys .*nested_blocksize.*expected"),
    "no nested codebook": (drop(f"{W}.nested_quant_map"), "nested_quant_map' is missing"),
    "one code less": (put(W, lambda a: a[:-1]), r"q_proj.weight': u8\[2047, 1\], 2047 bytes.*2048 bytes"),
    "codes in i32": (put(W, lambda a: a.reshape(512, 4).view(np.int32)), r"i32\[512, 1\]"),
    "one scale": (put(f"{W}.absmax", lambda a: a[:1]), r"absmax': u8\[1\].*absmax u8\[64\]"),
    "scales in f32": (put(f"{W}.absmax", lambda a: a.astype(np.float32)), r"absmax': f32\[64\]"),
    "no nested scale": (put(f"{W}.nested_absmax", lambda a: a[:0]), r"nested_absmax': f32\[0\].*f32\[1\]"),
    "another codebook": (put(f"{W}.quant_map", first(-1.0000001)), "entry 0 of the codebook"),
    "a short codebook": (put(f"{W}.quant_map", lambda a: a[:15]), r"f32\[15\], expected f32\[16\]"),
    "another nested codebook": (put(f"{W}.nested_quant_map", first(-0.5)), "entry 0 of the codebook is"),
    "infinite": (put(f"{W}.nested_absmax", first(np.inf)), "q_proj.weight.nested_absmax: a scale is not finite"),
    "not a number": (put(f"{W}.nested_absmax", first(np.nan)), "nested_absmax: a scale is not finite"),
    "offset beyond f32": (state(nested_offset=1e300), "nested_offset: the offset of the scales is not finite"),
    "offset not a number": (state(nested_offset=float("nan")), "NaN is no JSON number"),
    "offset a word": (state(nested_offset="x"), "nested_offset 'x', expected a JSON float"),
    "no offset": (state(nested_offset=None), "expected.*nested_offset"),
    "block of 63": (state(blocksize=63), "q_proj.weight'.*block size 63, one of 32"),
    "block of 0": (state(blocksize=0), "block size 0"),
    "block of true": (state(blocksize=True), "blocksize 'True'"),
    "another block": (state(blocksize=128), r"absmax u8\[32\]"),
    "nested block": (state(nested_blocksize=128), "nested blocks of 128 float32, expected 256"),
    "nested dtype": (state(nested_dtype="float16"), "nested blocks of 256 float16"),
    "huge shape": (state(shape=[10**6, 10**6]), "500000000000 bytes"),
    "shape turned": (state(shape=[32, 128]), r"\[32, 128\].*wants \[64, 64\]"),
    "negative shape": (state(shape=[-64, -64]), "shape .*-64"),
    "shape of rank 9": (state(shape=[1] * 9), "up to 8"),
    "shape of words": (state(shape=["64", "64"]), "shape"),
    "dtype load": (state(dtype="load"), "dtype 'load', expected one of float32"),
    "dtype float64": (state(dtype="float64"), "dtype 'float64'"),
    "another type": (state(quant_type="fp4"), "quant_type 'fp4' under the name 'nf4'"),
    "one key more": (state(extra=1), "keys .*extra"),
    "not JSON": (text(b"{"), "quant_state.*not JSON"),
    "a list": (text(b"[]"), "keys list"),
    "a key twice": (text(b'{"shape": [1], "shape": [2]}'), "'shape' is repeated"),
    "deep": (text(b"[" * 60000), "not JSON"),
    "long": (text(b" " * 70000), "at most 65536"),
    "said to be 8 bit": (config(load_in_8bit=True, load_in_4bit=False), "is nf4, config.json says int8"),
}  # fmt: skip
CASES = [("llama-8bit", *case) for case in EIGHT.values()] + [("llama-nf4", *case) for case in FOUR.values()]


@pytest.mark.parametrize(("key", "change", "message"), CASES, ids=[*EIGHT, *(f"4 bit: {name}" for name in FOUR)])
def test_parts_that_contradict_each_other_are_refused(key, change, message, saved, folder):
    tensors = load_numpy(saved / key / "model.safetensors")
    said = json.loads((saved / key / "config.json").read_text())
    change(tensors, said)
    save_numpy(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(said))
    error = refused(folder, folder.parent, message)
    assert isinstance(error, SourceError) and any(name in str(error) for name in ("model.safetensors", "config.json"))


def test_a_weight_cannot_be_quantized_twice(saved, folder):
    tensors = load_numpy(saved / "llama-8bit" / "model.safetensors")
    tensors |= {k: v for k, v in load_numpy(saved / "llama-nf4" / "model.safetensors").items() if k.startswith(f"{W}.")}
    save_numpy(tensors, folder / "model.safetensors")
    shutil.copy(saved / "llama-8bit" / "config.json", folder)
    refused(folder, folder.parent, "q_proj.weight': quantized twice")


def test_bitsandbytes_without_a_quantized_weight_is_refused(saved, folder):
    shutil.copy(saved / "llama-tied" / "model.safetensors", folder)
    shutil.copy(saved / "llama-8bit" / "config.json", folder)
    refused(folder, folder.parent, "of .* tensors none is")


def test_a_quantized_weight_may_be_spread_over_shards(saved, tmp_path):
    quantized_model(saved / "llama-tied", "llama-tied", NF4).save_pretrained(tmp_path / "hf", max_shard_size="9KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 3
    convert(tmp_path / "hf", tmp_path / "a.aibit")
    convert(saved / "llama-nf4", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


@pytest.mark.parametrize("method", ["of tomorrow", None, ["x"]])
def test_unknown_quantization_is_refused_by_name(method, saved, folder):
    shutil.copytree(saved / "llama-tied", folder, dirs_exist_ok=True)
    said = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(said))
    refused(folder, folder.parent, r"hf/config.json: quantized with quant_method .*known: awq, .*bitsandbytes, ")
    nested = {"model_type": "llava", "text_config": said}
    (folder / "config.json").write_text(json.dumps(nested))
    refused(folder, folder.parent, "quant_method")


@pytest.mark.parametrize(
    ("content", "message"), [("[]", "a JSON list"), ("{", "not JSON"), ('{"a":1,"a":2}', "repeated")]
)
def test_a_config_that_is_none_is_refused(content, message, saved, folder):
    shutil.copy(saved / "llama-tied" / "model.safetensors", folder)
    (folder / "config.json").write_text(content)
    refused(folder, folder.parent, f"hf/config.json: .*{message}")


def test_a_model_type_may_be_anything():
    for kind in ({}, [], None, 5):
        assert not bitsandbytes.conv1d_rule({"model_type": kind})("h.0.attn.c_attn.weight")


def test_the_table_of_conv1d_weights_is_that_of_transformers():
    """Where transformers has Conv1D, as its own sources say."""
    models = pathlib.Path(tf.__file__).parent / "models"
    types, names = set(), set()
    for modeling in models.glob("*/modeling_*.py"):
        source = modeling.read_text(encoding="utf-8")
        if found := re.findall(r"self\.(\w+) = Conv1D\(", source):
            names.update(found)
            configuration = modeling.with_name(modeling.name.replace("modeling", "configuration"))
            types.update(re.findall(r'model_type(?:: \w+)? = "([\w-]+)"', configuration.read_text(encoding="utf-8")))
    assert names == {"c_attn", "q_attn", "c_proj", "c_fc"}
    assert types - {"clvp_encoder"} == bitsandbytes._CONV1D_MODELS
    rule = bitsandbytes.conv1d_rule({"model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2"}})
    assert all(rule(f"decoder.transformer.h.0.x.{name}.weight") and rule(f"{name}.weight") for name in names)
    assert not rule("lm_head.weight") and not rule("h.0.c_attn.bias")
    assert not bitsandbytes.conv1d_rule({"model_type": "gpt_bigcode"})("transformer.h.0.attn.c_attn.weight")


def test_quantized_weights_may_be_pickled(saved, folder, tmp_path):
    with_config(saved, folder, "llama-nf4")
    torch.save(load_file(saved / "llama-nf4" / "model.safetensors"), folder / "pytorch_model.bin")
    convert(folder, tmp_path / "a.aibit")
    convert(saved / "llama-nf4", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")
