"""Decodes rows in torch, on whatever device the planes are.

The functions of the capability ``decode_torch`` give the values of the schemes' own ``decode_rows`` bit for bit: the
same float32 operations in the same order. Every scheme of this package has one; those of other packages that have none
are decoded by their numpy code, on a CPU. So are some of this package's if the planes are there, where that is faster.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ...dtypes import DTYPES, to_float32
from ...schemes import Scheme, capabilities
from ...schemes.base import ROW, TENSOR, matrix
from ...schemes.block_scaled import BlockScaled
from ...schemes.cluster import Cluster
from ...schemes.cluster_group import ClusterGroup
from ...schemes.fourbit import CODEBOOKS, NESTED_BLOCK, FourBit, dynamic_map
from ...schemes.ggml import GGML
from ...schemes.ggml_ordered import GGMLOrdered
from ...schemes.int4_group import SYMMETRIC_ZERO, Int4Group
from ...schemes.int8 import Int8
from ...schemes.int8_affine import Grouped, Int8Absmax
from ...schemes.int8_outlier import Int8Outlier
from ...schemes.nf4_cpu import NF4CPU
from ...schemes.packing import BitOrder, places
from ...schemes.w8a8 import Int8Dynamic
from . import ggml_torch
from .ggml_torch import take

Planes = Mapping[str, torch.Tensor]
Rows = slice | torch.Tensor  # consecutive rows, or their i64 indices


def decode_rows(scheme: Scheme, planes: Planes, shape: tuple[int, ...], dtype: str, rows: Rows) -> torch.Tensor:
    """Decode some rows of a tensor seen as a matrix, to f32 [rows, columns] on the planes' device.

    Args:
        shape, dtype: the logical ones of the whole tensor.
        rows: the rows to decode, in ascending order.
    """
    device = next(iter(planes.values())).device
    decode = capabilities.find(scheme, "decode_torch")
    if decode is not None and not (device.type == "cpu" and decode in _FASTER_IN_NUMPY):
        return decode(scheme, planes, shape, rows)
    arrays = {role: _array(plane) for role, plane in planes.items()}
    chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
    return torch.from_numpy(scheme.decode_rows(arrays, shape, dtype, chosen)).to(device)


def _array(plane: torch.Tensor) -> np.ndarray:
    """Return the numpy array over a plane; types that numpy lacks become integers of their width."""
    plane = plane.cpu()
    if plane.dtype == torch.bfloat16:
        return plane.view(torch.uint16).numpy()
    if plane.element_size() == 1 and plane.dtype.is_floating_point:
        return plane.view(torch.uint8).numpy()
    return plane.numpy()


def int8(scheme: Int8, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode int8 rows."""
    values = planes["codes"].view(matrix(shape))[rows].float()
    return values.mul_(planes["row_absmax"].view(-1)[rows][:, None]).mul_(float(np.float32(1 / 127)))


