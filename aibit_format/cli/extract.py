"""``aibit extract FILE``: documents as files, tensors as ``.npy``."""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np

from ..errors import AibitError, WriteError
from ..reader import File
from .output import emit, size


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("names", metavar="DOCUMENT", nargs="*", help="documents to extract (default: all)")
    parser.add_argument("-o", "--output", metavar="DIR", default=".", help="where to; '-' prints one document")
    parser.add_argument(
        "--tensor", metavar="NAME", action="append", default=[], help="write this tensor's float32 values to NAME.npy"
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Write what is asked for."""
    with File(args.file) as file:
        names = args.names or ([] if args.tensor else list(file.documents))
        for name in [n for n in names if n not in file.documents] + [n for n in args.tensor if n not in file]:
            raise AibitError(f"{args.file}: holds nothing called {name!r}")
        if args.output == "-":
            if len(names) != 1 or args.tensor:
                args.parser.error("-o - prints one document: name it")
            sys.stdout.buffer.write(file.documents[names[0]])
            return 0
        targets = {os.path.join(args.output, *name.split("/")): name for name in names}
        tensors = {os.path.join(args.output, f"{name.replace('/', '_')}.npy"): name for name in args.tensor}
        for path in [*targets, *tensors]:
            if os.path.lexists(path) and not args.force:
                raise WriteError(f"{path}: exists; --force replaces it")
        written = []
        for path, name in targets.items():
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with open(path, "wb") as out:
                out.write(file.documents[name])
            written.append({"name": name, "path": path, "bytes": len(file.documents[name])})
        for path, name in tensors.items():
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            np.save(path, file.dequantize(name), allow_pickle=False)
            written.append({"name": name, "path": path, "bytes": os.path.getsize(path)})
    if args.json:
        emit(written)
    else:
        for entry in written:
            print(f"{entry['path']}  {size(entry['bytes'])}")
    return 0
