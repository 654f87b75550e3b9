"""Make `spec/schemes/ggml_grids.json`: the grids of GGML's types, point by point and as bits."""

from __future__ import annotations

import json
import textwrap

from aibit_format.schemes.ggml_grids import GRIDS


def text() -> str:
    """Return the file: for each grid `values`, `points` as strings of digits, and `bits` in hexadecimal."""
    return "{\n" + ",\n".join(f'"{name}": {{\n{_members(name)}\n}}' for name in GRIDS) + "\n}\n"


def _members(name: str) -> str:
    grid = GRIDS[name]
    points = ", ".join(f'"{"".join(map(str, digits))}"' for digits in grid.digits.tolist())
    return ",\n".join(
        [
            f' "values": {json.dumps(grid.values)}',
            f' "points": [\n{textwrap.indent(textwrap.fill(points, 118), "  ")}\n ]',
            f' "bits": "{grid.bits.hex()}"',
        ]
    )
