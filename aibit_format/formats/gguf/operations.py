"""Defines the operations that turn tensors of GGUF into a tensor of transformers, and back.

They form a closed set: the table in ``architectures`` names them, and nothing else changes a tensor. Those that move
whole rows work on blocks as well as on values, since a block never spans two rows: blocks go through bit for bit. The
others need values, so the tensors are decoded first, unless only their columns move: then the order of the columns is
kept beside the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import SourceError

Config = Mapping[str, Any]
Shape = tuple[int, ...]


# Computes transformers' values from GGUF's, and back, and by how much of a value rounding may change it on the way.
ValueOf = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray], float]


class Operation:
    """Leave a tensor as it is; the base of all operations.

    Arrays are planes of blocks, u8 with the bytes of a row in the last dimension, or values. ``config`` is the model's.
    """

    turned: bool = False  # transformers keeps the transpose
    keeps_order = True  # of values: only the shape changes, if anything
    value: ValueOf | None = None  # if each value changes by itself

    def moves_blocks(self, block: int, config: Config) -> bool:
        """Tell whether blocks of so many elements go through whole; if not, values are needed."""
        return True

    def column_order(self, columns: int, config: Config) -> np.ndarray | None:
        """Return the column of GGUF's matrix that each of transformers' is, i64 [columns], if only columns move."""
        return None

    def joined(self, shapes: Sequence[Shape], config: Config) -> Shape:
        """Return the shape of transformers' tensor; raises SourceError if the shapes contradict the config."""
        return shapes[0]

    def parts(self, shape: Shape, config: Config) -> list[Shape]:
        """Return the shapes of GGUF's tensors; raises SourceError if the shape contradicts the config."""
        return [shape]

    def to_hugging_face(self, arrays: Sequence[np.ndarray], config: Config) -> np.ndarray:
        """Make transformers' tensor from GGUF's."""
        return arrays[0]

    def to_gguf(self, array: np.ndarray, config: Config) -> list[np.ndarray]:
        """Make GGUF's tensors from transformers'."""
        return [array]


class Turned(Operation):
    """Read the stored tensor as the transpose of transformers' in its last two dimensions; it is kept as GGUF has it.

    GPT-2's Conv1D is so, and each of gpt-oss's experts.
    """

    turned = True


Order = Callable[[int, Config], np.ndarray]


@dataclass(frozen=True)
class Permuted(Operation):
    """Reorder rows. ``order`` returns for each row of transformers its row in GGUF, i64 [rows]."""

    order: Order
    keeps_order = False

    def joined(self, shapes: Sequence[Shape], config: Config) -> Shape:
        return self.parts(shapes[0], config)[0]

    def parts(self, shape: Shape, config: Config) -> list[Shape]:
        if not 1 <= len(shape) <= 2:
            raise SourceError("no rows of a matrix, and no bias of one")
        self.order(shape[0], config)
        return [shape]

    def to_hugging_face(self, arrays: Sequence[np.ndarray], config: Config) -> np.ndarray:
        return arrays[0][self.order(len(arrays[0]), config)]

    def to_gguf(self, array: np.ndarray, config: Config) -> list[np.ndarray]:
        return [array[np.argsort(self.order(len(array), config))]]


@dataclass(frozen=True)
class Columns(Operation):
    """Reorder columns: equal groups of them, in the order that ``order`` gives for as many rows."""

    order: Order
    groups: Callable[[Config], int]
    keeps_order = False

    def moves_blocks(self, block: int, config: Config) -> bool:
        order = self._order(config)
        return not config["linear_value_head_dim"] % block or np.array_equal(order, np.arange(len(order)))

    def column_order(self, columns: int, config: Config) -> np.ndarray:
        return self._taken(np.arange(columns)[None], self._order(config))[0]

    def to_hugging_face(self, arrays: Sequence[np.ndarray], config: Config) -> np.ndarray:
        return self._taken(arrays[0], self._order(config))

    def to_gguf(self, array: np.ndarray, config: Config) -> list[np.ndarray]:
        return [self._taken(array, np.argsort(self._order(config)))]

    def joined(self, shapes: Sequence[Shape], config: Config) -> Shape:
        return self.parts(shapes[0], config)[0]

    def parts(self, shape: Shape, config: Config) -> list[Shape]:
        if len(shape) != 2 or shape[-1] % self.groups(config):
            raise SourceError(f"no {self.groups(config)} groups of columns")
        return [shape]

    def _order(self, config: Config) -> np.ndarray:
        return self.order(self.groups(config), config)

    def _taken(self, array: np.ndarray, order: np.ndarray) -> np.ndarray:
        groups = array.reshape(len(array), len(order), array.shape[-1] // len(order))
        return groups[:, order].reshape(array.shape)


@dataclass(frozen=True)
class EachValue(Operation):
    """Compute each value by itself: ``there`` from GGUF to transformers, and ``back``, up to ``rounding``."""

    there: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]
    rounding: float = 0.0
    keeps_order = False

    @property
    def value(self) -> ValueOf:  # type: ignore[override]
        return self.there, self.back, self.rounding

    def moves_blocks(self, block: int, config: Config) -> bool:
        return False

    def to_hugging_face(self, arrays: Sequence[np.ndarray], config: Config) -> np.ndarray:
        return self.there(arrays[0])

    def to_gguf(self, array: np.ndarray, config: Config) -> list[np.ndarray]:
        return [self.back(array)]


