"""Place planes and documents as the text says."""

from itertools import product

import numpy as np
import pytest

from aibit_format.container.placement import place


def placed_as_the_text_says(front_matter_length, documents, planes, roles, alignment):
    """The pseudo-code of the specification, line by line."""

    def align(x, a):
        return (x + a - 1) // a * a

    def pack(lengths, start, a):
        position, end, offsets = start, start, []
        for length in lengths:
            offset = position
            end = offset + length
            position = offset + align(length, a)
            offsets.append(offset)
        return offsets, end

    documents_start = 128 + front_matter_length
    document_offsets, end = pack(documents, documents_start, 64)
    documents_end = align(end, 64)
    weights = (1, 2, 13, 14)
    is_bulk = [length >= alignment and (r in weights or r >= 0x8000) for length, r in zip(planes, roles, strict=True)]
    small = [i for i, bulk in enumerate(is_bulk) if not bulk]
    bulk = [i for i, bulk in enumerate(is_bulk) if bulk]
    small_offsets, pool_length = pack([planes[i] for i in small], 0, 64)
    bulk_offsets, bulk_end = pack([planes[i] for i in bulk], align(pool_length, alignment), alignment)
    data_length, step = (bulk_end, alignment) if bulk else (pool_length, 64)
    if data_length >= 67108864:
        step = max(step, 2097152)
    data_start = align(documents_end, step)
    offsets = dict(zip(small + bulk, small_offsets + bulk_offsets, strict=True))
    return (
        document_offsets, documents_end, data_start, data_start + data_length,
        [data_start + offsets[i] for i in range(len(planes))],
    )  # fmt: skip


LENGTHS = (0, 1, 63, 64, 65, 4095, 4096, 4097, 2097151, 2097152, 67108863, 67108864)


@pytest.mark.parametrize("alignment", [64, 4096, 2097152])
def test_placement_is_the_one_of_the_text(alignment):
    cases = [(), *((a,) for a in LENGTHS), *product(LENGTHS, repeat=2), *product((0, 3, 64, 5000), repeat=4)]
    cases += [(2097151,) * 32, (2097151,) * 33, (4032,) * 16645, (4095,) * 16384]  # around 64 MiB, all of them small
    for planes, documents in product(cases, ((), (0,), (5, 0, 200))):
        for roles in ([2] * len(planes), [(3, 1, 14, 15, 0x8000)[i % 5] for i in range(len(planes))]):
            found = place(
                960, np.array(documents, np.uint64), np.array(planes, np.uint64), np.array(roles, np.uint16), alignment
            )
            expected = placed_as_the_text_says(960, documents, planes, roles, alignment)
            assert (
                found.document_offsets.tolist(), found.documents_end, found.data_start, found.data_end,
                found.plane_offsets.tolist(),
            ) == expected, (planes, roles, documents)  # fmt: skip


def test_regions_and_their_leaves():
    leaf = 1048576
    lengths = np.array([5, leaf, leaf], np.uint64)
    placed = place(960, np.array([leaf], np.uint64), lengths, np.array([3, 2, 2], np.uint16), 64)
    documents, data = placed.regions
    assert (documents.start, documents.end, documents.first, documents.leaves) == (1088, 1088 + leaf, 0, 1)
    assert (data.start, data.end, data.first, data.leaves) == (1088 + leaf, 1088 + 64 + 3 * leaf, 1, 3)
    assert placed.leaves == 4
    assert [data.leaf(i) for i in range(3)] == [
        (data.start, data.start + leaf), (data.start + leaf, data.start + 2 * leaf), (data.start + 2 * leaf, data.end),
    ]  # fmt: skip
    assert placed.plane_offsets.tolist() == [data.start, data.start + 64, data.start + 64 + leaf]
    for offset, length, leaves in ((0, 5, [0]), (64, leaf, [0, 1]), (leaf - 1, 2, [0, 1]), (2 * leaf, 64, [2])):
        assert list(data.covering(data.start + offset, length)) == leaves
    assert placed.region(1088) == documents and placed.region(data.start) == data


def test_regions_without_bytes_have_no_leaves():
    placed = place(960, np.array([0], np.uint64), np.array([0], np.uint64), np.array([2], np.uint16), 2097152)
    assert [(r.start, r.end, r.leaves) for r in placed.regions] == [(1088, 1088, 0)] * 2
