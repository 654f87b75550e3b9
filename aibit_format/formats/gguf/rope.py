"""Translates the parameters of rotary position embeddings between transformers' ``rope_parameters`` and GGUF.

GGUF states theta, a scaling type (``linear``, ``yarn``) and its numbers. Llama 3's scaling is not stated: the file has
a tensor ``rope_freqs.weight`` whose values divide the frequencies; this module recovers the parameters from it.
Phi-3's (``longrope``) is in two tensors, one for texts beyond the original context.
The formulas are those of ``transformers.modeling_rope_utils`` (``llama3``, ``longrope``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import SourceError

DEFAULT_THETA = 10000.0
# Tensors that are no weights: frequency factors of llama3 scaling, and those of longrope.
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
FACTORS = (FREQUENCIES, LONG, SHORT)
_CONTEXTS = (8192, *(1 << power for power in range(6, 21)))  # tried if there are too few values to compute it
_STILL = 1e30  # a factor that makes a frequency nothing
_LARGEST_HEAD = 1 << 16  # dimensions; those of real models have at most 512
_TOLERANCE = 1e-5  # relative: the factors went through float32


def frequency_factors(parameters: Mapping[str, Any], head_dim: int) -> np.ndarray:
    """Compute the factors by which llama3's scaling divides each frequency, f32 [head_dim / 2].

    Wavelengths above ``old / low`` are divided by ``factor``, those below ``old / high`` by 1, and the inverses of
    those between lie on a straight line over ``old / wavelength``.
    """
    factor, old = float(parameters["factor"]), float(parameters["original_max_position_embeddings"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    turns = old / _wavelengths(float(parameters["rope_theta"]), head_dim)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def llama3_parameters(factors: np.ndarray, theta: float) -> dict[str, Any]:
    """Find the ``rope_parameters`` whose frequency factors are ``factors``, f32 [head_dim / 2].

    Only ``old / low`` and ``old / high`` follow from them, so ``low`` is 1, as in every model so far.

    Raises:
        SourceError: no parameters yield them.
    """
    found = factors.astype(np.float64)
    factor = float(_shortest(found.max(initial=1)))
    if not np.isfinite(found).all() or found.min(initial=1) < 1 or theta <= 1:
        raise SourceError("rope_freqs.weight holds no frequency factors of llama3 scaling")
    if factor == 1:
        return {"rope_type": "default", "rope_theta": theta}
    between = (found > 1 + _TOLERANCE) & (found < factor * (1 - _TOLERANCE))
    guesses = [(1.0, 4.0, old) for old in _CONTEXTS]
    if between.sum() >= 2:
        smooth = (1 / found[between] - 1 / factor) / (1 - 1 / factor)
        slope, offset = np.polyfit(1 / _wavelengths(theta, 2 * len(found))[between], smooth, 1)
        guesses = [(1.0, float(f"{1 - 1 / offset:.5g}"), round(-slope / offset))]
    for low, high, old in guesses:
        parameters = {
            "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": old,
        }  # fmt: skip
        again = frequency_factors(parameters, 2 * len(found)) if high > low and old > 0 else np.zeros(1)
        if np.allclose(again, found, rtol=10 * _TOLERANCE, atol=0):
            return parameters
    raise SourceError("rope_freqs.weight holds frequency factors that are not of llama3 scaling")


def from_gguf(rope: Mapping[str, Any], factors: Mapping[str, np.ndarray], context: int) -> dict[str, Any]:
    """Make ``rope_parameters`` from GGUF's ``rope.`` keys (without that prefix) and from tensors of factors.

    Raises:
        SourceError: transformers has no such scaling.
    """
    theta = _shortest(rope.get("freq_base", DEFAULT_THETA))
    kind, factor = rope.get("scaling.type", "none"), rope.get("scaling.factor") or rope.get("scale_linear") or 0.0
    if kind == "none" and factor not in (0.0, 1.0):
        kind = "linear"  # llama.cpp's default for a factor without a type
    if kind != "none" and factor in (0.0, 1.0):
        kind = "none"
    if factors:
        if kind != "none" or (FREQUENCIES in factors and len(factors) > 1):
            raise SourceError(f"rope scaling {kind!r} together with {', '.join(factors)}")
        if FREQUENCIES in factors:
            return llama3_parameters(factors[FREQUENCIES], theta)
        return _long_parameters(rope, factors, theta, context)
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if kind not in ("linear", "yarn"):
        raise SourceError(f"rope scaling {kind!r} is unknown here")
    if any(rope.get(f"scaling.{key}", 1.0) != 1.0 for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor")):
        raise SourceError("rope scaling with factors of its own for attention or extrapolation")
    parameters = {"rope_type": kind, "rope_theta": theta, "factor": _shortest(factor)}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = rope.get("scaling.original_context_length", context)
        for name in ("beta_fast", "beta_slow"):
            if f"scaling.yarn_{name}" in rope:
                parameters[name] = _shortest(rope[f"scaling.yarn_{name}"])
    return parameters


def _long_parameters(
    rope: Mapping[str, Any], factors: Mapping[str, np.ndarray], theta: float, context: int
) -> dict[str, Any]:
    original = rope.get("scaling.original_context_length", context)
    if LONG not in factors or SHORT not in factors or len(factors[LONG]) != len(factors[SHORT]):
        raise SourceError(f"{LONG} and {SHORT} are not of one length, or one is missing")
    if type(original) is not int or original < 2:
        raise SourceError(f"rope.scaling.original_context_length is {original}, a number above 1 is needed")
    parameters = {
        "rope_type": "longrope", "rope_theta": theta, "original_max_position_embeddings": original,
        "long_factor": [*map(_shortest, factors[LONG])], "short_factor": [*map(_shortest, factors[SHORT])],
    }  # fmt: skip
    stated = rope.get("scaling.attn_factor", 1.0)
    if not math.isclose(stated, _long_attention(context / original, original), rel_tol=_TOLERANCE):
        parameters["attention_factor"] = _shortest(stated)
    return parameters


def _long_attention(factor: float, original: int) -> float:
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def parameters_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``rope_parameters`` of a config of any age: older ones have ``rope_theta`` and ``rope_scaling``."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found["rope_type"] = found.get("rope_type") or found.pop("type", None) or "default"
    found["rope_theta"] = found.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA
    return found


def head_dim_of(config: Mapping[str, Any]) -> int:
    """Return the number of dimensions of a head.

    Raises:
        SourceError: it is no number, or none that a head has.
    """
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return checked_head(size)


def checked_head(size: Any) -> int:
    """Return the number of dimensions of a head; raises SourceError for what is none."""
    if type(size) is not int or not 1 <= size <= _LARGEST_HEAD:
        raise SourceError(f"heads of {repr(size)[:60]} dimensions, expected 1 to {_LARGEST_HEAD}")
    return size


def factors_of(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the tensors of factors that GGUF has for a config, f32, by name."""
    both = config.get("rope_parameters") or {}
    parameters = parameters_of(config) if "full_attention" not in both else both["full_attention"]
    if parameters.get("rope_type") == "llama3":
        return {FREQUENCIES: frequency_factors(parameters, head_dim_of(config))}
    if parameters.get("rope_type") == "proportional":  # Gemma 4: the other pairs of dimensions do not rotate
        sizes = [own["head_dim"] for own in (config.get("per_layer_config") or {}).values() if "head_dim" in own]
        pairs = checked_head(sizes[0] if sizes else config.get("global_head_dim") or 512) // 2
        rotated = int(pairs * parameters.get("partial_rotary_factor", 1.0))
        if not 0 <= rotated <= pairs:
            raise SourceError(f"config.json: {rotated} of {pairs} pairs of dimensions rotate")
        return {FREQUENCIES: np.array([1.0] * rotated + [_STILL] * (pairs - rotated), np.float32)}
    if parameters.get("rope_type") in _LONG:
        found = {LONG: parameters["long_factor"], SHORT: parameters["short_factor"]}
        return {name: np.asarray(values, np.float32) for name, values in found.items()}
    return {}


