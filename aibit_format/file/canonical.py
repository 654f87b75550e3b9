"""Finds what is valid in a file, and would have been written in another form by this package's encoders and writer.

Around the planes a valid file has one encoding, but for what a newer writer may add. Inside them different bytes can
decode to the same values, and readers take any of them: section 17 of the specification lists which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..container import layout
from .reader import File
from .sharded_reader import Opened


@dataclass(frozen=True, slots=True)
class OtherForm:
    """Describe one place where a file is not as this package writes it; without a tensor it is about the whole file."""

    file: str | None
    tensor: str | None
    plane: str | None
    what: str


def other_forms(opened: Opened) -> Iterator[OtherForm]:
    """Yield what this package would have written otherwise. The file must have passed a full verification."""
    for file in opened.parts:
        yield from (OtherForm(file.path, None, None, what) for what in _front(file))
        for name in file:
            info = file.info(name)
            if info.alias_of is None:
                for role, what in info.scheme.other_forms(file.planes(name), info.shape):
                    yield OtherForm(file.path, name, role, what)


def _front(file: File) -> Iterator[str]:
    """Yield what a writer of this version would leave out of the header and the section table."""
    info = file.tables
    if info.minor > layout.VERSION[1]:
        yield f"minor version {info.minor} is newer than {layout.VERSION[1]}"
    if info.compatible:
        yield f"feature bits {info.compatible:#x} have no meaning in this version"
    for extra in info.extra:
        if extra.kind not in layout.SECTION_NAMES:
            yield f"a section of kind {extra.kind}, which this version does not know"