def int8_outlier(scheme: Int8Outlier, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode int8 rows, and those among them that are float16."""
    values = int8(Int8(), planes, shape, rows)
    index = planes["outlier_index"].long()
    if not len(index):
        return values
    wanted = torch.arange(matrix(shape)[0], device=index.device)[rows]
    place = torch.searchsorted(index, wanted).clamp_(max=len(index) - 1)
    is_outlier = index[place] == wanted  # copying only these would make a GPU wait for their number
    return torch.where(is_outlier[:, None], planes["outlier_values"][place].float(), values)


def grouped(scheme: Grouped, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode 8-bit codes with a scale, and perhaps a zero point, for each row, group or tensor."""
    values = planes["codes"].view(matrix(shape))[rows].float()

    def spread(role: str) -> torch.Tensor:
        """Repeat the number of a group for each of its columns; one for all columns stays one."""
        plane = planes[role]
        if scheme.group == TENSOR:
            return plane.float()
        each = plane.view(matrix(tuple(plane.shape)))[rows].float()
        return each if scheme.group == ROW else each.repeat_interleave(scheme.group, 1)[:, : shape[-1]]

    if "zero_point" in planes:
        values.sub_(spread("zero_point"))
    return values.mul_(spread("scale"))


def w8a8(scheme: Int8Dynamic, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode 8-bit codes with a scale for each row; planes about inputs have no part in it."""
    return grouped(Int8Absmax(), planes, shape, rows)


def int4_group(scheme: Int4Group, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode 4-bit codes in groups."""
    count, columns = matrix(shape)
    groups, size = scheme.groups(columns), scheme.group or columns

    def spread(role: str) -> torch.Tensor:
        """Repeat the number of a group for each of its columns."""
        each = planes[role].view(count, groups)[rows].float()
        if scheme.ordered:
            return each[:, planes["group_index"].long()]
        return each.repeat_interleave(size, 1)[:, :columns]

    packed = planes["codes"].view(count, -(-columns // 2))[rows]
    values = torch.stack([packed >> 4, packed & 15], 2).flatten(1)[:, :columns].float()
    values = values.sub_(SYMMETRIC_ZERO) if scheme.symmetric else values.sub_(spread("zero_point"))
    return values.mul_(spread("scale"))


def block_scaled(scheme: BlockScaled, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode codes with scales of blocks, or of matrices."""
    (count, columns), grid = matrix(shape), matrix(scheme.grid(shape))
    values = _numbers(planes["codes"], scheme.codes, (count, columns), rows)
    chosen = torch.arange(count, device=values.device)[rows]
    rows = scheme.grid_rows(shape, chosen) if scheme.sizes(shape)[0] > 1 else rows
    steps = {role: planes[role].view(grid)[rows].float() for role in scheme.steps}
    matrices = chosen // max(shape[-2], 1)
    steps |= {role: planes[role].view(-1, 1)[matrices].float() for role in scheme.whole}

    def spread(step: torch.Tensor) -> torch.Tensor:
        """Repeat the number of a block for each of its columns; one for all columns stays one."""
        if "group_index" in planes:
            return step[:, planes["group_index"].long()]
        return step if step.shape[1] <= 1 else step.repeat_interleave(scheme.block[1], 1)[:, :columns]

    return scheme.dequantized(values, steps, spread)


def _numbers(codes: torch.Tensor, dtype: str, shape: tuple[int, int], rows: Rows) -> torch.Tensor:
    """Return the numbers of some rows of codes, f32 [rows, columns], that a plane holds, packed if they are small."""
    stored = DTYPES[dtype]
    found = codes.view(stored.stored(shape))[rows]
    if not stored.is_packed:
        return found.float()
    found = _unpacked(found, stored.bits, "little")[:, : shape[1]]
    if not stored.is_float:
        return found.float()
    return take(to_float32(np.arange(1 << stored.bits, dtype=np.uint8), dtype), found)


def cluster(scheme: Cluster, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode codes into a codebook."""
    count, columns = matrix(shape)
    packed = planes["codes"].view(count, scheme.width(columns))[rows]
    return planes["codebook"][_unpacked(packed, scheme.bits, "big")[:, :columns].int()]


def cluster_group(scheme: ClusterGroup, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode codes into a codebook, and multiply with the scales of groups."""
    count, columns = matrix(shape)
    scale = planes["scale"].view(count, scheme.groups(columns))[rows].float()
    if scale.shape[1] > 1:
        scale = scale.repeat_interleave(scheme.group, 1)[:, :columns]
    return cluster(scheme, planes, shape, rows).mul_(scale)


def four_bit(scheme: FourBit, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode codes of 4 bits with a scale for each block; rows may begin and end inside of bytes and blocks."""
    (count, columns), block = matrix(shape), scheme.block_size
    values = CODEBOOKS[scheme.name].values
    chosen = torch.arange(count, device=planes["codes"].device)[rows][:, None]
    if columns % block == 0:
        each = columns // block
        packed = planes["codes"].view(count, columns // 2)[rows]
        scales = _scales(scheme, planes, chosen * each + torch.arange(each, device=chosen.device))
        found = take(values, _unpacked(packed, 4, "big"))
        return found.mul_(scales.repeat_interleave(block, 1))
    element = chosen * columns + torch.arange(columns, device=chosen.device)
    codes = planes["codes"][element >> 1] >> 4 * (1 - element % 2) & 15
    return take(values, codes).mul_(_scales(scheme, planes, element // block))


def nf4_cpu(scheme: NF4CPU, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode the canonical planes."""
    return four_bit(scheme.canonical, planes, shape, rows)


def _scales(scheme: FourBit, planes: Planes, blocks: torch.Tensor) -> torch.Tensor:
    """Return the scales of blocks, f32 in the shape of their i64 indices, nested or not."""
    scales = planes["absmax"][blocks]
    if not scheme.nested:
        return scales
    return take(dynamic_map(), scales) * planes["nested_absmax"][blocks // NESTED_BLOCK] + planes["nested_offset"]


def ggml(scheme: GGML, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode blocks by the scheme's own functions."""
    layout, (count, columns) = scheme.layout, matrix(shape)
    chosen = planes["blocks"].view(count, columns // layout.block * layout.size)[rows]
    if not chosen.numel():
        return torch.empty(len(chosen), columns, device=chosen.device)
    return layout.values(chosen.view(-1, layout.size), ggml_torch).reshape(len(chosen), columns)


def ggml_ordered(scheme: GGMLOrdered, planes: Planes, shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """Decode blocks, and put their columns where the tensor has them."""
    return ggml(scheme.unordered, planes, shape, rows)[:, planes["column_order"].long()]


def _unpacked(packed: torch.Tensor, bits: int, order: BitOrder) -> torch.Tensor:
    """Unpack rows of codes that follow one another, u8, spare ones at the end included."""
    width = bits if 8 % bits == 0 else 1  # of the parts that no byte divides
    shifts = torch.tensor(places(8, width, order), dtype=torch.uint8, device=packed.device)
    parts = ((packed[:, :, None] >> shifts) & ((1 << width) - 1)).flatten(1)
    if width == bits:
        return parts
    whole = parts[:, : parts.shape[1] // bits * bits].unflatten(1, (-1, bits))
    weights = torch.tensor(places(bits, 1, order), dtype=torch.uint8, device=packed.device)
    return (whole << weights).sum(2, dtype=torch.uint8)


# On a CPU numpy decodes these faster, or compiled code does: in pieces that stay in the cache.
_FASTER_IN_NUMPY = frozenset({cluster, cluster_group, four_bit, nf4_cpu, ggml, ggml_ordered})