_LONG = ("longrope", "su")


def to_gguf(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Make GGUF's ``rope.`` keys from the result of ``parameters_of``; factors are not among them.

    Raises:
        SourceError: llama.cpp has no such scaling.
    """
    kind, known = parameters["rope_type"], {"rope_type", "rope_theta", "original_max_position_embeddings"}
    values: dict[str, Any] = {"freq_base": float(parameters["rope_theta"])}
    if kind in ("linear", "yarn"):
        known |= {"factor"}
        values |= {"scaling.type": kind, "scaling.factor": float(parameters["factor"])}
    if kind == "yarn":
        known |= {"beta_fast", "beta_slow", "attention_factor"}
        values["scaling.original_context_length"] = int(parameters["original_max_position_embeddings"])
        for name in ("beta_fast", "beta_slow"):
            if parameters.get(name) is not None:
                values[f"scaling.yarn_{name}"] = float(parameters[name])
        # Both sides compute this one from the factor; GGUF cannot state another value.
        usual, stated = 0.1 * math.log(parameters["factor"]) + 1, parameters.get("attention_factor")
        if stated is not None and not math.isclose(stated, usual, rel_tol=_TOLERANCE):
            raise SourceError(f"rope attention_factor {stated}, llama.cpp computes {usual}")
    if kind == "llama3":
        known |= {"factor", "low_freq_factor", "high_freq_factor"}
    if kind in _LONG:
        known |= {"long_factor", "short_factor", "attention_factor", "factor"}
        original = parameters.get("original_max_position_embeddings") or config["original_max_position_embeddings"]
        scale = parameters.get("factor") or config["max_position_embeddings"] / original
        attention = parameters.get("attention_factor") or _long_attention(scale, original)
        values |= {"scaling.original_context_length": int(original), "scaling.attn_factor": float(attention)}
    others = sorted(key for key, value in parameters.items() if key not in known and value is not None)
    if kind not in ("default", "linear", "yarn", "llama3", *_LONG):
        raise SourceError(f"rope scaling {kind!r} has no counterpart in GGUF")
    if others:
        raise SourceError(f"rope scaling {kind!r} with {', '.join(others)} has no counterpart in GGUF")
    return values


def _wavelengths(theta: float, head_dim: int) -> np.ndarray:
    """Return the number of positions after which each pair of dimensions has turned once, f64 [head_dim / 2]."""
    return 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)


def _shortest(value: Any) -> float:
    """Return the shortest decimal number that rounds to this float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))
