"""Digests of files, whatever is read of them."""

import os

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from aibit_format.errors import SourceError
from aibit_format.io.hashed_reader import HashedReader
from tests.support.rows import small_pages as small_pages


@given(
    pieces=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 300)), max_size=12),
    size=st.sampled_from([0, 1, 1000]),
)
def test_a_tape_has_the_digest_of_its_file_whatever_is_read_of_it(pieces, size, tmp_path_factory):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    path = tmp_path_factory.mktemp("tape") / "f"
    path.write_bytes(data.tobytes())
    with HashedReader(str(path)) as tape:
        for start, length in pieces:
            out = np.empty(max(min(length, size - start), 0), np.uint8)
            if len(out):
                tape.read(start, out)
            assert np.array_equal(out, data[start : start + len(out)])
        assert tape.digest() == tape.digest() == xxhash.xxh3_128(data.tobytes()).hexdigest()


def test_a_tape_that_is_cut(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(5000))
    with pytest.raises(SourceError, match="nothing: No such file"):
        HashedReader(str(tmp_path / "nothing"))
    with HashedReader(str(path)) as tape:
        os.truncate(path, 3000)
        with pytest.raises(SourceError, match=r"f: ends at 3000, 4000 expected: truncated"):
            tape.read(2000, np.empty(2000, np.uint8))
        with pytest.raises(SourceError, match=r"ends at 3000, 5000 expected"):
            tape.digest()
