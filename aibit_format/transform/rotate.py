"""Rotates the residual stream and the values of each head by a randomized Hadamard matrix (QuaRot, 2404.00456).

Norms' weights are folded into the matrices behind them first, after which a norm keeps rotations. Everything that
writes to the stream is then rotated by Q, and everything that reads it by its transpose; so are the values of each head
and what reads them. Weights and inputs become closer to normal: none stands out. What QuaRot does while the model runs
(of the inputs of ``down``, and of keys after their positions) is left out, as it would be another network.

Tied embeddings cannot stay tied: the weight of the last norm becomes part of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..calibrate.hessians import Derivation
from ..calibrate.statistics import Inputs, Statistics
from ..dtypes import DTYPES
from ..errors import RecipeError
from .changes import Replace, Rotate, Scale
from .fold import Changes, add, gains, inputs_of
from .hadamard import Rotation
from .method import Context, Done
from .source import Transformed
from .structure import Decoder, decoder_of


def rotate(source: Transformed, statistics: Statistics | None, context: Context, how: str, seed: int) -> Done:
    """Rotate a model.

    Statistics of its inputs become those of the rotated ones where there are Hessians. Otherwise, columns that are
    rotated together get the mean of all.

    Raises:
        RecipeError: the residual stream cannot be rotated without a change of the network.
    """
    decoder = decoder_of(source.model)
    if decoder.stream is None:
        raise RecipeError(f"{source.path}: {how}: {source.architecture} cannot be rotated: {decoder.barred}")
    notes = []
    if decoder.stream.head in source.model.ties:
        source = source.untied()
        spec = source.model.parameters[decoder.stream.head]
        nbytes = DTYPES[spec.dtype].nbytes(spec.shape)
        notes.append(
            f"rotate: the head is no longer tied to the embedding, as the last norm becomes part of it: "
            f"{nbytes / 1e6:.1f} MB more in {spec.dtype}, unless --tensor '{spec.name}=SCHEME' quantizes it"
        )
    changes: Changes = {}
    changed: dict[str, Inputs] = {}
    turn = Rotation.seeded(decoder.stream.size, seed)
    for norm in decoder.stream.norms:
        by = gains(source, norm)
        turned = _Turned(turn, by)
        for port in norm.readers:
            add(changes, port, Scale(-1, by))
            add(changes, port, Rotate(-1, turn, norm.count))
            if statistics is not None and (found := inputs_of(statistics, port.name)) is not None:
                changed[port.name] = turned.of(found)
        add(changes, norm.writers[0], Replace(np.full(norm.count, 1.0 - norm.gain)))
    for port in decoder.stream.writers:
        add(changes, port, Rotate(port.axis, turn, decoder.stream.size))
    changed |= _rotate_values(decoder, statistics, changes, seed)
    if statistics is not None:
        statistics = statistics.with_inputs(changed)
    return source.transformed(how, changes, notes=notes), statistics


def _rotate_values(
    decoder: Decoder, statistics: Statistics | None, changes: Changes, seed: int
) -> Mapping[str, Inputs]:  # fmt: skip
    changed = {}
    for place, channels in enumerate(each for each in decoder.channels if each.kind == "values"):
        turn = Rotation.seeded(decoder.head_size, seed, place + 1)
        for port in channels.writers:
            add(changes, port, Rotate(-2, turn, channels.count, port.start))
        for port in channels.readers:
            columns = channels.count * port.repeat
            add(changes, port, Rotate(-1, turn, columns))
            if statistics is not None and (found := inputs_of(statistics, port.name)) is not None:
                changed[port.name] = _Turned(turn, np.ones(columns)).of(found)
    return changed


class _Turned:
    """Make statistics of inputs that are divided by ``by``, and rotated in stretches of the rotation's size."""

    def __init__(self, turn: Rotation, by: np.ndarray) -> None:
        self._turn, self._by = turn, np.where(by == 0, 1.0, by)
        self._hessians = Derivation(self._hessian)

    def of(self, found: Inputs) -> Inputs:
        """Return those of inputs ``found``; extremes and percentiles are lost, and without Hessians means, too."""
        hessian = self._hessians.of(found.hessian)
        if hessian is not None:
            sum2 = np.array([np.diagonal(hessian[which]) for which in range(hessian.shape[0])], np.float64)
        else:
            size = len(self._turn.signs)
            stretches = (found.sum2 / self._by**2).reshape(len(found.sum2), -1, size)
            sum2 = np.repeat(stretches.mean(2), size, 1)
        return replace(
            found, sum2=np.maximum(sum2, 0), sum=None, magnitude=None, largest=None, low=None, high=None,
            percentiles=None, hessian=hessian,
        )  # fmt: skip

    def _hessian(self, before: np.ndarray, _: int) -> np.ndarray:
        turned = self._turn.apply(before / (self._by[:, None] * self._by))
        return self._turn.apply(np.ascontiguousarray(turned.T)).T
