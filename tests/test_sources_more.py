"""Ways in beside a directory of safetensors: bitsandbytes' own, torch.save, the old ZIP, an .aibit, a live model."""

from __future__ import annotations

import io
import json
import pathlib
import re
import shutil
import warnings
import zipfile

import architectures
import numpy as np
import pytest
import torch
import transformers as tf
from bitsandbytes import functional
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file

import aibit_format as aibit
from aibit_format import schemes
from aibit_format.convert.convert import convert
from aibit_format.errors import AibitError, SourceError
from aibit_format.file import writer
from aibit_format.formats.huggingface import bitsandbytes, source
from aibit_format.formats.sources import BUILTIN, open_source
from aibit_format.formats.torch_save import archive, pickled
from aibit_format.interop import to_numpy

INT8 = {"load_in_8bit": True}
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
}
FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": torch.bfloat16}
QUANTIZED = {
    "llama-8bit": ("llama-tied", INT8),
    "llama-nf4": ("llama-tied", NF4),
    "llama-fp4": ("llama-untied", FP4),
    "gpt2-8bit": ("gpt2", INT8),
    "gpt2-nf4": ("gpt2", NF4),
}
Q = "model.layers.0.self_attn.q_proj"


def quantized_model(folder, name: str, options: dict):
    family = architectures.MODELS[name][0]
    return family.from_pretrained(folder, quantization_config=tf.BitsAndBytesConfig(**options), device_map="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """A folder of models, plain under their names and as transformers saves them quantized."""
    folder = tmp_path_factory.mktemp("saved")
    for name in {name for name, _ in QUANTIZED.values()}:
        dtype = torch.float16 if name == "llama-untied" else torch.float32
        architectures.save(name, folder / name, dtype=dtype)
    for key, (name, options) in QUANTIZED.items():
        quantized_model(folder / name, name, options).save_pretrained(folder / key)
    return folder


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """An empty directory for a source, with room for the output beside it."""
    (tmp_path / "hf").mkdir()
    return tmp_path / "hf"


def refused(source, where: pathlib.Path, match: str, **options) -> AibitError:
    """``source`` is refused, and there is nothing in ``where`` that was not there before."""
    before = set(where.iterdir())
    with pytest.raises(AibitError, match=match) as caught:
        convert(source, where / "m.aibit", **options)
    assert set(where.iterdir()) == before
    return caught.value


def same_files(a, b) -> None:
    """Two files hold the same tensors, in the same schemes, bit for bit."""
    with aibit.open(a) as first, aibit.open(b, verify="full") as second:
        assert first.keys() == second.keys()
        for name in first:
            x, y = first.info(name), second.info(name)
            assert (x.shape, x.dtype, x.scheme, x.transposed) == (y.shape, y.dtype, y.scheme, y.transposed)
            for role, plane in first.planes(name).items():
                assert plane.tobytes() == second.planes(name)[role].tobytes(), (name, role)


# bitsandbytes' directories


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


def put(name, edit):
    def change(tensors, _):
        tensors[name] = np.array(edit(tensors[name]), order="C")

    return change


def state(**changes):
    """Another quant state; ``None`` leaves a key out."""

    def change(tensors, _):
        name = f"{Q}.weight.quant_state.bitsandbytes__nf4"
        value = json.loads(tensors[name].tobytes()) | changes
        text = json.dumps({key: item for key, item in value.items() if item is not None})
        tensors[name] = np.frombuffer(text.encode(), np.uint8)

    return change


def text(content: bytes):
    return put(f"{Q}.weight.quant_state.bitsandbytes__nf4", lambda _: np.frombuffer(content, np.uint8))


def config(**changes):
    return lambda _, said: said["quantization_config"].update(changes)


def first(value):
    """Another first entry."""

    def edit(array):
        array = array.copy()
        array[0] = value
        return array

    return edit


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


@pytest.mark.parametrize("method", ["hqq", "compressed-tensors", "fp8", "torchao", None, ["x"]])
def test_unknown_quantization_is_refused_by_name(method, saved, folder):
    shutil.copytree(saved / "llama-tied", folder, dirs_exist_ok=True)
    said = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(said))
    refused(folder, folder.parent, r"hf/config.json: quantized with quant_method .*known: awq, bitsandbytes, gptq")
    assert set(source.METHODS) <= set(BUILTIN)
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


# torch.save


@pytest.fixture
def weights(saved) -> dict[str, torch.Tensor]:
    return load_file(saved / "llama-tied" / "model.safetensors")


def with_config(saved, folder, key="llama-tied"):
    for name in ("config.json", "generation_config.json"):
        shutil.copy(saved / key / name, folder)
    return folder


def test_pickled_weights_convert_as_safetensors_do(saved, weights, folder, tmp_path):
    with_config(saved, folder)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]  # one storage, as a tied model saves it
    weights[f"{Q}.weight"] = weights[f"{Q}.weight"].T.contiguous().T  # strides that are not row-major
    padded = torch.zeros(3 + weights["model.norm.weight"].numel())
    padded[3:] = weights["model.norm.weight"]
    weights["model.norm.weight"] = torch.nn.Parameter(padded[3:])  # an offset into its storage
    torch.save(weights, folder / "pytorch_model.bin")
    convert(saved / "llama-tied", tmp_path / "a.aibit")
    convert(folder, tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")
    source = open_source(folder)
    assert source.files[0].name == "pytorch_model.bin" and source.kind == "huggingface"
    view = source.planes("model.embed_tokens.weight")["values"]
    assert not view.flags.owndata and not view.flags.writeable  # the mapped file itself


def test_torch_files_from_before_zip_convert_too(saved, weights, folder, tmp_path):
    with_config(saved, folder)
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(saved / "llama-tied", tmp_path / "a.aibit")
    convert(folder, tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


def sharded(saved, weights, folder) -> dict:
    with_config(saved, folder)
    names = sorted(weights)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, members in parts.items():
        torch.save({name: weights[name] for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return index


def test_pickled_shards(saved, weights, folder, tmp_path):
    sharded(saved, weights, folder)
    convert(folder, tmp_path / "a.aibit")
    convert(saved / "llama-tied", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


def test_pickled_shards_that_do_not_fit_are_refused(saved, weights, folder):
    index = sharded(saved, weights, folder)
    second = folder / "pytorch_model-00002-of-00002.bin"
    whole = second.read_bytes()
    second.write_bytes(whole[:-100])
    refused(folder, folder.parent, f"{second.name}: not a torch file, or truncated")
    second.unlink()
    refused(folder, folder.parent, f"'{second.name}' of pytorch_model.bin.index.json is missing")
    torch.save(weights, second)
    refused(folder, folder.parent, "is in pytorch_model-00001-of-00002.bin and in pytorch_model-00002-of-00002.bin")
    second.write_bytes(whole)
    index["weight_map"]["ghost"] = second.name
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    refused(folder, folder.parent, "tensor 'ghost' of pytorch_model.bin.index.json is not in")


def test_safetensors_come_first(saved, folder):
    shutil.copytree(saved / "llama-tied", folder, dirs_exist_ok=True)
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert [file.name for file in open_source(folder).files] == ["model.safetensors"]


def test_quantized_weights_may_be_pickled(saved, folder, tmp_path):
    with_config(saved, folder, "llama-nf4")
    torch.save(load_file(saved / "llama-nf4" / "model.safetensors"), folder / "pytorch_model.bin")
    convert(folder, tmp_path / "a.aibit")
    convert(saved / "llama-nf4", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


class Evil:
    """What runs when it is unpickled."""

    def __init__(self, trace: pathlib.Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return pathlib.Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_does_not_run(zipped, saved, folder, tmp_path):
    with_config(saved, folder)
    trace = tmp_path / "trace"
    torch.save({"a": Evil(trace)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with torch.serialization.safe_globals([pathlib.PosixPath]):
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()  # it would
    trace.unlink()
    refused(folder, folder.parent, r"pytorch_model.bin: refused by torch.load\(weights_only=True\): .*nsupported")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(2)], "holds a list"),
        ({"state_dict": {"a": torch.ones(2)}}, "'state_dict': a dict, not a tensor"),
        ({"a": 5}, "'a': a int"),
        ({3: torch.ones(2)}, "tensor 3: "),
        ({"a": torch.ones(2, 2).to_sparse()}, "'a': layout torch.sparse_coo"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a': dtype torch.complex64"),
        ({"a": torch.ones(2, device="meta")}, "'a': is on the meta device"),
        ({"a": torch.ones(1).expand(1000)}, r"'a': f32\[1000\] in 4 bytes"),
        ({"a": torch.ones(4).as_strided((2, 2), (1, 1))}, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_flat_state_dicts_of_plain_tensors_are_read(value, message, saved, folder):
    with_config(saved, folder)
    torch.save(value, folder / "pytorch_model.bin")
    if message is None:  # strides may overlap, as long as they stay inside
        assert pickled.PickledFile(str(folder / "pytorch_model.bin")).read("a").tolist() == [[1, 1], [1, 1]]
    else:
        refused(folder, folder.parent, f"pytorch_model.bin: .*{message}")


def test_a_lone_element_may_have_any_stride(saved, folder):
    for zipped in (True, False):
        torch.save({"a": torch.arange(9.0)[::5][1:]}, folder / "m.bin", _use_new_zipfile_serialization=zipped)
        assert pickled.PickledFile(str(folder / "m.bin")).read("a").tolist() == [5]


def test_quantized_torch_tensors_are_refused(saved, folder):
    with_config(saved, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for zipped in (True, False):
        torch.save({"a": value}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        refused(folder, folder.parent, "pytorch_model.bin: ")


def rezip(path: pathlib.Path, edit=lambda name, data: data, method=zipfile.ZIP_STORED) -> None:
    """Write a ZIP archive again, members changed."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in members.items():
            new.writestr(name, edit(name, data))


def test_an_archive_of_torch_that_contradicts_itself_is_refused(saved, folder):
    with_config(saved, folder)
    path = folder / "pytorch_model.bin"

    def saved_again(**options):
        torch.save({"a": torch.arange(100.0), "b": torch.ones(100)}, path)
        rezip(path, **options)

    saved_again(edit=lambda name, data: data[:-4] if name.endswith("data/0") else data)
    refused(folder, folder.parent, "'a': 400 bytes of storage at .*, where the archive has a member of 396")
    saved_again()
    refused(folder, folder.parent, "'b': 400 bytes of storage at .*, where the archive has no member")
    saved_again(method=zipfile.ZIP_DEFLATED)
    refused(folder, folder.parent, "is compressed, .* bytes for")
    saved_again()
    poke(path, "byteorder", 10, b"\x08")  # said to be deflated, which it is not
    refused(folder, folder.parent, "byteorder' is compressed, 6 bytes for 6")
    saved_again(edit=lambda name, data: b"big" if name.endswith("byteorder") else data)
    refused(folder, folder.parent, "byte order b'big'")
    torch.save({"a": torch.zeros(0, 5)}, path)
    rezip(path, edit=lambda name, data: data.replace(b"K\0K\5\x86", b"K\0J\xff\xff\xff\xff\x86"))
    refused(folder, folder.parent, r"shape \[0, -1\]")
    for content in (b"", b"PK\x03\x04", b"PK\x03\x04" + bytes(100), b"\x80\x04.", b"\x80\x02}q\x00."):
        path.write_bytes(content)
        refused(folder, folder.parent, "pytorch_model.bin")


# The old archive


def old_archive(path, saved, key="llama-8bit", method=zipfile.ZIP_STORED, **members) -> None:
    """What the proof of concept wrote; ``members`` come on top, ``None`` leaves one out."""
    state_dict = load_file(saved / key / "model.safetensors")
    stream = io.BytesIO()
    torch.save(state_dict, stream)
    said = json.loads((saved / key / "config.json").read_text())
    contents = {
        "model/weights.pt": stream.getvalue(),
        "config.json": json.dumps(said).encode(),
        "tokenizer/tokenizer.json": b"{}",
        "metadata.json": json.dumps({"format": "aibit", "config": said}).encode(),
    }
    for name, data in members.items():
        contents[name.replace("__", "/").replace("_json", ".json").replace("_pt", ".pt")] = data
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in contents.items():
            if data is not None:
                file.writestr(name, data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("key", ["llama-8bit", "gpt2-8bit"])
def test_the_old_archive_converts(method, key, saved, tmp_path):
    old_archive(tmp_path / "old.aibit", saved, key, method)
    convert(tmp_path / "old.aibit", tmp_path / "a.aibit")
    convert(saved / key, tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")
    with aibit.open(tmp_path / "a.aibit") as file:
        assert set(file.documents) == {"config.json", "tokenizer.json"}
        assert file.metadata["source.kind"] == "archive" and list(file.metadata["source.files"]) == ["old.aibit"]


def test_the_config_may_be_in_the_description(saved, tmp_path):
    old_archive(tmp_path / "old.aibit", saved, config_json=None)
    convert(tmp_path / "old.aibit", tmp_path / "a.aibit")
    convert(saved / "llama-8bit", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


def poke(path: pathlib.Path, name: str, offset: int, data: bytes) -> None:
    """Change a member's entry in the central directory, ``offset`` bytes from its start."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    content[at + offset : at + offset + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"config_json": None, "metadata_json": None}, "no config.json"),
        ({"config_json": None, "metadata_json": b'{"config": "x"}'}, "config"),
        ({"config_json": b"[]"}, "config.json: a JSON list"),
        ({"config_json": b"{"}, "not JSON"),
        ({"model__weights_pt": None}, "0 state dicts"),
        ({"other_pt": b""}, r"2 state dicts \(weights.pt, other.pt\)"),
        ({"deep__config_json": b"{}"}, "two members 'config.json': 'config.json', 'deep/config.json'"),
        ({"model__weights_pt": b"junk"}, "old.aibit: model/weights.pt: refused by torch.load"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_old_archive_that_is_incomplete_is_refused(members, message, saved, tmp_path):
    old_archive(tmp_path / "old.aibit", saved, **members)
    refused(tmp_path / "old.aibit", tmp_path, message)


def test_a_hostile_archive_is_refused_with_numbers(saved, tmp_path, monkeypatch):
    path = tmp_path / "old.aibit"
    bomb = bytes(4 << 20)
    old_archive(path, saved, method=zipfile.ZIP_DEFLATED, model__weights_pt=bomb)
    refused(path, tmp_path, rf"weights.pt': {4 << 20} bytes packed in \d+; at most .* and 100 times")
    old_archive(path, saved, method=zipfile.ZIP_DEFLATED, LICENSE=bomb)
    refused(path, tmp_path, rf"LICENSE': {4 << 20} bytes packed in")
    old_archive(path, saved)
    poke(path, "config.json", 8, b"\x01\x00")
    refused(path, tmp_path, "config.json' has flags 0x1")
    old_archive(path, saved)
    poke(path, "config.json", 10, b"\x0c\x00")
    refused(path, tmp_path, "config.json' has .*compression 12")
    old_archive(path, saved)
    poke(path, "config.json", 24, b"\x05\x00\x00\x00")
    refused(path, tmp_path, "config.json': stored, but 5 bytes are in")
    old_archive(path, saved)
    poke(path, "config.json", 20, (1 << 30).to_bytes(4, "little") * 2)
    refused(path, tmp_path, "members of .* bytes in a file of")
    old_archive(path, saved, method=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    content[200:240] = bytes(40)
    path.write_bytes(content)
    refused(path, tmp_path, "weights.pt': damaged")
    path.write_bytes(path.read_bytes()[:-50])
    refused(path, tmp_path, "old.aibit: not a ZIP archive, or truncated")
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1000)
    old_archive(path, saved)
    open_source(path)  # mapped, not unpacked
    old_archive(path, saved, method=zipfile.ZIP_DEFLATED)
    refused(path, tmp_path, "weights.pt': .* at most 1000")
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    refused(path, tmp_path, "4 members .*at most 3")


def test_names_that_are_paths_stay_names(saved, tmp_path):
    old_archive(tmp_path / "old.aibit", saved)
    with zipfile.ZipFile(tmp_path / "old.aibit", "a") as file:
        file.writestr("../../tokenizer_config.json", "{}")
        file.writestr("/etc/evil.py", "x")
    assert set(open_source(tmp_path / "old.aibit").documents) == {
        "config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_pickled_state_dict_in_an_archive_does_not_run(saved, tmp_path):
    stream = io.BytesIO()
    torch.save({"a": Evil(tmp_path / "trace")}, stream)
    old_archive(tmp_path / "old.aibit", saved, model__weights_pt=stream.getvalue())
    refused(tmp_path / "old.aibit", tmp_path, "weights.pt: refused by torch.load")
    assert not (tmp_path / "trace").exists()


def test_a_bare_torch_file_says_where_it_belongs(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    refused(tmp_path / "pytorch_model.bin", tmp_path, "0 state dicts .* into a directory with its config.json")


# An .aibit file


@pytest.mark.parametrize("key", QUANTIZED)
def test_an_aibit_file_converts_to_itself(key, saved, tmp_path):
    convert(saved / key, tmp_path / "a.aibit")
    convert(tmp_path / "a.aibit", tmp_path / "b.zip")  # what a file is, its content says
    same_files(tmp_path / "a.aibit", tmp_path / "b.zip")
    with aibit.open(tmp_path / "a.aibit") as a, aibit.open(tmp_path / "b.zip") as b:
        assert {name: bytes(text) for name, text in a.documents.items()} == {
            name: bytes(text) for name, text in b.documents.items()
        }
        assert [a.info(name).alias_of for name in a] == [b.info(name).alias_of for name in b]
        assert b.metadata["source.kind"] == "aibit" and list(b.metadata["source.files"]) == ["a.aibit"]


def test_an_aibit_file_takes_another_recipe(saved, tmp_path):
    convert(saved / "gpt2", tmp_path / "plain.aibit", scheme="keep")
    convert(tmp_path / "plain.aibit", tmp_path / "int8.aibit", scheme="int8")
    convert(saved / "gpt2", tmp_path / "straight.aibit", scheme="int8")
    same_files(tmp_path / "straight.aibit", tmp_path / "int8.aibit")
    convert(tmp_path / "int8.aibit", tmp_path / "back.aibit", scheme="f32")
    name = "transformer.h.0.attn.c_attn.weight"
    with aibit.open(tmp_path / "int8.aibit") as file, aibit.open(tmp_path / "back.aibit") as back:
        assert file.info(name).transposed and not back.info(name).transposed
        assert np.array_equal(back.planes(name)["values"], file.dequantize(name).T)


def test_the_architecture_of_an_aibit_file_is_kept(saved, tmp_path):
    shutil.copytree(saved / "llama-tied", tmp_path / "hf")
    said = json.loads((tmp_path / "hf" / "config.json").read_text()) | {"architectures": []}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(said))
    convert(tmp_path / "hf", tmp_path / "a.aibit", architecture="LlamaForCausalLM")
    convert(tmp_path / "a.aibit", tmp_path / "b.aibit", scheme="keep")
    with aibit.open(tmp_path / "b.aibit") as file:
        assert file.metadata["model.architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize("name", ["dtypes", "experts", "transposed", "alias", "shapes", "extra-section"])
def test_an_aibit_file_without_a_model_converts_too(name, fixtures, tmp_path):
    path = fixtures / "container" / f"{name}.aibit"
    source = open_source(path)
    assert source.no_model and source.architecture is None
    convert(path, tmp_path / "m.aibit")
    same_files(path, tmp_path / "m.aibit")


def test_a_damaged_aibit_file_leaves_none_behind(saved, tmp_path):
    convert(saved / "llama-8bit", tmp_path / "a.aibit")
    with aibit.open(tmp_path / "a.aibit") as file:
        offset = file.info(f"{Q}.weight").planes[1].offset
    content = bytearray((tmp_path / "a.aibit").read_bytes())
    content[offset] ^= 1
    (tmp_path / "a.aibit").write_bytes(content)
    assert refused(tmp_path / "a.aibit", tmp_path, "leaf digest").code == "AIB-E602"
    (tmp_path / "a.aibit").write_bytes(content[:-1])
    refused(tmp_path / "a.aibit", tmp_path, "a.aibit: ")


# A model in memory


@pytest.mark.parametrize("key", ["llama-8bit", "llama-fp4", "gpt2-nf4"])
def test_a_quantized_model_in_memory_is_taken_over(key, saved, tmp_path):
    name, options = QUANTIZED[key]
    model = quantized_model(saved / name, name, options)
    report = convert(model, tmp_path / "a.aibit")
    convert(saved / key, tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")
    assert all(tensor.error is None for tensor in report.tensors)
    if "load_in_8bit" in options:  # a forward pass moves the scales elsewhere
        architectures.output(model, name)
        convert(model, tmp_path / "c.aibit")
        same_files(tmp_path / "a.aibit", tmp_path / "c.aibit")


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "mixtral", "t5"])
def test_a_model_in_memory_converts_as_its_directory_does(name, tmp_path):
    architectures.save(name, tmp_path / "hf")
    model = architectures.MODELS[name][0].from_pretrained(tmp_path / "hf")
    convert(model, tmp_path / "a.aibit")
    convert(tmp_path / "hf", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")
    with aibit.open(tmp_path / "a.aibit") as file:
        config = json.loads(bytes(file.documents["config.json"]))
        assert config["architectures"] == [type(model).__name__] and config["dtype"] == "float32"
        assert file.metadata["source.kind"] == "pretrained" and len(file.metadata["source.files"]) == 0
    assert torch.isfinite(architectures.output(aibit.load_model(tmp_path / "a.aibit"), name)).all()


def test_tokenizer_and_generation_config_come_along(fixtures, tmp_path):
    folder = fixtures / "models" / "tiny-llama"
    model = tf.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    model.generation_config.max_new_tokens = 7
    aibit.convert(model, tmp_path / "m.aibit", tokenizer=tokenizer)
    loaded, ours = aibit.load(tmp_path / "m.aibit")
    assert ours("If the")["input_ids"] == tokenizer("If the")["input_ids"]
    assert ours.chat_template == tokenizer.chat_template and loaded.generation_config.max_new_tokens == 7


def test_a_model_whose_dtype_was_changed_says_so(saved, tmp_path):
    model = architectures.MODELS["llama-tied"][0].from_pretrained(saved / "llama-tied").to(torch.bfloat16)
    convert(model, tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        assert file.info("model.norm.weight").dtype == "bf16" and file.metadata["model.dtype"] == "bf16"


def test_a_repacked_model_is_refused_and_left_alone(saved, tmp_path):
    model = quantized_model(saved / "llama-tied", "llama-tied", NF4)
    weight = model.get_parameter(f"{Q}.weight")
    weight.quant_state.packing_format_for_cpu = True  # as the first forward pass leaves it, where the CPU has AVX512
    before = weight.data.clone()
    refused(model, tmp_path, f"in memory>: tensor '{Q}.weight': bitsandbytes repacked it")
    assert torch.equal(model.get_parameter(f"{Q}.weight").data, before)


def test_models_without_values_and_other_objects_are_refused(saved, tmp_path):
    with torch.device("meta"):
        model = tf.LlamaForCausalLM(architectures.MODELS["llama-tied"][1]())
    refused(model, tmp_path, "embed_tokens.weight': is on the meta device")
    refused(torch.nn.Linear(2, 2), tmp_path, "a Linear: neither a path, a source, nor")
    refused(5, tmp_path, "a int: neither")
    model = architectures.MODELS["llama-tied"][0].from_pretrained(saved / "llama-tied")
    model.config.quantization_config = {"quant_method": "hqq"}
    refused(model, tmp_path, "quantized with 'hqq'; known in memory: bitsandbytes")


@pytest.mark.gpu
def test_a_model_on_a_gpu_converts_as_on_the_cpu(saved, tmp_path):
    convert(quantized_model(saved / "llama-tied", "llama-tied", NF4).to("cuda"), tmp_path / "a.aibit")
    convert(saved / "llama-nf4", tmp_path / "b.aibit")
    same_files(tmp_path / "a.aibit", tmp_path / "b.aibit")


def test_tensors_without_a_model_keep_aliases_and_transposes_when_converted_again(tmp_path):
    scheme = schemes.make("int8")
    values = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    tensors = {
        writer.Tensor("a", (6, 4), "f32", scheme, transposed=True): scheme.encode(values, "f32"),
        writer.Tensor("b", (6, 4), "f32", scheme, "a", transposed=True): {},
    }
    writer.write(tmp_path / "a.aibit", tensors)
    for rules, expected in (({}, True), ({"^a$": "f32"}, False), ({"^a$": "int8-zp"}, False)):
        aibit.convert(tmp_path / "a.aibit", tmp_path / "b.aibit", tensors=rules, overwrite=True)
        with aibit.open(tmp_path / "b.aibit", verify="full") as file:
            assert file.info("b").alias_of == "a" and file.info("a").transposed == (rules != {"^a$": "f32"})
            found = file.dequantize("a") if file.info("a").transposed else file.dequantize("a").T
            assert np.array_equal(found, scheme.decode(scheme.encode(values, "f32"), (6, 4), "f32")) or not expected
            assert np.abs(found - values).max() < 0.05
            with pytest.raises(aibit.AibitError, match="no model"):
                aibit.load_model(file)
