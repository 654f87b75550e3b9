"""Architectures of GGUF, and those it has not."""

from __future__ import annotations

import json
import re

import gguf
import numpy as np
import pytest
import transformers

import aibit_format as aibit
from aibit_format.errors import SourceError, WriteError
from aibit_format.formats.gguf.architectures import of_file
from aibit_format.formats.gguf.architectures.llama import LLAMA
from aibit_format.formats.gguf.export import export
from aibit_format.formats.gguf.file import GGUFFile
from aibit_format.formats.gguf.rope import FACTORS
from aibit_format.formats.sources import open_source
from tests.support.gguf_conversion import CONFIGS, convert, model_of
from tests.support.gguf_models import all_types, finish, plain

transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert_count": 4}, "llama.expert_count is 4"),
        ({"attention.wonder": 4}, "key llama.attention.wonder is unknown here"),
        ({"attention.key_length": 16}, "'blk.0.attn_q.weight' has shape [256, 256], for 8 heads of 16"),
        ({"rope.dimension_count": 16}, "rope.dimension_count is 16, the heads have 32"),
        ({"attention.sliding_window": 128}, "sliding_window is 128"),
    ],
)
def test_a_llama_that_transformers_has_not_keeps_its_tensors(keys, message, tmp_path):
    arrays = all_types(tmp_path / "m.gguf", **keys)
    source = open_source(tmp_path / "m.gguf")
    assert message in source.no_model and set(source.tensors) == set(arrays)
    aibit.convert(source, tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        assert message in file.metadata["model.missing"]
        assert file.planes("blk.0.attn_q.weight")["blocks"].tobytes() == arrays["blk.0.attn_q.weight"].tobytes()
        assert file.check_document("gguf.json")["llama.block_count"] == 4
        with pytest.raises(WriteError, match="type 'f16': nothing says which tensors it is for"):
            export(file, str(tmp_path / "b.gguf"), type="f16")
        export(file, str(tmp_path / "b.gguf"))
    before, after = (GGUFFile(str(tmp_path / name)) for name in ("m.gguf", "b.gguf"))
    assert before.metadata == after.metadata
    assert {t.name: (t.type, after.read(t).tobytes()) for t in after.tensors} == {
        t.name: (t.type, before.read(t).tobytes()) for t in before.tensors
    }


@pytest.mark.parametrize(
    ("biases", "message"),
    [
        (("blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"), "attention_bias is all of them or none"),
        (("blk.0.attn_output",), "attention_bias is all of them or none"),
        (("blk.0.ffn_up",), "mlp_bias is all of them or none"),
        (("output",), "'output.bias' has no place in LlamaForCausalLM"),
    ],
)
def test_a_bias_that_transformers_has_not_keeps_the_model_from_being_one(biases, message, tmp_path):
    """One key of config.json stands for four biases: without all of them, those that are there would be lost."""
    all_types(tmp_path / "m.gguf")
    file = GGUFFile(str(tmp_path / "m.gguf"))
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    assert LLAMA.config(file.metadata, shapes, {})["attention_bias"] is False
    shapes |= {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in biases}
    with pytest.raises(SourceError, match=message):
        LLAMA.config(file.metadata, shapes, {})


@pytest.mark.parametrize("shape", [(), (256,), (1, 256, 256)])
def test_what_is_no_matrix_has_no_rows_to_reorder(shape, tmp_path):
    all_types(tmp_path / "m.gguf")
    file = GGUFFile(str(tmp_path / "m.gguf"))
    shapes = {tensor.name: tensor.shape for tensor in file.tensors} | {"blk.0.attn_q.weight": shape}
    with pytest.raises(SourceError, match=r"'blk.0.attn_q.weight' has shape .*, for 8 heads of 32"):
        LLAMA.config(file.metadata, shapes, {})


def rewritten(path, out, names=None, shapes=None, **keys) -> None:
    """Write a GGUF file again, with other names or shapes of its tensors, ``None`` for those to be left out."""
    file = GGUFFile(str(path))
    architecture = file.metadata["general.architecture"]
    writer = gguf.GGUFWriter(out, architecture)
    for key, value in (file.metadata | {f"{architecture}.{key}": value for key, value in keys.items()}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}.get(type(value))
        if add and key.startswith(architecture):
            add(key, value)
        elif isinstance(value, np.ndarray):
            writer.add_array(key, value.tolist())
    for tensor in file.tensors:
        name = (names or {}).get(tensor.name, tensor.name)
        shape = (shapes or {}).get(tensor.name, tensor.shape)
        if name is not None:
            values = file.read(tensor).view("<f4").reshape(-1)[: int(np.prod(shape))]
            writer.add_tensor(name, values.reshape(shape))
    finish(writer)


@pytest.mark.parametrize(
    ("name", "names", "shapes", "keys", "message"),
    [
        ("llama mixtral", {"blk.1.ffn_up_exps.weight": None}, {}, {}, "is there without 'blk.1.ffn_up_exps.weight'"),
        ("llama mixtral", {"blk.1.ffn_norm.weight": "blk.1.ffn_gate_up_exps.weight"}, {}, {}, "are both"),
        ("qwen3moe", {}, {"blk.0.ffn_up_exps.weight": (4, 16, 64)}, {}, "are not those of gate and up"),
        ("gemma2", {}, {}, {"block_count": 1 << 20}, "1048576 layers"),
        ("gemma3", {}, {}, {"attention.sliding_window_pattern": 5}, "sliding_window_pattern is 5"),
        ("phi3", {}, {}, {"rope.dimension_count": 64}, "dimension_count is 64, the heads have 16"),
        ("falcon two norms", {}, {}, {"attention.head_count_kv": 3}, "for 4 heads of 16 in 3 groups"),
        ("bloom", {}, {}, {"attention.head_count": 7}, "head_count_kv is 4, 1 x n_head is needed"),
        ("granite", {"blk.0.attn_q.weight": "blk.0.attn_qq.weight"}, {}, {}, "'blk.0.attn_qq.weight' has no place"),
        ("qwen35", {}, {}, {"ssm.time_step_rank": 5}, "inner_size is 128, a multiple of 5 heads is needed"),
        ("qwen35", {}, {}, {"nextn_predict_layers": 1}, "nextn_predict_layers is 1"),
        ("mamba", {}, {}, {"ssm.dt_b_c_rms": True}, "dt_b_c_rms is True"),
        ("mamba", {}, {}, {"ssm.inner_size": 64}, "ssm.inner_size is 64"),
        ("lfm2", {}, {}, {"attention.head_count_kv": 2}, None),
        ("starcoder2", {"blk.1.attn_q.bias": None}, {}, {}, "use_bias is all of them or none"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_no_model_and_says_why(name, names, shapes, keys, message, tmp_path):
    convert(model_of(name), name, tmp_path / "m.gguf", tokens=False)
    rewritten(tmp_path / "m.gguf", tmp_path / "bad.gguf", names, shapes, **keys)
    source = open_source(tmp_path / "bad.gguf")
    if message is None:  # every layer has heads, and some have no weights for them: the model lacks tensors
        with pytest.raises(SourceError, match="needs tensors that the checkpoint lacks"):
            aibit.convert(source, tmp_path / "m.aibit")
    else:
        assert source.no_model and re.search(message, source.no_model), source.no_model


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt-oss", "bloom", "mamba"])
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(name, tmp_path):
    data = convert(model_of(name), name, tmp_path / "m.gguf", tokens=False)
    ends = ("ffn_down.weight", "ssm_out.weight", "attn_output.weight")
    missing = next(key for key in data if key.startswith("blk.1.") and key.endswith(ends))
    rewritten(tmp_path / "m.gguf", tmp_path / "a.gguf", {missing: None})
    with pytest.raises(SourceError, match=r"needs tensors that the checkpoint lacks: .*\.1\."):
        aibit.convert(tmp_path / "a.gguf", tmp_path / "m.aibit")
    rewritten(tmp_path / "m.gguf", tmp_path / "b.gguf", shapes={missing: (32, 32)})
    with pytest.raises(SourceError, match=r"has shape \[32, 32\], .* wants"):
        aibit.convert(tmp_path / "b.gguf", tmp_path / "m.aibit")


def test_what_has_no_row_in_the_table_is_refused_by_name(tmp_path):
    for architecture in ("deepseek4", "rwkv7", "qwen3next"):
        plain(tmp_path / "m.gguf", architecture)
        found = open_source(tmp_path / "m.gguf").no_model
        assert f"architecture {architecture!r} is unknown here; known: llama, " in found


def test_another_architecture_is_kept_under_its_own_names(tmp_path):
    plain(tmp_path / "m.gguf")
    source = open_source(str(tmp_path / "m.gguf"))
    assert "architecture 'strange' is unknown here" in source.no_model and source.kind == "gguf"
    assert json.loads(source.documents["gguf.json"])["strange.list"] == [1.5, "nan"]
    aibit.convert(source, tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        assert np.array_equal(file.dequantize("blk.0.w"), np.ones((2, 32)))


WRONG = (
    None, -1, 0, 1, 3, 1 << 31, 1 << 40, 0.5, float("nan"), float("inf"), True, False, "word", ["a", "b"],
    np.array([1, 2]), np.array([0.5]), np.array([True, False]), np.array([], np.int32),
)  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_value_of_any_kind_under_any_key_is_refused_or_read(name, tmp_path):
    """Nothing but SourceError leaves, whatever a file says."""
    convert(model_of(name), name, tmp_path / "m.gguf", tokens=False)
    file = GGUFFile(str(tmp_path / "m.gguf"))
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    refused = 0
    for key in file.metadata:
        for value in WRONG:
            metadata = {**file.metadata, key: value}
            if value is None:
                del metadata[key]
            factors = {name: np.ones(shapes[name], np.float32) for name in FACTORS if name in shapes}
            model = of_file(metadata, shapes)
            try:
                if model is not None:
                    json.dumps(model.config(metadata, shapes, factors))
            except SourceError:
                refused += 1
    assert refused > 5 * len(file.metadata) - 30
