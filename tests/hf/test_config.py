"""Configs, and what of them reaches a constructor."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers import LlamaConfig

import aibit_format as aibit
from aibit_format.errors import FormatError, LoadError
from aibit_format.hf import compat
from aibit_format.hf.config import WITHOUT_EFFECT, allowed, build_config, empty_model, model_class
from aibit_format.hf.limits import Limits
from tests.support import architectures
from tests.support.documents import rebuilt_with
from tests.support.edited_configs import refused


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no-such-model"}, "unknown to the installed transformers"),
        ({"model_type": ["llama"]}, "unknown to the installed transformers"),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": ["os.system"]}, "is not one of transformers'"),
        ({"architectures": ["BertModel"]}, "is not one of transformers'"),
        ({"dtype": "load"}, "expected one of float32"),
        ({"hidden_size": "many"}, "refused by LlamaConfig"),
        ({"intermediate_size": 160}, r"wants \["),
        ({"num_hidden_layers": 3}, "lacks: model.layers.2"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, message, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    edit_config(tmp_path / "hf", **changes)
    refused(tmp_path / "hf", message)


def test_config_keys_that_run_code_stay_out_of_the_file(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    edit_config(tmp_path / "hf", auto_map={"AutoModel": "evil.Model"}, _attn_implementation_internal="kernels/evil")
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    assert set(report.dropped_keys) >= {"config.json:auto_map", "config.json:_attn_implementation_internal"}
    with aibit.open(tmp_path / "m.aibit") as file:
        config = json.loads(bytes(file.documents["config.json"]))
        assert list(file.metadata["config.dropped_keys"]) == list(report.dropped_keys)
    assert "auto_map" not in config and config["hidden_size"] == 64
    aibit.load_model(tmp_path / "m.aibit")


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"_attn_implementation_internal": "kernels/evil"},
        {"attn_implementation": "kernels/evil"},
        {"experts_implementation": "kernels/evil"},
        {"quantization_config": {"quant_method": "evil"}},
        {"text_config": {"auto_map": {"AutoConfig": "evil.Config"}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_file_with_config_keys_that_run_code_is_refused_before_transformers_sees_it(change, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    config = json.loads((tmp_path / "hf" / "config.json").read_text()) | change
    text = json.dumps(config).encode()
    rebuilt_with(tmp_path / "m.aibit", tmp_path / "evil.aibit", "config.json", text)
    for use in (aibit.load_model, lambda path: aibit.open(path, verify="full")):
        with pytest.raises(FormatError) as caught:
            use(tmp_path / "evil.aibit")
        assert caught.value.code == "AIB-E706"


LIMITS = Limits(tensors=10, largest=1 << 20)


def test_keys_that_a_class_does_not_declare_reach_it_unless_they_are_no_data():
    no_data = {"push_to_hub": True, "attribute_map": {"hidden_size": "vocab_size"}, "__dict__": {}, "__class__": "x"}
    no_data |= {"_commit_hash": "x", "transformers_weights": "x", "_name_or_path": "who/what"}
    data = {"hidden_size": 64, "rope_theta": 5000.0, "made_up": [1, {"a": None}], "_private": 1, "head_dim": 24}
    given = {"model_type": "llama", "use_kernels": 1, **no_data, **data}
    kept, dropped = allowed(given, LlamaConfig)
    assert dropped == list(no_data) and kept == {"model_type": "llama", **data}
    config = build_config(given, LIMITS)
    assert config.rope_parameters["rope_theta"] == 5000.0 and config.made_up == [1, {"a": None}]
    assert config._private == 1 and config.head_dim == 24 and config.hidden_size == 64 and callable(config.push_to_hub)


def test_a_private_key_is_passed_on():
    for value in (True, False):
        config = build_config({"model_type": "opt", "_remove_final_layer_norm": value}, LIMITS)
        assert config._remove_final_layer_norm is value


def test_a_key_that_is_left_out_and_read_is_refused():
    with pytest.raises(LoadError, match=r"get_text_config is the name of a part of transformers' DogeConfig, and"):
        build_config({"model_type": "doge", "get_text_config": 1}, LIMITS)
    assert compat.mentioned(LlamaConfig, ["hidden_size", "no_such_key"]) == ["hidden_size"]


@pytest.mark.parametrize("written", ["Infinity", '{"__float__": "Infinity"}'])
def test_infinity_in_a_config_is_kept_in_either_form(written, tmp_path):
    config = transformers.Mamba2Config(
        vocab_size=64, hidden_size=32, state_size=8, num_hidden_layers=1, num_heads=8, head_dim=8, n_groups=1, expand=2
    )
    transformers.Mamba2ForCausalLM(config).save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    stored = json.loads(path.read_text()) | {"time_step_limit": "HERE"}
    path.write_text(json.dumps(stored).replace('"HERE"', f"[0.0, {written}]"))
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        assert file.check_document("config.json")["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert tuple(aibit.load_model(tmp_path / "m.aibit").config.time_step_limit) == (0.0, float("inf"))


@pytest.mark.parametrize("family", [transformers.Qwen2Config, transformers.Phi3Config, transformers.GraniteConfig])
def test_a_head_dim_that_is_not_declared_counts(family, tmp_path):
    config = family(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, pad_token_id=0,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="f32")
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        assert torch.equal(aibit.load_model(tmp_path / "m.aibit")(ids).logits, model(ids).logits)


def test_a_config_without_a_dtype_has_that_of_its_weights(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    del config["dtype"]
    path.write_text(json.dumps(config))
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").dtype
    assert aibit.load_model(tmp_path / "m.aibit").dtype == expected == torch.bfloat16


def test_what_reaches_no_configuration_is_reported(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    without_effect = dict.fromkeys(sorted(WITHOUT_EFFECT), "who/what")
    edit_config(tmp_path / "hf", push_to_hub=True, made_up=1, use_kernels=True, **without_effect)
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    names = ("use_kernels", "push_to_hub", *without_effect)
    assert sorted(report.dropped_keys) == sorted(f"config.json:{name}" for name in names)
    aibit.load_model(tmp_path / "m.aibit")


def test_a_class_outside_the_tables_of_tasks_is_found(tmp_path):
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "hf")
    edit_config(tmp_path / "hf", architectures=["BertLMHeadModel"])
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="f32")
    assert type(aibit.load_model(tmp_path / "m.aibit")).__name__ == "BertLMHeadModel"


@pytest.mark.parametrize("name", ["PreTrainedModel", "BertPreTrainedModel", "RobertaModel", "load_tf_weights_in_bert"])
def test_classes_of_no_model_or_of_another_are_none(name):
    with pytest.raises(LoadError, match="is not one of transformers'"):
        model_class(build_config({"model_type": "bert"}, LIMITS), name)


POOLING = {
    "with weights": (transformers.BertModel, lambda: transformers.BertConfig(
        vocab_size=160, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)),
    "without": (transformers.MobileNetV1Model, lambda: transformers.MobileNetV1Config(depth_multiplier=0.25)),
}  # fmt: skip


@pytest.mark.parametrize("held", [["a.weight"], ["pooler.dense.weight"]], ids=["lacks it", "has it"])
@pytest.mark.parametrize("name", POOLING)
def test_a_pooling_layer_stays_unless_it_has_weights_that_are_nowhere(name, held):
    family, make = POOLING[name]
    config = make()
    config.dtype = "float32"
    model = empty_model(config, family.__name__, Limits.of([1 << 20] * 100), held)
    assert (model.pooler is None) == (name == "with weights" and held == ["a.weight"])
