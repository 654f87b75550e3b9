"""What directories say of their quantization, and where."""

from __future__ import annotations

import json

import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.huggingface.settings import of_config, settings


@pytest.mark.parametrize(
    ("config", "method"),
    [({}, None), ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
     ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
     ({"quantization_config": {"load_in_8bit": True}}, "bitsandbytes"),
     ({"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
     ({"quantization_config": {"group_size": 64, "bits": 4}, "quantization": {"bits": 4}}, "mlx"),
     ({"quantization_config": {"quant_method": "intel/auto-round"}}, "gptq"),
     ({"quantization_config": {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}}, "awq"),
     ({"quantization_config": {"quant_method": "auto-round", "packing_format": "auto_round:mx_fp"}}, "auto-round"),
     ({"quantization_config": ["fp8"]}, "['fp8']")],
)  # fmt: skip
def test_the_method_of_a_config(config, method):
    assert of_config(config).method == method


@pytest.mark.parametrize(("name", "method"), [("quantize_config.json", "gptq"), ("hf_quant_config.json", "modelopt")])
def test_files_beside(name, method, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(json.dumps({"bits": 4, "quantization": {"quant_algo": "FP8"}}))
    found = settings(str(tmp_path))
    assert (found.method, found.file) == (method, name)
    for text in ("[]", "{"):
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError, match=name):
            settings(str(tmp_path))