def _logarithm(array: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):  # of what is not negative it is NaN, which no tensor may hold
        return np.log(-array.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True)
class Squeezed(Operation):
    """Add a dimension of one, which GGUF leaves out: the one channel of a convolution."""

    axis: int

    def joined(self, shapes: Sequence[Shape], config: Config) -> Shape:
        return (*shapes[0][: self.axis], 1, *shapes[0][self.axis :])

    def parts(self, shape: Shape, config: Config) -> list[Shape]:
        if len(shape) <= self.axis or shape[self.axis] != 1:
            raise SourceError(f"a dimension {self.axis} of one")
        return [(*shape[: self.axis], *shape[self.axis + 1 :])]

    def to_hugging_face(self, arrays: Sequence[np.ndarray], config: Config) -> np.ndarray:
        return np.expand_dims(arrays[0], self.axis)

    def to_gguf(self, array: np.ndarray, config: Config) -> list[np.ndarray]:
        return [np.squeeze(array, self.axis)]


class RowVector(Operation):
    """Read a vector as a matrix of one row; some files have the matrix."""

    def joined(self, shapes: Sequence[Shape], config: Config) -> Shape:
        return shapes[0] if len(shapes[0]) == 2 else (1, *shapes[0])

    def to_hugging_face(self, arrays: Sequence[np.ndarray], config: Config) -> np.ndarray:
        return np.atleast_2d(arrays[0])


@dataclass(frozen=True)
class Then(Operation):
    """Do one operation after the other on a tensor; the second makes transformers' tensor."""

    first: Operation
    second: Operation
    keeps_order = False

    @property
    def value(self) -> ValueOf | None:  # type: ignore[override]
        return self.first.value or self.second.value

    def moves_blocks(self, block: int, config: Config) -> bool:
        return self.first.moves_blocks(block, config) and self.second.moves_blocks(block, config)

    def joined(self, shapes: Sequence[Shape], config: Config) -> Shape:
        return self.second.joined([self.first.joined(shapes, config)], config)

    def parts(self, shape: Shape, config: Config) -> list[Shape]:
        (between,) = self.second.parts(shape, config)
        return self.first.parts(between, config)

    def to_hugging_face(self, arrays: Sequence[np.ndarray], config: Config) -> np.ndarray:
        return self.second.to_hugging_face([self.first.to_hugging_face(arrays, config)], config)

    def to_gguf(self, array: np.ndarray, config: Config) -> list[np.ndarray]:
        (between,) = self.second.to_gguf(array, config)
        return self.first.to_gguf(between, config)


