"""Entries of bitsandbytes' layers by hand, and the state that goes with codes of 4 bits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from aibit_format.errors import WriteError
from aibit_format.formats.huggingface.bitsandbytes_export import BitsAndBytesForm
from aibit_format.formats.huggingface.export import stored_tensor
from aibit_format.formats.huggingface.forms import NotHeldError
from aibit_format.schemes import parse
from tests.support.exported_models import small
from tests.support.forms import laid_out

VALUES = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)


@pytest.fixture
def held(tmp_path):
    """A form, and the weight of one scheme."""

    def make(scheme, **metadata):
        file = small(tmp_path / "m.aibit", {"m.q.weight": (VALUES, parse(scheme))}, metadata=metadata)
        return BitsAndBytesForm(file), stored_tensor(file, file.info("m.q.weight"))

    return make


def test_rows_of_8_bits_have_scales_and_the_layout_that_is_left(held):
    form, stored = held("int8")
    found = laid_out(form, stored)
    assert [*found] == [".weight", ".SCB", ".weight_format"]
    assert np.array_equal(found[".SCB"], np.abs(VALUES.astype(np.float16).astype(np.float32)).max(1))
    assert found[".weight"].dtype == np.int8 and np.abs(found[".weight"]).max(1).tolist() == [127] * 4
    assert found[".weight_format"].shape == () and found[".weight_format"] == 0
    assert form.settings(stored) == "8-bit layers"


@pytest.mark.parametrize("nested", [0, 1])
def test_the_state_of_4_bits_is_json_in_bytes_with_keys_in_the_order_of_bitsandbytes(nested, held):
    form, stored = held(f"nf4,nested={nested}")
    found = laid_out(form, stored)
    state = json.loads(found[".weight.quant_state.bitsandbytes__nf4"].tobytes())
    keys = ["quant_type", "blocksize", "dtype", "shape"]
    assert [*state] == keys + ["nested_blocksize", "nested_dtype", "nested_offset"] * nested
    assert [state[key] for key in keys] == ["nf4", 64, "float32", [4, 64]]
    assert found[".weight"].shape == (128, 1) and found[".weight.quant_map"].shape == (16,)
    assert found[".weight.absmax"].dtype == (np.uint8 if nested else np.float32)
    assert (".weight.nested_absmax" in found) == (".weight.nested_quant_map" in found) == bool(nested)


def test_layers_compute_in_the_dtype_that_the_file_says(held):
    form, stored = held("nf4", **{"quantization.compute_dtype": "bf16", "model.dtype": "f16"})
    said = form.config([stored], ["lm_head"])
    assert said["bnb_4bit_compute_dtype"] == "bfloat16" and said["load_in_4bit"] and not said["load_in_8bit"]
    assert said["llm_int8_skip_modules"] == ["lm_head"] and said["quant_method"] == "bitsandbytes"


def test_the_threshold_of_outliers_comes_through(held):
    form, stored = held("int8", **{"quantization.outlier_threshold": 2.5})
    assert form.config([stored], [])["llm_int8_threshold"] == 2.5


def test_other_schemes_have_no_layer(held):
    form, stored = held("int4-group,group=32")
    with pytest.raises(NotHeldError, match="bitsandbytes has no layer for that"):
        form.settings(stored)
    with pytest.raises(WriteError, match=r"tensor 'm\.q\.weight': bitsandbytes has no layer for int4-group,group=32"):
        form.item(stored)
