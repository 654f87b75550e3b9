"""Check names, metadata, JSON and signatures of a file: sections 5, 6, 11, 20 and 24 of spec/aibit-1.md."""

from __future__ import annotations

import itertools
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from .numbers import Record, RuleError, need, unpack

# 5. Metadata

TYPES = {1: "int", 2: "float", 3: "bool", 4: "string", 5: "bytes"}
LETTERS = {"int": "q", "float": "d", "bool": "B"}
KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")


def read_metadata(body: bytes, count: int) -> dict[str, Record]:
    found: dict[str, Record] = {}
    before, at, strings = "", 0, 0
    while at < len(body):
        need(len(body) - at >= 16, "AIB-E301", "the head of an entry is cut off")
        key_length, kind, is_array, items, length = struct.unpack_from("<HBBIQ", body, at)
        at += 16
        need(key_length <= len(body) - at, "AIB-E301", "a key ends beyond the section")
        key, at = body[at : at + key_length].decode("latin-1"), at + key_length
        need(KEY.fullmatch(key) is not None and len(key) <= 255, "AIB-E302", f"key {key!r}")
        need(key > before, "AIB-E303", f"key {key!r} after {before!r}")
        need(kind in TYPES, "AIB-E304", f"{key}: type {kind}")
        need(length <= len(body) - at, "AIB-E301", f"{key}: ends beyond the section")
        need(is_array <= 1 and (is_array or items == 1), "AIB-E305", f"{key}: is_array {is_array}, count {items}")
        need(items > 0 or kind == 1 or length, "AIB-E308", f"{key}: an empty array of type {kind}")
        name = TYPES[kind]
        strings += items if name not in LETTERS else 0
        need(strings <= 1 << 20, "AIB-E305", "more than 2^20 strings")
        value = [checked(item, key) for item in values(name, body[at : at + length], items, is_array, key)]
        found[key] = {"type": name, "is_array": bool(is_array), "value": value if is_array else value[0]}
        before, at = key, at + length
    need(len(found) == count, "AIB-E203", f"{len(found)} metadata entries, and {count} declared")
    return found


def values(name: str, data: bytes, count: int, is_array: int, key: str) -> Iterator[Any]:
    if name in LETTERS:
        letter = LETTERS[name]
        need(len(data) == count * struct.calcsize(letter), "AIB-E305", f"{key}: {count} values in {len(data)} bytes")
        for number in struct.unpack(f"<{count}{letter}", data):
            need(name != "bool" or number <= 1, "AIB-E306", f"{key}: bool {number}")
            yield bool(number) if name == "bool" else number
        return
    at = 0
    for _ in range(count):
        size = len(data)
        if is_array:
            need(len(data) - at >= 4, "AIB-E305", f"{key}: no more room for a length")
            size, at = int.from_bytes(data[at : at + 4], "little"), at + 4
        need(size <= len(data) - at, "AIB-E305", f"{key}: an item ends beyond its value")
        item, at = data[at : at + size], at + size
        yield text(item) if name == "string" else item.hex()
    need(at == len(data), "AIB-E305", f"{key}: {len(data) - at} bytes after the last item")


def checked(value: Any, key: str) -> Any:
    need(not isinstance(value, float) or math.isfinite(value), "AIB-E307", f"{key}: {value}")
    return value


