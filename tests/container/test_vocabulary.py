"""The map of a vocabulary that was cut: both ways, one after the other, and damaged."""

import numpy as np
import pytest

from aibit_format.container.vocabulary import DOCUMENT, SIZE, Kept, check, kept
from aibit_format.errors import FormatError

MAP = Kept(np.array([0, 2, 3, 7], np.uint32), 9)


def test_ids_are_mapped_and_those_beyond_the_rows_follow():
    assert MAP.new([0, 1, 2, 3, 7, 8, 9, 10, -1]).tolist() == [0, -1, 1, 2, 3, -1, 4, 5, -1]
    assert MAP.old([0, 1, 2, 3, 4, 5]).tolist() == [0, 2, 3, 7, 9, 10]


def test_maps_follow_one_another():
    second = Kept(np.array([1, 3], np.uint32), 4).after(MAP)
    assert second.ids.tolist() == [2, 7] and second.size == 9


def test_a_file_says_it_in_a_document_of_little_endian_numbers():
    assert MAP.document == bytes.fromhex("00000000 02000000 03000000 07000000")
    found = kept({SIZE: 9}, {DOCUMENT: memoryview(MAP.document)})
    assert found is not None and found.ids.tolist() == [0, 2, 3, 7] and found.size == 9
    assert kept({}, {DOCUMENT: MAP.document}) is None and kept({SIZE: 9}, {}) is None


@pytest.mark.parametrize(("data", "size", "message"), [
    (b"\0\0\0", 9, "3 bytes are not whole ids of 4 bytes"),
    (bytes.fromhex("02000000 02000000"), 9, "id 2 after 2: ids increase"),
    (bytes.fromhex("03000000 02000000"), 9, "id 2 after 3: ids increase"),
    (bytes.fromhex("02000000 09000000"), 9, "id 9 of an original with 9 rows"),
])  # fmt: skip
def test_what_is_no_map(data, size, message):
    with pytest.raises(FormatError, match=message) as caught:
        kept({SIZE: size}, {DOCUMENT: data})
    assert caught.value.code == "AIB-E707"


def test_no_token_is_a_map_too():
    assert len(check(b"")) == 0
