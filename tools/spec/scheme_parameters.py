"""Make the tables of `spec/schemes/README.md`: which parameter has which index, and planes where dimensions are 0."""

from __future__ import annotations

from collections.abc import Iterable

from aibit_format.dtypes import DTYPES
from aibit_format.errors import SchemeError
from aibit_format.schemes import BUILTIN, OLDER, Scheme, make, parameters_of, parse

# As users write them: each way to share scales.
SHARING = (
    "int8", "int8-outlier", "int8-absmax", "int8-absmax,group=16", "int8-absmax,group=tensor", "fp8-e4m3",
    "fp8-e4m3,group=tensor", "int4-group", "int4-group,group=row", "nf4", "nf4,nested=1", "nf4-cpu", "cluster",
    "fp8-block", "fp8-block,rows=1,columns=all", "fp8-block,rows=all,columns=all", "int-group", "int-group,group=row",
    "mxfp4", "mxfp8", "nvfp4", "ternary", "int8-dynamic", "int8-static,asymmetric=1", "cluster-group",
    "cluster-group,group=row", "gguf:q4_0",
)  # fmt: skip
SHAPES = ((2, 0), (0, 32), (0,))
_MOST = 5  # parameters that a scheme has


def parameters() -> str:
    """Return the table of what `parameters[0]`, `parameters[1]` and so on are, with what is stored by default."""
    rows = []
    for name, version in [*((name, None) for name in BUILTIN), *OLDER]:
        if name in DTYPES or name.startswith("gguf:"):
            continue
        scheme = make(name, version)
        cells = [f"`{key}`, {default}" for key, default in parameters_of(type(scheme)).items()]
        stored = [*scheme.parameters, *[0] * (6 - len(scheme.parameters))]
        own = ", ".join(f"`{key}`" for key in scheme.of_tensor) or "none"
        rows.append((f"`{name}`", str(scheme.version), *cells, *["0"] * (_MOST - len(cells)), f"`{stored}`", own))
    rows.append(("plain dtypes and `gguf:...`", "1, of `gguf:...` also 2", *["0"] * _MOST, f"`{[0] * 6}`", "none"))
    return _table(("scheme", "version", *(f"[{i}]" for i in range(_MOST)), "all six by default", "of the tensor"), rows)


def empty_shapes() -> str:
    """Return the table of planes of tensors without elements."""
    head = ("scheme", *(f"planes of {list(shape)}" for shape in SHAPES))
    return _table(head, [(f"`{text}`", *(_planes(parse(text), shape) for shape in SHAPES)) for text in SHARING])


def _planes(scheme: Scheme, shape: tuple[int, ...]) -> str:
    try:
        return ", ".join(f"`{plane.role}` {list(plane.shape)}" for plane in scheme.planes(shape, "f32"))
    except SchemeError:
        return "not allowed"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head), ("---",) * len(tuple(head)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
