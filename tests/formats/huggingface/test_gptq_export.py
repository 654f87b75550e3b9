"""GPTQ's words by hand: codes along columns, zero points in both formats, orders of columns, the config."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import WriteError
from tests.support.forms import form, laid_out, weight

CODES = np.arange(64).reshape(8, 8) * 7 % 16
SCHEME = "int-group,group=row,zero=code"
LOW, HIGH = 0x7777_7778, 0x8888_8889


def stored(zeros=8, **more):
    packed = CODES[:, ::2] | CODES[:, 1::2] << 4
    return weight(SCHEME, (8, 8), codes=packed, scale=np.ones(8), zero_point=np.broadcast_to(zeros, 8), **more)


def test_a_word_has_the_codes_of_eight_columns_of_a_row(tmp_path):
    found = laid_out(form("gptq", tmp_path), stored())
    words = [sum(int(code) << 4 * i for i, code in enumerate(row)) for row in CODES]
    assert found[".qweight"].view(np.uint32).tolist() == [words]
    assert found[".g_idx"].tolist() == [0] * 8 and found[".scales"].shape == (1, 8)


@pytest.mark.parametrize(
    ("said", "zeros", "word"),
    [
        ({"checkpoint_format": "gptq"}, [9, 8, 8, 8, 8, 8, 8, 8], LOW),
        ({"checkpoint_format": "GPTQ_v2"}, [9, 8, 8, 8, 8, 8, 8, 8], HIGH),
        ({"bits": 4}, [16, 1, 1, 1, 1, 1, 1, 1], 0xF),  # beyond the largest code, which only "gptq" holds
        ({"checkpoint_format": "gptq_v2"}, [0, 15, 0, 0, 0, 0, 0, 0], 0xF0),
        # GPTQModel takes ones from whole words, so that a zero point of 0 borrows.
        ({"meta": {"quantizer": ["gptqmodel:2.0"]}}, [0, 8, 8, 8, 8, 8, 8, 8], 0x7777_776F),
    ],
)  # fmt: skip
def test_zero_points_are_less_one_in_the_first_format(said, zeros, word, tmp_path):
    found = laid_out(form("gptq", tmp_path, said), stored(zeros))
    assert found[".qzeros"].view(np.uint32).tolist() == [[word]] and ".g_idx" not in found


@pytest.mark.parametrize(("format", "zero", "range_"), [("gptq", 0, "1 to 16"), ("gptq_v2", 16, "0 to 15")])
def test_a_zero_point_that_a_format_does_not_hold_is_an_error(format, zero, range_, tmp_path):
    with pytest.raises(WriteError, match=rf"has zero points {zero} to {zero}, and gptq with 4 bits holds {range_};"):
        laid_out(form("gptq", tmp_path, {"checkpoint_format": format}), stored(zero))


def test_columns_in_another_order_are_said(tmp_path):
    index, gptq = np.arange(64) % 2, form("gptq", tmp_path, {"desc_act": False})
    ordered = weight("int4-group,group=32,symmetric=1,ordered=1", (8, 64), codes=np.zeros((8, 32)),
                     scale=np.ones((8, 2)), group_index=index)  # fmt: skip
    assert laid_out(gptq, ordered)[".g_idx"].tolist() == index.tolist()
    assert gptq.config([ordered], [])["desc_act"] is True


def test_the_config_says_what_is_quantized_and_what_is_not(tmp_path):
    head, gptq = stored(name="lm_head.weight"), form("gptq", tmp_path)
    layer = stored(name="m.layers.0.q.weight")
    assert gptq.config([layer], ["m.layers.1.q", "lm_head"]) == {
        "quant_method": "gptq", "desc_act": False, "bits": 4, "group_size": -1, "sym": False,
        "checkpoint_format": "gptq", "dynamic": {r"-:^m\.layers\.1\.q$": {}},
    }  # fmt: skip
    assert gptq.config([layer, head], [])["lm_head"] is True
    known = form("gptq", tmp_path, {"dynamic": {r"-:.*layers\.1": {}, "-:((": {}, "q": {}}})
    assert known.config([layer], ["m.layers.1.q"])["dynamic"].keys() == {r"-:.*layers\.1", "-:((", "q"}


def test_autoround_names_the_format_in_its_own_words(tmp_path):
    for packing, word in (("auto_round:auto_gptq", LOW), ("auto_round", HIGH)):
        gptq = form("gptq", tmp_path, {"quant_method": "auto-round", "packing_format": packing})
        found = laid_out(gptq, stored([9, 8, 8, 8, 8, 8, 8, 8]))[".qzeros"].view(np.uint32).tolist()
        assert "checkpoint_format" not in gptq.config([stored()], [])
        assert found == [[word]], packing
