"""Draws quality against size as SVG: a panel for each scope, a mark for each row, a line along the best of each kind.

The picture has colours of its own for light and dark pages, and is the same for the same results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from tools.bench.frontier_rows import AWQ, BNB, BOTH, GPTQ, IMPORTANCE, LLAMA, OURS, PLAIN

Found = Mapping[str, Any]

WIDTH, HEIGHT = 980, 560
_LEFT, _TOP, _BOTTOM, _GAP = 62, 100, 52, 64
_STYLE = """
  svg { --card: #ffffff; --line: #d0d7de; --text: #1f2328; --soft: #59636e; --grid: #eaeef2; --plain: #7fb2dd;
        --weighted: #1f6fb2; --gptq: #14804a; --both: #8250df; --llama: #e8a08e; --llamaw: #c2402a; --bnb: #6e7781;
        --target: #b35900; --search: #e8a33d; }
  @media (prefers-color-scheme: dark) {
    svg { --card: #161b22; --line: #3d444d; --text: #e6edf3; --soft: #9da7b3; --grid: #262c36; --plain: #4f86b5;
          --weighted: #79c0ff; --gptq: #56d364; --both: #d2a8ff; --llama: #9c5a4b; --llamaw: #ff8f75; --bnb: #9da7b3;
          --target: #ffa657; --search: #a8743a; } }
  text { font: 12px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: var(--text); }
  .title { font-size: 15px; font-weight: 600; }
  .soft { fill: var(--soft); }
  .name { font-size: 9.5px; fill: var(--soft); }
  .card { fill: var(--card); stroke: var(--line); }
  .grid { stroke: var(--grid); }
"""


def _square(x: float, y: float) -> str:
    return f"M{x - 3.6:.1f} {y - 3.6:.1f}h7.2v7.2h-7.2z"


def _circle(x: float, y: float) -> str:
    return f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z"


def _diamond(x: float, y: float) -> str:
    return f"M{x:.1f} {y - 5.2:.1f}l5.2 5.2l-5.2 5.2l-5.2 -5.2z"


def _up(x: float, y: float) -> str:
    return f"M{x:.1f} {y - 4.8:.1f}l4.8 8.6h-9.6z"


def _down(x: float, y: float) -> str:
    return f"M{x:.1f} {y + 4.8:.1f}l4.8 -8.6h-9.6z"


def _rows(encoder: str, *ways: str, searched: bool = False) -> Callable[[Found], bool]:
    return lambda row: (
        row["encoder"] == encoder and row["how"] in ways and row["scheme"].startswith("bits") == searched
    )  # fmt: skip


# What each kind is called, its colour and mark, and which rows are of it.
KINDS: tuple[tuple[str, str, Callable[[float, float], str], Callable[[Found], bool]], ...] = (
    ("llama.cpp, no data", "llama", _down, _rows(LLAMA, PLAIN)),
    ("llama.cpp, importance", "llamaw", _up, _rows(LLAMA, IMPORTANCE)),
    ("as bitsandbytes", "bnb", _square, _rows(BNB, PLAIN)),
    ("aibit, no data", "plain", _circle, _rows(OURS, PLAIN)),
    ("aibit, importance", "weighted", _circle, _rows(OURS, IMPORTANCE)),
    ("aibit, GPTQ", "gptq", _diamond, _rows(OURS, GPTQ)),
    ("aibit, AWQ, with GPTQ or without", "both", _diamond, _rows(OURS, AWQ, BOTH)),
    ("aibit, --target-bits", "search", _square, _rows(OURS, IMPORTANCE, searched=True)),
    ("aibit, --target-bits, GPTQ", "target", _square, _rows(OURS, GPTQ, searched=True)),
)
_TITLES = {"linear": "Linear weights quantized", "all": "embeddings and head quantized too"}


class _Axes:
    """Places bits and distances, the latter by their logarithms, on a panel."""

    def __init__(self, rows: Sequence[Found], left: float, width: float) -> None:
        bits, logs = [row["bits"] for row in rows], [math.log10(row["distance"]) for row in rows]
        self.low, self.high = min(bits) - 0.4, max(bits) + 0.35
        self.least, self.most = min(logs) - 0.08, max(logs) + 0.08
        self.left, self.width, self.height = left, width, HEIGHT - _TOP - _BOTTOM

    def x(self, bits: float) -> float:
        return self.left + self.width * (bits - self.low) / (self.high - self.low)

    def y(self, distance: float) -> float:
        return _TOP + self.height * (self.most - math.log10(distance)) / (self.most - self.least)

    def grid(self) -> Iterator[str]:
        """Yield lines and numbers."""
        bottom, right = _TOP + self.height, self.left + self.width
        for bits in range(math.ceil(self.low), math.floor(self.high) + 1):
            x = self.x(bits)
            yield f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>'
            yield _text(x, bottom + 17, f"{bits}", "soft", "middle")
        for power in range(math.floor(self.least), math.ceil(self.most) + 1):
            for digit in (1, 2, 5):
                value = digit * 10.0**power
                if self.least <= math.log10(value) <= self.most:
                    y = self.y(value)
                    yield f'<path class="grid" d="M{self.left} {y:.1f}H{right}"/>'
                    yield _text(self.left - 6, y + 4, f"{value:g}", "soft", "end")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def best(rows: Sequence[Found]) -> list[Found]:
    """Return the rows that no other one of at most their bits is as near as, by bits."""
    found: list[Found] = []
    for row in sorted(rows, key=lambda each: (each["bits"], each["distance"])):
        if not found or row["distance"] < found[-1]["distance"]:
            found.append(row)
    return found


def picture(results: Found) -> str:
    """Return the SVG of results."""
    rows = [row for row in results["rows"] if row["distance"] > 0]
    scopes = [scope for scope in _TITLES if any(row["scope"] == scope for row in rows)]
    width = (WIDTH - _LEFT - 14 - _GAP * (len(scopes) - 1)) / len(scopes)
    title = f"{results['model']}: {results['measure']}, by bits a weight"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img"><title>{escape(title)}</title><style>{_STYLE}</style>',
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6" class="card"/>',
        _text(16, 24, title, "title"),
        *_legend(rows),
    ]
    for place, scope in enumerate(scopes):
        left = _LEFT + place * (width + _GAP)
        some = [row for row in rows if row["scope"] == scope]
        axes = _Axes(some, left, width)
        parts += [_text(left, _TOP - 8, _TITLES[scope]), *axes.grid(), *_marks(axes, some)]
        parts.append(_text(left + width / 2, HEIGHT - 14, "bits a weight", "soft", "middle"))
    return "\n".join([*parts, "</svg>\n"])


def _legend(rows: Sequence[Found]) -> Iterator[str]:
    x, y = 22.0, 48.0
    for name, colour, mark, belongs in KINDS:
        if any(belongs(row) for row in rows):
            if x + 24 + 6.3 * len(name) > WIDTH:
                x, y = 22.0, y + 20
            yield f'<path style="fill:var(--{colour})" d="{mark(x, y)}"/>'
            yield _text(x + 10, y + 4, name)
            x += 30 + 6.3 * len(name)


def _marks(axes: _Axes, rows: Sequence[Found]) -> Iterator[str]:
    for _, colour, mark, belongs in KINDS:
        some = [row for row in rows if belongs(row)]
        line = "L".join(f"{axes.x(row['bits']):.1f} {axes.y(row['distance']):.1f}" for row in best(some))
        if line:
            yield f'<path style="fill:none;stroke:var(--{colour});stroke-opacity:.55" d="M{line}"/>'
        for row in some:
            yield f'<path style="fill:var(--{colour})" d="{mark(axes.x(row["bits"]), axes.y(row["distance"]))}"/>'
    yield from _names(axes, rows)


def _names(axes: _Axes, rows: Sequence[Found]) -> Iterator[str]:
    """Yield names of schemes, each in the first place beside its mark that is free, or right of it if none is."""
    taken = [_box(axes.x(row["bits"]) - 4, axes.y(row["distance"]) + 4, 8) for row in rows]
    for row in labelled(rows):
        name, x, y = short(row["scheme"]), axes.x(row["bits"]), axes.y(row["distance"])
        width = 5.3 * len(name)
        places = [(x + side, y + lower) for lower in (3, -5, 12, -12, 20) for side in (7, -7 - width)]
        free = (place for place in places if not any(_overlap(_box(*place, width), other) for other in taken))
        left, base = next(free, places[0])
        taken.append(_box(left, base, width))
        yield _text(left, base, name, "name")


def _box(left: float, base: float, width: float) -> tuple[float, float, float, float]:
    return left, base - 8, left + width, base


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def labelled(rows: Sequence[Found]) -> list[Found]:
    """Return, of each scheme, the row that is nearest to the original, which bears its name."""
    found: dict[str, Found] = {}
    for row in rows:
        name = short(row["scheme"])
        if name and (name not in found or row["distance"] < found[name]["distance"]):
            found[name] = row
    return list(found.values())


def short(scheme: str) -> str:
    """Return a scheme's name as the picture has it; none for a search."""
    if scheme.startswith("bits"):
        return ""
    short = scheme.removeprefix("gguf:").removesuffix(",search=1").removesuffix(",zero=float")
    return short.replace(",group=", " ").replace("-group", "")
