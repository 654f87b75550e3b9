"""Runs ``aibit inspect``: prints names, schemes and sizes without reading any weights."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..container.documents import parse_json
from ..file import sharded_reader
from ..io.mistaken import describes_model
from .output import emit, printable, size, table

_SAID = ("architectures", "model_type", "dtype", "torch_dtype")  # keys of config.json that are shown
_SHOWN = 1000  # most entries shown of a list in a GGUF file's metadata


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="PATH", help="a file, or a directory with a model")
    parser.add_argument("--no-tensors", dest="tensors", action="store_false", help="leave the list of tensors out")


def run(args: argparse.Namespace) -> int:
    """Print what the file holds."""
    found = describe(args.file)
    if not args.tensors:
        del found["tensors"]
    if args.json:
        emit(found)
    else:
        _show(found)
    return 0


def describe(path: str) -> dict[str, Any]:
    """Describe the contents of a file in any of the three formats, or of a model's directory, as JSON can hold it."""
    if describes_model(path):
        return _directory(path)
    kind = _kind(path)
    if kind == "gguf":
        from ..formats.gguf.source import GGUFFile

        gguf = GGUFFile(path)
        rows = [_row(t.name, t.shape, t.type, t.nbytes) for t in gguf.tensors]
        return {"file": path, "format": f"GGUF {gguf.version}", "size": gguf.size,
                "metadata": _first_of_lists(gguf.metadata), "documents": {}, "tensors": rows}  # fmt: skip
    if kind == "safetensors":
        from ..formats.safetensors.reader import SafetensorsFile

        file = SafetensorsFile(path)
        rows = [_row(t.name, t.shape, t.dtype, file.nbytes(t.name)) for t in file.tensors.values()]
        return {"file": path, "format": "safetensors", "size": file.size,
                "metadata": file.metadata, "documents": {}, "tensors": rows}  # fmt: skip
    with sharded_reader.open(path) as opened:
        first = opened.parts[0].tables
        return {
            "file": path, "format": f"aibit 1.{first.minor}", "size": opened.size, "root": opened.root,
            "signatures": sorted({s.key_id for part in opened.parts for s in part.signatures}),
            "alignment": first.alignment, **_shards(opened), "metadata": dict(opened.metadata),
            "documents": {d.name: d.length for d in first.documents.values()},
            "tensors": [_tensor(opened, name) for name in opened],
        }  # fmt: skip


def _directory(path: str) -> dict[str, Any]:
    from ..formats.sources import open_source

    source = open_source(path)
    config = parse_json("config.json", source.documents["config.json"], constants=True)
    return {
        "file": path, "format": f"directory ({source.kind})", "size": sum(file.size for file in source.files),
        "metadata": {key: config[key] for key in _SAID if key in config} | dict(source.metadata),
        "documents": {name: len(text) for name, text in source.documents.items()},
        "tensors": [_row(t.name, t.shape, t.stored.text, t.nbytes) for t in source.tensors.values()],
    }  # fmt: skip


def _tensor(opened: sharded_reader.Opened, name: str) -> dict[str, Any]:
    t = opened.info(name)
    row = _row(name, t.shape, t.scheme.stated.text, 0 if t.alias_of else t.nbytes)
    if any(t.scheme.tensor_parameters):
        row["parameters"] = list(t.scheme.tensor_parameters)
    row |= {"dtype": t.dtype, "planes": [[p.role, p.dtype, list(p.shape), p.offset, p.length] for p in t.planes]}
    if t.alias_of:
        row["alias_of"] = t.alias_of
    if len(opened.parts) > 1:
        row["shard"] = opened.parts.index(opened.part(name)) + 1
    return row


def _shards(opened: sharded_reader.Opened) -> dict[str, Any]:
    """Describe the files of a sharded model, or say which shard this file is."""
    if isinstance(opened, sharded_reader.Sharded):
        return {"shards": [{"file": part.path, "size": part.size, "root": part.root} for part in opened.parts]}
    index, count = (opened.metadata.get(f"shard.{key}") for key in ("index", "count"))
    return {"shard": f"{index} of {count}"} if index else {}


def _kind(path: str) -> str:
    if not os.path.isfile(path):  # the reader reports missing files, FIFOs and devices
        return "aibit"
    with open(path, "rb") as file:
        head = file.read(16)
    if head[:4] == b"GGUF":
        return "gguf"
    looks_like_json = len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32
    return "safetensors" if looks_like_json else "aibit"


def _first_of_lists(metadata: dict[str, Any]) -> dict[str, Any]:
    """Shorten lists in the metadata of a GGUF file: a vocabulary has hundreds of thousands of entries."""
    return {key: value[:_SHOWN] if isinstance(value, list) else value for key, value in metadata.items()}


def _row(name: str, shape: tuple[int, ...], kind: str, nbytes: int) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "scheme": kind, "bytes": nbytes}


def _show(found: dict[str, Any]) -> None:
    print(f"{found['file']}: {found['format']}, {size(found['size'])} ({found['size']} bytes)")
    if "root" in found:
        print(f"root {found['root']}, alignment {found['alignment']}")
    if "shard" in found:
        print(f"shard {found['shard']} of a model")
    for shard in found.get("shards", ()):
        print(f"  {os.path.basename(shard['file'])}  {size(shard['size'])}  root {shard['root']}")
    for key in found.get("signatures", ()):
        print(f"signature said to be by {key} (not checked: aibit verify --key)")
    if found["metadata"]:
        print("\nmetadata")
        for key, value in found["metadata"].items():
            print(f"  {printable(key)} = {_brief(value)}")
    if found["documents"]:
        print("\ndocuments")
        for name, length in found["documents"].items():
            print(f"  {name}  {size(length)}")
    if "tensors" not in found:
        return
    rows = found["tensors"]
    lines = [
        [printable(r["name"]), "x".join(map(str, r["shape"])) or "scalar",
         f"= {r['alias_of']}" if "alias_of" in r else r["scheme"], size(r["bytes"])]
        for r in rows
    ]  # fmt: skip
    print()
    print(table(["tensor", "shape", "scheme", "bytes"], lines, right=(3,)))
    by_scheme: dict[str, list[int]] = {}
    for row in rows:
        if "alias_of" not in row:
            by_scheme.setdefault(row["scheme"], []).append(row["bytes"])
    print(f"\n{len(rows)} tensors: " + ", ".join(f"{len(b)} {s} ({size(sum(b))})" for s, b in by_scheme.items()))


def _brief(value: Any) -> str:
    if isinstance(value, str):
        shown = value
    elif isinstance(value, (bytes, int, float)):
        shown = str(value)
    else:
        shown = f"[{len(value)}] " + ", ".join(str(v) for v in list(value)[:4]) + (", ..." if len(value) > 4 else "")
    shown = printable(shown)
    return shown if len(shown) <= 100 else shown[:97] + "..."
