"""Digests of leaves, and the root over them."""

import threading

import numpy as np
import pytest
import xxhash

from aibit_format.container import checksums
from aibit_format.container.layout import LEAF


@pytest.mark.parametrize(
    ("length", "count"), [(0, 0), (1, 1), (LEAF - 1, 1), (LEAF, 1), (LEAF + 1, 2), (1 << 40, (1 << 40) // LEAF)]
)
def test_leaves_cover_a_region(length, count):
    assert checksums.leaf_count(length) == count


def test_a_root_is_that_of_its_pieces_joined():
    pieces = [b"head", b"", b"front matter" * 100, memoryview(b"leaves")]
    assert checksums.root(*pieces) == xxhash.xxh3_128(b"".join(pieces)).digest()


@pytest.mark.parametrize("jobs", [1, 3, None])
def test_leaves_are_those_of_xxhash_whichever_are_wanted(jobs, encoders):
    region = np.random.default_rng(0).integers(0, 256, 3 * LEAF + 7, np.uint8)
    expected = [xxhash.xxh3_64_intdigest(region[i * LEAF : (i + 1) * LEAF].tobytes()) for i in range(4)]
    assert checksums.leaves(region, jobs=jobs).tolist() == expected
    assert checksums.leaves(region, [3, 0, 2], jobs).tolist() == [expected[i] for i in (3, 0, 2)]
    assert checksums.leaves(region[:0], jobs=jobs).tolist() == []


def test_work_of_several_threads_comes_in_order_and_its_first_error_is_raised():
    seen = set()

    def work(items):
        seen.add(threading.get_ident())
        if 70 in items:
            raise ValueError(items[0])
        return [item * 2 for item in items]

    assert checksums.in_threads(work, range(64), 4) == [2 * i for i in range(64)]
    assert threading.get_ident() not in seen
    with pytest.raises(ValueError, match="64"):
        checksums.in_threads(work, range(160), 4)
