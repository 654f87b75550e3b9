"""Defines ``kernels.functional`` as operators of torch: for ``torch.compile``, and ``generate`` with a static cache.

Threads, compiled code and numpy mean nothing to a compiler. It takes an operator as one step whose result's shape it
knows, so that a model is one graph, which a GPU can then be given as a whole. Without a compiler modules call the
functions themselves: an operator costs 50 us a call.
"""

# Not "from __future__ import annotations": torch reads the types of an operator's arguments.

from functools import cache

import torch
from torch import Tag, Tensor
from torch.library import custom_op

from ...interop import torch_dtypes
from ...schemes import parse
from ..kernels import functional, w8a8
from ..kernels.functional import Weight

_parse = cache(parse)  # an operator is called for every layer of every token


@custom_op("aibit::linear", mutates_args=())
def linear(
    x: Tensor, planes: list[Tensor], roles: str, scheme: str, shape: list[int], dtype: str, bias: Tensor | None
) -> Tensor:
    """Multiply x [rows, in] with a weight: [rows, out] in the dtype of x, without gradients.

    Args:
        planes, roles: the planes of the weight, and their roles with spaces between them.
        scheme: as users write it.
        shape, dtype: the logical ones of the weight.
    """
    return functional.linear(x, _weight(planes, roles, scheme, shape, dtype), bias)


@linear.register_fake
def _(
    x: Tensor, planes: list[Tensor], roles: str, scheme: str, shape: list[int], dtype: str, bias: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape[0], shape[0])


@custom_op("aibit::w8a8_linear", mutates_args=())
def w8a8_linear(
    x: Tensor, planes: list[Tensor], roles: str, scheme: str, shape: list[int], dtype: str, bias: Tensor | None
) -> Tensor:
    """Multiply x [rows, in], rounded to 8 bits, with a weight; arguments and result are those of ``linear``."""
    return w8a8.product(x, _weight(planes, roles, scheme, shape, dtype).planes, bias)


@w8a8_linear.register_fake
def _(
    x: Tensor, planes: list[Tensor], roles: str, scheme: str, shape: list[int], dtype: str, bias: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape[0], shape[0])


@custom_op("aibit::rows", mutates_args=())
def rows(planes: list[Tensor], roles: str, scheme: str, shape: list[int], dtype: str, start: int, stop: int) -> Tensor:
    """Decode rows, to f32 [stop - start, columns]."""
    return _weight(planes, roles, scheme, shape, dtype).rows(slice(start, stop), torch.float32)


@rows.register_fake
def _(planes: list[Tensor], roles: str, scheme: str, shape: list[int], dtype: str, start: int, stop: int) -> Tensor:
    return planes[0].new_empty(stop - start, shape[1], dtype=torch.float32)


@custom_op("aibit::linears", mutates_args=())
def linears(x: Tensor, codes: list[Tensor], scales: list[Tensor], scheme: str, bias: Tensor | None) -> Tensor:
    """Multiply x [rows, in] with several int8 layers: [rows, sum of out], in one product where codes are side by side.

    Args:
        codes, scales: i8 [out, in] and f32 [out] of each layer.
        scheme: that of all layers, which has these two planes.
        bias: those of all layers, [sum of out].
    """
    biases = [None] * len(codes) if bias is None else list(bias.split([len(each) for each in codes]))
    whole = side_by_side(codes)
    if whole is not None:
        codes, scales, biases = [whole], [torch.cat(scales)], [bias]
    products, parsed = [], _parse(scheme)
    for each, steps, added in zip(codes, scales, biases, strict=True):
        shape = each.shape[0], each.shape[1]
        first, second = parsed.planes(shape, "f32")
        planes = {first.role: each, second.role: steps.view(second.shape)}
        products.append(functional.linear(x, Weight(parsed, planes, shape, "f32"), added))
    return products[0] if whole is not None else torch.cat(products, 1)


@linears.register_fake
def _(x: Tensor, codes: list[Tensor], scales: list[Tensor], scheme: str, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], sum(each.shape[0] for each in codes))


def side_by_side(parts: list[Tensor]) -> Tensor | None:
    """Return one matrix over the memory of matrices that follow each other in one allocation; None if they do not."""
    first, end = parts[0], parts[0].data_ptr()
    allocation = first.untyped_storage().data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != allocation or not part.is_contiguous():
            return None
        end += part.nbytes
    return first.as_strided((sum(len(part) for part in parts), first.shape[1]), first.stride())


# Which ids there are decides how much is decoded, and that they are in the table is looked up on the host.
@custom_op("aibit::embedding", mutates_args=(), tags=(Tag.cudagraph_unsafe,))
def embedding(ids: Tensor, planes: list[Tensor], roles: str, scheme: str, shape: list[int], dtype: str) -> Tensor:
    """Look up ids [n] in a table: [n, columns], in the logical dtype."""
    return functional.embedding(ids, _weight(planes, roles, scheme, shape, dtype))


@embedding.register_fake
def _(ids: Tensor, planes: list[Tensor], roles: str, scheme: str, shape: list[int], dtype: str) -> Tensor:
    return planes[0].new_empty(ids.shape[0], shape[1], dtype=torch_dtypes()[dtype])


def _weight(planes: list[Tensor], roles: str, scheme: str, shape: list[int], dtype: str) -> Weight:
    """Make a weight of the arguments of an operator."""
    by_role = dict(zip(roles.split(), planes, strict=True))
    return Weight.of(_parse(scheme), by_role, tuple(shape), dtype)
