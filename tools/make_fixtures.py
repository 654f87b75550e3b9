"""Make the small container files under `fixtures/container/`, each with a readable JSON twin.

    python tools/make_fixtures.py            # write those that are new; refuse to change one that is frozen
    python tools/make_fixtures.py --check    # exit 1 and name those that are not what would be written

They are for people who write another reader: `x.aibit` is the file, `x.json` says every field of it, every
plane's bytes in hex, and every tensor's values. Weights follow formulas, so any machine makes the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import frozen
import numpy as np
import scheme_examples
from cryptography.hazmat.primitives import serialization

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from aibit_format.container import checksums, layout, signatures  # noqa: E402
from aibit_format.container.plan import placed  # noqa: E402
from aibit_format.container.tables import ExtraSection, FileInfo  # noqa: E402
from aibit_format.dtypes import BY_CODE, DTYPES, from_float32  # noqa: E402
from aibit_format.file import reader, writer  # noqa: E402
from aibit_format.file.writer import Tensor  # noqa: E402
from aibit_format.schemes import make  # noqa: E402

FOLDER = ROOT / "fixtures" / "container"
KEY = ROOT / "fixtures" / "keys" / "test-only.pem"  # anybody's: it signs nothing but fixtures
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
Planes = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Fixture:
    """One file to make: what it shows, and what is in it."""

    about: str
    tensors: Mapping[Tensor, Planes] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    alignment: int = 64  # the least, so that the files stay small
    extra: tuple[ExtraSection, ...] = ()
    signed: bool = False  # by the test key
    minor: int = 0
    compatible: int = 0


def ramp(*shape: int) -> np.ndarray:
    """float32 values from -2 to 2 in steps of a quarter, in an order that is not monotonic."""
    return (((np.arange(np.prod(shape, dtype=int)) * 5 + 3) % 17 - 8) / 4).astype(np.float32).reshape(shape)


def stored(
    name: str, values: np.ndarray, scheme: str, dtype: str | None = None, **options: Any
) -> tuple[Tensor, Planes]:
    """A tensor of float32 ``values`` whose logical dtype is ``dtype`` (the scheme's own by default), and its planes."""
    dtype = dtype or scheme
    planes = make(scheme).encode(from_float32(values, dtype), dtype)
    return Tensor(name, values.shape, dtype, make(scheme), **options), planes


def hello() -> Fixture:
    weight = np.array([[1, -2, 0.5, 0], [0.25, 4, -3, 1.5]], np.float32)
    return Fixture(
        "The smallest file of interest: an int8 tensor, a vector in float32, a document, two metadata entries.",
        dict([stored("linear.weight", weight, "int8", "bf16"), stored("norm.weight", ramp(4), "f32")]),
        {"model.parameters": 12, "tool.name": "aibit"},
        {"config.json": b'{"hidden_size": 4}\n'},
    )


def dtypes() -> Fixture:
    return Fixture("A tensor of each plain dtype.", dict(_one_of(name) for name in DTYPES))


def _one_of(name: str) -> tuple[Tensor, Planes]:
    dtype = DTYPES[name].numpy
    if name == "f8_e8m0":  # codes, not values: 2^-127, 1/2, 1, 2, 2^127
        values = np.array([0, 126, 127, 128, 254], np.uint8)
    elif DTYPES[name].is_float:
        values = from_float32(ramp(5), name)
    elif name == "bool":
        values = np.array([True, False, False, True, True])
    else:  # float32 holds every value here, and the ends of the range where the type has 8 or 16 bits
        wide = dtype.itemsize > 2
        limits = (-(1 << 24), 1 << 24) if wide else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        values = np.array([max(limits[0], np.iinfo(dtype).min), 0, 1, 2, limits[1]], dtype)
    return Tensor(f"values.{name}", values.shape, name, make(name)), make(name).encode(values, name)


def alias() -> Fixture:
    embedding = stored("embed.weight", ramp(3, 4), "int8", "f16")
    head = Tensor("lm_head.weight", (3, 4), "f16", make("int8"), alias_of="embed.weight")
    return Fixture(
        "Tied weights: lm_head.weight is an alias of embed.weight and has no planes of its own.",
        dict([embedding, stored("norm.weight", ramp(4), "f16"), (head, {})]),
        {"model.parameters": 16},
    )


def shapes() -> Fixture:
    no_columns = {"codes": np.zeros((3, 0), np.int8), "row_absmax": np.zeros(3, np.float32)}
    return Fixture(
        "Rank 0, rank 8, and zero-size tensors: their planes have zero bytes and take no room.",
        dict(
            [
                stored("scalar", ramp(), "f32"),
                stored("nothing", ramp(0), "f32"),
                stored("no_rows", ramp(0, 4), "int8", "f32"),
                (Tensor("no_columns", (3, 0), "f32", make("int8")), no_columns),
                stored("rank8", ramp(2, 1, 1, 3, 1, 1, 1, 2), "f16"),
            ]
        ),
    )


def metadata() -> Fixture:
    values = {
        "array.bool": [True, False, True],
        "array.bytes": [b"", b"\x00\xff"],
        "array.empty": [],
        "array.float": [0.5, -0.0, 1e300],
        "array.int": [-(1 << 63), 0, (1 << 63) - 1],
        "array.one": [7],
        "array.string": ["", "two words", "日本語"],
        "one.bool": True,
        "one.bytes": bytes(range(8)),
        "one.float": -0.1,
        "one.int": -1,
        "one.string": "line one\nline two\ttab, é, 🙂",
        "one.string_empty": "",
        "x_1.deep.key_2.3": 3,
    }
    return Fixture("Every type of metadata value, single and in arrays.", metadata=values)


def empty() -> Fixture:
    return Fixture("No metadata, no documents, no tensors: header, section table and empty sections.", alignment=4096)


def alignment64() -> Fixture:
    return Fixture(
        "Alignment 64: planes below 64 bytes are pooled first, the others follow in the order of the table.",
        dict(
            [
                stored("first.weight", ramp(8, 32), "int8", "bf16"),
                stored("first.bias", ramp(8), "f32"),
                stored("second.weight", ramp(3, 30), "int8", "bf16"),
                stored("second.bias", ramp(16), "f32"),
            ]
        ),
    )


def alignment4096() -> Fixture:
    return Fixture(
        "Alignment 4096: padding before the data, and between small and bulk planes. The bulk one has just 4096 bytes.",
        dict(
            [
                stored("first.bias", ramp(8), "f32"),
                stored("first.weight", ramp(16, 32), "f64"),
                stored("second.weight", ramp(2, 3), "int8", "bf16"),
            ]
        ),
        documents={"config.json": b"{}\n"},
        alignment=4096,
    )


def alignment2m() -> Fixture:
    # One bulk plane would move the data region to 2 MiB; without any it starts where the documents end.
    return Fixture(
        "Alignment 2 MiB, no bulk planes: the data follows the documents. The last plane is empty; padding ends it.",
        dict([stored("norm.weight", ramp(5), "f16"), stored("nothing", ramp(0, 8), "f16")]),
        documents={"LICENSE": b"none\n", "notes/empty.txt": b""},
        alignment=2 << 20,
    )


def experts() -> Fixture:
    return Fixture(
        "int8 of rank 3, fused experts [E, N, K]: every expert's rows have scales of their own.",
        dict([stored("experts.down_proj", ramp(2, 3, 4) * np.float32([[[1]], [[0.125]]]), "int8", "bf16")]),
    )


def transposed() -> Fixture:
    return Fixture(
        "The architecture's tensor is [3, 2]; what is stored, and what every number here is of, is its transpose.",
        dict([stored("h.0.attn.c_attn.weight", ramp(2, 3), "int8", "f16", transposed=True)]),
    )


def extra_section() -> Fixture:
    section = ExtraSection(kind=0x8001, flags=0, count=2, data=b"a private section")
    return Fixture(
        "An ancillary section of a private kind: readers that do not know it ignore it.",
        dict([stored("bias", ramp(2), "f32")]),
        extra=(section,),
    )


def signed() -> Fixture:
    return Fixture(
        "A signature in the file, by fixtures/keys/test-only.pem; the others of the eight records are not used.",
        dict([stored("bias", ramp(2), "f32")]),
        documents={"config.json": b"{}\n"},
        signed=True,
    )


def sharded(index: int) -> Fixture:
    """Shard ``index`` of three: a tensor of the first is tied to by the last of the model, which lies beside it."""
    embedding = stored("embed.weight", ramp(3, 4), "int8", "f16")
    head = Tensor("lm_head.weight", (3, 4), "f16", make("int8"), alias_of="embed.weight")
    tensors = [
        dict([embedding, (head, {})]),
        dict([stored("layer.weight", ramp(4, 4), "int8", "f16")]),
        dict([stored("layer.bias", ramp(4), "f16"), stored("norm.weight", ramp(4), "f16")]),
    ]
    values: dict[str, Any] = {"shard.index": index, "shard.count": len(tensors)}
    if index > 1:
        return Fixture(f"Shard {index} of 3: tensors alone.", tensors[index - 1], values)
    roots = [build(sharded(other))[112:128].hex() for other in (2, 3)]
    values |= {"shard.roots": roots, "shard.places": [0, 4, 1, 2, 3], "model.parameters": 36}
    about = "The first of three shards: documents, metadata, the places of all tensors, the roots of the others."
    return Fixture(about, tensors[0], values, {"config.json": b"{}\n"})


def of_scheme(name: str) -> Fixture:
    """A tensor for each example of a scheme, called after what users write."""
    tensors = {Tensor(e.scheme.text, e.shape, e.dtype, e.scheme): e.planes for e in scheme_examples.examples(name)}
    return Fixture(f"The scheme {name}, with its parameters; a tensor's name is its scheme as users write it.", tensors)


def variants(name: str) -> Fixture:
    """Tensors called after their scheme as users write it, their shape and their dtype."""
    tensors = {}
    for e in scheme_examples.variants(name):
        label = f"{e.scheme.text}/{'x'.join(map(str, e.shape))}/{e.dtype}"
        tensors[Tensor(label, e.shape, e.dtype, e.scheme)] = e.planes
    return Fixture(f"The scheme {name} with other parameters, ranks and dtypes, and without elements.", tensors)


def newer_minor() -> Fixture:
    # Kinds 9 to 0x7FFF are for later versions: this section is none of ours, and readers of 1.0 pass it by.
    section = ExtraSection(kind=9, flags=0, count=3, data=b"a section of a later version")
    return Fixture(
        "A newer minor version, two compatible features and an ancillary section that 1.0 does not know: all ignored.",
        dict([stored("bias", ramp(2), "f32")]), {"model.later": [1.5], "later.key": "value"},
        extra=(section,), minor=7, compatible=1 | 1 << 52,
    )  # fmt: skip


def sections() -> Fixture:
    extra = tuple(ExtraSection(kind, 0, kind, bytes(kind % 3)) for kind in (9, 0x7FFF, 0x8000, 0xFFFF))
    return Fixture(
        "Ancillary sections of the least and the greatest kinds, one of them empty, among signatures.",
        dict([stored("bias", ramp(2), "f32")]), extra=extra, signed=True,
    )  # fmt: skip


def longest_names() -> Fixture:
    every = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in "\"'\\")
    return Fixture(
        "Names of 255 bytes, of one, and of every character that there may be.",
        dict([stored("t" * 255, ramp(2), "f32"), stored("t", ramp(2), "f32"), stored(every, ramp(2), "f32"),
              stored("_", ramp(2), "f32"), stored("/../..", ramp(2), "f32")]),
        {"k." + "k" * 253: 1, "k.0": 2},
        {"d" * 255: b"a", "a/" + "b/" * 126 + "c": b"b", "_": b"", "0+-_.x/con_.y": b"c"},
    )  # fmt: skip


