"""Holds the weights of all experts of a layer in a scheme, in the place of a 3-D parameter.

transformers' code takes one expert after another, of those that are routed to: ``linear(x, self.down_proj[expert])``,
or ``x @ self.down_proj[expert]`` where weights are transposed. What it finds at that index here is an ``ExpertWeight``,
which multiplies as it is stored. So the code of every family stays what it is, with its biases, its order of gate and
up, and its activations; and only the pages of experts in use are touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ...interop import torch_dtypes
from ...schemes import Scheme
from ..kernels import functional
from ..kernels.functional import Weight
from .dequantized import Quantized

Multiply = Callable[[torch.Tensor, Weight, None], torch.Tensor]


class ExpertWeight:
    """Stands for the weight of one expert where code expects a tensor: [rows, columns], or their transpose.

    Products of a tensor with it are computed a piece of the weight at a time; for whatever else it is used, it is
    decoded. It is no tensor itself, as it has no values in memory.
    """

    __slots__ = ("_multiply", "_transposed", "_weight")

    def __init__(self, weight: Weight, transposed: bool, multiply: Multiply | None = None) -> None:
        self._weight, self._transposed = weight, transposed
        self._multiply = multiply or partial(functional.linear, rounds=False)

    @property
    def shape(self) -> torch.Size:
        """Return the shape that code sees."""
        rows, columns = self._weight.shape
        return torch.Size((columns, rows) if self._transposed else (rows, columns))

    @property
    def dtype(self) -> torch.dtype:
        """Return the logical dtype."""
        return torch_dtypes()[self._weight.dtype]

    @property
    def T(self) -> ExpertWeight:  # noqa: N802 - as tensors have it
        """Return the transpose."""
        return ExpertWeight(self._weight, not self._transposed, self._multiply)

    def float(self) -> ExpertWeight:
        """Return the weight in float32: its values as they are decoded, before they are rounded to any dtype."""
        return ExpertWeight(replace(self._weight, dtype="f32"), self._transposed, self._multiply)

    def decoded(self) -> torch.Tensor:
        """Return the values, in the logical dtype."""
        values = self._weight.rows(slice(0, self._weight.shape[0]), self.dtype)
        return values.T if self._transposed else values

    def multiplied(self, x: torch.Tensor, transposed: bool) -> torch.Tensor:
        """Multiply x [..., in] with the weight as [in, out], or as [out, in] if ``transposed``: [..., out]."""
        if transposed == self._transposed:  # the stored rows are what is summed over
            values = self.decoded().to(x.dtype)
            return x @ (values.T if transposed else values)
        flat = self._multiply(x.reshape(-1, x.shape[-1]), self._weight, None)
        return flat.view(*x.shape[:-1], self._weight.shape[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoded(), name)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: object, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute what torch was asked for with such a weight."""
        kwargs = dict(kwargs or {})
        if function in _PRODUCTS and len(args) >= 2 and isinstance(args[1], cls) and type(args[0]) is not cls:
            bias = args[2] if len(args) > 2 else kwargs.pop("bias", None)
            if not kwargs:
                values = args[1].multiplied(args[0], _PRODUCTS[function])
                return values if bias is None else values + bias
        return function(*_decoded(args), **_decoded(kwargs))


# Function -> whether it takes the weight as [out, in].
_PRODUCTS: dict[Callable[..., Any], bool] = {
    nn.functional.linear: True, torch.matmul: False, torch.mm: False,
    torch.Tensor.matmul: False, torch.Tensor.__matmul__: False, torch.Tensor.mm: False,
}  # fmt: skip


