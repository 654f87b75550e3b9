"""Bring the generated parts of the specification up to date.

    python -m tools.spec.make_spec            # rewrite them
    python -m tools.spec.make_spec --check    # exit 1 and name the files that are stale

In the pages under `spec/` and `fixtures/bad/`, and in `spec/aibit.ksy`, whatever stands between
`<!-- generated: NAME -->` and `<!-- end -->` is made here from the package, from `spec/rules.toml` and from
`fixtures/container/hello.aibit`, so that text and code cannot drift apart.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aibit_format.container import documents, layout, parse, validate
from aibit_format.dtypes import DTYPES, from_float32, to_float32
from aibit_format.file import reader
from aibit_format.schemes import BUILTIN, NUMBERED, OLDER, PlaneSpec, Scheme, make
from aibit_format.schemes.block_scaled import BlockScaled
from aibit_format.schemes.cluster import Cluster
from aibit_format.schemes.fourbit import FP4, NF4, _nested_table, dynamic_map
from aibit_format.schemes.ggml import GGML
from tools import ROOT
from tools.fixtures import make_bad, scheme_examples
from tools.fixtures.scheme_examples import Example
from tools.spec import (
    ed25519_vectors,
    ggml_grids,
    kaitai_records,
    plain_examples,
    scheme_parameters,
    short_dump,
    xxh3_vectors,
)

SPEC = ROOT / "spec"
FOLDERS = (SPEC, ROOT / "fixtures" / "bad")  # of pages
HELLO = ROOT / "fixtures" / "container" / "hello.aibit"
_MARKED = re.compile(r"(<!-- generated: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

# What the package has no words for. A KeyError here says that something new awaits its description.
SECTION_TEXT = {
    "metadata": ("entries", "typed values by key (section 5)"),
    "schemes": ("records", "scheme table (section 7)"),
    "documents": ("records", "document table (section 11)"),
    "tensors": ("records", "tensor directory (section 8)"),
    "planes": ("records", "plane table (section 9)"),
    "strings": ("0", "string pool (section 6)"),
    "leaves": ("digests", "leaf table (section 12)"),
}
ROLE_TEXT = {
    "values": "the values themselves",
    "codes": "quantized values",
    "row_absmax": "largest magnitude of each row",
    "absmax": "largest magnitude of each block",
    "nested_absmax": "scales of quantized scales",
    "nested_offset": "what quantized scales are relative to",
    "scale": "factor of each tensor, row or group",
    "zero_point": "code that stands for zero",
    "codebook": "values that codes stand for",
    "group_index": "group of each column",
    "outlier_index": "rows or columns that are stored apart",
    "outlier_values": "their values",
    "tiles": "codes in the order of a kernel",
    "blocks": "blocks of a foreign format, scales and codes together",
    "tile_absmax": "scales in the order of a kernel",
    "global_scale": "factor or divisor of all scales of a matrix",
    "bias": "what code 0 of a group stands for",
    "column_order": "which column of the blocks each column is",
    "input_scale": "factor of the codes of a layer's inputs",
    "input_zero_point": "code of an input that is zero",
}
KEY_TEXT = {
    "model.architecture": "class that runs the model, such as `LlamaForCausalLM`",
    "model.type": "family, such as `llama`",
    "model.dtype": "dtype the model computes in, a name of section 10",
    "model.missing": "why there is no model, in a file of tensors alone",
    "model.parameters": "elements of all tensors but aliases, in all",
    "source.kind": "what it was converted from, such as `huggingface` or `gguf`",
    "source.files": "names of the files of weights that were read, relative to the source",
    "source.sizes": "size of each in bytes",
    "source.xxh3_128": "digest of each, 32 hex digits",
    "tool.name": "what wrote the file",
    "tool.version": "its version",
    "tool.libraries": "`NAME VERSION` of the libraries whose version can change a byte",
    "config.dropped_keys": "`DOCUMENT:KEY.KEY...` for each key that was left out of a document",
    "quantization.recipe": "`PATTERN=SCHEME`: first the default, with pattern `*`, then exceptions;"
    " of their regular expressions the last that is found in a tensor's name wins",
    "quantization.compute_dtype": "dtype that layers of 4-bit weights compute in; without it, the model's",
    "quantization.outlier_threshold": "magnitude from which LLM.int8 takes a column of inputs out of 8 bits;"
    " without it, 6",
    "quantization.error.tensor": "places in the tensor directory, of a sharded model in the order of the model",
    "quantization.error.relative_rms": "for each, `sqrt(sum((d - x)^2) / sum(x^2))`",
    "quantization.error.largest": "for each, `max \\|d - x\\|`",
    "quantization.error.signal_to_noise_db": "for each, `10 log10(sum(x^2) / sum((d - x)^2))`",
    "vocabulary.size": "rows of the embeddings before a vocabulary was cut (below)",
    "vocabulary.source": "xxh3_128 of each file of weights of the model with all tokens, 32 hex digits",
    "pruning.applied": "how the model was pruned, a text for each time (below)",
    "pruning.scores": "by what the choice was made, for each time",
    "pruning.kept.step": "of each list of what was kept: in which time, from 0",
    "pruning.kept.kind": "of what kind",
    "pruning.kept.layer": "in which layer; -1: of the whole model",
    "pruning.kept.expert": "in which expert; -1: of the whole layer",
    "pruning.kept.count": "how many numbers",
    "shard.index": "which shard of a model this file is, from 1 (section 25)",
    "shard.count": "how many shards the model has",
    "shard.roots": "in the first shard: root digests of the others in their order, 32 hex digits each",
    "shard.places": "in the first shard: place in the model of each tensor of each shard",
}
KEY_TYPES = {"strings": "array of string", "ints": "array of int", "floats": "array of float"}
RULE_GROUPS = {
    "1": "Header",
    "2": "Sections and strings",
    "3": "Metadata",
    "4": "Tensors and planes",
    "5": "Values of planes",
    "6": "Integrity",
    "7": "Documents",
    "8": "Opening",
}


def table(head: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def record(name: str) -> str:
    struct = layout.RECORDS[name]
    rows = [(f.offset, f.size, f"`{f.type}`", f"`{f.name}`", f.text) for f in layout.fields_of(struct)]
    return table(("offset", "size", "type", "field", "meaning"), rows) + f"\n{struct.sizeof()} bytes.\n"


def sections() -> str:
    rows = [(kind, name, *SECTION_TEXT[name]) for kind, name in layout.SECTIONS.items()]
    return table(("kind", "section", "`count`", "holds"), rows)


def roles() -> str:
    rows = [(code, f"`{name}`", ROLE_TEXT[name]) for name, code in layout.ROLES.items()]
    return table(("number", "role", "holds"), rows)


def dtypes() -> str:
    rows = [(d.code, f"`{d.name}`", d.bits, d.meaning) for d in DTYPES.values()]
    return table(("code", "dtype", "bits", "meaning"), rows)


def forbidden_keys() -> str:
    keys = ", ".join(f"`{key}`" for key in sorted(documents.FORBIDDEN_KEYS))
    more = [
        f"in a `{name}` that is in no folder also {', '.join(f'`{key}`' for key in sorted(found))}"
        for name, found in documents.FORBIDDEN_IN.items()
    ]
    return f"{'; '.join([keys, *more])}.\n"


def known_keys() -> str:
    rows = [(f"`{key}`", KEY_TYPES.get(kind, kind), KEY_TEXT[key]) for key, kind in validate.KNOWN_KEYS.items()]
    return table(("key", "type", "meaning"), rows)


def limits() -> str:
    front, leaf = layout.MAX_FRONT_MATTER, layout.LEAF
    alignments = ", ".join(str(a) for a in layout.ALIGNMENTS)
    rows = [
        ("size of a file, a plane", f"{layout.MAX_SIZE} (2^63 - 1)"),
        ("elements of a tensor, dimensions of zero left out", f"{layout.MAX_ELEMENTS} (2^60 - 1)"),
        ("front matter", f"{front} bytes (64 MiB)"),
        ("sections", f"{len(layout.SECTIONS)} to {layout.MAX_SECTIONS}"),
        ("metadata entries", layout.MAX_METADATA),
        ("strings and byte strings in the metadata", layout.MAX_STRINGS),
        ("schemes", layout.MAX_SCHEMES),
        ("documents", layout.MAX_DOCUMENTS),
        ("a document", f"{layout.MAX_DOCUMENT} bytes (256 MiB)"),
        ("depth of a JSON document", documents.MAX_DEPTH),
        ("digits of an integer in a JSON document", sys.int_info.default_max_str_digits),
        (
            "tensors",
            f"{layout.MAX_TENSORS}; the front matter has room for fewer than {front // layout.TENSOR.sizeof()}",
        ),
        ("planes", f"what the front matter has room for: fewer than {front // layout.PLANE.sizeof()}"),
        (
            "leaves",
            f"what the front matter has room for: fewer than {front // 8}, {front // 8 * leaf >> 40} TiB of data",
        ),
        ("rank", layout.MAX_RANK),
        ("a name, a metadata key", f"1 to {layout.MAX_NAME} bytes"),
        ("`alignment`", alignments),
        ("alignment of sections, documents, pooled planes", layout.ALIGNMENT),
        ("a leaf", f"{leaf} bytes"),
        ("slack", f"{layout.MAX_SLACK} bytes (16 MiB)"),
        ("signatures in a file, or in a file of detached ones", f"1 to {layout.SIGNATURE_ROOM}"),
        ("shards of a model", f"1 to {layout.MAX_SHARDS}"),
        ("data region that starts at 2 MiB", f"{layout.LARGE_DATA} bytes (64 MiB) or more"),
    ]
    return table(("what", "limit"), rows)


def _toml() -> dict[str, list[dict[str, Any]]]:
    return tomllib.loads((SPEC / "rules.toml").read_text("utf-8"))


def rules() -> str:
    """The requirements on files, a table for each group of codes."""
    parts = []
    for digit, title in RULE_GROUPS.items():
        found = [(rule, code) for code in _toml()["code"] if code["code"][5] == digit for rule in code.get("rule", ())]
        rows = [(rule["id"], rule["must"], code["level"]) for rule, code in found]
        parts.append(f"**{title}**\n\n" + table(("rule", "", "level"), rows))
    return "\n".join(parts)


PHASES = {
    "open": "**Level *open***",
    "demanded": "**A signature that is demanded**",
    "full": "**Level *full***",
    "decode": "**Level *decode***: whenever values of a tensor are asked for",
    "set": "**A set of shards that is opened by its first** (section 25); the first shard has passed all steps above",
}


def order() -> str:
    """The steps of the procedure of checks, numbered, a table for each phase."""
    parts, rows = dict.fromkeys(PHASES, ""), dict[str, list[tuple[object, ...]]]()
    for number, step in enumerate(_toml()["step"], 1):
        groups = [rule if isinstance(rule, str) else _bracketed(rule) for rule in step["rules"]]
        through = f" (*through {step['each']}*)" if "each" in step else ""
        rows.setdefault(step["phase"], []).append((number, step["of"] + through, ", ".join(groups)))
    for phase, title in PHASES.items():
        parts[phase] = f"{title}\n\n" + table(("step", "looks at", "rules, in order"), rows[phase])
    return "\n".join(parts.values())


def _bracketed(rules: list[str]) -> str:
    """Rules of one code: the first and the last if there are more than three."""
    return f"({rules[0]} to {rules[-1]})" if len(rules) > 3 else f"({', '.join(rules)})"


def duties(letter: str) -> str:
    """The requirements on writers (W) or readers (R), as a list."""
    items = [f"- **{duty['id']}** {duty['text']}" for duty in _toml()["duty"] if duty["id"][0] == letter]
    return "".join(textwrap.fill(item, 120, subsequent_indent="  ", break_on_hyphens=False) + "\n" for item in items)


def errors() -> str:
    """The codes that are not about the bytes of a file."""
    rows = [(code["code"], code["title"], code["means"]) for code in _toml()["code"] if "rule" not in code]
    return table(("code", "error", "meaning"), rows)


def codes() -> str:
    """Every code: what it means, what to do, its rules and the files that break them."""
    return "\n".join(map(_code, _toml()["code"]))


def _code(code: dict[str, Any]) -> str:
    parts = [f"## {code['code']}: {code['title']}\n\n{code['means']}\n\n*What to do.* {code['cure']}\n"]
    for rule in code.get("rule", ()):
        evidence = [f"[{name}](../fixtures/bad/{name}.aibit)" for name in rule.get("bad", ())]
        evidence += [f"`{test}`" for test in rule.get("tests", ())]
        parts.append(f"- **{rule['id']}** {rule['must']} *{code['level']}.* {', '.join(evidence)}\n")
    return "\n".join([parts[0], "".join(parts[1:])]) if len(parts) > 1 else parts[0]


def bad_files() -> str:
    """The index of `fixtures/bad/`."""
    rows = [
        (f"[{bad.name}]({bad.name}.aibit)", bad.what.replace("|", "\\|"), bad.code, bad.rule, bad.level,
         ", ".join(map(str, bad.classes)))
        for bad in make_bad.listed()
    ]  # fmt: skip
    return table(("file", "what is broken", "code", "rule", "level", "class"), rows)


def page_of(name: str) -> str:
    """The page of a scheme: that of its module."""
    return BUILTIN[name].split(":")[0].rpartition(".")[2] + ".md"


def schemes() -> str:
    rows = []
    for name, version in [*((name, None) for name in BUILTIN), *NUMBERED]:
        scheme, shape = make(name, version), (4096, 4096)
        dtype = name if name in DTYPES else "bf16"
        planes = ", ".join(f"`{p.role}` {p.dtype} {list(p.shape)}" for p in scheme.planes(shape, dtype))
        page = page_of(name)
        bits = f"{scheme.bits_per_weight(shape, dtype):.6g}"
        rows.append((f"`{name}`", scheme.version, planes, bits, f"[{page}](schemes/{page})"))
    return table(("scheme", "version", "planes of [4096, 4096]", "bits per weight", "page"), rows)


def example_plain(name: str, values: list[float]) -> str:
    """Float32 values, the bytes they are stored as, and what those bytes stand for."""
    array = np.array(values, np.float32)
    codes = from_float32(array, name)
    back = to_float32(codes, name)
    digits = codes.itemsize * 2
    rows = [
        (repr(v), f"`0x{v32.view(np.uint32):08X}`", f"`0x{code:0{digits}X}`", f"`{_hex(code)}`", repr(float(x)))
        for v, v32, code, x in zip(values, array, codes, back, strict=True)
    ]
    return (
        table(("value", "as f32", f"as {name}", "bytes in the file", "decoded"), rows)
        + f"\nThe plane `values` of a tensor of shape [{len(values)}] with these values:\n\n    {_hex(codes)}\n"
    )


def example_int8() -> str:
    values = np.array([[1, -2, 0.5, 0], [0.1, 4, -3, 1.5]], np.float32)
    scheme = make("int8")
    planes = scheme.encode(values, "f32")
    decoded = scheme.decode(planes, values.shape, "f32")
    rows = [
        (row, _floats(values[row]), repr(float(planes["row_absmax"][row])),
         ", ".join(map(str, planes["codes"][row].tolist())), _floats(decoded[row]))
        for row in range(len(values))
    ]  # fmt: skip
    sizes = {spec.role: spec for spec in scheme.planes(values.shape, "f32")}
    return (
        "A tensor of shape [2, 4]:\n\n"
        + table(("row", "values", "row_absmax", "codes", "decoded"), rows)
        + "\nIts planes:\n\n"
        + "".join(
            f"    {role:<10}  {spec.dtype:<3} {list(spec.shape)!s:<6}  {_hex(planes[role])}\n"
            for role, spec in sizes.items()
        )
        + _first_code(values, planes, scheme)
    )


def _first_code(values: np.ndarray, planes: dict[str, np.ndarray], scheme: Scheme) -> str:
    """One code by hand, in float32 throughout."""
    value, absmax = values[1, 0], planes["row_absmax"][1]
    half = np.float32(np.float16(value))
    factor = (np.float32(1) / absmax) * np.float32(127)
    code = planes["codes"][1, 0]
    back = (np.float32(code) * absmax) * np.float32(1 / 127)
    return (
        f"\nRow 1, first value: 0.1 is {float(half)!r} in float16; `m` is (1 / {float(absmax)!r}) * 127 = "
        f"{float(factor)!r}; their product {float(half * factor)!r} rounds to {int(code)}. "
        f"Back: {int(code)} * {float(absmax)!r} * f32(1/127) = {float(back)!r}.\n"
    )


def example(name: str) -> str:
    """The examples of a scheme: values, planes byte by byte, decoded values, and how the first byte is read."""
    version = f"-{make(name).version}" if (name, 1) in OLDER else ""
    return "\n".join(_example(e, f"fixtures/container/scheme-{name.replace(':', '_')}{version}.json")
                     for e in scheme_examples.examples(name))  # fmt: skip


def example_ordered() -> str:
    """The first example of blocks whose columns are in another order."""
    first = next(scheme_examples.variants("gguf-ordered", 1))
    return _example(first, "fixtures/container/variants-gguf-ordered.json")


def _example(e: Example, twin: str) -> str:
    columns = e.shape[-1]
    decoded = e.scheme.decode(e.planes, e.shape, e.dtype).reshape(-1, columns)
    source = None if e.values is None else to_float32(e.values, e.dtype).reshape(-1, columns)
    rows = [(i, *(_shortened(array[i]) for array in (source, decoded) if array is not None))
            for i in range(min(len(decoded), _MOST_ROWS))]  # fmt: skip
    head = ("row", "decoded") if source is None else ("row", "values", "decoded")
    planes = "".join(_plane(spec, e.planes[spec.role], twin) for spec in e.scheme.planes(e.shape, e.dtype))
    return (
        f"`{e.scheme.text}`, a tensor of shape {list(e.shape)} and dtype {e.dtype}:\n\n{table(head, rows)}"
        f"\nIts planes:\n\n{planes}\n{_first_byte(e, decoded)}\n"
    )


_MOST_ROWS, _MOST_VALUES, _MOST_BYTES, _LINE = 3, 20, 96, 24
_CODE_BITS = dict.fromkeys(("int4-group", "nf4", "fp4", "nf4-cpu"), 4)


def _shortened(row: np.ndarray) -> str:
    more = len(row) - _MOST_VALUES
    return _floats(row[:_MOST_VALUES]) + (f", and {more} more" if more > 0 else "")


def _plane(spec: PlaneSpec, array: np.ndarray, twin: str) -> str:
    data = array.tobytes()
    head = f"    {spec.role:<14} {spec.dtype:<7} {list(spec.shape)}"
    if len(data) <= _LINE // 2:
        return f"{head:<38} {data.hex(' ')}".rstrip() + "\n"
    lines = [f"        {data[i : i + _LINE].hex(' ')}\n" for i in range(0, min(len(data), _MOST_BYTES), _LINE)]
    more = len(data) - _MOST_BYTES
    return f"{head}\n{''.join(lines)}" + (f"        and {more} bytes more: {twin}\n" if more > 0 else "")


def _first_byte(e: Example, decoded: np.ndarray) -> str:
    """How reading begins."""
    value = f"{float(decoded[0, 0]):.7g}"
    if isinstance(scheme := e.scheme.unordered, GGML):
        sizes = scheme.layout.fields
        ends = np.cumsum(list(sizes.values())).tolist()
        fields = [f"`{name}` {end - sizes[name]} to {end - 1}" for name, end in zip(sizes, ends, strict=True)]
        order = e.planes.get("column_order")
        first = "Its first value" if order is None else f"Its value {order[0]}, the first of the row,"
        return f"Bytes of the first block: {', '.join(fields)}. {first} is {value}."
    if isinstance(e.scheme, BlockScaled) and (bits := DTYPES[e.scheme.codes].bits) < 8:
        first = int(e.planes["codes"].reshape(-1)[0])
        return (
            f"Byte 0 of `codes` is 0x{first:02x}, in bits {first:08b}: the code of the first value is its lowest "
            f"{bits} bit{'s' if bits > 1 else ''}, {first & ((1 << bits) - 1)}, which stands for {value}."
        )
    codes, first = e.planes["codes"], int(e.planes["codes"].reshape(-1)[:1].view(np.uint8)[0])
    bits = e.scheme.bits if isinstance(e.scheme, Cluster) else _CODE_BITS.get(e.scheme.name, 8)
    if bits < 8:
        return (
            f"Byte 0 of `codes` is 0x{first:02x}, in bits {first:08b}: the code of the first value is its first "
            f"{bits} bits, {first >> (8 - bits)}, which stands for {value}."
        )
    return f"Byte 0 of `codes` is 0x{first:02x}, the code {int(codes.reshape(-1)[0])}, which stands for {value}."


def four_bit_values() -> str:
    """What the codes of nf4 and fp4 stand for, to the bit."""
    books = [[(f"`0x{value.view(np.uint32):08X}`", f"{value:.8g}") for value in book] for book in (NF4, FP4)]
    rows = [(code, *nf4, *fp4) for code, (nf4, fp4) in enumerate(zip(*books, strict=True))]
    return table(("code", "nf4", "", "fp4", ""), rows)


def nested_codebook() -> str:
    """The 256 values that nested scales are made of, and a digest of the table of nearest ones."""
    words = [f"{word:08X}" for word in dynamic_map().view(np.uint32).tolist()]
    lines = [f"    {i:3d}  {' '.join(words[i : i + 8])}\n" for i in range(0, 256, 8)]
    values, codes = (f"0x{zlib.crc32(array.tobytes()):08X}" for array in (dynamic_map(), _nested_table()))
    return (
        f"{''.join(lines)}\nCRC-32 of these 256 values, little-endian: {values}; of the table of 65,536 codes, a byte "
        f"each: {codes}.\n"
    )


def _floats(row: np.ndarray) -> str:
    return ", ".join(f"{x:.7g}" for x in row.tolist())


def _hex(data: Any) -> str:
    return np.asarray(data).tobytes().hex(" ")


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file and what they are; one without bytes is a heading."""

    data: bytes
    label: str


