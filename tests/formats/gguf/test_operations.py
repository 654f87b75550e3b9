"""Operations that turn tensors of GGUF into those of transformers, on small arrays by hand."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.gguf.operations import (
    JOINED,
    KEYS_AND_VALUES,
    NEGATED_EXPONENTIAL,
    SAME,
    SHIFTED,
    Interleaved,
    rotary,
)

CONFIG = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8}
QUERIES = rotary("num_attention_heads")


def there_and_back(operation, arrays, config=CONFIG):
    made = operation.to_hugging_face(arrays, config)
    back = operation.to_gguf(made, config)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, back, strict=True))
    return made


def test_rows_of_a_head_that_rotate_together_lie_half_a_head_apart():
    rows = np.arange(8, dtype=np.float32)[:, None]
    # GGUF has the pairs (0, 1), (2, 3) of a head of four side by side.
    assert there_and_back(QUERIES, [rows])[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert QUERIES.moves_blocks(32, CONFIG) and not QUERIES.keeps_order


def test_rows_of_blocks_move_as_they_are():
    blocks = np.arange(8 * 34, dtype=np.uint8).reshape(8, 34)
    assert np.array_equal(there_and_back(QUERIES, [blocks]), blocks[[0, 2, 1, 3, 4, 6, 5, 7]])


def test_a_tensor_of_another_rank_has_no_rows():
    assert QUERIES.joined([(8,)], CONFIG) == (8,) and QUERIES.joined([(8, 4)], CONFIG) == (8, 4)
    with pytest.raises(SourceError, match="no rows of a matrix"):
        QUERIES.joined([(2, 4, 4)], CONFIG)


def test_what_stays_the_same():
    array = np.arange(6).reshape(2, 3)
    assert there_and_back(SAME, [array]) is array and SAME.moves_blocks(256, CONFIG) and SAME.keeps_order


def test_a_norm_is_stored_plus_one():
    stored = np.array([1.0, 1.5, 0.25], np.float32)
    assert there_and_back(SHIFTED, [stored]).tolist() == [0.0, 0.5, -0.75]
    assert not SHIFTED.moves_blocks(32, CONFIG)


def test_a_decay_is_stored_as_minus_its_exponential():
    stored = np.array([-1.0, -np.e], np.float32)
    made = NEGATED_EXPONENTIAL.to_hugging_face([stored], CONFIG)
    assert np.allclose(made, [0, 1], atol=1e-6)
    assert np.allclose(NEGATED_EXPONENTIAL.to_gguf(made, CONFIG)[0], stored, rtol=1e-6)


def test_gate_and_up_are_one_after_the_other():
    gate, up = np.arange(12, dtype=np.uint8).reshape(1, 3, 4), np.arange(12, 24, dtype=np.uint8).reshape(1, 3, 4)
    made = there_and_back(JOINED, [gate, up])
    assert np.array_equal(made, np.concatenate([gate, up], axis=1))
    assert JOINED.joined([(1, 3, 4), (1, 3, 4)], CONFIG) == (1, 6, 4)
    assert JOINED.parts((1, 6, 4), CONFIG) == [(1, 3, 4), (1, 3, 4)]
    with pytest.raises(SourceError):
        JOINED.joined([(1, 3, 4), (1, 3, 5)], CONFIG)


def test_rows_of_gate_and_up_take_turns():
    gate, up = np.arange(12, dtype=np.uint8).reshape(1, 3, 4), np.arange(12, 24, dtype=np.uint8).reshape(1, 3, 4)
    rows = Interleaved(axis=-2, turned=True)
    made = there_and_back(rows, [gate, up])
    assert np.array_equal(made[:, ::2], gate) and np.array_equal(made[:, 1::2], up)
    assert rows.joined([(1, 3, 4), (1, 3, 4)], CONFIG) == (1, 6, 4) and rows.parts((1, 6, 4), CONFIG) == [(1, 3, 4)] * 2
    assert rows.moves_blocks(32, CONFIG) and rows.turned
    values = Interleaved(axis=-1)
    assert there_and_back(values, [gate[0], up[0]])[0].tolist() == [0, 12, 1, 13, 2, 14, 3, 15]
    assert not values.moves_blocks(32, CONFIG) and not values.turned
    for wrong in ([(3,), (4,)], [(3,), (3,)]):
        with pytest.raises(SourceError):
            rows.joined(wrong, CONFIG)


def test_keys_and_values_of_a_head_lie_together():
    config = {"num_attention_heads": 2, "qk_nope_head_dim": 3, "v_head_dim": 1, "kv_lora_rank": 4}
    keys, values = np.arange(24).reshape(2, 4, 3), np.arange(24, 32).reshape(2, 1, 4)
    made = there_and_back(KEYS_AND_VALUES, [keys, values], config)
    assert made.tolist()[:4] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11], [24, 25, 26, 27]]
    shapes = [keys.shape, values.shape]
    assert KEYS_AND_VALUES.joined(shapes, config) == (8, 4) and KEYS_AND_VALUES.parts((8, 4), config) == shapes
    assert KEYS_AND_VALUES.moves_blocks(1, config) and not KEYS_AND_VALUES.moves_blocks(32, config)
    for wrong in ([(2, 3, 4), (2, 1, 4)], [(2, 4, 3), (2, 4, 1)]):
        with pytest.raises(SourceError, match="2 heads, keys of 3 and values of 1 of rank 4"):
            KEYS_AND_VALUES.joined(wrong, config)
