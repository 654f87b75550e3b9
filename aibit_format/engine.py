"""Encoding at speed: the schemes' own results, bit for bit, by torch and on every core, with the error made.

numpy converts half floats one at a time; torch does it in vectors. A tensor goes in pieces of about half a million
elements, whose float32 copies stay in cache and are used again for the next piece: fresh memory would cost a page
fault a page. Where torch is missing, or a scheme has no fast way here, the scheme's numpy code is used.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .bridge import to_numpy, to_torch, torch_dtypes
from .dtypes import to_float32
from .errors import SchemeError
from .schemes import Scheme
from .schemes.int8 import Int8
from .schemes.plain import Plain

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 19  # elements
_DIGITS = 6  # significant digits of the figures
_STEPS = 64  # parts of a code step that int8's error is counted in


@dataclass(frozen=True, slots=True)
class EncodingError:
    """How far the decoded values are from the source's (for int8: its float16 values), over the whole tensor.

    relative_rms: sqrt(sum((decoded - x)^2) / sum(x^2)).
    largest: max |decoded - x|.
    signal_to_noise_db: 10 log10(sum(x^2) / sum((decoded - x)^2)).

    The figures go into the file, so they must not depend on the order of additions, which is the machine's choice:
    int8 counts in integers, other schemes add in float64, and both are rounded to six digits.
    """

    relative_rms: float
    largest: float
    signal_to_noise_db: float

    @classmethod
    def of(cls, noise: float, signal: float, largest: float) -> EncodingError | None:
        """From sums of squares; ``None`` for a tensor that was stored exactly."""
        if noise == 0 or signal == 0:
            return None
        figures = math.sqrt(noise / signal), largest, 10 * math.log10(signal / noise)
        return cls(*(float(f"{figure:.{_DIGITS - 1}e}") for figure in figures))


@dataclass(frozen=True, slots=True)
class Encoded:
    """Planes by role, and the error made; ``None`` where there is none, or where it was not measured."""

    planes: dict[str, np.ndarray]
    error: EncodingError | None


def encode(scheme: Scheme, array: np.ndarray, dtype: str, measure: bool = True) -> Encoded:
    """Encode ``array``, whose elements are ``dtype``: the planes that ``scheme.encode`` gives.

    Raises:
        SchemeError: a value is not finite, or the scheme cannot hold the tensor.
    """
    fast = _FAST.get(type(scheme)) if importlib.util.find_spec("torch") else None
    return (fast or _by_scheme)(scheme, array, dtype, measure)


def _by_scheme(scheme: Scheme, array: np.ndarray, dtype: str, measure: bool) -> Encoded:
    planes = scheme.encode(array, dtype)
    if not measure or scheme.name == dtype:
        return Encoded(planes, None)
    values = to_float32(array, dtype).astype(np.float64)
    difference = scheme.decode(planes, array.shape, dtype) - values
    noise, signal = float((difference**2).sum()), float((values**2).sum())
    return Encoded(planes, EncodingError.of(noise, signal, float(np.abs(difference).max(initial=0))))


def _int8(scheme: Scheme, array: np.ndarray, dtype: str, measure: bool) -> Encoded:
    """``Int8.encode`` in torch: the same operations in the same order.

    The error is that of rounding to codes, counted in 1/64 of a step: small integers, whose squares float32 adds
    exactly in any order. The signal is the codes' squares and the error's: rounding leaves no cross term to speak of.
    """
    import torch

    rows = to_torch(array, dtype).view(math.prod(array.shape[:-1]), array.shape[-1])
    codes = torch.empty(rows.shape, dtype=torch.int8)
    absmax = torch.zeros(len(rows), dtype=torch.float32)
    noise, signal, worst = (np.zeros(len(rows)) for _ in range(3))
    step = max(1, _PIECE // max(rows.shape[1], 1))
    scratch = torch.empty(2, min(step, len(rows)), rows.shape[1])
    for start in range(0, len(rows) if rows.numel() else 0, step):
        part = slice(start, min(start + step, len(rows)))
        u, q = scratch[:, : part.stop - start]
        u.copy_(rows[part] if dtype == "f16" else rows[part].to(torch.float16))
        top = torch.abs(u, out=q).amax(dim=1)
        absmax[part] = top
        # A row of zeros stays zero under any scale; 1e-8 is below float16's smallest number.
        u.mul_(top.clamp_(min=1e-8).reciprocal_().mul_(127.0)[:, None])
        codes[part] = torch.round(u, out=q)
        if measure:
            u.sub_(q).mul_(_STEPS).round_()
            noise[part], signal[part] = _exact_squares(u), _exact_squares(q)
            worst[part] = torch.maximum(u.amax(dim=1), -u.amin(dim=1)).numpy()
    if not torch.isfinite(absmax).all():
        raise SchemeError("a value is not finite, or beyond float16's 65504, which int8 goes through")
    error = None
    if measure:
        one = absmax.numpy().astype(np.float64) / 127  # a code step, row by row
        total = math.fsum(noise * (one / _STEPS) ** 2)
        error = EncodingError.of(
            total, math.fsum(signal * one**2) + total, float((worst * one / _STEPS).max(initial=0))
        )
    shape = array.shape
    return Encoded({"codes": codes.numpy().reshape(shape), "row_absmax": absmax.numpy().reshape(shape[:-1])}, error)


def _exact_squares(values: torch.Tensor) -> np.ndarray:
    """Sum of squares of each row of integers up to 127 in float32, the same on every machine; f64 [rows].

    A norm over at most 1024 such numbers adds exactly, whatever the order, as all sums stay below 2^24.
    """
    import torch

    block = math.gcd(values.shape[1], 1024)
    if block < 64:  # odd widths: slower, and exact in float64
        return values.to(torch.float64).square_().sum(dim=1).numpy()
    norms = torch.linalg.vector_norm(values.view(len(values), -1, block), dim=2).to(torch.float64)
    return norms.square_().sum(dim=1).numpy()


# Integer of the same width, the bits of a magnitude, and infinity's: |x| is finite if its bits are below.
_INFINITY = {
    "f16": ("i16", 0x7FFF, 0x7C00),
    "bf16": ("i16", 0x7FFF, 0x7F80),
    "f32": ("i32", 0x7FFF_FFFF, 0x7F80_0000),
}


def _plain(scheme: Scheme, array: np.ndarray, dtype: str, measure: bool) -> Encoded:
    """``Plain.encode`` in torch: the values as they are, or rounded to another float type."""
    import torch

    if scheme.name not in _INFINITY or dtype not in _INFINITY:
        return _by_scheme(scheme, array, dtype, measure)
    values = to_torch(array, dtype)
    if scheme.name == dtype:
        integer, magnitude, infinity = _INFINITY[dtype]
        bits = _pieces(values.view(torch_dtypes()[integer]))
        if any(int(piece.bitwise_and(magnitude).max()) >= infinity for piece in bits):
            raise SchemeError("a value is not finite")
        return Encoded({"values": array}, None)
    result = torch.empty(values.shape, dtype=torch_dtypes()[scheme.name])
    noise = signal = largest = 0.0
    for source, target in zip(_pieces(values), _pieces(result), strict=True):
        source = source.to(torch.float32)
        target.copy_(source)  # rounds to nearest even, as the scheme does
        difference = target.to(torch.float32) - source  # not in place: the cast may be the target itself
        worst = float(difference.abs().max())
        if not math.isfinite(worst):
            raise SchemeError(f"a value is not finite, or too large for {scheme.name}")
        if measure:
            largest = max(largest, worst)
            noise += float(difference.to(torch.float64).square_().sum())
            signal += float(source.to(torch.float64).square_().sum())
    return Encoded({"values": to_numpy(result)[0]}, EncodingError.of(noise, signal, largest))


def _pieces(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """``values`` flat, in pieces; none for an empty tensor."""
    flat = values.reshape(-1)
    return iter(flat.split(_PIECE) if len(flat) else ())


_FAST: dict[type[Scheme], Callable[[Scheme, np.ndarray, str, bool], Encoded]] = {Int8: _int8, Plain: _plain}
