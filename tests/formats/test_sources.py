"""Over the registries: every source and every export, on models that are made here; a new one needs a line."""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import aibit_format as aibit
from aibit_format.formats import exports, sources
from aibit_format.formats.sources import open_source
from tests.support import architectures, makers
from tests.support.int4_checkpoints import CHECKPOINTS, checkpoint
from tests.support.int4_checkpoints import plain as plain


@pytest.fixture(scope="module")
def made(plain, tmp_path_factory):
    """A path for each kind of source, all of the same small Llama."""
    folder = tmp_path_factory.mktemp("sources")
    paths = {kind: folder / kind for kind in ("huggingface", "bitsandbytes", "gptq", "awq")}
    paths |= {"aibit": folder / "m.aibit", "gguf": folder / "m.gguf", "archive": folder / "old.zip"}
    architectures.save("llama-untied", paths["huggingface"], torch.float16)
    aibit.convert(paths["huggingface"], paths["aibit"])
    with aibit.open(paths["aibit"]) as file:
        exports.export(file, "huggingface", paths["bitsandbytes"])
    checkpoint(plain, CHECKPOINTS["gptq"][0], paths["gptq"])
    checkpoint(plain, CHECKPOINTS["awq"][0], paths["awq"])
    aibit.convert(paths["huggingface"], folder / "q8.aibit", scheme="gguf:q8_0")
    with aibit.open(folder / "q8.aibit") as file:
        exports.export(file, "gguf", paths["gguf"])
    stream = io.BytesIO()
    torch.save(load_file(paths["bitsandbytes"] / "model.safetensors"), stream)
    state = makers.own(load_file(paths["huggingface"] / "model.safetensors"), 4, 2)
    sizes = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-6, "vocab_size": 160}
    own = sizes | {"multiple_of": 128, "ffn_dim_multiplier": 0.7}
    paths["meta"] = makers.write_parts(folder / "meta", makers.cut(state, 2, 0), own)
    paths["mistral"] = makers.write_whole(folder / "mistral", state, sizes | {"hidden_dim": 128})
    with zipfile.ZipFile(paths["archive"], "w") as file:
        file.writestr("model.pt", stream.getvalue())
        file.write(paths["bitsandbytes"] / "config.json", "config.json")
    return paths


@pytest.mark.parametrize("kind", sources.BUILTIN)
def test_every_source_opens_what_is_its_own(kind, made, tmp_path):
    source = open_source(made[kind])
    assert source.kind == kind and source.no_model is None
    assert source.files and all(file.size > 0 for file in source.files) and "config.json" in source.documents
    for name, tensor in source.tensors.items():
        specs = tensor.stored.planes(tensor.shape, tensor.dtype)
        assert {spec.role: spec.shape for spec in specs} == {r: p.shape for r, p in source.planes(name).items()}
    quantized = {name for name, tensor in source.tensors.items() if tensor.scheme is not None}
    assert len(quantized) == (0 if kind in ("huggingface", "meta", "mistral") else 14)
    report = aibit.convert(made[kind], tmp_path / "m.aibit")
    assert {t.name for t in report.tensors if t.kept} == quantized and not report.unused
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        for name in quantized:
            for role, plane in source.planes(name).items():
                assert np.array_equal(file.planes(name)[role], plane)
        assert architectures.output(aibit.load_model(file), "llama-untied").isfinite().all()


@pytest.mark.parametrize("kind", sources.BUILTIN)
def test_every_source_can_be_quantized_anew_with_any_number_of_threads(kind, made, tmp_path):
    for jobs in (1, 2):
        aibit.convert(made[kind], tmp_path / f"{jobs}.aibit", scheme="nf4,nested=1", jobs=jobs)
    assert (tmp_path / "1.aibit").read_bytes() == (tmp_path / "2.aibit").read_bytes()
    with aibit.open(tmp_path / "1.aibit", verify="full") as file:
        assert sum(file.info(name).scheme.name == "nf4" for name in file) == 14


@pytest.mark.parametrize("to", sorted(exports.BUILTIN.keys() - {"onnx"}))  # a graph is no source
@pytest.mark.parametrize("kind", ["huggingface", "aibit", "gguf", "gptq"])
def test_every_export_can_be_read_again(kind, to, made, tmp_path):
    aibit.convert(made[kind], tmp_path / "m.aibit")
    options = {"dequantize": True} if to == "huggingface" else {}
    with aibit.open(tmp_path / "m.aibit") as file:
        paths = exports.export(file, to, tmp_path / "out", **options)
        assert paths and all(os.path.exists(path) for path in paths)
        expected = architectures.output(aibit.load_model(file), "llama-untied")
    aibit.convert(tmp_path / "out", tmp_path / "again.aibit", scheme="keep")
    found = architectures.output(aibit.load_model(tmp_path / "again.aibit"), "llama-untied")
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
