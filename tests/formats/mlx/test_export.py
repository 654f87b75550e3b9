"""MLX's words by hand, modes of small floats, and what the config says by path."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import WriteError
from aibit_format.formats.huggingface.forms import NotHeldError
from tests.support.forms import form, laid_out, weight


def affine(bits=4, name="m.q.weight"):
    count = 2 * 32 * bits // 8
    return weight(f"int-group,bits={bits},group=32,zero=bias", (2, 32), name, codes=np.arange(count),
                  scale=[0.5, 2], bias=[-1, 3])  # fmt: skip


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_row_is_a_stream_of_codes_in_words(bits, tmp_path):
    found = laid_out(form("mlx", tmp_path), affine(bits))
    assert [*found] == [".weight", ".scales", ".biases"] and found[".weight"].dtype == np.uint32
    assert found[".weight"].shape == (2, bits) and found[".weight"].tobytes() == bytes(range(8 * bits))
    assert found[".scales"].tolist() == [[0.5], [2.0]] and found[".biases"].tolist() == [[-1.0], [3.0]]


def test_biases_have_another_name_for_metal(tmp_path):
    assert [*laid_out(form("mlx", tmp_path, {"quant_method": "metal"}), affine())][2] == ".qbiases"


@pytest.mark.parametrize(("scheme", "mode", "scales"), [("mxfp4", "mxfp4", 4), ("mxfp8", "mxfp8", 4)])
def test_small_floats_have_modes(scheme, mode, scales, tmp_path):
    count = 2 * 64 * int(scheme[-1]) // 8
    stored, mlx = weight(scheme, (2, 64), codes=np.arange(count), scale=np.arange(scales)), form("mlx", tmp_path)
    found = laid_out(mlx, stored)
    assert found[".weight"].tobytes() == bytes(range(count)) and found[".scales"].tolist() == [[0, 1], [2, 3]]
    assert mlx.config([stored], []) == {"group_size": 32, "bits": int(scheme[-1]), "mode": mode}


def test_a_scale_of_the_whole_tensor_has_to_be_one(tmp_path):
    def small(scale):
        return weight("nvfp4", (2, 64), codes=np.zeros(64), scale=np.arange(8), global_scale=[scale])

    with pytest.raises(NotHeldError, match="MLX has no scale of a whole tensor"):
        form("mlx", tmp_path).settings(small(1))
    mlx = form("mlx", tmp_path, {"mode": "nvfp4", "bits": 4, "group_size": 16})
    assert laid_out(mlx, small(1))[".scales"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(WriteError, match="has a scale of the whole tensor, which MLX has not"):
        laid_out(mlx, small(2))


@pytest.mark.parametrize(
    ("scheme", "shape", "message"),
    [
        ("int-group,group=32", (2, 32), "MLX has integers with biases, mxfp4, mxfp8 and nvfp4 alone"),
        ("mxfp8,element=f8_e5m2", (2, 32), "MLX has integers with biases"),
        ("nvfp4,reciprocal=1", (2, 32), "MLX has integers with biases"),
        ("int-group,bits=1,group=32,zero=bias", (2, 32), r"MLX has no 1 bits in groups of 32 for \[2, 32\]"),
        ("int-group,group=8,zero=bias", (2, 32), "MLX has no 4 bits in groups of 8"),
        ("int-group,group=row,zero=bias", (2, 32), "MLX has no 4 bits in groups of 0"),
        ("int-group,group=32,zero=bias", (2, 48), r"for \[2, 48\]"),
        ("int-group,group=32,zero=bias", (2, 2, 32), "MLX has matrices alone"),
    ],
)
def test_what_is_not_held_is_said(scheme, shape, message, tmp_path):
    with pytest.raises(NotHeldError, match=message):
        form("mlx", tmp_path).settings(weight(scheme, shape))


def test_those_that_differ_from_most_are_said_by_path(tmp_path):
    weights = [affine(4, "m.0.weight"), affine(4, "m.1.weight"), affine(8, "m.2.weight")]
    eight = {"mode": "affine", "group_size": 32, "bits": 8}
    assert form("mlx", tmp_path).config(weights, []) == {"group_size": 32, "bits": 4, "m.2": eight}
    # What the source said is kept where it is true: of modules that are quantized so, and of those that are not at all.
    said = {"bits": 8, "group_size": 32, "m.0": {"bits": 4}, "m.1": False, "m.9": {"bits": 2}, "m.8": False}
    assert form("mlx", tmp_path, said).config(weights, []) == {
        "quant_method": "mlx", "bits": 8, "group_size": 32, "m.0": {"bits": 4}, "m.8": False,
        "m.1": {"mode": "affine", "group_size": 32, "bits": 4},
    }  # fmt: skip


def test_mlx_writes_no_method_and_metal_one(tmp_path):
    said = {"quant_method": "mlx", "bits": 4}
    found = form("mlx", tmp_path).with_config({"a": 1}, said)
    assert found == {"a": 1, "quantization": {"bits": 4}, "quantization_config": {"bits": 4}}
    metal = form("mlx", tmp_path).with_config({}, {"quant_method": "metal"})
    assert metal == {"quantization_config": {"quant_method": "metal"}}
