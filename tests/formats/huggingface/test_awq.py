"""AWQ directories: where codes lie in words, and what is no such directory."""

import json

import numpy as np
import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.sources import open_source
from aibit_format.schemes.packing import unpack
from tests.support.int4_checkpoints import AWQ_SAID, packed
from tests.support.int4_modules import one_module

NAME = "model.layers.0.mlp.up_proj"


def word(codes):
    """One word, of which row ``i`` has the code ``codes[i]``, by the order that AutoAWQ packs in."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    value = sum(codes[row] << (4 * nibble) for nibble, row in enumerate(order))
    return np.array([[value]], np.uint32).astype(np.int32)


def test_a_directory_of_awq_is_one_of_no_other_kind(tmp_path):
    one_module(tmp_path, AWQ_SAID, packed(AWQ_SAID, 8, 32))
    assert open_source(tmp_path).kind == "awq"
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "gptq"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"'m\.q\.qweight' stands for a weight \[1, 256\]"):
        open_source(tmp_path)


def test_nibbles_of_a_word_are_rows_in_the_order_of_autoawq(tmp_path):
    parts = packed(AWQ_SAID, 8, 32)
    rows = np.random.default_rng(1).integers(0, 16, (8, 32)).astype(np.uint8)
    parts["qweight"] = np.concatenate([word([int(code) for code in rows[:, k]]) for k in range(32)])
    zeros = list(range(3, 11))
    parts["qzeros"] = word(zeros)
    one_module(tmp_path, AWQ_SAID, parts)
    source = open_source(tmp_path)
    (name,) = [name for name, tensor in source.tensors.items() if tensor.scheme is not None]
    planes = source.planes(name)
    assert np.array_equal(unpack(planes["codes"], 4, 32), rows)
    assert planes["zero_point"].ravel().tolist() == zeros


@pytest.mark.parametrize("change", [{"version": "gemv"}, {"backend": "llm-awq"}, {"format": "marlin", "version": None}])
def test_other_ways_of_packing_are_refused_by_name(change, tmp_path):
    said = AWQ_SAID | change
    with pytest.raises(SourceError, match="only 'gemm'"):
        one_module(tmp_path, said, packed(AWQ_SAID, 8, 32))
        open_source(tmp_path)
