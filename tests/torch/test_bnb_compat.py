"""What is leant on of bitsandbytes is there, and an error names what is not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bitsandbytes import functional

from aibit_format.errors import IncompatibleLibraryError
from aibit_format.schemes import make, parse
from aibit_format.torch import bnb_compat


def tensors(planes):
    return {role: torch.from_numpy(np.array(plane)) for role, plane in planes.items()}


def test_what_is_missing_is_named_with_the_version_and_the_reason():
    with pytest.raises(IncompatibleLibraryError, match=r"bitsandbytes.*Gone.*\n?.*the reason") as caught:
        bnb_compat.need(SimpleNamespace(__name__="nn"), "Gone", "the reason")
    assert all(version in str(caught.value) for version in bnb_compat.CHECKED)


def test_codes_and_scales_are_taken_as_they_are():
    planes = tensors(make("int8").encode(np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32), "f32"))
    made = bnb_compat.int8_parameter(planes["codes"], planes["row_absmax"], torch.device("cpu"))
    assert made.CB.data_ptr() == planes["codes"].data_ptr() and torch.equal(made.SCB, planes["row_absmax"])
    layer = bnb_compat.Linear8bitLt(16, 8, bias=False, has_fp16_weights=False, threshold=bnb_compat.THRESHOLD)
    layer.weight = made
    codes, scales = bnb_compat.int8_state(layer)
    assert torch.equal(codes, planes["codes"]) and torch.equal(scales, planes["row_absmax"])


@pytest.mark.parametrize("text", ["nf4", "nf4,nested=1", "fp4", "fp4,block_size=128"])
def test_bitsandbytes_decodes_with_the_state_what_the_scheme_decodes(text):
    scheme, values = parse(text), np.random.default_rng(1).normal(size=(64, 128)).astype(np.float32)
    planes = scheme.encode(values, "f32")
    state = bnb_compat.quant_state(scheme, values.shape, "f32", tensors(planes))
    found = functional.dequantize_4bit(torch.from_numpy(planes["codes"].copy()).view(-1, 1), state)
    assert found.shape == values.shape
    assert np.array_equal(found.numpy(), scheme.decode(planes, values.shape, "f32"))
