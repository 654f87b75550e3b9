"""Draws the pictures of docs/: the layout of a file, and what loading it does. Offsets and sizes are a real file's.

    python -m tools.spec.draw_layout            # writes docs/layout.svg and docs/loading.svg
    python -m tools.spec.draw_layout --check    # exit status 1 if they are not what would be written

Both are drawn from fixtures/container/alignment4096.aibit, through the package's own tables.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterator
from html import escape

import numpy as np

from aibit_format.container import layout, validate
from aibit_format.container.layout import dtype_of
from aibit_format.container.tables import HEADER_SIZE, FileInfo, Plane
from aibit_format.file.reader import read_info
from aibit_format.io.mapped import Mapped

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURE = "fixtures/container/alignment4096.aibit"
WIDTH = 880

# A card of its own colours, so that it can be read on any page; a dark one where the reader's system is dark.
STYLE = """
  svg { --card: #ffffff; --line: #d0d7de; --text: #1f2328; --soft: #59636e; --head: #e8e5fb; --front: #dbeafe;
        --docs: #d9f2e1; --pool: #fdeccb; --bulk: #fbdfd6; --edge: #8b95a1; --zero: #f1f3f5; --arrow: #6e59d9; }
  @media (prefers-color-scheme: dark) {
    svg { --card: #161b22; --line: #3d444d; --text: #e6edf3; --soft: #9da7b3; --head: #3b3566; --front: #1d3a5f;
          --docs: #1e4230; --pool: #4d3a16; --bulk: #552d22; --edge: #6b7683; --zero: #22272e; --arrow: #a594ff; } }
  text { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: var(--text); }
  .title { font-size: 16px; font-weight: 600; }
  .name { font-weight: 600; }
  .soft { fill: var(--soft); font-size: 12px; }
  .mono { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
  .offset { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: var(--soft); }
  .step { fill: var(--card); font-size: 12px; font-weight: 700; }
  .card { fill: var(--card); stroke: var(--line); }
  .box { stroke: var(--edge); stroke-width: 1; }
  .head { fill: var(--head); } .front { fill: var(--front); } .docs { fill: var(--docs); }
  .pool { fill: var(--pool); } .bulk { fill: var(--bulk); } .zero { fill: var(--zero); } .none { fill: none; }
  .brace { fill: none; stroke: var(--edge); stroke-width: 1.5; }
  .arrow { fill: none; stroke: var(--arrow); stroke-width: 1.6; }
  .dot, .tip { fill: var(--arrow); }
"""


class Drawing:
    """Collects the elements of a picture that is ``WIDTH`` wide."""

    def __init__(self, title: str, description: str) -> None:
        self._title, self._description = title, description
        self._parts: list[str] = []

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self._parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, radius: float = 4) -> None:
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" class="box {kind}"/>'
        )

    def brace(self, x: float, top: float, bottom: float) -> None:
        """A bracket that is open to the left."""
        self._parts.append(f'<path class="brace" d="M{x:g} {top:g} h8 V{bottom:g} h-8"/>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A curve that leaves and arrives level."""
        middle = (x + to_x) / 2
        self._parts.append(
            f'<path class="arrow" d="M{x:g} {y:g} C{middle:g} {y:g} {middle:g} {to_y:g} {to_x - 7:g} {to_y:g}"/>'
            f'<path class="tip" d="M{to_x:g} {to_y:g} l-9 -4.5 v9 z"/>'
        )

    def step(self, x: float, y: float, number: int) -> None:
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="10" class="dot"/>')
        self.text(x, y + 4.5, str(number), "step", "middle")

    def svg(self, height: float) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" role="img">\n'
            f"<title>{escape(self._title)}</title>\n<desc>{escape(self._description)}</desc>\n"
            f"<style>{STYLE}</style>\n"
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="10" class="card"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def number(value: int) -> str:
    return f"{value:,}"


def size(value: int) -> str:
    return f"{number(value)} B"


def sections(data: bytes, info: FileInfo) -> Iterator[tuple[str, int, int]]:
    """Name, offset and length of the section table and of each section."""
    record = dtype_of(layout.SECTION)
    count = len(layout.SECTIONS) + len(info.extra)
    yield "section table", HEADER_SIZE, count * record.itemsize
    for entry in np.frombuffer(data, record, count, HEADER_SIZE):
        yield layout.SECTION_NAMES[int(entry["kind"])], int(entry["offset"]), int(entry["length"])


def planes(info: FileInfo) -> list[tuple[str, Plane]]:
    """The planes of every tensor by offset, each with its tensor's name."""
    found = [(name, plane) for name in info.names for plane in info.tensor(name).planes]
    return sorted(found, key=lambda pair: pair[1].offset)


def draw_layout(data: bytes, info: FileInfo) -> str:
    placed = validate.locate(info)
    drawing = Drawing(
        "The layout of an .aibit file",
        "From the start of the file: header, front matter, documents, padding, pooled planes, bulk planes.",
    )
    drawing.text(24, 34, "The layout of a file", "title")
    drawing.text(24, 54, f"{FIXTURE}: {size(info.file_size)}, alignment {number(info.alignment)}; not to scale", "soft")

    left, width, side = 92, 470, 590
    y = 74.0

    def row(offset: int, kind: str, height: float, name: str, length: str, more: str = "") -> None:
        nonlocal y
        drawing.box(left, y, width, height, kind)
        drawing.text(left - 10, y + 17, number(offset), "offset", "end")
        drawing.text(left + 12, y + 19, name, "name")
        drawing.text(left + width - 12, y + 19, length, "mono", "end")
        if more:
            drawing.text(left + 12, y + 37, more, "soft")
        y += height

    def note(top: float, bottom: float, *lines: str) -> None:
        drawing.brace(side - 18, top + 2, bottom - 2)
        at = (top + bottom) / 2 - 8 * (len(lines) - 1) + 4
        for i, line in enumerate(lines):
            drawing.text(side, at + 16 * i, line, "name" if i == 0 else "soft")

    top = y
    row(0, "head", 46, "header", size(HEADER_SIZE), "signature, version, sizes, and the root digest over all of this")
    parts = list(sections(data, info))
    height = 34 + 20 * len(parts)
    row(HEADER_SIZE, "front", height, "front matter", size(info.front_matter_length))
    says = {
        "section table": "where each of these lies",
        "metadata": "typed values: model, source, recipe",
        "schemes": "how tensors are stored",
        "documents": "names and places of documents",
        "tensors": "shape, dtype, scheme of each",
        "planes": "role, offset, length of each",
        "strings": "every name",
        "leaves": "a digest of each MiB of what follows",
    }
    for i, (name, offset, length) in enumerate(parts):
        at = y - height + 40 + 20 * i
        drawing.text(left - 10, at, number(offset), "offset", "end")
        drawing.text(left + 24, at, name, "mono")
        drawing.text(left + 136, at, says.get(name, ""), "soft")
        drawing.text(left + width - 12, at, size(length), "mono", "end")
    note(top, y, "read before anything else", "enough to list the model, and", "to check where every byte lies")

    top = y
    for document in info.documents.values():
        row(document.offset, "docs", 30, f"document {document.name}", size(document.length))
    note(top, y, "config, tokenizer, template")
    if placed.data_start > placed.documents_end:
        gap = placed.data_start - placed.documents_end
        row(placed.documents_end, "zero", 26, "zeros, to the next page", size(gap))

    end = placed.data_start
    for pooled in (True, False):
        start = y
        for name, plane in planes(info):
            role = np.array([layout.role_code(plane.role)], np.uint16)
            if bool(layout.pooled(role, np.array([plane.length]), info.alignment)[0]) != pooled:
                continue
            if plane.offset - end >= info.alignment // 2:
                row(end, "zero", 26, "zeros, to the next page", size(plane.offset - end))
                start = y
            what, end = f"{name}: {plane.role}", plane.offset + plane.length
            shape = " x ".join(map(str, plane.shape))
            length = f"{plane.dtype} [{shape}]  {size(plane.length)}"
            row(plane.offset, "pool" if pooled else "bulk", 30, what, length)
        if pooled:
            note(start, y, "the pool", "scales and whatever is smaller", "than a page, 64-byte aligned")
        else:
            note(start, y, "bulk planes, page-aligned", "in the order the model runs")
    drawing.text(left - 10, y + 8, number(info.file_size), "offset", "end")
    return drawing.svg(y + 26)


def draw_loading(info: FileInfo) -> str:
    drawing = Drawing(
        "What happens when a file is loaded",
        "The file is mapped, its tables are checked, an empty model is built; parameters are views of the mapping.",
    )
    drawing.text(24, 34, "What happens at load", "title")
    drawing.text(24, 54, "on a CPU: no weight is decoded or copied, or read before the model computes with it", "soft")

    top = 84
    columns, middle = (24, 304, 640), 252
    for x, width, name, more in (
        (columns[0], 216, "the file", "on disk, or in the page cache"),
        (columns[1], middle, "one mapping, read-only", "pages come when they are touched"),
        (columns[2], 216, "the model", "of transformers and bitsandbytes"),
    ):
        drawing.text(x, top, name, "name")
        drawing.text(x, top + 17, more, "soft")
        drawing.box(x, top + 28, width, 284, "none", 8)

    def stack(x: float, entries: list[tuple[str, str, str, float]], width: float = 192) -> list[float]:
        """Boxes one under another; the middle of each."""
        y, middles = top + 40.0, []
        for kind, name, more, height in entries:
            drawing.box(x + 12, y, width, height, kind)
            drawing.text(x + 24, y + height / 2 + (4.5 if not more else -3), name, "name")
            if more:
                drawing.text(x + 24, y + height / 2 + 13, more, "soft")
            middles.append(y + height / 2)
            y += height + 6
        return middles

    data = planes(info)
    labels = {f"{name}: {plane.role}": plane.dtype for name, plane in data}
    codes, scales, bulk = "second.weight: codes", "second.weight: row_absmax", "first.weight: values"
    file = stack(columns[0], [
        ("head", "header", "", 30), ("front", "front matter", "", 44),
        ("docs", "documents", "config.json, tokenizer", 44), ("pool", "the pool", "scales and small planes", 50),
        ("bulk", "bulk planes", "", 56),
    ])  # fmt: skip
    mapped = stack(columns[1], [
        ("head", "header", "root digest checked", 38), ("front", "tables", "checked, as arrays", 38),
        ("docs", "config.json", "keys on an allow-list", 38),
        ("pool", scales, f"{labels[scales]}, checked: finite", 38), ("pool", codes, f"{labels[codes]}, as it is", 38),
        ("bulk", bulk, f"{labels[bulk]}, as it is", 38),
    ], middle - 24)  # fmt: skip
    model = stack(columns[2], [
        ("zero", "an empty model", "no memory for weights", 56), ("pool", "second: Linear8bitLt", "SCB: a view", 56),
        ("pool", "second: Linear8bitLt", "weight: a view", 56), ("bulk", "first", "weight: a view", 56),
    ])  # fmt: skip
    for i, j in ((0, 0), (1, 1), (2, 2), (3, 3), (3, 4), (4, 5)):
        drawing.arrow(columns[0] + 204, file[i], columns[1] + 12, mapped[j])
    drawing.arrow(columns[1] + middle - 12, mapped[2], columns[2] + 12, model[0])
    drawing.arrow(columns[1] + middle - 12, mapped[3], columns[2] + 12, model[1])
    drawing.arrow(columns[1] + middle - 12, mapped[4], columns[2] + 12, model[2])
    drawing.arrow(columns[1] + middle - 12, mapped[5], columns[2] + 12, model[3])

    y = top + 346.0
    steps = (
        ("Map the file, and check header and tables: one pass over arrays, 4.5 ms for 5,000 tensors.", ""),
        ("Build the model that config.json describes, without memory for its weights.", ""),
        ("Put modules in the place of its Linear layers, whose parameters are views of the mapping.", ""),
        ("Compute. Pages are read when they are first touched; processes that map the file share them.", ""),
        (
            "On a GPU instead: one allocation with the file's layout, filled in one pass through pinned buffers,",
            "of which parameters are views.",
        ),
    )
    for i, (first, second) in enumerate(steps, 1):
        drawing.step(36, y - 4.5, i)
        drawing.text(56, y, first)
        if second:
            y += 18
            drawing.text(56, y, second)
        y += 26
    return drawing.svg(y)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    path = ROOT / FIXTURE
    info, _ = read_info(Mapped(path))
    stale = 0
    for name, text in (("layout", draw_layout(path.read_bytes(), info)), ("loading", draw_loading(info))):
        target = ROOT / "docs" / f"{name}.svg"
        if args.check and (not target.exists() or target.read_text("utf-8") != text):
            print(f"{target.relative_to(ROOT)} is not what python -m tools.spec.draw_layout writes", file=sys.stderr)
            stale = 1
        elif not args.check:
            target.write_text(text, "utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