class Joined(Operation):
    """Put the rows of two tensors one after the other: ``gate_up_proj`` [..., 2 rows, in] of gate and up."""

    keeps_order = False

    def joined(self, shapes: Sequence[Shape], config: Config) -> Shape:
        first, second = shapes
        if first != second or len(first) < 2:
            raise SourceError(f"shapes {list(first)} and {list(second)} are not those of gate and up")
        return (*first[:-2], 2 * first[-2], first[-1])

    def parts(self, shape: Shape, config: Config) -> list[Shape]:
        if len(shape) < 2 or shape[-2] % 2:
            raise SourceError("no two halves of rows")
        return [(*shape[:-2], shape[-2] // 2, shape[-1])] * 2

    def to_hugging_face(self, arrays: Sequence[np.ndarray], config: Config) -> np.ndarray:
        return np.concatenate(arrays, axis=-2)

    def to_gguf(self, array: np.ndarray, config: Config) -> list[np.ndarray]:
        return np.split(array, 2, axis=-2)


@dataclass(frozen=True)
class Interleaved(Operation):
    """Take gate and up in turn along ``axis``: rows of weights, -2, or a vector's values, -1."""

    axis: int
    turned: bool = False  # type: ignore[misc]
    keeps_order = False

    def moves_blocks(self, block: int, config: Config) -> bool:
        return self.axis == -2 or block == 1

    def joined(self, shapes: Sequence[Shape], config: Config) -> Shape:
        first, second = shapes
        if first != second or len(first) < -self.axis:
            raise SourceError(f"shapes {list(first)} and {list(second)} are not those of gate and up")
        shape = list(first)
        shape[self.axis] *= 2
        return tuple(shape)

    def parts(self, shape: Shape, config: Config) -> list[Shape]:
        if len(shape) < -self.axis or shape[self.axis] % 2:
            raise SourceError("no gate and up in turn")
        half = list(shape)
        half[self.axis] //= 2
        return [tuple(half)] * 2

    def to_hugging_face(self, arrays: Sequence[np.ndarray], config: Config) -> np.ndarray:
        shape = list(arrays[0].shape)
        shape[self.axis] *= 2
        return np.stack(arrays, axis=arrays[0].ndim + 1 + self.axis).reshape(shape)

    def to_gguf(self, array: np.ndarray, config: Config) -> list[np.ndarray]:
        return [array.take(range(first, array.shape[self.axis], 2), self.axis) for first in (0, 1)]


class KeysAndValues(Operation):
    """Make the rows of keys and values of each head (latent attention) from two stacks with a matrix for each head.

    Those of keys, [heads, rank, key], are turned, as llama.cpp multiplies queries with them; those of values are
    [heads, value, rank]. The result is [heads * (key + value), rank].
    """

    keeps_order = False

    def moves_blocks(self, block: int, config: Config) -> bool:
        return block == 1

    def joined(self, shapes: Sequence[Shape], config: Config) -> Shape:
        heads, key, value, rank = self._sizes(config)
        if list(shapes) != [(heads, rank, key), (heads, value, rank)]:
            raise SourceError(f"{heads} heads, keys of {key} and values of {value} of rank {rank}")
        return heads * (key + value), rank

    def parts(self, shape: Shape, config: Config) -> list[Shape]:
        heads, key, value, rank = self._sizes(config)
        if tuple(shape) != (heads * (key + value), rank):
            raise SourceError(f"{heads} heads, keys of {key} and values of {value} of rank {rank}")
        return [(heads, rank, key), (heads, value, rank)]

    def to_hugging_face(self, arrays: Sequence[np.ndarray], config: Config) -> np.ndarray:
        keys, values = arrays
        both = np.concatenate([keys.swapaxes(1, 2), values], axis=1)
        return both.reshape(-1, both.shape[-1])

    def to_gguf(self, array: np.ndarray, config: Config) -> list[np.ndarray]:
        heads, key, _, rank = self._sizes(config)
        both = array.reshape(heads, -1, rank)
        return [both[:, :key].swapaxes(1, 2), both[:, key:]]

    @staticmethod
    def _sizes(config: Config) -> tuple[int, int, int, int]:
        names = ("num_attention_heads", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank")
        heads, key, value, rank = (config[name] for name in names)
        return heads, key, value, rank


def rotary(heads: str) -> Permuted:
    """Return the order of rows in which llama.cpp's llama rotates each dimension of a head with its neighbour.

    transformers rotates dimension i of a head with dimension i + d / 2. ``heads`` is the config's key of their number.
    """

    def order(rows: int, config: Config) -> np.ndarray:
        count = config[heads]
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        if rows != count * size or size % 2:
            raise SourceError(f"{count} heads of {size}")
        return np.arange(rows).reshape(count, size // 2, 2).swapaxes(1, 2).reshape(-1)

    return Permuted(order)


def by_heads(rows: int, config: Config) -> np.ndarray:
    """Return the rows of q, k and v of each head together (Bloom); GGUF has all of q, all of k, all of v."""
    heads = config["n_head"]
    if rows % (3 * heads):
        raise SourceError(f"q, k and v of {heads} heads")
    return np.arange(rows).reshape(3, heads, -1).swapaxes(0, 1).reshape(-1)


def by_groups(rows: int, config: Config) -> np.ndarray:
    """Return the rows of the queries, key and value of each group together (Falcon); GGUF has q, then k, then v."""
    heads = config["num_attention_heads"]
    groups = config["num_kv_heads"] if config.get("new_decoder_architecture") else 1
    size = config["hidden_size"] // heads
    if heads % groups or rows != (heads + 2 * groups) * size:
        raise SourceError(f"{heads} heads of {size} in {groups} groups")
    every = np.arange(rows)
    query, key, value = np.split(every, [heads * size, (heads + groups) * size])
    parts = [part.reshape(groups, -1) for part in (query, key, value)]
    return np.concatenate(parts, axis=1).reshape(-1)


def by_key_heads(size: str | None = None, after_keys: bool = False) -> Order:
    """Return the order of value heads by the key head that they use (Qwen3.5); GGUF has the first of each, and so on.

    ``size`` is the config's key for the rows of a head, one without it. ``after_keys``: queries and keys come first.
    """

    def order(rows: int, config: Config) -> np.ndarray:
        keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
        each = config[size] if size else 1
        first = 2 * keys * config["linear_key_head_dim"] if after_keys else 0
        if values % keys or rows != first + values * each:
            raise SourceError(f"{values} value heads of {each} for {keys} key heads")
        moved = first + np.arange(values * each).reshape(values // keys, keys, each).swapaxes(0, 1).reshape(-1)
        return np.concatenate([np.arange(first), moved])

    return order


SAME, TURNED = Operation(), Turned()
# llama.cpp multiplies with a norm's weight, where transformers adds one to it first.
SHIFTED = EachValue(lambda array: array - np.float32(1), lambda array: array + np.float32(1))
# GGUF has -exp(A_log).
NEGATED_EXPONENTIAL = EachValue(
    _logarithm, lambda array: -np.exp(array.astype(np.float64)).astype(np.float32), rounding=3e-7
)
JOINED, KEYS_AND_VALUES = Joined(), KeysAndValues()
