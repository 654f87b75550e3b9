"""Makes the texts of the benchmarks out of a manual in HTML: ``python -m tools.bench.texts PAGES OUT``.

PAGES is a directory of pages, such as ``/usr/share/doc/debian-handbook/html/en-US`` of Debian's package
``debian-handbook``. Every fourth page, in the order of their names, goes into ``OUT/held-out.txt``, the others into
``OUT/calibration.txt``: paragraphs, a line each, with a line between pages.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

_LEAST = 60  # characters of a paragraph; shorter ones are labels and links
_EVERY = 4  # pages, of which one is held out


class _Paragraphs(HTMLParser):
    """Collects the text of each ``p``, and of each ``div`` of the class ``para``, which manuals in DocBook have."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p" or (tag == "div" and "para" in (dict(attrs).get("class") or "").split()):
            self._inside = True
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("p", "div")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1] += data


def paragraphs(page: str) -> Iterator[str]:
    """Yield the paragraphs of a page that are long enough, with single spaces."""
    parser = _Paragraphs()
    parser.feed(page)
    for text in parser.found:
        line = " ".join(text.split())
        if len(line) >= _LEAST:
            yield line


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args(given)
    parts: dict[bool, list[str]] = {True: [], False: []}
    for number, page in enumerate(sorted(arguments.pages.glob("*.html"))):
        found = list(paragraphs(page.read_text("utf-8")))
        if found:
            parts[number % _EVERY == 0].append("\n".join(found))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for held, name in ((True, "held-out.txt"), (False, "calibration.txt")):
        (arguments.out / name).write_text("\n\n".join(parts[held]) + "\n", "utf-8")


if __name__ == "__main__":
    main()
