"""Write the viewer as one page that needs no server: browsers load no modules from a disk.

    python -m tools.viewer.bundle OUT.html

The page holds the modules and the style of index.html. Each module becomes a function that returns what it exports.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
IMPORT = re.compile(r"^import (\{.*?\}) from '(.+?)';\n", re.MULTILINE | re.DOTALL)
EXPORT = re.compile(r"^export (?:async )?(?:const|let|class|function) (\w+)", re.MULTILINE)
EXPORTS = re.compile(r"^export \{(.*?)\};\n", re.MULTILINE | re.DOTALL)


def modules(path: Path, found: dict[Path, str]) -> dict[Path, str]:
    """Add a module to ``found`` after all that it imports, and return ``found``."""
    if path in found:
        return found
    text = path.read_text("utf-8")

    def local(match: re.Match[str]) -> str:
        target = (path.parent / match[2]).resolve()
        modules(target, found)
        return f"const {match[1].replace(' as ', ': ')} = {name_of(target)};\n"

    names = EXPORT.findall(text)
    for listed in EXPORTS.findall(text):
        names += re.findall(r"\w+", listed)
    body = EXPORTS.sub("", IMPORT.sub(local, text))
    body = re.sub(r"^export (?=async|const|let|class|function)", "", body, flags=re.MULTILINE)
    found[path] = f"const {name_of(path)} = (() => {{\n{body}return {{ {', '.join(names)} }};\n}})();\n"
    return found


def name_of(path: Path) -> str:
    return f"module_{path.stem}"


def page() -> str:
    """Return the page."""
    script = "".join(modules(FOLDER / "viewer.js", {}).values())
    if left := re.search(r"^(?:import|export)\b.*|</script", script, re.MULTILINE):
        raise ValueError(f"{left[0]!r} cannot be put into a page: bundle.py knows no such form")
    style = (FOLDER / "viewer.css").read_text("utf-8")
    html = (FOLDER / "index.html").read_text("utf-8")
    for old, new in (
        ('<link rel="stylesheet" href="viewer.css">', f"<style>{style}</style>"),
        ('<script type="module" src="viewer.js"></script>', f'<script type="module">{script}</script>'),
        ("script-src 'self'", f"script-src {hashed(script)}"),
        ("style-src 'self'", f"style-src {hashed(style)}"),
    ):
        if html.count(old) != 1:
            raise ValueError(f"index.html does not have {old} once")
        html = html.replace(old, new)
    return html


def hashed(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    Path(arguments[0]).write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