def pieces(data: bytes) -> Iterator[Piece]:
    """A valid file as a sequence of pieces that together are all of it, in order."""
    header = parse.read_header(data[: layout.HEADER.sizeof()], len(data))
    info = reader.open(data).tables
    size = layout.SECTION.sizeof()
    yield Piece(b"", "Header")
    yield from _record(layout.HEADER, data, 0)
    position = layout.HEADER.sizeof()
    for i in range(header.section_count):
        kind = int.from_bytes(data[position : position + 2], "little")
        yield Piece(b"", f"Section table, entry {i}: {layout.SECTION_NAMES.get(kind, 'unknown')}")
        yield from _record(layout.SECTION, data, position)
        position += size
    rows = np.frombuffer(data, layout.dtype_of(layout.SECTION), header.section_count, layout.HEADER.sizeof())
    for row in rows:
        start, end = int(row["offset"]), int(row["offset"] + row["length"])
        yield from _padding(data, position, start)
        position = end
        if start == end:
            continue
        name = layout.SECTION_NAMES.get(int(row["kind"]), "unknown")
        yield Piece(b"", f"Section {name}")
        yield from _SECTION_PIECES.get(name, _raw)(data, start, end, int(row["count"]), info)
    for start, length, label in _bodies(info):
        yield from _padding(data, position, start)
        yield Piece(b"", label)
        yield Piece(data[start : start + length], _text(data[start : start + length]) if "Document" in label else "")
        position = start + length
    yield from _padding(data, position, len(data))


