"""Rows that are taken out of planes: beside what the registry's test compares, what cannot be taken, and signs."""

import numpy as np
import pytest

from aibit_format import schemes
from aibit_format.errors import SchemeError
from aibit_format.schemes import take_rows

ROWS = np.array([1, 4, 5])


def test_rows_of_one_block_of_rows_are_those_of_all():
    scheme = schemes.parse("fp8-block,rows=all,columns=64")
    values = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    planes = scheme.encode(values, "f32")
    _, found = take_rows.by_rows(scheme, planes, (8, 128), "f32", ROWS)
    assert found["scale"] is planes["scale"]
    assert np.array_equal(scheme.decode(found, (3, 128), "f32"), scheme.decode(planes, (8, 128), "f32")[ROWS])


def test_as_many_blocks_of_fewer_rows_are_not_the_same_blocks():
    """Two blocks of 4 rows cover 8 rows as well as 5 of them, and would be those of other rows."""
    scheme = schemes.parse("fp8-block,rows=4,columns=64")
    planes = scheme.encode(np.ones((8, 128), np.float32), "f32")
    with pytest.raises(SchemeError, match=r"numbers that several rows share \(scale \[2, 2\] of \[8, 128\]\)"):
        take_rows.by_rows(scheme, planes, (8, 128), "f32", np.array([0, 1, 2, 3, 7]))


def test_rows_that_end_inside_a_block():
    scheme = schemes.parse("nf4")
    planes = scheme.encode(np.ones((8, 96), np.float32), "f32")
    with pytest.raises(SchemeError, match="blocks that reach over the ends of rows in a tensor of \\[8, 96\\]"):
        take_rows.four_bit(scheme, planes, (8, 96), "f32", ROWS)


def test_nested_scales_below_zero():
    scheme = schemes.parse("nf4,nested=1")
    values = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32)
    values[0] *= 1.75
    values[4] = 0
    planes = scheme.encode(values, "f32")
    assert scheme.absmax(planes, slice(None))[4] < 0
    plain, found = take_rows.four_bit(scheme, planes, (64, 64), "f32", ROWS)
    assert plain == schemes.parse("nf4") and found["absmax"][1] == 0 and not np.signbit(found["absmax"]).any()
    assert np.array_equal(plain.decode(found, (3, 64), "f32"), scheme.decode(planes, (64, 64), "f32")[ROWS])
    planes["codes"] = planes["codes"].copy()
    planes["codes"][4 * 32] = 0xFF
    with pytest.raises(SchemeError, match="nf4,nested=1 has nested scales below zero"):
        take_rows.four_bit(scheme, planes, (64, 64), "f32", ROWS)


def test_rows_kept_apart_are_numbered_anew():
    scheme = schemes.parse("int8-outlier,threshold=3")
    values = np.ones((8, 64), np.float32)
    values[[1, 2, 5], 7] = 50
    scheme = scheme.fitted(values, "f32")
    planes = scheme.encode(values, "f32")
    found, taken = take_rows.int8_outlier(scheme, planes, (8, 64), "f32", ROWS)
    assert found.outliers == 2 and taken["outlier_index"].tolist() == [0, 2]
    assert np.array_equal(found.decode(taken, (3, 64), "f32"), values[ROWS])
    with pytest.raises(SchemeError, match=r"rows of a tensor of \[2, 4, 64\] are not taken"):
        take_rows.int8_outlier(scheme, planes, (2, 4, 64), "f32", ROWS)
