"""Says in which scheme 8-bit floats with scales are: by blocks, channels or a whole tensor, as scales are shaped."""

from __future__ import annotations

E4M3, E8M0 = "f8_e4m3", "f8_e8m0"
SCALES = ("f32", "bf16", "f16", E8M0)
_MX_BLOCK = (1, 32)  # of the microscaling formats, whose scales are powers of two


def grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of the scales of a weight [..., N, K] in blocks [rows, columns]; 0 is the whole dimension."""
    *lead, rows, columns = shape
    return *lead, *(-(-size // (each or max(size, 1))) for size, each in zip((rows, columns), block, strict=True))


def without_blocks(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the block [rows, columns] of a weight with a scale a channel, or one alone; ``None`` for other scales."""
    *lead, rows, _ = shape
    per_tensor = {(), (1,), tuple(lead), grid(shape, (0, 0))}
    per_channel = {(*lead, rows), grid(shape, (1, 0))}
    # Of a weight of one row both are the same.
    return (0, 0) if scales in per_tensor else (1, 0) if scales in per_channel else None


def scheme_of(block: tuple[int, int], scale: str) -> str:
    """Return the scheme of E4M3 codes in blocks [rows, columns] with scales of a dtype."""
    if block == _MX_BLOCK and scale == E8M0:
        return "mxfp8"
    rows, columns = (size or "all" for size in block)
    return f"fp8-block,rows={rows},columns={columns},scale={scale}"
