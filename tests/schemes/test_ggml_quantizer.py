"""Scales of GGML's blocks for GPTQ are those that its encoders find, and codes go into the same blocks."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format import schemes
from aibit_format.errors import SchemeError
from aibit_format.schemes.ggml_encode import ENCODERS
from aibit_format.schemes.ggml_quantizer import ggml_quantizer


@pytest.mark.parametrize("name", ENCODERS)
def test_with_the_codes_of_the_search_blocks_are_those_of_the_encoder(name):
    scheme = schemes.make(name)
    quantizer = ggml_quantizer(scheme, 512)
    values = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    weights = np.exp(np.random.default_rng(1).normal(0, 2, 512)).astype(np.float32)
    parts = [slice(start, start + quantizer.span) for start in range(0, 512, quantizer.span)]
    found = [quantizer.find(values[:, part], weights[part]) for part in parts]
    codes = np.concatenate([each.codes for each in found], axis=1)
    blocks = quantizer.planes(codes, found)["blocks"]
    assert np.array_equal(blocks, scheme.encode_weighted(values, "f32", weights)["blocks"])


def test_a_scale_beyond_float16_is_refused():
    quantizer = ggml_quantizer(schemes.make("gguf:q4_0"), 32)
    values = np.full((1, 32), 3e38, np.float32)
    found = quantizer.find(values, np.ones(32, np.float32))
    with pytest.raises(SchemeError, match="65504"):
        quantizer.planes(np.zeros((1, 32), np.uint8), [found])
