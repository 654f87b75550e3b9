"""gpt-oss' experts: blocks of sixteen bytes, and a scale for each."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.formats.huggingface.forms import NotHeldError
from tests.support.forms import form, laid_out, weight


def experts(columns=64):
    count = 2 * 3 * columns
    return weight("mxfp4", (2, 3, columns), "m.e.up", "transposed experts",
                  codes=np.arange(count // 2) % 256, scale=np.arange(count // 32))  # fmt: skip


def test_bytes_stay_in_their_order_and_are_cut_in_blocks(tmp_path):
    found = laid_out(form("mxfp4", tmp_path), experts())
    assert found["_blocks"].shape == (2, 3, 2, 16) and found["_blocks"].ravel().tolist() == [*range(192)]
    assert found["_scales"].shape == (2, 3, 2) and found["_scales"].ravel().tolist() == [*range(12)]


@pytest.mark.parametrize(("scheme", "shape"), [("mxfp4", (2, 3, 48)), ("mxfp4", (3, 64)), ("mxfp8", (2, 3, 64))])
def test_only_experts_in_whole_blocks_are_held(scheme, shape, tmp_path):
    with pytest.raises(NotHeldError, match="mxfp4 has experts in whole blocks of 32 columns alone"):
        form("mxfp4", tmp_path).settings(weight(scheme, shape, "m.e.up"))


def test_a_list_of_the_source_stays_as_short_as_it_was(tmp_path):
    mxfp4 = form("mxfp4", tmp_path)
    assert mxfp4.fused and mxfp4.settings(experts()) == "experts"
    assert mxfp4.config([experts()], ["m.q"]) == {"quant_method": "mxfp4", "modules_to_not_convert": ["m.q"]}
    known = form("mxfp4", tmp_path, {"modules_to_not_convert": ["lm_head", "m.e"]})
    assert known.config([experts()], ["m.q"])["modules_to_not_convert"] == ["lm_head"]
