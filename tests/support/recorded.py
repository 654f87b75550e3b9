"""Random parts of quantized weights, the same everywhere, and digests of the values that libraries make of them.

Where a library is not installed, its values are still known by their digests, which the tests that have it check.
"""

from __future__ import annotations

import numpy as np
import torch
import xxhash


class Random:
    """Arrays from a stream that no version of numpy changes."""

    def __init__(self, seed: int) -> None:
        self._stream = np.random.RandomState(seed)

    def words(self, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """Any bits."""
        width = torch.empty((), dtype=dtype).element_size()
        data = np.frombuffer(self._stream.bytes(int(np.prod(shape)) * width), np.uint8).copy()
        return torch.from_numpy(data).view(dtype).reshape(shape)

    def below(self, limit: int, *shape: int) -> torch.Tensor:
        """Bytes below a power of two, at most 256."""
        return self.words(*shape, dtype=torch.uint8) & (limit - 1)

    def stream(self, bits: int, rows: int, columns: int) -> torch.Tensor:
        """Rows of codes in words, i32 [rows, ceil(columns * bits / 32)], zeros after the last."""
        used = np.arange(-(-columns * bits // 32) * 32) < columns * bits
        return self.words(rows, len(used) // 32) & torch.from_numpy(np.packbits(used, bitorder="little").view(np.int32))

    def scales(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Positive numbers from 2^-8 to 2^-7, all of them exact in bfloat16."""
        return ((128 + self.below(128, *shape).float()) * 2.0**-15).to(dtype)

    def e4m3(self, *shape: int) -> torch.Tensor:
        """Codes of f8_e4m3, none of which is NaN."""
        found = self.words(*shape, dtype=torch.uint8)
        return torch.where((found & 127) == 127, found - 1, found).view(torch.float8_e4m3fn)


def digest(values: torch.Tensor) -> str:
    """The xxh3_64 of values, in hex; zeros have no sign."""
    values = torch.where(values == 0, 0.0, values.detach().to(values.dtype)).to(values.dtype).contiguous()
    return xxhash.xxh3_64_hexdigest(values.view(torch.uint8).numpy().tobytes())