class QuantizedExperts(Quantized):
    """Takes the place of a parameter [experts, rows, columns], or [experts, columns, rows] if it is ``transposed``.

    Args:
        scheme, planes, dtype: as for ``Quantized``.
        shape: [experts, rows, columns] of the stored tensor.
        transposed: whether the model has the transpose of each matrix.
        multiply: multiplies x [rows, in] with the weight of an expert; ``functional.linear`` by default.
    """

    leaf = ""

    def __init__(
        self, scheme: Scheme, planes: Mapping[str, torch.Tensor], shape: tuple[int, ...], dtype: str, transposed: bool,
        multiply: Multiply | None = None,
    ) -> None:  # fmt: skip
        super().__init__(scheme, planes, shape, dtype)
        self.transposed, self._multiply = transposed, multiply
        self._views = _views(scheme, shape, dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, expert: int | torch.Tensor) -> ExpertWeight:
        """Return the weight of an expert. An index of any other kind gets values.

        Raises:
            IndexError: there is no such expert.
        """
        if not isinstance(expert, int) and not (isinstance(expert, torch.Tensor) and expert.ndim == 0):
            return self.weight[expert]  # type: ignore[return-value]
        at, (count, rows, columns) = int(expert), self.shape
        if not -count <= at < count:
            raise IndexError(f"expert {at} of {count}")
        at %= count
        shape, planes = (rows, columns), self.planes()
        if self._views is None:
            weight = Weight(
                self.scheme, planes, shape, self.logical_dtype, self.shape, at * rows, activations=self.activations
            )
        else:
            views = self._views
            mine = {role: plane[at] if views[role] else plane for role, plane in planes.items()}
            weight = Weight(self.scheme, mine, shape, self.logical_dtype, activations=self.activations)
        return ExpertWeight(weight, self.transposed, self._multiply)

    def transpose(self, first: int, second: int) -> QuantizedExperts | torch.Tensor:
        """Return the same experts with the last two dimensions swapped; for other dimensions, the values."""
        if {first % 3, second % 3} != {1, 2}:
            return self.weight.transpose(first, second)
        turned = copy.copy(self)
        turned.transposed = not self.transposed
        return turned

    @property
    def weight(self) -> torch.Tensor:
        """Decode the weights of all experts, to the logical dtype and in the model's shape, anew at each call."""
        experts, rows, _ = self.shape
        values = self.rows(slice(0, experts * rows), torch_dtypes()[self.logical_dtype]).view(self.shape)
        return values.transpose(1, 2) if self.transposed else values

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: object, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Multiply a batch for each expert, of those whose inputs are not all zero; decode for whatever else."""
        if function in _BATCHED and len(args) == 2 and not kwargs and isinstance(args[1], cls):
            x, experts = args
            return torch.stack([_unless_zero(each, experts[i]) for i, each in enumerate(x)])
        return function(*_decoded(args), **_decoded(kwargs or {}))


_BATCHED = frozenset({torch.bmm, torch.Tensor.bmm})


def _unless_zero(x: torch.Tensor, weight: ExpertWeight) -> torch.Tensor:
    """Multiply x [rows, in] with a weight [in, out]; zeros, of tokens that are not routed to it, without reading it."""
    if x.any():
        return x @ weight  # type: ignore[operator]
    return x.new_zeros(len(x), weight.shape[1])


def _decoded(value: Any) -> Any:
    """Return arguments with values in the place of weights that have none in memory, in lists and mappings too."""
    if isinstance(value, ExpertWeight):
        return value.decoded()
    if isinstance(value, QuantizedExperts):
        return value.weight
    if isinstance(value, (list, tuple)):
        return [_decoded(each) for each in value]
    return {key: _decoded(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _views(scheme: Scheme, shape: tuple[int, ...], dtype: str) -> dict[str, bool] | None:
    """Return which planes of a stack have a part for each matrix, by role; those without are the same for all.

    ``None`` if a plane is something else: blocks that run over the ends of matrices, for instance.
    """
    whole = {spec.role: spec for spec in scheme.planes(shape, dtype)}
    found: dict[str, bool] = {}
    for spec in scheme.planes(shape[1:], dtype):
        if spec.stored == whole[spec.role].stored:
            found[spec.role] = False
        elif whole[spec.role].stored == (shape[0], *spec.stored):
            found[spec.role] = True
        else:
            return None
    return found
