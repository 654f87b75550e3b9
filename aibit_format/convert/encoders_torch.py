"""Encodes tensors with torch, with the same result as the schemes' own code, bit for bit.

numpy converts float16 values one at a time, torch in vectors. A tensor is encoded in pieces whose float32 copies stay
in cache. Buffers are reused, because fresh memory costs a page fault per page.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SchemeError
from ..interop import to_numpy, to_torch, torch_dtypes
from ..schemes.base import matrix
from ..schemes.fourbit import CODEBOOKS, LEAST, FourBit
from ..schemes.int8 import NO_HALF
from ..schemes.plain import Plain

if TYPE_CHECKING:
    import torch

_PIECE_ELEMENTS = 1 << 19  # elements encoded at a time
_COMPARED = 1 << 19  # elements compared with 15 bounds at a time, in as many passes over the cache


def int8(array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Encode as ``Int8.encode`` does: the same operations in the same order."""
    import torch

    rows = to_torch(array, dtype).view(matrix(array.shape))
    result = np.empty(array.shape, np.int8)  # numpy asks for huge pages, torch does not
    codes = torch.from_numpy(result).view(rows.shape)
    absmax = np.zeros(len(rows), np.float32)
    step = min(max(1, _PIECE_ELEMENTS * torch.get_num_threads() // max(rows.shape[1], 1)), max(len(rows), 1))
    buffer, highest, lowest = torch.empty(step, rows.shape[1]), torch.empty(step), torch.empty(step)
    for start in range(0, len(rows) if rows.numel() else 0, step):
        part = slice(start, min(start + step, len(rows)))
        size = part.stop - start
        u, high, low = buffer[:size], highest[:size], lowest[:size]
        u.copy_(rows[part] if dtype == "f16" else rows[part].to(torch.float16))
        # Two passes that write nothing are faster than one that writes magnitudes. For one number per row, numpy's
        # calls are cheaper than torch's.
        torch.amax(u, 1, out=high)
        torch.amin(u, 1, out=low)
        top = np.maximum(high.numpy(), -low.numpy(), out=absmax[part])
        # A row of zeros stays zero with any scale; 1e-8 is below float16's smallest positive number.
        scale = np.float32(1) / np.maximum(top, np.float32(1e-8)) * np.float32(127)
        u.mul_(torch.from_numpy(scale)[:, None])
        codes[part] = u.round_()
    if not np.isfinite(absmax).all():
        raise SchemeError(NO_HALF)
    return {"codes": result, "row_absmax": absmax.reshape(array.shape[:-1])}


def four_bit(scheme: FourBit, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Encode as ``FourBit.encode`` does: a code is the number of bounds below the scaled value, counted bound by bound.

    torch converts to float32 and scales; numpy compares, eight times as fast as torch.
    """
    import torch

    book = CODEBOOKS[scheme.name]
    flat, whole = to_torch(array, dtype).reshape(-1), array.size - array.size % scheme.block_size
    codes, absmax = np.empty(-(-array.size // 2), np.uint8), np.empty(scheme.blocks(array.shape), np.float32)
    step = max(_COMPARED, scheme.block_size)
    buffer, passed, counts = torch.empty(step), np.empty(step, bool), np.empty(step, np.uint8)
    pairs = np.empty(step // 2, np.uint16)
    for start in range(0, whole, step):
        size = min(step, whole - start)
        v, above, count = buffer[:size], passed[:size], counts[:size]
        v.copy_(flat[start : start + size])
        blocks = v.view(-1, scheme.block_size)
        scales = absmax[start // scheme.block_size :][: len(blocks)]
        np.maximum(blocks.amax(1).numpy(), -blocks.amin(1).numpy(), out=scales)
        blocks.mul_(torch.from_numpy(np.float32(1) / np.maximum(scales, LEAST))[:, None])
        scaled = v.numpy()
        np.greater(scaled, book.bounds[0], out=count.view(bool))
        for bound in book.bounds[1:]:
            np.add(count, np.greater(scaled, bound, out=above).view(np.uint8), out=count)
        # Two neighbouring codes are one 16-bit number with the first in its low byte. Adding it to itself shifted left
        # by 12 bits puts both in the high byte, the first in the high nibble.
        pair = np.multiply(count.view("<u2"), np.uint16(1 + (1 << 12)), out=pairs[: size // 2])
        target = codes[start // 2 :][: size // 2]
        np.copyto(target, np.right_shift(pair, 8, out=pair), casting="unsafe")
        if book.permuted:
            np.take(book.pairs, target, out=target)
    if whole < array.size:
        end = scheme.encode_flat(array.reshape(-1)[whole:], dtype)
        codes[whole // 2 :], absmax[-1:] = end
    return {"codes": codes, **scheme.scales(absmax)}


# An integer type of the same width, the mask of a magnitude, and the bits of infinity: x is finite if the bits of |x|
# are below those of infinity.
_INFINITY = {
    "f16": ("i16", 0x7FFF, 0x7C00),
    "bf16": ("i16", 0x7FFF, 0x7F80),
    "f32": ("i32", 0x7FFF_FFFF, 0x7F80_0000),
}


def plain(scheme: Plain, array: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Encode as ``Plain.encode`` does: keep the values, or round them to another float dtype."""
    import torch

    if scheme.name not in _INFINITY or dtype not in _INFINITY:
        return scheme.encode(array, dtype)
    values = to_torch(array, dtype)
    result = values if scheme.name == dtype else torch.empty(values.shape, dtype=torch_dtypes()[scheme.name])
    if result is not values:
        for source, target in zip(_pieces(values), _pieces(result), strict=True):
            target.copy_(source.to(torch.float32))  # rounds to nearest even, as the scheme does
    integer, magnitude, infinity = _INFINITY[scheme.name]
    bits = _pieces(result.view(torch_dtypes()[integer]))
    if any(int(piece.bitwise_and(magnitude).max()) >= infinity for piece in bits):
        raise SchemeError(f"a value is not finite, or too large for {scheme.name}")
    return {"values": array if result is values else to_numpy(result)[0]}


def _pieces(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """Split ``values``, flattened, into pieces; an empty tensor has none."""
    flat = values.reshape(-1)
    return iter(flat.split(_PIECE_ELEMENTS) if len(flat) else ())
