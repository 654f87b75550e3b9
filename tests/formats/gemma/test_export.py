"""Gemma's integers by hand, the numbers of inputs that have to be there, and widths by module."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.formats.huggingface.forms import NotHeldError
from tests.support.forms import form, laid_out, weight


def stored(bits=4, name="m.q.weight", kind="linear", columns=8):
    return weight(f"int-group,bits={bits},group=row,scale=f32", (2, columns), name, kind,
                  codes=np.arange(2 * columns * bits // 8) + 1, scale=[0.5, 2])  # fmt: skip


def test_codes_of_8_bits_are_signed_and_others_stay_packed(tmp_path):
    found = laid_out(form("gemma", tmp_path), stored(8))
    assert found[".weight"].dtype == np.int8 and found[".weight"].ravel().tolist() == [i + 1 - 128 for i in range(16)]
    assert found[".weight_scale"].tolist() == [[0.5], [2.0]]
    packed = laid_out(form("gemma", tmp_path), stored(4))[".weight"]
    assert packed.dtype == np.uint8 and packed.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_zero_says_that_inputs_are_not_quantized(tmp_path):
    """Without such a number transformers makes one up."""
    found = laid_out(form("gemma", tmp_path), stored())
    ends = [".input_activation_scale", ".output_activation_scale"]
    assert [found[end] for end in ends] == [0, 0] and found[ends[0]].shape == ()
    plain = form("gemma", tmp_path, {"num_bits": 4})
    assert not laid_out(plain, stored()).keys() & set(ends)
    left_out = form("gemma", tmp_path, {"num_bits": 4}, left_out=["2 tensors input_activation_scale"])
    assert set(ends) < laid_out(left_out, stored()).keys()


def test_embeddings_have_names_of_their_own(tmp_path):
    assert [*laid_out(form("gemma", tmp_path), stored(kind="embedding"))] == [
        ".embedding_quantized", ".embedding_scale",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "shape", "message"),
    [
        ("int-group,bits=3,group=row", (2, 8), "symmetric integers of 2, 4 or 8 bits alone"),
        ("int-group,group=row,zero=code", (2, 8), "symmetric integers"), ("mxfp4", (2, 32), "symmetric integers"),
        ("int-group,group=row", (2, 7), r"rows of whole bytes and groups alone, not \[2, 7\]"),
        ("int-group,group=row", (2, 2, 8), r"rows of whole bytes and groups alone"),
        ("int-group,group=8", (2, 16), "gemma has one scale a row"),
    ],
)  # fmt: skip
def test_what_is_not_held_is_said(scheme, shape, message, tmp_path):
    with pytest.raises(NotHeldError, match=message):
        form("gemma", tmp_path).settings(weight(scheme, shape))


def test_embeddings_alone_may_have_groups(tmp_path):
    form("gemma", tmp_path).settings(weight("int-group,group=8", (2, 16), kind="embedding"))


def test_widths_that_differ_are_expressions_before_those_of_the_source(tmp_path):
    weights = [stored(4, "m.0.q.weight"), stored(4, "m.1.q.weight"), stored(8, "m.2.q.weight")]
    said = form("gemma", tmp_path).config(weights, [])
    assert said["num_bits"] == 4 and said["module_quant_configs"] == {r"^m\.2\.q$": {"num_bits": 8}}
    patterns = {r"m\.[12]": {"num_bits": 4}, "gone": {"num_bits": 2}, "((": {"num_bits": 2}}
    known = form("gemma", tmp_path, {"num_bits": 4, "module_quant_configs": patterns}).config(weights, [])
    assert [*known["module_quant_configs"].items()] == [(r"^m\.2\.q$", {"num_bits": 8}), (r"m\.[12]", {"num_bits": 4})]
    assert "module_quant_configs" not in form("gemma", tmp_path).config(weights[:2], [])
