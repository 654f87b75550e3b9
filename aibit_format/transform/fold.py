"""Moves a factor for each channel out of the weights that write the channel, and into those that read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..calibrate.hessians import Derivation
from ..calibrate.statistics import Inputs, Statistics
from ..formats.sources import values
from .changes import Change, Replace, Scale, from_float64, to_float64
from .source import Transformed
from .structure import Channels, Port

Changes = dict[str, list[Change]]


def gains(source: Transformed, channels: Channels) -> np.ndarray:
    """Return what a norm multiplies each channel with, f64 [channels]."""
    return to_float64(*values(source, channels.writers[0].name)) + channels.gain


def fold(source: Transformed, channels: Channels, factors: np.ndarray) -> tuple[Changes, np.ndarray]:
    """Divide what is written by factors, and multiply what reads it: the product stays the same.

    A norm's weight is divided and rounded to the dtype of the model first, and the factors are then those by which it
    was really divided: nothing is lost in the norm. A channel whose norm is 0, or would be rounded to 0, keeps 1.

    Args:
        source: of the weights.
        channels: where.
        factors: f64 [channels], or [experts, channels]; none is 0.

    Returns the changes, by parameters, and the factors that were used.
    """
    changes: Changes = {}
    first, *others = channels.writers
    if channels.kind == "norm":
        before = gains(source, channels)
        stored = from_float64(before / factors - channels.gain, source.model.parameters[first.name].dtype)
        weight = to_float64(stored, source.model.parameters[first.name].dtype)
        after = weight + channels.gain
        kept = (before == 0) | (after == 0)
        factors = np.where(kept, 1.0, before / np.where(kept, 1.0, after))
        add(changes, first, Replace(np.where(kept, before - channels.gain, weight)))
    else:
        others = channels.writers
    for port in others:
        add(changes, port, Scale(-2, 1 / port.spread(factors), port.start))
    for port in channels.readers:
        add(changes, port, Scale(-1, port.spread(factors), port.start))
    return changes, factors


def add(changes: Changes, port: Port, change: Change) -> None:
    """Add a change of the parameter of a port."""
    changes.setdefault(port.name, []).append(change)


def inputs_of(statistics: Statistics, name: str) -> Inputs | None:
    """Return the statistics of a weight's inputs; ``None`` if there are none, or no token reached it."""
    found = statistics.inputs.get(statistics.ties.get(name, name)) or statistics.inputs.get(name)
    return found if found is not None and found.tokens else None


def rescaled(statistics: Statistics, channels: Channels, factors: np.ndarray) -> Statistics:
    """Return the statistics of a model into which factors were folded.

    Of the extremes, what is left are the bounds that the largest magnitudes are; percentiles are lost.
    """
    changed: dict[str, Inputs] = {}
    derivations: dict[tuple[int, int], Derivation] = {}  # by how a port spreads its factors
    for port in channels.readers:
        found = inputs_of(statistics, port.name)
        if found is None:
            continue
        by = np.broadcast_to(port.spread(factors), found.sum2.shape)
        largest = None if found.largest is None else (found.largest / by).astype(np.float32)
        high = None if largest is None else largest.max(1)
        divided = derivations.setdefault((port.repeat, port.width), Derivation(_divided_hessian(by)))
        changed[port.name] = replace(
            found, sum2=found.sum2 / by**2, sum=_divided(found.sum, by), magnitude=_divided(found.magnitude, by),
            largest=largest, low=None if high is None else -high, high=high, percentiles=None,
            hessian=divided.of(found.hessian),
        )  # fmt: skip
    return statistics.with_inputs(changed)


def _divided_hessian(by: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda hessian, which: hessian / (by[which, :, None] * by[which, None, :])


def _divided(sums: np.ndarray | None, by: np.ndarray) -> np.ndarray | None:
    return None if sums is None else sums / by