def metadata_edges() -> Fixture:
    values = {
        "array.bytes_empty": [b"", b"", b""], "array.float_edges": [5e-324, -1.7976931348623157e308, 0.1],
        "array.string_empty": [""], "one.bool_false": False, "one.bytes_all": bytes(range(256)), "one.bytes_empty": b"",
        "one.float_minus_zero": -0.0, "one.float_subnormal": 5e-324, "one.int_max": (1 << 63) - 1,
        "one.int_min": -(1 << 63), "one.string_controls": "\t\n", "one.string_last": "\U0010ffff\ufffe\u0080",
    }  # fmt: skip
    return Fixture("Metadata at the edges of each type.", metadata=values)


def known_keys() -> Fixture:
    values = {
        "model.architecture": "LlamaForCausalLM", "model.type": "llama", "model.dtype": "bf16", "model.parameters": 16,
        "source.kind": "huggingface", "source.files": ["a.safetensors", "b.safetensors"], "source.sizes": [10, 20],
        "source.xxh3_128": ["0" * 32, "f" * 32], "tool.name": "aibit", "tool.version": "1.0",
        "tool.libraries": [], "config.dropped_keys": ["config.json:auto_map"],
        "quantization.recipe": ["*=int8", "norm=f32"], "quantization.compute_dtype": "bf16",
        "quantization.outlier_threshold": 6.0, "quantization.error.tensor": [0],
        "quantization.error.relative_rms": [0.5], "quantization.error.largest": [0.25],
        "quantization.error.signal_to_noise_db": [-0.0],
    }  # fmt: skip
    return Fixture(
        "Every metadata key that has a meaning, `model.missing` aside; an empty array where strings are due.",
        dict([stored("weight", ramp(3, 4), "int8", "bf16"), stored("norm", ramp(4), "f32")]), values,
        {"config.json": b'{"architectures": ["LlamaForCausalLM"]}\n'},
    )  # fmt: skip


