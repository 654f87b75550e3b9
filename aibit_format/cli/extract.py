"""Runs ``aibit extract``: writes documents to files, and tensors to ``.npy`` files."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack

import numpy as np

from ..errors import AibitError, WriteError
from ..file import sharded_reader
from ..io.atomic import AtomicFile
from .output import emit, size


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("names", metavar="DOCUMENT", nargs="*", help="documents to extract (default: all)")
    parser.add_argument("-o", "--output", metavar="DIR", default=".", help="the directory; '-' prints one document")
    parser.add_argument(
        "--tensor", metavar="NAME", action="append", default=[], help="write this tensor's float32 values to NAME.npy"
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Write documents and tensors, and print their paths."""
    with sharded_reader.open(args.file) as file:
        names = args.names or ([] if args.tensor else list(file.documents))
        for name in [n for n in names if n not in file.documents] + [n for n in args.tensor if n not in file]:
            raise AibitError(f"{args.file}: holds nothing called {name!r}")
        for name in names:
            file.check_document(name)  # another program may pass the document to a library unchecked
        if args.output == "-":
            if len(names) != 1 or args.tensor:
                args.parser.error("-o - prints one document: give its name")
            text = bytes(file.documents[names[0]])
            if sys.stdout.isatty():
                sys.stdout.write(text.decode(errors="backslashreplace"))
            else:
                sys.stdout.buffer.write(text)
            return 0
        targets = {os.path.join(args.output, *name.split("/")): name for name in names}
        tensors = {os.path.join(args.output, f"{name.replace('/', '_')}.npy"): name for name in args.tensor}
        if len({*targets, *tensors}) < len(names) + len(args.tensor):
            raise WriteError("two of these would be written to the same path; extract them one at a time")
        for path in [*targets, *tensors]:
            _make_way(path, args.output, args.force)
        with ExitStack() as stack:  # what is there is replaced once everything is on the disk
            outputs = {path: stack.enter_context(AtomicFile(path, args.force)) for path in [*targets, *tensors]}
            for path, name in targets.items():
                outputs[path].write(file.documents[name])
            for path, name in tensors.items():
                with open(outputs[path].name, "wb") as out:
                    np.save(out, file.dequantize(name), allow_pickle=False)
            for output in outputs.values():
                output.publish()
        written = [
            {"name": name, "path": path, "bytes": os.path.getsize(path)} for path, name in (targets | tensors).items()
        ]
    if args.json:
        emit(written)
    else:
        for entry in written:
            print(f"{entry['path']}  {size(entry['bytes'])}")
    return 0


def _make_way(path: str, output: str, force: bool) -> None:
    """Create the parent directories of ``path`` below ``output``, and check that it may be written.

    Raises:
        WriteError: a directory is a file, or a symbolic link, which could lead elsewhere; or the file exists, and
            ``force`` is off.
    """
    if os.path.exists(output) and not os.path.isdir(output):
        raise WriteError(f"{output}: is a file; -o names the directory to write into, or '-'")
    folder = os.path.dirname(path)
    while len(folder) > len(output):
        if os.path.islink(folder):
            raise WriteError(f"{folder}: is a symbolic link, which is not followed; remove it")
        folder = os.path.dirname(folder)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    if os.path.lexists(path) and not force:
        raise WriteError(f"{path}: exists; --force replaces it")
