"""Rounds weights with GPTQ: one column after another, each spreading its error over the columns that are still to come.

Frantar et al., GPTQ, 2022 (https://arxiv.org/abs/2210.17323). H is the sum of x x^T over the inputs x of a layer, plus
``damping`` times the mean of its diagonal, and U the upper factor of its inverse: inverse(H) = U^T U. The error of
column k, divided by U[k, k], is subtracted from each later column j as often as U[k, j] says: later columns make up for
as much of it as they can. What codes stand for is not known here: ``schemes.quantizer`` says what a scheme must offer.
The parameters of a group are found when its first column is reached, with the diagonal of H as weights of columns; or,
if columns are ``ordered`` by that diagonal, largest first, before all (static groups), so that the stored order stays.

An input that was zero for every token says nothing of its column, which is rounded as it is. An expert that saw no
token is rounded with the weighted search alone.

Every result is exact in the sense that other code gives the same bits (``native/gptq.c`` does): operations are rounded
one by one, float64 in the factor and float32 in the weights, and sums are in the order of columns. So neither the
number of threads nor the kind of processor makes a difference.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np

from .. import native
from ..calibrate.hessians import Hessians
from ..dtypes import DTYPES, to_float32
from ..errors import RecipeError, SchemeError
from ..schemes import Scheme, capabilities
from ..schemes.base import matrix
from ..schemes.quantizer import Quantizer

NAME = "gptq"
DAMPING = 0.01
_BLOCK = 128  # columns after which errors reach all later ones
_ROWS = 256  # rows that are rounded at a time
_LANES = 16  # their number is a multiple of this
_KEPT = 4  # factors in memory: those of a layer's weights

Planes = dict[str, np.ndarray]


@dataclass(frozen=True)
class Factor:
    """Hold what GPTQ makes of a Hessian.

    upper: f32 [K, K], of the inverse Hessian, in the order of ``order``.
    weights: f32 [K], of columns as they are stored: the diagonal of the Hessian.
    order: i64 [K]: which column is the first, the second, ...; ``None`` if they stay as they are.
    """

    upper: np.ndarray
    weights: np.ndarray
    order: np.ndarray | None = None

    @classmethod
    def of(cls, hessian: np.ndarray, damping: float = DAMPING, ordered: bool = False) -> Factor:
        """Factorize a Hessian, f32 [K, K].

        Raises:
            SchemeError: it is not positive definite, even with the damping.
        """
        count = len(hessian)
        weights = np.ascontiguousarray(hessian.diagonal(), np.float32)
        live = weights > 0
        mean = float(weights[live].mean(dtype=np.float64)) if live.any() else 1.0
        diagonal = np.where(live, weights.astype(np.float64) + damping * mean, mean)
        order = np.argsort(-diagonal, kind="stable") if ordered else None
        # The factor of the inverse is the inverse of a factor that begins with the last column.
        back = np.arange(count)[::-1] if order is None else order[::-1]
        work, inverse = np.zeros((2, count, -(-count // 8) * 8))
        work[:, :count] = hessian[np.ix_(back, back)]
        places = np.arange(count)
        work[places, places], inverse[places, places] = diagonal[back], 1
        if not (native.gptq_factor if native.available else _factorize)(work, inverse):
            raise SchemeError(
                f"its Hessian is not positive definite with a damping of {damping:g}: take the statistics from more "
                f"text, or say a larger one (--method {NAME},damping={10 * damping:g})"
            )
        return cls(inverse[::-1, count - 1 :: -1].astype(np.float32), weights, order)


def _factorize(matrix: np.ndarray, inverse: np.ndarray) -> bool:
    """Do what ``native.gptq_factor`` does."""
    count = len(matrix)
    for k in range(count):
        if not 0 < matrix[k, k] < np.inf:
            return False
        matrix[k, k:] /= np.sqrt(matrix[k, k])
        matrix[k + 1 :, k + 1 :] -= matrix[k, k + 1 : count, None] * matrix[k, None, k + 1 :]
    for k in range(count):
        inverse[k, : k + 1] /= matrix[k, k]
        inverse[k + 1 :, : k + 1] -= matrix[k, k + 1 : count, None] * inverse[k, None, : k + 1]
    return True


class _Columns:
    """Hold rows that are being rounded, f32 [columns, rows]: a column lies together."""

    def __init__(self, quantizer: Quantizer, rows: np.ndarray, factor: Factor) -> None:
        self.count, columns = rows.shape
        self.quantizer, self.factor = quantizer, factor
        self.values = np.zeros((columns, -(-self.count // _LANES) * _LANES), np.float32)
        self.values[:, : self.count] = rows.T if factor.order is None else rows.T[factor.order]
        self.errors, self.codes = np.empty_like(self.values), np.empty(self.values.shape, np.uint8)
        self.group = np.empty(columns, np.int32)
        self.parameters = np.empty(
            (3, sum(self._groups(each) for each in self.spans()), self.values.shape[1]), np.float32
        )
        self.found: list[object] = []
        self._filled = 0

    def spans(self) -> Iterator[range]:
        """Yield the columns for which parameters are found at a time."""
        columns, span = len(self.values), self.quantizer.span
        return (range(start, min(start + span, columns)) for start in range(0, columns, span))

    def _groups(self, span: range) -> int:
        return -(-len(span) // self.quantizer.group)

    def find(self, span: range, values: np.ndarray, columns: np.ndarray | slice) -> None:
        """Find the parameters of the next span, whose ``values`` [rows, columns] are those in these places here."""
        found = self.quantizer.find(values, self.factor.weights[span.start : span.stop])
        self.found.append(found)
        filled, more = self._filled, self._groups(span)
        self.parameters[:, filled : filled + more, : self.count] = self.quantizer.parameters(found)
        self.parameters[:, filled : filled + more, self.count :] = 0
        self.group[columns] = filled + np.arange(len(span)) // self.quantizer.group
        self._filled += more

    def round(self, columns: range) -> None:
        """Round columns, and spread the error of each over those of them that follow it."""
        quantizer, factor = self.quantizer, self.factor.upper
        (native.gptq_round if native.available else _round)(
            self.values, self.errors, self.codes, factor, self.group, self.parameters, quantizer.book, quantizer.high,
            columns,
        )  # fmt: skip

    def propagate(self, columns: range, later: range) -> None:
        """Spread the errors of columns over later ones."""
        propagate = native.gptq_propagate if native.available else _propagate
        propagate(self.values, self.errors, self.factor.upper, columns, later)


def _round(
    values: np.ndarray, errors: np.ndarray, codes: np.ndarray, upper: np.ndarray, group: np.ndarray,
    parameters: np.ndarray, book: np.ndarray | None, high: int, columns: range,
) -> None:  # fmt: skip
    """Do what ``native.gptq_round`` does."""
    for k in columns:
        scale, zero, offset = parameters[:, group[k]]
        some = scale != 0
        scaled = np.where(some, (values[k] - offset) / np.where(some, scale, np.float32(1)), np.float32(0))
        if book is None:
            code = np.fmin(np.fmax(np.rint(scaled + zero), np.float32(0)), np.float32(high))
            level = code - zero
        else:
            code = np.searchsorted(book[:15], scaled)
            level = book[15:][code]
        codes[k] = code
        errors[k] = (values[k] - (level * scale + offset)) / upper[k, k]
        _propagate(values, errors, upper, range(k, k + 1), range(k + 1, columns.stop))


def _propagate(values: np.ndarray, errors: np.ndarray, upper: np.ndarray, columns: range, later: range) -> None:
    """Do what ``native.gptq_propagate`` does."""
    places = slice(later.start, later.stop)
    for k in columns:
        values[places] -= upper[k, places, None] * errors[k]


def quantize(quantizer: Quantizer, rows: np.ndarray, factor: Factor) -> Planes:
    """Round rows of a matrix, finite f32 [rows, K], to planes of a scheme.

    Raises:
        SchemeError: a value is not finite, or a scale is too large for the scheme.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        work = _Columns(quantizer, rows, factor)
        if factor.order is None:
            _as_reached(work)
        else:
            _with_static_groups(work, rows, np.argsort(factor.order))
    codes = np.empty(rows.shape, np.uint8)
    codes[:, slice(None) if factor.order is None else factor.order] = work.codes[:, : len(rows)].T
    planes = quantizer.planes(codes, work.found)
    if not np.isfinite(work.errors[:, : len(rows)]).all():
        raise SchemeError("values are too large: errors that are spread are beyond float32's range")
    return planes