def documents() -> Fixture:
    return Fixture(
        "Documents at the limits of JSON: depth 64, integers of 4300 digits, escapes; one that is empty; tokens that "
        "are spelled like keys that act, in a vocabulary; keys that act, of value null.",
        documents={
            "config.json": b'{"auto_map": null, "quantization_config": null}', "empty.bin": b"",
            "depth.json": b"[" * 63 + b"0" + b"]" * 63, "digits.json": b"[" + b"9" * 4300 + b",-" + b"9" * 4300 + b"]",
            "escapes.json": b'{"\\u00e9\\ud83d\\ude00\\n\\"": "\\/", "a": 1, "A": -0.0e-5}', "scalar.json": b" null\n",
            "text.txt": b"\xff\xfe not UTF-8 \x00", "tokenizer.json": b'{"auto_map": 1, "trust_remote_code": 2}',
        },
    )  # fmt: skip


FIXTURES: dict[str, Callable[[], Fixture]] = {
    "hello": hello,
    "dtypes": dtypes,
    "alias": alias,
    "shapes": shapes,
    "metadata": metadata,
    "empty": empty,
    "alignment64": alignment64,
    "alignment4096": alignment4096,
    "alignment2m": alignment2m,
    "experts": experts,
    "transposed": transposed,
    "extra-section": extra_section,
    "signed": signed,
    **{f"sharded-{index:05d}-of-00003": partial(sharded, index) for index in (1, 2, 3)},
    **{f"scheme-{name.replace(':', '_')}": partial(of_scheme, name) for name in scheme_examples.names()},
    **{f"variants-{name}": partial(variants, name) for name in scheme_examples.VARIANTS},
    "newer-minor": newer_minor,
    "sections": sections,
    "longest-names": longest_names,
    "metadata-edges": metadata_edges,
    "known-keys": known_keys,
    "documents": documents,
}


