"""Metadata come back as they were written."""

import numpy as np
from hypothesis import given, settings

from aibit_format.container.metadata import decode, encode
from tests.support.random_models import calm, metadata
from tests.support.same import same
from tools.fixtures import file_builder


def test_metadata_of_every_type_is_read_as_it_was_written():
    values = dict(file_builder.METADATA)
    found = decode(encode(values))
    assert list(found) == sorted(values)
    for key, value in values.items():
        assert np.array_equal(found[key], value) if isinstance(value, (list, np.ndarray)) else found[key] == value
        assert type(found[key]) is type(value) or value == []


@settings(calm, max_examples=150)
@given(metadata)
def test_metadata_comes_back_and_has_one_encoding(values):
    data = encode(values)
    found = decode(data)
    assert list(found) == sorted(values)
    assert all(same(found[key], value) for key, value in values.items())
    assert encode(found) == data