def text(data: bytes) -> str:
    try:
        string = bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RuleError("AIB-E206", str(error)) from error
    need(not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", string), "AIB-E207", f"control character in {string!r}")
    return string


# 6. Names

TENSOR_NAME = re.compile(rb"(?!__)[!#-&(-\[\]-~]+")
SCHEME_NAME = re.compile(rb"[a-z][a-z0-9_]*([-.:][a-z0-9_]+)*")
DOCUMENT_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
DEVICE = re.compile(rb"(^|/)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|/|$)", re.IGNORECASE)


def check_scheme_name(name: bytes) -> None:
    need(SCHEME_NAME.fullmatch(name) is not None, "AIB-E213", f"scheme {name!r}")


def check_tensor_name(name: bytes) -> None:
    need(TENSOR_NAME.fullmatch(name) is not None, "AIB-E214", f"tensor {name!r}")


def check_document_name(name: bytes) -> None:
    safe = DOCUMENT_NAME.fullmatch(name) and not DEVICE.search(name) and b"./" not in name + b"/"
    need(bool(safe), "AIB-E701", f"document {name!r}")


NAMES = {"scheme": check_scheme_name, "document": check_document_name, "tensor": check_tensor_name}


# 11. Documents

VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json")
FORBIDDEN = {
    "_attn_implementation", "_attn_implementation_internal", "_experts_implementation",
    "_experts_implementation_internal", "attn_implementation", "auto_map", "code_revision", "custom_generate",
    "custom_pipelines", "experts_implementation", "kernel_config", "trust_remote_code", "use_kernels",
}  # fmt: skip


FORBIDDEN_IN = {
    "config.json": {"quantization_config"},
    "tokenizer_config.json": {
        "added_tokens_file", "chat_template_file", "fast_tokenizer_files", "init_inputs", "merges_file", "model_file",
        "special_tokens_map_file", "spm_file", "tokenizer_file", "vocab_file",
    },
}  # fmt: skip


def check_json(name: str, data: bytes) -> None:
    """A document whose name, in lower case, ends in .json."""
    forbidden = FORBIDDEN | FORBIDDEN_IN.get(name, set())
    found = []

    def integer(digits: str) -> int:
        need(len(digits.lstrip("-")) <= 4300, "AIB-E705", f"{name}: an integer of {len(digits)} digits")
        return 0

    def constant(word: str) -> None:
        raise RuleError("AIB-E705", f"{name}: {word}")

    def pairs(members: list[tuple[str, Any]]) -> list[Any]:
        need(len(dict(members)) == len(members), "AIB-E705", f"{name}: a key twice")
        found.extend(key for key, value in members if value is not None and key in forbidden)
        return [value for _, value in members]

    deepest = depth = 0
    for bracket in re.findall(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', data):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(bytes(bracket), 0)
        deepest = max(deepest, depth)
    need(deepest <= 64, "AIB-E705", f"{name}: nested {deepest} deep")
    try:
        value = json.loads(data.decode("utf-8"), parse_int=integer, parse_constant=constant, object_pairs_hook=pairs)
    except ValueError as error:
        raise RuleError("AIB-E705", f"{name}: {error}") from error
    need(depth_of(value) <= 64, "AIB-E705", f"{name}: too deep")
    need(name.split("/")[-1] in VOCABULARIES or not found, "AIB-E706", f"{name}: {found}")


def depth_of(value: Any) -> int:
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 1


# 20. Known metadata keys

KNOWN = {
    ("string", False): "model.architecture model.type model.dtype model.missing source.kind tool.name tool.version"
    " quantization.compute_dtype",
    ("string", True): "source.files source.xxh3_128 tool.libraries config.dropped_keys quantization.recipe shard.roots"
    " vocabulary.source pruning.applied pruning.scores pruning.kept.kind",
    ("int", False): "model.parameters shard.index shard.count vocabulary.size",
    ("int", True): "source.sizes quantization.error.tensor shard.places pruning.kept.step pruning.kept.layer"
    " pruning.kept.expert pruning.kept.count",
    ("float", False): "quantization.outlier_threshold",
    ("float", True): "quantization.error.relative_rms quantization.error.largest quantization.error.signal_to_noise_db",
}
TYPE_OF = {key: kind for kind, keys in KNOWN.items() for key in keys.split()}


ERRORS = [f"quantization.error.{name}" for name in ("tensor", "relative_rms", "largest", "signal_to_noise_db")]
PRUNED = [f"pruning.kept.{name}" for name in ("step", "kind", "layer", "expert", "count")]
PARALLEL = (
    ["source.files", "source.sizes", "source.xxh3_128"], ERRORS, ["pruning.applied", "pruning.scores"], PRUNED
)  # fmt: skip


def check_known_keys(metadata: dict[str, Record], records: list[Record], parameters: int, tensors: int) -> None:
    """The rules about these keys, and what they must agree with: documents, elements and tensors of the file."""
    for key, entry in metadata.items():
        kind = TYPE_OF.get(key)
        empty = entry["is_array"] and not entry["value"] and kind and kind[1]
        right = kind is None or empty or kind == (entry["type"], entry["is_array"])
        need(right, "AIB-E309", f"{key} is of type {entry['type']}")
    found = {key: entry["value"] for key, entry in metadata.items()}
    documents = {record["name"]: record["length"] for record in records}
    config = "model.architecture" not in found or "config.json" in documents
    need(config, "AIB-E310", "model.architecture, and no config.json")
    for keys in PARALLEL:
        lengths = [len(found[key]) if key in found else None for key in keys]
        need(len({*lengths}) == 1, "AIB-E310", f"{', '.join(keys)}: lengths {lengths}")
    rows, length = found.get("vocabulary.size"), documents.get(KEPT)
    need((rows is None) == (length is None), "AIB-E310", f"vocabulary.size {rows}, and {KEPT} of {length} bytes")
    if rows is not None and length is not None:
        need(length % 4 == 0 and 1 <= length // 4 <= rows, "AIB-E310", f"{KEPT}: {length} bytes, of {rows} rows")
    counts, length = found.get("pruning.kept.count"), documents.get(NUMBERS)
    need((counts is None) == (length is None), "AIB-E310", f"{NUMBERS} of {length} bytes, for {counts}")
    if counts is not None and length is not None:
        right = counts and min(counts) >= 1 and 4 * sum(counts) == length
        need(right, "AIB-E310", f"{NUMBERS}: {length} bytes, of {counts} numbers")
    if any(key.startswith("shard.") for key in found):  # then what is said of all tensors is said of those of the set
        return check_shard(found, documents)
    need(found.get("model.parameters", parameters) == parameters, "AIB-E310", f"the file has {parameters} parameters")
    places = found.get("quantization.error.tensor", [])
    need(all(0 <= i < tensors for i in places), "AIB-E310", "quantization.error.tensor: no such tensor")


KEPT, NUMBERS = "vocabulary.kept", "pruning.kept"


def check_kept(name: str, data: bytes, metadata: dict[str, Record]) -> None:
    """Which rows of a larger vocabulary a model has, or what of a larger model: increasing, and of that vocabulary."""
    if name == NUMBERS:
        numbers = iter(struct.unpack(f"<{len(data) // 4}I", data))
        for count in metadata["pruning.kept.count"]["value"]:
            row = list(itertools.islice(numbers, count))
            need(all(before < after for before, after in itertools.pairwise(row)), "AIB-E707", f"{name}: {row}")
    if name != KEPT:
        return
    rows = metadata["vocabulary.size"]["value"]
    ids = struct.unpack(f"<{len(data) // 4}I", data)
    need(all(before < after for before, after in itertools.pairwise(ids)), "AIB-E707", f"{KEPT}: ids do not increase")
    need(ids[-1] < rows, "AIB-E707", f"{KEPT}: id {ids[-1]} of {rows}")


# 25. Sharded models: what one file says of the set that it belongs to


def check_shard(found: dict[str, Any], documents: dict[str, int]) -> None:
    index, count = found.get("shard.index", 0), found.get("shard.count", 0)
    need(1 <= index <= count <= 99999, "AIB-E609", f"shard {index} of {count}")
    if index == 1:
        need({"shard.roots", "shard.places"} <= {*found}, "AIB-E609", "shard.roots or shard.places is missing")
        roots = found["shard.roots"]
        right = all(re.fullmatch("[0-9a-f]{32}", root) for root in roots)
        need(len(roots) == count - 1 and right, "AIB-E609", f"shard.roots are {roots}")
    else:
        others = sorted({*found} - {"shard.index", "shard.count"})
        need(not others and not documents, "AIB-E609", f"{others} and {[*documents]} belong in the first shard")


# 24. Signatures: their shape. Whether one is right is for those who demand it, and is not for the standard library.

SIGNATURE = "H algorithm 6s - 32s key 64s signature"


def read_signatures(name: str, bodies: Mapping[str, bytes], count: int) -> list[Record]:
    """Those of a section that are in use, in hex."""
    body, algorithm = bodies[name], 1 if name == "signatures" else 2
    need(count == 8 and len(body) == 8 * 104, "AIB-E604", f"{count} signatures in {len(body)} bytes, not 8 in 832")
    records = [unpack(SIGNATURE, body, at, "AIB-E604") for at in range(0, 832, 104)]
    used = [record for record in records if record["algorithm"]]
    keys = [record["key"] for record in used]
    known = all(record["algorithm"] == algorithm for record in used)
    need(bool(used) and known, "AIB-E604", f"no signature, or an algorithm that is not {algorithm}")
    need(not any(body[104 * len(used) :]), "AIB-E604", "records that are not used are not zero, or not last")
    need(keys == sorted({*keys}), "AIB-E604", "signatures are not strictly increasing by key")
    if algorithm == 2:
        need("strong_leaves" in bodies, "AIB-E604", "signatures of the front matter, and no strong leaves")
        need("signatures" not in bodies, "AIB-E604", "both sections of signatures")
    return [r | {"key": r["key"].hex(), "signature": r["signature"].hex()} for r in used]