def build(fixture: Fixture) -> bytes:
    """The bytes of the file, put together in memory: the tests compare them with what the writer makes."""
    info = plan(fixture)
    data = bytearray(info.file_size)
    for name, document in info.documents.items():
        data[document.offset : document.offset + document.length] = fixture.documents[name]
    for tensor, planes in fixture.tensors.items():
        for plane in info.tensor(tensor.name).planes if tensor.alias_of is None else ():
            data[plane.offset : plane.offset + plane.length] = planes[plane.role].tobytes()
    regions = info.placement.regions
    leaves = [checksums.leaves(np.frombuffer(data[region.start : region.end], np.uint8)) for region in regions]
    info = replace(info, leaves=np.concatenate(leaves))
    front_matter = info.front_matter()
    header = info.header(front_matter)
    data[: len(header) + len(front_matter)] = header + front_matter
    if fixture.signed:
        info = sign(info, lambda offset, length: data[offset : offset + length])
        front_matter = info.front_matter()
        data[: len(header) + len(front_matter)] = info.header(front_matter) + front_matter
    return bytes(data)


def sign(info: FileInfo, read: signatures.Read) -> FileInfo:
    """The file with the signature of the test key where ``plan`` kept its place."""
    key = serialization.load_pem_private_key(KEY.read_bytes(), None)
    content = signatures.content_digest(read, info.file_size, info.unsigned)
    made = signatures.Signature(PUBLIC, key.sign(signatures.message(PUBLIC, content)))
    section = replace(info.extra[0], data=signatures.section([made]))
    return replace(info, extra=(section, *info.extra[1:]))


def plan(fixture: Fixture) -> FileInfo:
    """The file without its digests."""
    lengths = {name: len(data) for name, data in fixture.documents.items()}
    info = writer.plan(fixture.tensors, fixture.metadata, lengths, fixture.alignment)
    extra = fixture.extra
    if fixture.signed:
        body = signatures.section([signatures.Signature(PUBLIC, bytes(64))])
        extra = (ExtraSection(layout.SIGNATURES, 0, layout.SIGNATURE_ROOM, body), *extra)
    info = replace(info, minor=fixture.minor, compatible=fixture.compatible)
    return placed(replace(info, extra=extra)) if extra else info