def _as_reached(work: _Columns) -> None:
    """Find the parameters of each span when it is reached. Errors are spread over 128 columns, or a span, at first."""
    columns, span = len(work.values), work.quantizer.span
    width = span * max(1, _BLOCK // span)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        for first in range(start, stop, span):
            part = range(first, min(first + span, stop))
            places = slice(part.start, part.stop)
            work.find(part, work.values[places, : work.count].T, places)
            _round_blocks(work, part, stop)
        work.propagate(range(start, stop), range(stop, columns))


def _with_static_groups(work: _Columns, rows: np.ndarray, places: np.ndarray) -> None:
    """Find all parameters first; ``places`` says where in the order of rounding each stored column is."""
    for span in work.spans():
        work.find(span, rows[:, span.start : span.stop], places[span.start : span.stop])
    columns = range(len(work.values))
    _round_blocks(work, columns, len(columns))


def _round_blocks(work: _Columns, columns: range, stop: int) -> None:
    """Round columns by blocks, the errors of which are spread up to ``stop``."""
    for first in range(columns.start, columns.stop, _BLOCK):
        block = range(first, min(first + _BLOCK, columns.stop))
        work.round(block)
        work.propagate(block, range(block.stop, stop))


@dataclass(frozen=True)
class Gptq:
    """Hold the options of the method."""

    damping: float = DAMPING  # is added to the diagonal of a Hessian, as a share of its mean
    ordered: bool = True  # the largest of that diagonal first

    @classmethod
    def parse(cls, text: str) -> Gptq:
        """Parse ``gptq,damping=0.01,ordered=0``; both options may be missing.

        Raises:
            RecipeError: it is another method or option, or a value has no meaning.
        """
        name, *options = text.split(",")
        values = {"damping": str(DAMPING), "ordered": "1"}
        if name != NAME:
            raise RecipeError(f"unknown method {name!r}; known: {NAME}")
        for option in options:
            key, _, value = option.partition("=")
            if key not in values:
                raise RecipeError(f"method {NAME} does not take {option!r}; it takes {', '.join(values)}")
            values[key] = value or "1"
        try:
            damping = float(values["damping"])
        except ValueError:
            damping = -1.0
        if not 0 < damping <= 1 or values["ordered"] not in ("0", "1"):
            raise RecipeError(f"method {text!r}: damping is a number above 0, and at most 1; ordered is 0 or 1")
        return cls(damping, values["ordered"] == "1")

    @property
    def text(self) -> str:
        """Return it as users write it, with both options."""
        return f"{NAME},damping={self.damping:g},ordered={int(self.ordered)}"


class Factors:
    """Keep the factors of the Hessians that were asked for last; threads wait for the one that computes theirs."""

    def __init__(self, options: Gptq) -> None:
        self.options, self._lock = options, Lock()
        self._entries: OrderedDict[tuple[int, int], tuple[Lock, list[Factor], Hessians]] = OrderedDict()

    def of(self, hessian: Hessians, matrix: int) -> Factor:
        """Return the factor of one of a weight's Hessians, f32 [matrices, K, K]; weights may share them."""
        key = id(hessian), matrix
        with self._lock:
            entry = self._entries.setdefault(key, (Lock(), [], hessian))  # which keeps the id from being used again
            self._entries.move_to_end(key)
            while len(self._entries) > _KEPT:
                self._entries.popitem(last=False)
        lock, found, _ = entry
        with lock:
            if not found:
                found.append(Factor.of(hessian[matrix], self.options.damping, self.options.ordered))
            return found[0]


@dataclass(frozen=True)
class Encoder:
    """Encode rows of one weight, which has a Hessian, or one for each matrix of a stack."""

    factors: Factors
    hessian: Hessians  # f32 [matrices, K, K]
    rows: int  # of a matrix

    def encode(self, scheme: Scheme, array: np.ndarray, dtype: str, first: int = 0) -> Planes:
        """Encode rows of the weight seen as a matrix, from the row ``first`` on, or all of it.

        Raises:
            SchemeError: as for ``Factor.of`` and ``quantize``.
        """
        values = array.reshape(matrix(array.shape))
        quantizer = quantizer_of(scheme, values.shape[1])
        if quantizer is None:
            raise SchemeError(f"{scheme.text} cannot be rounded with {NAME}")
        parts = []
        for cut in self._cuts(first, len(values)):
            rows = to_float32(values[cut], dtype)
            if not np.isfinite(rows).all():
                raise SchemeError("a value is not finite")
            factor = self.factors.of(self.hessian, (first + cut.start) // self.rows)
            parts.append(quantize(quantizer, rows, factor))
        specs = scheme.planes(array.shape, dtype)
        if not parts:
            return {spec.role: np.empty(spec.stored, DTYPES[spec.dtype].numpy) for spec in specs}
        return {spec.role: np.concatenate([part[spec.role] for part in parts]).reshape(spec.stored) for spec in specs}

    def _cuts(self, first: int, count: int) -> Iterator[slice]:
        """Cut ``count`` rows of all into pieces of one matrix each."""
        start = 0
        while start < count:
            left = self.rows - (first + start) % self.rows
            stop = min(start + _ROWS, start + left, count)
            yield slice(start, stop)
            start = stop


def quantizer_of(scheme: Scheme, columns: int) -> Quantizer | None:
    """Return the quantizer of a scheme for rows of so many columns; ``None`` if it has none."""
    make: Callable[[Scheme, int], Quantizer | None] | None = capabilities.find(scheme, "quantizer")
    return None if make is None else make(scheme, columns)
