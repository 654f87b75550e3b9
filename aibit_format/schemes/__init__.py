"""Turns the values of tensors into planes of bytes, and back: one scheme per file.

Schemes are registered in ``BUILTIN``. Other packages register theirs under the entry point group
``aibit_format.schemes``. A scheme needs only numpy.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, lru_cache
from importlib import import_module

from ..dtypes import DTYPES
from ..errors import SchemeError
from .base import PlaneSpec, Scheme, all_parameters_of, parameters_of

__all__ = ["BUILTIN", "NUMBERED", "OLDER", "ORDERED", "PlaneSpec", "Scheme", "make", "names", "parameters_of", "parse"]

_GGML = (
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q1_0", "q2_0", "tq1_0", "tq2_0",
    "mxfp4", "nvfp4", "iq4_nl", "iq4_xs", "iq3_xxs", "iq3_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_s", "iq1_m",
)  # fmt: skip

BUILTIN: dict[str, str] = {
    **dict.fromkeys(DTYPES, "aibit_format.schemes.plain:Plain"),
    "int8": "aibit_format.schemes.int8:Int8",
    "int8-absmax": "aibit_format.schemes.int8_affine:Int8Absmax",
    "int8-zp": "aibit_format.schemes.int8_affine:Int8ZeroPoint",
    "int8-outlier": "aibit_format.schemes.int8_outlier:Int8Outlier",
    "fp8-e4m3": "aibit_format.schemes.fp8:Fp8E4M3",
    "cluster": "aibit_format.schemes.cluster:Cluster",
    "int4-group": "aibit_format.schemes.int4_group:Int4Group",
    **dict.fromkeys(("nf4", "fp4"), "aibit_format.schemes.fourbit:FourBit"),
    **dict.fromkeys((f"gguf:{kind}" for kind in _GGML), "aibit_format.schemes.ggml:GGML"),
    "nf4-cpu": "aibit_format.schemes.nf4_cpu:NF4CPU",
    "fp8-block": "aibit_format.schemes.fp8_block:Fp8Block",
    "int-group": "aibit_format.schemes.int_group:IntGroup",
    "mxfp4": "aibit_format.schemes.microscaling:MXFP4",
    "mxfp8": "aibit_format.schemes.microscaling:MXFP8",
    "nvfp4": "aibit_format.schemes.microscaling:NVFP4",
    "ternary": "aibit_format.schemes.ternary:Ternary",
    "cluster-group": "aibit_format.schemes.cluster_group:ClusterGroup",
    "int8-dynamic": "aibit_format.schemes.w8a8:Int8Dynamic",
    "int8-static": "aibit_format.schemes.w8a8:Int8Static",
}
# Versions that a name alone does not stand for. Older ones are read for ever; those above are written. In the other
# ones, columns are in an order that comes with a checkpoint.
OLDER: dict[tuple[str, int], str] = {("int8-outlier", 1): "aibit_format.schemes.int8_outlier:Int8Outlier1"}
ORDERED: dict[tuple[str, int], str] = {
    (f"gguf:{kind}", 2): "aibit_format.schemes.ggml_ordered:GGMLOrdered" for kind in _GGML
}
NUMBERED = OLDER | ORDERED


@cache
def _outside() -> dict[str, str]:
    from importlib.metadata import entry_points  # slow to import, and seldom needed

    return {entry.name: entry.value for entry in entry_points(group="aibit_format.schemes")}


def names() -> list[str]:
    """Return the names of all schemes, in the order of registration."""
    return [*BUILTIN, *_outside()]


@lru_cache(256)  # bounded, because parameters come from files
def make(name: str, version: int | None = None, parameters: tuple[int, ...] = ()) -> Scheme:
    """Return the scheme with this name, version and parameters; without a version, the one that is written.

    Raises:
        SchemeError: AIB-E406 for an unknown name or version, AIB-E407 for parameters that the scheme does not take.
    """
    target = NUMBERED.get((name, version or 0)) or BUILTIN.get(name) or _outside().get(name)
    if target is None:
        raise _unknown(f"scheme {name!r} is unknown here", "AIB-E406")
    module, attribute = target.split(":")
    # The names come from the table above or from installed packages, never from a file.
    family: type[Scheme] = vars(import_module(module))[attribute]
    if version is not None and version != family.version:
        raise _unknown(f"scheme {name!r} version {version} is unknown here, where {family.version} is", "AIB-E406")
    return family.build(name, parameters)


def parse(text: str) -> Scheme:
    """Return the scheme that a user writes: a name, and parameters as in ``nf4,block_size=128,nested=1``.

    A version that the name alone does not stand for is asked for by ``version=1``, as if it were a parameter.

    Raises:
        SchemeError: a scheme or parameter is unknown, or a value is not allowed.
    """
    name, *options = text.split(",")
    if name not in names():
        raise _unknown(f"unknown scheme {name!r}; known: {', '.join(names())}", "AIB-E406")
    versions = [option for option in options if re.fullmatch(r"version=\d{1,5}", option)]
    default = make(name, int(versions[0].removeprefix("version=")) if versions else None)
    known = all_parameters_of(type(default))
    values = dict(known)
    for option in [option for option in options if option not in versions]:
        key, _, word = option.partition("=")
        number = default.words.get(key, {}).get(word, word or "1")
        if key not in known or not str(number).isdecimal():
            takes = ", ".join(known) or "nothing"
            raise _unknown(f"scheme {name!r} does not take {option!r}; it takes {takes}", "AIB-E407")
        values[key] = int(number)
    stored, of_tensor = parameters_of(type(default)), default.of_tensor
    made = make(name, default.version, tuple(values[key] for key in stored))
    made = made.for_tensor([values[key] for key in of_tensor])
    return replace(made, **{key: values[key] for key in made.of_encoder}) if made.of_encoder else made


def _unknown(message: str, code: str) -> SchemeError:
    error = SchemeError(message)
    error.code = code
    return error