def describe(name: str, about: str, data: bytes) -> dict[str, Any]:
    """Every field of a valid file, readable."""
    with reader.File(data, verify="full") as file:
        info = file.tables
        return {
            "file": f"{name}.aibit",
            "about": about,
            "header": _fields(np.frombuffer(data, layout.dtype_of(layout.HEADER), 1)[0]),
            "sections": list(_sections(data, info)),
            "metadata": {key: _metadata(value) for key, value in info.metadata.items()},
            "schemes": [
                {"name": scheme, "version": int(row["version"]), "parameters": row["parameters"].tolist()}
                for scheme, row in zip(info.scheme_names, info.scheme_table, strict=True)
            ],
            "documents": [
                {"name": d.name, "offset": d.offset, "length": d.length, "data": bytes(file.documents[d.name]).hex()}
                for d in info.documents.values()
            ],
            "tensors": [_tensor(file, at) for at in range(len(info.names))],
            "planes": list(_planes(file)),
            "leaves": [f"{leaf:016x}" for leaf in info.leaves.tolist()],
        }


def _fields(record: np.void) -> dict[str, Any]:
    """A record's fields, reserved ones aside; those that are bytes in hex."""
    names = [name for name in record.dtype.names or () if not name.startswith("reserved")]
    return {name: v.tobytes().hex() if (v := record[name]).dtype.kind == "V" else v.tolist() for name in names}


def _sections(data: bytes, info: FileInfo) -> Iterator[dict[str, Any]]:
    count = len(layout.SECTIONS) + len(info.extra)
    table = np.frombuffer(data, layout.dtype_of(layout.SECTION), count, layout.HEADER.sizeof())
    for row in table:
        entry = {"name": layout.SECTION_NAMES.get(int(row["kind"]), "unknown"), **_fields(row)}
        body = data[entry["offset"] : entry["offset"] + entry["length"]]
        if entry["name"] == "strings":
            entry["text"] = body.decode("ascii")
        if entry["name"] == "signatures":
            rows = np.frombuffer(body, layout.dtype_of(layout.SIGNATURE_RECORD))
            entry["records"] = [_fields(row) for row in rows if row["algorithm"]]
        if entry["name"] == "unknown":
            entry["data"] = body.hex()
        yield entry


def _metadata(value: Any) -> dict[str, Any]:
    is_array = isinstance(value, (list, np.ndarray))
    items = list(value.tolist() if isinstance(value, np.ndarray) else value if is_array else [value])
    kind = {int: "int", float: "float", bool: "bool", str: "string", bytes: "bytes"}[type(items[0]) if items else int]
    items = [item.hex() if kind == "bytes" else item for item in items]
    return {"type": kind, "is_array": is_array, "value": items if is_array else items[0]}


def _tensor(file: reader.File, at: int) -> dict[str, Any]:
    info = file.tables
    record, tensor = info.tensor_table[at], info.tensor(info.names[at])
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": BY_CODE[int(record["dtype"])].name,
        "scheme": int(record["scheme"]),
        "flags": int(record["flags"]),
        "target": int(record["target"]),
        "first_plane": int(record["first_plane"]),
        "plane_count": int(record["plane_count"]),
        "alias_of": tensor.alias_of,
        "transposed": tensor.transposed,
        "values": file.dequantize(tensor.name).reshape(-1).tolist(),
    }


def _planes(file: reader.File) -> Iterator[dict[str, Any]]:
    info = file.tables
    for at, name in enumerate(info.names):
        tensor = info.tensor(name)
        if tensor.alias_of is None:
            for plane, array in zip(tensor.planes, file.planes(name).values(), strict=True):
                yield {
                    "tensor": at, "role": plane.role, "dtype": plane.dtype, "shape": list(plane.shape),
                    "offset": plane.offset, "length": plane.length, "data": array.tobytes().hex(),
                }  # fmt: skip


def twin(name: str, about: str, data: bytes) -> bytes:
    """The JSON twin: indented, with lists of plain values on one line each."""
    text = json.dumps(describe(name, about, data), indent=2, ensure_ascii=False)
    # No string in JSON holds a raw newline, so this touches nothing but the space between values.
    text = re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\n\s*", " ", match[0]), text)
    return (re.sub(r"\[ (.*) \]", r"[\1]", text) + "\n").encode()


def files() -> dict[str, bytes]:
    """Every file this makes, by name."""
    result = {}
    for name, define in FIXTURES.items():
        fixture = define()
        data = build(fixture)
        result[f"{name}.aibit"], result[f"{name}.json"] = data, twin(name, fixture.about, data)
    return result


def stale() -> list[str]:
    """Names of files that are missing, differ from what would be written, or should not be there."""
    return frozen.stale(FOLDER, files())


def main() -> int:
    return frozen.main(__doc__, FOLDER, files)


if __name__ == "__main__":
    sys.exit(main())