def _record(struct: Any, data: bytes, start: int) -> Iterator[Piece]:
    for f in layout.fields_of(struct):
        piece = data[start + f.offset : start + f.offset + f.size]
        if match := re.fullmatch(r"(u\d+)\[(\d+)\]", f.type):
            yield from _array(f.name, piece, int(match[2]))
        elif f.type.startswith("bytes"):
            yield Piece(piece, f.name)
        else:
            yield Piece(piece, f"{f.name} = {int.from_bytes(piece, 'little')}")


def _array(name: str, data: bytes, count: int) -> Iterator[Piece]:
    """Elements one by one; the zeros at the end together."""
    size = len(data) // count
    used = -(-len(data.rstrip(b"\0")) // size)
    for i in range(used):
        yield Piece(
            data[i * size : (i + 1) * size], f"{name}[{i}] = {int.from_bytes(data[i * size :][:size], 'little')}"
        )
    if used < count:
        yield Piece(data[used * size :], f"{name}[{used}..{count - 1}] = 0")


def _records_of(struct: Any, label: str, data: bytes, start: int, end: int, count: int, info: Any) -> Iterator[Piece]:
    for i in range(count):
        yield Piece(b"", f"  {label} {i}")
        yield from _record(struct, data, start + i * struct.sizeof())


def _metadata(data: bytes, start: int, end: int, count: int, info: Any) -> Iterator[Piece]:
    head, position = layout.METADATA.sizeof(), start
    for key, value in info.metadata.items():
        length = int.from_bytes(data[position + 8 : position + 16], "little")
        yield from _record(layout.METADATA, data, position)
        position += head
        yield Piece(key.encode(), f'key "{key}"')
        position += len(key)
        yield Piece(data[position : position + length], f"value {value!r}")
        position += length


def _strings(data: bytes, start: int, end: int, count: int, info: Any) -> Iterator[Piece]:
    for name in [*info.scheme_names, *info.document_names, *info.names]:
        yield Piece(name.encode() + b"\n", f'"{name}" and a line feed')


def _leaves(data: bytes, start: int, end: int, count: int, info: Any) -> Iterator[Piece]:
    for name, region in zip(("documents", "data"), info.placement.regions, strict=True):
        for i in range(region.leaves):
            at = start + 8 * (region.first + i)
            yield Piece(data[at : at + 8], f"leaf {i} of {name}")


def _raw(data: bytes, start: int, end: int, count: int, info: Any) -> Iterator[Piece]:
    yield Piece(data[start:end], "")


_SECTION_PIECES: dict[str, Callable[..., Iterator[Piece]]] = {
    "metadata": _metadata,
    "schemes": partial(_records_of, layout.SCHEME, "Scheme"),
    "documents": partial(_records_of, layout.DOCUMENT, "Document"),
    "tensors": partial(_records_of, layout.TENSOR, "Tensor"),
    "planes": partial(_records_of, layout.PLANE, "Plane"),
    "strings": _strings,
    "leaves": _leaves,
    "signatures": partial(_records_of, layout.SIGNATURE_RECORD, "Signature"),
}


def _bodies(info: Any) -> list[tuple[int, int, str]]:
    """(offset, length, label) of documents and planes, as they lie in the file."""
    found = [(d.offset, d.length, f'Document "{d.name}"') for d in info.documents.values()]
    for name in info.names:
        tensor = info.tensor(name)
        for plane in () if tensor.alias_of else tensor.planes:
            label = f'Tensor "{name}", plane {plane.role}, {plane.dtype} {list(plane.shape)}'
            found.append((plane.offset, plane.length, label))
    return sorted(found)


def _padding(data: bytes, start: int, end: int) -> Iterator[Piece]:
    if end > start:
        yield Piece(data[start:end], "padding")


def _text(data: bytes) -> str:
    return repr(data)[2:-1]


def hello() -> str:
    """The annotated dump of `hello.aibit`."""
    lines, position = [], 0
    for piece in pieces(HELLO.read_bytes()):
        if not piece.data:
            lines.append(f"\n{piece.label}\n" if not piece.label.startswith("  ") else f"{piece.label}\n")
            continue
        for start, text in _rows(piece.data):
            label = piece.label if start == 0 else ""
            lines.append(f"{position + start:06x}  {text:<49}{label}".rstrip() + "\n")
        position += len(piece.data)
    return "```text\n" + "".join(lines).lstrip("\n") + "```\n"


def first_page() -> str:
    """`hello.aibit` in lines of 16 bytes."""
    return short_dump.lines((piece.data, piece.label) for piece in pieces(HELLO.read_bytes()))


def _rows(data: bytes) -> Iterator[tuple[int, str]]:
    if len(data) > 4 and not any(data):
        yield 0, f"00 x {len(data)}"
        return
    for start in range(0, len(data), 16):
        yield start, data[start : start + 16].hex(" ")


GENERATED: dict[str, Callable[[], str]] = {
    **{f"record {name}": partial(record, name) for name in layout.RECORDS},
    "sections": sections,
    "roles": roles,
    "dtypes": dtypes,
    "forbidden keys": forbidden_keys,
    "known keys": known_keys,
    "limits": limits,
    "rules": rules,
    "order": order,
    "writers": partial(duties, "W"),
    "readers": partial(duties, "R"),
    "errors": errors,
    "codes": codes,
    "bad files": bad_files,
    "schemes": schemes,
    "hello": hello,
    "first page": first_page,
    "example bf16": partial(example_plain, "bf16", [1.0, -2.5, 0.1, 3.140625, 1.00390625, 1.01171875]),
    "example f8_e4m3": partial(example_plain, "f8_e4m3", [1.0, -0.5, 0.3, 448.0, 0.001953125, 1.0625]),
    **{f"example {name}": partial(example, name) for name in scheme_examples.names()},
    "example int8": example_int8,
    "example gguf ordered": example_ordered,
    "four-bit values": four_bit_values,
    "nested codebook": nested_codebook,
    **{f"codes {name}": partial(plain_examples.codes, name) for name in plain_examples.CODES},
    "packed rows": plain_examples.packed_rows,
    "rounded values": plain_examples.rounded,
    "scheme parameters": scheme_parameters.parameters,
    "empty shapes": scheme_parameters.empty_shapes,
    "xxh3 secret": xxh3_vectors.secret,
    "xxh3 edges": xxh3_vectors.edges,
    "kaitai records": kaitai_records.records,
    "kaitai enums": kaitai_records.enums,
}


# Files without a line by hand.
WHOLE: dict[Path, Callable[[], str]] = {
    SPEC / "xxh3.json": xxh3_vectors.text,
    SPEC / "ed25519.json": ed25519_vectors.text,
    SPEC / "schemes" / "ggml_grids.json": ggml_grids.text,
}


def rendered(text: str) -> str:
    """The page with its generated parts made anew.

    Raises:
        KeyError: a marker has a name that nothing is registered for.
    """
    return _MARKED.sub(lambda match: f"{match[1]}{GENERATED[match[2]]()}{match[4]}", text)


def sources() -> list[Path]:
    """Every file that may have generated parts."""
    return [*(path for folder in FOLDERS for path in sorted(folder.rglob("*.md"))), SPEC / "aibit.ksy"]


def stale() -> dict[Path, str]:
    """Pages whose generated parts are not up to date, and files made as a whole, with what they should be."""
    pages = {path: path.read_text("utf-8") for path in sources()}
    found = {path: fresh for path, text in pages.items() if (fresh := rendered(text)) != text}
    for path, make_whole in WHOLE.items():
        if not path.exists() or path.read_text("utf-8") != make_whole():
            found[path] = make_whole()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    check = parser.parse_args().check
    pages = stale()
    for path, text in pages.items():
        print(f"{'stale' if check else 'wrote'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, "utf-8")
    if not pages:
        print("the specification is up to date")
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
