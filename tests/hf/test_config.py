"""Configs, and what of them reaches a constructor."""

from __future__ import annotations

import json

import pytest

import aibit_format as aibit
from aibit_format.errors import FormatError
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


def test_unknown_config_keys_never_reach_a_constructor():
    from transformers import LlamaConfig

    from aibit_format.hf.config import allowed, build_config

    given = {
        "model_type": "llama",
        "hidden_size": 64,
        "rope_theta": 5000.0,
        "_private": 1,
        "made_up": "x",
        "use_kernels": 1,
    }
    kept, dropped = allowed(given, LlamaConfig)
    assert set(dropped) == {"_private", "made_up", "use_kernels"} and "hidden_size" in kept
    config = build_config(given)
    assert config.rope_parameters["rope_theta"] == 5000.0 and not hasattr(config, "made_up")
