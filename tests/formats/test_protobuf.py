"""Fields of protobuf, as the specification of its encoding has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibit_format.formats.protobuf import fields, written


def test_the_examples_of_the_specification():
    (number,) = fields(bytes.fromhex("089601"))
    assert (number.number, number.value, bytes(number.raw)) == (1, 150, bytes.fromhex("089601"))
    (text,) = fields(bytes.fromhex("120774657374696e67"))
    assert (text.number, bytes(text.value)) == (2, b"testing")
    assert written(1, 150) == bytes.fromhex("089601") and written(2, b"testing") == bytes.fromhex("120774657374696e67")
    assert written(1, -2) == bytes.fromhex("08feffffffffffffffff01")


def test_fixed_sizes():
    found = list(fields(bytes.fromhex("0d0000803f 110000000000000000")))
    assert [(field.number, bytes(field.value)) for field in found] == [(1, b"\0\0\x80?"), (2, bytes(8))]


@given(st.lists(st.tuples(st.integers(1, 1 << 28), st.one_of(st.integers(0, (1 << 64) - 1), st.binary()))))
def test_what_is_written_is_read(pairs):
    found = list(fields(b"".join(written(*pair) for pair in pairs)))
    assert [
        (field.number, field.value if isinstance(field.value, int) else bytes(field.value)) for field in found
    ] == pairs
    assert b"".join(bytes(field.raw) for field in found) == b"".join(written(*pair) for pair in pairs)


@pytest.mark.parametrize("data", ["08", "0880", "12057465", "0d00", "0b", "08ffffffffffffffffffffff"])
def test_what_is_cut_off_or_no_message(data):
    with pytest.raises(ValueError, match=r"field|without end"):
        list(fields(bytes.fromhex(data)))


def test_a_number_is_no_message():
    with pytest.raises(ValueError, match="a number in the place of a message"):
        list(fields(3))
