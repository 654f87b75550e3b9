"""Int8 with rows of float16."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.dtypes import to_float32
from aibit_format.errors import SchemeError
from aibit_format.schemes import make, parse
from aibit_format.schemes.base import matrix
from tests.support.eight_bit_weights import F32, encoded, weights


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", [(64, 500), (4, 16, 500)])
def test_outlier_rows_are_float16_and_others_int8(shape, dtype):
    x = weights(shape, dtype=dtype)
    scheme, planes = encoded("int8-outlier", x, dtype)
    half = to_float32(x, dtype).astype(np.float16).reshape(matrix(shape))
    wide = half.astype(np.float64)
    rms = np.sqrt((wide**2).mean(axis=1))
    index = np.flatnonzero(np.abs(wide).max(axis=1) > 8 * rms)
    assert 0 < len(index) < len(half) and scheme.outliers == len(index)
    assert planes["outlier_index"].tolist() == index.tolist()
    assert planes["outlier_values"].tobytes() == half[index].tobytes()
    plain = make("int8").encode(x, dtype)
    plain_decoded = make("int8").decode(plain, shape, dtype).reshape(half.shape)
    decoded = scheme.decode(planes, shape, dtype).reshape(half.shape)
    assert np.array_equal(decoded[index], half[index].astype(F32))
    others = np.setdiff1d(np.arange(len(half)), index)
    assert np.array_equal(decoded[others], plain_decoded[others])
    for role in ("codes", "row_absmax"):
        mine, whole = (p[role].reshape(len(half), -1) for p in (planes, plain))
        assert np.array_equal(mine[others], whole[others]) and not mine[index].any()


def test_a_row_on_the_threshold_is_int8():
    x = np.zeros((3, 64), np.float16)  # a single value among K has a ratio of sqrt(K)
    x[:, 5] = [3, 0.1, 60000]
    assert parse("int8-outlier").fitted(x, "f16").outliers == 0
    assert parse("int8-outlier,threshold=7").fitted(x, "f16").outliers == 3
    assert parse("int8-outlier").fitted(np.pad(x, ((0, 0), (0, 1))), "f16").outliers == 3


def test_outliers_that_do_not_fit_are_refused():
    x = weights((64, 500), dtype="f16")
    fitted = parse("int8-outlier").fitted(x, "f16")
    more = (make("int8-outlier", 1, (8, fitted.outliers + 1)), make("int8-outlier").for_tensor([fitted.outliers + 1]))
    for scheme in (parse("int8-outlier"), *more):
        with pytest.raises(SchemeError, match=rf"{fitted.outliers} rows .* {scheme.outliers}; fitted"):
            scheme.encode(x, "f16")
    with pytest.raises(SchemeError, match="of 4 rows"):
        make("int8-outlier", 1, (8, 5)).planes((4, 8), "f16")
    with pytest.raises(SchemeError, match="of 4 rows"):
        make("int8-outlier").for_tensor((5, 0)).planes((4, 8), "f16")
    with pytest.raises(SchemeError, match="takes 1 parameters"):
        make("int8-outlier", 2, (8, 5))
    with pytest.raises(SchemeError, match="2\\^32"):
        make("int8-outlier").planes(((1 << 32) + 1, 8), "f16")


def test_bad_outliers_are_found():
    scheme, good = encoded("int8-outlier", weights((64, 500), dtype="f16"), "f16")
    index = good["outlier_index"]

    def damaged(role: str, at, value) -> list[str]:
        planes = good | {role: good[role].copy()}
        planes[role][at] = value
        return [found for found, _ in scheme.bad_values(planes)]

    assert damaged("outlier_index", -1, 64) == ["outlier_index"]
    assert damaged("outlier_index", 1, index[0]) == ["outlier_index"]
    assert damaged("outlier_values", (0, 3), np.nan) == damaged("outlier_values", (1, 0), np.inf) == ["outlier_values"]
    assert damaged("codes", (index[2], 499), 1) == ["codes"]
    assert damaged("row_absmax", index[2], 1) == ["row_absmax"]
    assert "row_absmax" in damaged("row_absmax", 2, 65505)
    assert "row_absmax" in damaged("row_absmax", 2, -1)
