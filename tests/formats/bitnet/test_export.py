"""BitNet's bytes by hand: four rows in one, a quarter of the matrix apart."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.formats.huggingface.forms import NotHeldError
from tests.support.forms import form, laid_out, weight

CODES = np.array([[0, 1], [2, 0], [1, 1], [0, 2], [2, 2], [1, 0], [2, 1], [0, 0]])  # value + 1


def ternary(more=""):
    return weight(f"ternary{more}", (8, 2), codes=CODES[:, 0] | CODES[:, 1] << 2, scale=[0.5])


def test_a_byte_has_the_codes_of_rows_a_quarter_apart(tmp_path):
    found = laid_out(form("bitnet", tmp_path), ternary())
    columns = [[sum(int(code) << 2 * i for i, code in enumerate(CODES[row::2, k])) for row in (0, 1)] for k in (0, 1)]
    assert found[".weight"].T.tolist() == columns and found[".weight_scale"].tolist() == [0.5]
    # A scale that had no dimension in the source has none.
    assert laid_out(form("bitnet", tmp_path, {"a": 1}, [".weight_scale f32 0"]), ternary())[".weight_scale"].shape == ()


def test_the_layer_that_divides_is_another(tmp_path):
    bitnet = form("bitnet", tmp_path)
    assert [bitnet.settings(ternary(more)) for more in ("", ",reciprocal=1")] == ["autobitlinear", "bitlinear"]
    assert bitnet.config([ternary()], ["lm_head"]) == {
        "quant_method": "bitnet", "quantization_mode": "offline", "linear_class": "autobitlinear",
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    known = form("bitnet", tmp_path, {"linear_class": "bitlinear"})
    assert known.config([ternary()], [])["linear_class"] == "autobitlinear"
    assert "linear_class" not in form("bitnet", tmp_path, {"x": 1}).config([ternary(",reciprocal=1")], [])


@pytest.mark.parametrize(("scheme", "shape"), [("ternary", (6, 4)), ("ternary", (2, 4, 4)), ("mxfp4", (4, 32))])
def test_what_is_not_held_is_said(scheme, shape, tmp_path):
    with pytest.raises(NotHeldError, match="bitnet has ternary weights of a multiple of 4 rows alone"):
        form("bitnet", tmp_path).settings(weight(scheme, shape))
