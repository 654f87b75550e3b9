"""Runs ``aibit edit``: writes a copy of a model with other metadata or documents."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..container.validate import KNOWN_KEYS
from ..errors import WriteError
from ..file import rewrite
from .output import ProgressBar, show_written


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="IN", help="the file, or the first shard of a model")
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, help="the file to write; shards get names derived from it"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], type=_setting,
        help="set a metadata value, given as JSON: 7, 0.5, true, \"text\", [1, 2]; anything else is text",
    )  # fmt: skip
    parser.add_argument("--unset", metavar="KEY", action="append", default=[], help="leave a metadata key out")
    parser.add_argument(
        "--document", metavar="NAME=PATH", action="append", default=[], type=_pair,
        help="add or replace a document with the contents of a file",
    )  # fmt: skip
    parser.add_argument("--remove-document", metavar="NAME", action="append", default=[], help="leave a document out")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Write the copy, and print its paths."""
    settings, documents = _once(args, args.set, args.unset), _once(args, args.document, args.remove_document)
    if not (args.set or args.unset or args.document or args.remove_document):
        args.parser.error("nothing to change: give --set, --unset, --document or --remove-document")
    with ProgressBar("editing") as progress:
        paths = rewrite.edit(
            args.file, args.output, metadata=settings, unset=args.unset,
            documents={name: _contents(path) for name, path in documents.items()}, remove=args.remove_document,
            overwrite=args.force, on_progress=progress.update,
        )  # fmt: skip
    show_written(paths, args.json)
    return 0


def _once(args: argparse.Namespace, pairs: list[tuple[str, Any]], removed: list[str]) -> dict[str, Any]:
    """Return the pairs as a dict. A name that occurs twice, in pairs or ``removed``, is a usage error."""
    names = [name for name, _ in pairs] + removed
    if repeated := [name for name in names if names.count(name) > 1]:
        args.parser.error(f"{repeated[0]!r} is named twice")
    return dict(pairs)


def _contents(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise WriteError(f"{path}: cannot be read: {error.strerror}") from error


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _setting(text: str) -> tuple[str, Any]:
    """Parse a metadata key and its value. The value of a known key gets the key's type."""
    key, written = _pair(text)
    kind = KNOWN_KEYS.get(key)
    try:
        value = json.loads(written, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = written
    if kind == "string" and not isinstance(value, str):
        value = written  # such as a version that looks like a number
    if kind == "float" and type(value) is int:
        value = float(value)
    items = value if isinstance(value, list) else [value]
    types = {type(item) for item in items}
    if types == {int, float} or (kind == "floats" and types == {int}):
        value, types = [float(item) for item in items], {float}
    if len(types) > 1 or types - {int, float, bool, str}:
        raise argparse.ArgumentTypeError(f"{key}: a value must be a number, a bool, text, or a list of one of these")
    return key, value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
