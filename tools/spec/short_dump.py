"""Make the dump on the first page of the specification: a whole file in lines of 16 bytes, with what begins in each."""

from __future__ import annotations

import re
from collections.abc import Iterable

LINE = 16
_UNSAID = re.compile(r"(reserved\d*|padding)|.*= 0")


def lines(pieces: Iterable[tuple[bytes, str]]) -> str:
    """Return the dump of a file that is given as pieces in order, each with its label; headings have no bytes.

    Lines of zeros are left out. Reserved bytes, padding and numbers that are 0 are not mentioned.
    """
    data, notes, heading = b"", dict[int, list[str]](), ""
    for piece, label in pieces:
        if not piece:
            heading = _heading(label)
            notes.setdefault(len(data) // LINE, []).append(heading)
            continue
        if label and not _UNSAID.fullmatch(label):
            here = notes.setdefault(len(data) // LINE, [])
            if here and here[-1] == heading:
                here[-1] += f": {label}"
            else:
                here.append(label)
        data += piece
    rows: list[str] = []
    for at in range(0, len(data), LINE):
        row, note = data[at : at + LINE], ", ".join(notes.get(at // LINE, []))
        if any(row) or note:
            rows.append(f"{at:06x}  {row.hex(' '):<49}{note}".rstrip() + "\n")
        elif rows[-1] != "   ...\n":
            rows.append("   ...\n")
    return "```text\n" + "".join(rows) + "```\n"


def _heading(label: str) -> str:
    label = label.strip().replace("Section table, entry", "section table")
    return label.removeprefix("Section ").replace("Header", "header")
