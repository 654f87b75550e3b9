"""Decoding in torch, on whatever device the planes are: one function a scheme, one line in ``DECODERS``.

They give the values of the schemes' own ``decode_rows`` bit for bit: the same float32 operations in the same order. A
scheme without a line here is decoded by its numpy code, on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from ...schemes import Scheme
from ...schemes.base import ROW, TENSOR, matrix
from ...schemes.fp8 import Fp8E4M3
from ...schemes.int4_group import SYMMETRIC_ZERO, Int4Group
from ...schemes.int8 import Int8
from ...schemes.int8_affine import Grouped, Int8Absmax, Int8ZeroPoint

Planes = Mapping[str, torch.Tensor]
Rows = slice | torch.Tensor  # a stretch, or i64 indices


def decode_rows(scheme: Scheme, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> torch.Tensor:
    """float32 [rows, columns] on the planes' device: some rows of the tensor seen as a matrix.

    Args:
        shape, dtype: logical, of the whole tensor.
        rows: which, in ascending order.
    """
    decoder = DECODERS.get(type(scheme))
    if decoder is not None:
        return decoder(scheme, planes, shape, rows)
    device = next(iter(planes.values())).device
    arrays = {role: _array(plane) for role, plane in planes.items()}
    chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
    return torch.from_numpy(scheme.decode_rows(arrays, shape, dtype, chosen)).to(device)


def _array(plane: torch.Tensor) -> np.ndarray:
    """The numpy array over a plane, as schemes want it: types that numpy lacks as integers of their width."""
    plane = plane.cpu()
    if plane.dtype == torch.bfloat16:
        return plane.view(torch.uint16).numpy()
    if plane.element_size() == 1 and plane.dtype.is_floating_point:
        return plane.view(torch.uint8).numpy()
    return plane.numpy()


def _int8(scheme: Scheme, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    values = planes["codes"].view(matrix(shape))[rows].float()
    return values.mul_(planes["row_absmax"].view(-1)[rows][:, None]).mul_(float(np.float32(1 / 127)))


def _grouped(scheme: Scheme, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    if not isinstance(scheme, Grouped):
        raise TypeError(f"{scheme.text} has no groups")
    values = planes["codes"].view(matrix(shape))[rows].float()

    def spread(role: str) -> torch.Tensor:
        """A number a group as a number a column, or as one for all columns."""
        plane = planes[role]
        if scheme.group == TENSOR:
            return plane.float()
        each = plane.view(matrix(tuple(plane.shape)))[rows].float()
        return each if scheme.group == ROW else each.repeat_interleave(scheme.group, 1)[:, : shape[-1]]

    if "zero_point" in planes:
        values.sub_(spread("zero_point"))
    return values.mul_(spread("scale"))


def _int4_group(scheme: Scheme, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    if not isinstance(scheme, Int4Group):
        raise TypeError(f"{scheme.text} has no groups of 4-bit codes")
    count, columns = matrix(shape)
    groups, size = scheme.groups(columns), scheme.group or columns

    def spread(role: str) -> torch.Tensor:
        """A number a group as a number a column."""
        each = planes[role].view(count, groups)[rows].float()
        if scheme.ordered:
            return each[:, planes["group_index"].long()]
        return each.repeat_interleave(size, 1)[:, :columns]

    packed = planes["codes"].view(count, -(-columns // 2))[rows]
    values = torch.stack([packed >> 4, packed & 15], 2).view(len(packed), -1)[:, :columns].float()
    values = values.sub_(SYMMETRIC_ZERO) if scheme.symmetric else values.sub_(spread("zero_point"))
    return values.mul_(spread("scale"))


DECODERS: dict[type[Scheme], Callable[[Scheme, Planes, tuple[int, ...], Rows], torch.Tensor]] = {
    Int8: _int8,
    Int8Absmax: _grouped,
    Int8ZeroPoint: _grouped,
    Fp8E4M3: _grouped,
    Int4Group: _int4_group,
}
