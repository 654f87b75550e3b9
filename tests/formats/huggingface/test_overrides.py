"""Settings of some modules: GPTQModel's dynamic, AutoRound's extra_config."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import aibit_format as aibit
from aibit_format.errors import SourceError
from aibit_format.formats.huggingface.overrides import Overrides
from tests.support.int4_checkpoints import AWQ_SAID, GPTQ_SAID, packed, reference
from tests.support.int4_checkpoints import plain as plain

LAYERS = "model.layers"
MORE = {"bits": 8, "group_size": 64}  # of one layer


def bytewise(rows: int, columns: int, group: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parts of a module with codes of 8 bits, and its weight."""
    random = np.random.default_rng(rows)
    codes, zeros = (
        random.integers(0, 255, shape).astype(np.uint8) for shape in ((rows, columns), (rows, columns // group))
    )
    scales = (random.normal(size=(columns // group, rows)) * 0.01).astype(np.float16)
    index = np.arange(columns, dtype=np.int32) // group
    words = codes.reshape(rows, -1, 4).view(np.int32)[..., 0].T.copy()
    parts = {"qweight": words, "qzeros": np.ascontiguousarray(zeros.T).view(np.int32), "scales": scales, "g_idx": index}
    weight = (codes.astype(np.float32) - (zeros.astype(np.float32) + 1)[:, index]) * scales.astype(np.float32).T[
        :, index
    ]
    return parts, weight


def written(plain, said: dict, folder) -> dict[str, np.ndarray]:
    """A Llama: the MLP of layer 0 in 8 bits, attention of layer 1 not quantized, all else in 4; returns the weights."""
    tensors, config = plain["llama-untied"]
    tensors, weights = dict(tensors), {}
    for key in [key for key in tensors if ".layers." in key and "norm" not in key]:
        module = key.removesuffix(".weight")
        if module.startswith(f"{LAYERS}.1.self_attn"):
            weights[key] = tensors[key].astype(np.float32)
            continue
        rows, columns = tensors.pop(key).shape
        if module.startswith(f"{LAYERS}.0.mlp"):
            parts, weights[key] = bytewise(rows, columns, 64)
        else:
            parts = packed(GPTQ_SAID, rows, columns)
            weights[key] = reference(GPTQ_SAID, parts)
        tensors |= {f"{module}.{part}": value for part, value in parts.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return weights


AUTOROUND = {key: value for key, value in GPTQ_SAID.items() if key != "quant_method"} | {
    "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq",
}  # fmt: skip
EACH = {f"{LAYERS}.0.mlp.{name}_proj": MORE for name in ("gate", "up", "down")}
SETTINGS = {
    "dynamic": GPTQ_SAID | {"dynamic": {r"-:model\.layers\.1\.self_attn\..*": {}, r"+:.*\.0\.mlp\.(gate|up)": MORE,
                                        r".*\.0\.mlp": MORE, r".*\.0\.mlp.down": {"bits": 2}}},
    "extra_config": AUTOROUND | {"extra_config": EACH | {
        f"{LAYERS}.1.self_attn.{name}_proj": {"bits": 16, "data_type": "fp"} for name in "qkvo"}},
    "expressions": AUTOROUND | {"extra_config": {r".*\.0\.mlp\..*": MORE, "1.self_attn": {"bits": 16}}},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_model_of_several_layouts_is_kept_as_it_is(name, plain, tmp_path):
    weights = written(plain, SETTINGS[name], tmp_path / "hf")
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    kept = {tensor.name: tensor.scheme for tensor in report.tensors if tensor.kept}
    assert len(kept) == 10 and not report.unused
    assert kept[f"{LAYERS}.0.mlp.up_proj.weight"] == "int-group,bits=8,group=64,zero=code"
    assert kept[f"{LAYERS}.1.mlp.up_proj.weight"] == "int4-group,group=32"
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        for key in kept:
            assert np.array_equal(file.dequantize(key), weights[key]), key


@pytest.mark.parametrize("said", [AWQ_SAID, GPTQ_SAID])
def test_what_is_said_of_other_modules_does_not_matter(said, tmp_path):
    rules = Overrides(said | {"dynamic": {"-:lm_head": {}}, "extra_config": {"lm_head": {"bits": 16}}}, SourceError)
    assert rules.rule("model.lm") is None
    found = rules.rule("lm_head")
    assert found is not None and found.key == "extra_config" and found.said is None


def test_the_first_expression_counts_and_a_name_goes_before():
    rules = Overrides(
        {"dynamic": {"+:a.b": {"bits": 2}, "a": {"bits": 3}, "-:c": {}},
         "extra_config": {"a.b.c": {"bits": 8}, r"\.d$": {"bits": 4}}},
        SourceError,
    )  # fmt: skip
    found = {name: rules.rule(name) for name in ("a.b", "a.c", "a.b.c", "c.d", "b.c", "b.d")}
    said = {name: rule and rule.said for name, rule in found.items()}
    assert said == {"a.b": {"bits": 2}, "a.c": {"bits": 3}, "a.b.c": {"bits": 8}, "c.d": None, "b.c": None,
                    "b.d": {"bits": 4}}  # fmt: skip
    assert found["c.d"] is not None and found["b.c"] is None
