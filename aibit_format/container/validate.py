"""Checks every rule about the tables of a file, for the reader and the writer alike.

``check`` returns all problems, not only the first (at most ``EACH`` of one kind). It works on whole columns:
tensors whose records agree in flags, scheme, dtype, parameters and shape need the same planes, so a scheme is asked
once for each such group and the rest is array arithmetic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..dtypes import BY_CODE, DTYPES, name_of, storage_of
from ..errors import Problem, SchemeError
from ..schemes import make
from ..schemes.opaque import Opaque
from . import layout, pruning, vocabulary
from .metadata import Value
from .names import TENSOR_CHARACTERS, bad_document_name, bad_scheme_name, bad_tensor_name
from .placement import Placement
from .tables import FileInfo

EACH = 100  # most problems of one kind that are reported
_FLAGS = next(field.offset for field in layout.fields_of(layout.TENSOR) if field.name == "flags")

# Metadata keys with a meaning, and the types of their values. Other keys may be present with any value.
KNOWN_KEYS: dict[str, str] = {
    "model.architecture": "string",
    "model.type": "string",
    "model.dtype": "string",
    "model.missing": "string",
    "model.parameters": "int",
    "source.kind": "string",
    "source.files": "strings",
    "source.sizes": "ints",
    "source.xxh3_128": "strings",
    "tool.name": "string",
    "tool.version": "string",
    "tool.libraries": "strings",
    "config.dropped_keys": "strings",
    "quantization.recipe": "strings",
    "quantization.compute_dtype": "string",
    "quantization.outlier_threshold": "float",
    "quantization.error.tensor": "ints",
    "quantization.error.relative_rms": "floats",
    "quantization.error.largest": "floats",
    "quantization.error.signal_to_noise_db": "floats",
    "vocabulary.size": "int",
    "vocabulary.source": "strings",
    "pruning.applied": "strings",
    "pruning.scores": "strings",
    "pruning.kept.step": "ints",
    "pruning.kept.kind": "strings",
    "pruning.kept.layer": "ints",
    "pruning.kept.expert": "ints",
    "pruning.kept.count": "ints",
    "shard.index": "int",
    "shard.count": "int",
    "shard.roots": "strings",
    "shard.places": "ints",
}
SHARD = "shard."  # namespace of the keys about the set of shards that a file belongs to
_DIGEST = re.compile("[0-9a-f]{32}")
# Keys that are columns of one table: all present or none, and of equal length.
_TABLES = [
    [key for key in KNOWN_KEYS if key.startswith("quantization.error.")],
    ["source.files", "source.sizes", "source.xxh3_128"],
    [pruning.APPLIED, pruning.SCORES],
    [*pruning.COLUMNS],
]


# Bytes of an element, by the dtype's code; 1 for those that are smaller, and those that are not known here.
_SIZES = np.array([storage_of(name_of(code)).itemsize for code in range(256)], np.uint64)


def check(info: FileInfo, size: int) -> list[Problem]:
    """Return every problem in the tables of a file of ``size`` bytes; an empty list if there is none."""
    problems = [*_names(info), *_schemes(info), *_tensor_records(info)]
    # What follows multiplies shapes and adds lengths, which is only sound on sound records.
    if not problems:
        problems = [*_planes(info)]
    if not problems:
        problems = [*_places(info, size)]
    return [*problems, *_metadata(info)]


def _some(code: str, what: str, indices: Iterable[int], **columns: Any) -> Iterator[Problem]:
    """Yield a problem for each index, with the values that the columns (sequences or functions) have there."""
    for i in list(indices)[:EACH]:
        values: dict[str, Any] = {
            name: column(i) if callable(column) else _plain(column[i]) for name, column in columns.items()
        }
        yield Problem(code, what, **values)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _names(info: FileInfo) -> Iterator[Problem]:
    for code, names, bad in (
        ("AIB-E213", info.scheme_names, bad_scheme_name),
        ("AIB-E701", info.document_names, bad_document_name),
    ):
        for name in names:
            if reason := bad(name):
                yield Problem(code, f"{reason}: {name!r}")
    # Two passes over the pool tell whether any name may be bad; only then is each one checked.
    pool = info.strings
    if not info.pool_agrees or pool.translate(None, TENSOR_CHARACTERS + b"\n") or b"__" in pool[:2] or b"\n__" in pool:
        for name in info.names:
            if reason := bad_tensor_name(name):
                yield Problem("AIB-E214", reason, tensor=ascii(name)[1:-1])
    if not info.pool_agrees:
        yield Problem("AIB-E212", "string pool is not the names of schemes, documents and tensors, in order and each "
                      "followed by one line feed")  # fmt: skip
        return
    if info.document_names != sorted(info.document_names):
        yield Problem("AIB-E703", "documents are not sorted by name")
    if len({name.lower() for name in info.document_names}) != len(info.document_names):
        yield Problem("AIB-E703", "two documents have the same name, ignoring case")
    folders = {name[:i].lower() for name in info.document_names for i, c in enumerate(name) if c == "/"}
    if clash := folders & {name.lower() for name in info.document_names}:
        yield Problem("AIB-E703", f"{min(clash)!r} is a document and a folder of documents")
    if len(set(info.names)) != len(info.names):  # info.index is only built once a tensor is asked for
        repeated = [i for i, name in enumerate(info.names) if info.index[name] != i]
        yield from _some("AIB-E414", "name is used twice", repeated, tensor=info.names)


def _schemes(info: FileInfo) -> Iterator[Problem]:
    for at, (name, record) in enumerate(zip(info.scheme_names, info.scheme_table, strict=True)):
        if bad_scheme_name(name):
            continue  # reported by _names
        try:
            scheme = make(name, int(record["version"]), tuple(record["parameters"].tolist()))
        except SchemeError as error:
            if error.code != "AIB-E406":  # one that is not known here has its own rules
                yield Problem("AIB-E407", f"scheme table entry {at}: {error}")
            continue
        stored = tuple(record["parameters"].tolist())
        if stored[: len(scheme.parameters)] != scheme.parameters or any(stored[len(scheme.parameters) :]):
            yield Problem("AIB-E407", f"scheme {name!r}: parameters", expected=scheme.parameters, found=stored)
    keys = [
        (name, int(record["version"]), tuple(record["parameters"].tolist()))
        for name, record in zip(info.scheme_names, info.scheme_table, strict=True)
    ]
    if keys != sorted(set(keys)):
        yield Problem("AIB-E416", "scheme table is not sorted, or repeats an entry")
    used = np.bincount(info.tensor_table["scheme"], minlength=len(keys))
    if len(used) > len(keys):
        beyond = np.flatnonzero(info.tensor_table["scheme"] >= len(keys))
        yield from _some(
            "AIB-E416", f"scheme index, with {len(keys)} schemes", beyond, tensor=info.names,
            found=info.tensor_table["scheme"],
        )  # fmt: skip
    elif not used.all():
        yield Problem("AIB-E416", "a scheme in the table is not used by any tensor")


def _tensor_records(info: FileInfo) -> Iterator[Problem]:
    table, names = info.tensor_table, info.names
    bad = np.flatnonzero(table["rank"] > layout.MAX_RANK)
    yield from _some("AIB-E402", "rank", bad, tensor=names, expected=lambda _: "at most 8", found=table["rank"])
    beyond = np.zeros(len(table), bool)
    for k in np.flatnonzero(_union(table)["shape"]):
        beyond |= (table["shape"][:, k] != 0) & (table["rank"] <= k)
    bad = np.flatnonzero(beyond)
    yield from _some("AIB-E402", "a dimension beyond the rank is not zero", bad, tensor=names)
    bad = np.flatnonzero(table["flags"] & ~np.uint16(layout.TENSOR_FLAGS))
    yield from _some("AIB-E415", "unknown flags", bad, tensor=names, found=table["flags"])
    bad = np.flatnonzero((table["flags"] & layout.TENSOR_TRANSPOSED > 0) & ~np.isin(table["rank"], (2, 3)))
    yield from _some("AIB-E415", "transposed, and not of rank 2 or 3", bad, tensor=names, found=table["rank"])
    for what, records in (("tensor", table), ("plane", info.plane_table), ("document", info.document_table)):
        union = _union(records)
        for field in (name for name in records.dtype.names or () if name.startswith("reserved")):
            if any(union[field].tobytes()):
                yield Problem("AIB-E415", f"{what} table: {field} is not zero")
    yield from _tensor_parameters(info)
    yield from _aliases(info)


def _tensor_parameters(info: FileInfo) -> Iterator[Problem]:
    """Check that parameters of tensors are zero which their scheme does not define, as far as it is known here."""
    found = info.tensor_table["parameters"]
    if not found.any() or not len(info.scheme_table):
        return
    try:
        schemes = info.schemes
    except SchemeError:  # reported by _schemes
        return
    taken = np.array([found.shape[1] if isinstance(s, Opaque) else len(s.of_tensor) for s in schemes], np.int64)
    places = np.minimum(info.tensor_table["scheme"], len(schemes) - 1)  # what is beyond is reported, too
    beyond = np.arange(found.shape[1]) >= taken[places][:, None]
    bad = np.flatnonzero(((found != 0) & beyond).any(axis=1))
    yield from _some("AIB-E415", "parameters that its scheme does not define", bad, tensor=info.names,
                     found=lambda i: found[i].tolist())  # fmt: skip


def _union(records: np.ndarray) -> np.void:
    """Combine records by bitwise or: a field that is zero in the result is zero in all of them."""
    # Column by column, as numpy is slow with short rows.
    return np.array([np.bitwise_or.reduce(column) for column in _words(records).T]).view(records.dtype)[0]


def _words(records: np.ndarray) -> np.ndarray:
    """View records as u64 [records, words]; every record is a multiple of eight bytes long."""
    return records.view(np.uint64).reshape(len(records), records.dtype.itemsize // 8)


def _aliases(info: FileInfo) -> Iterator[Problem]:
    table, names = info.tensor_table, info.names
    is_alias = (table["flags"] & layout.TENSOR_ALIAS).astype(bool)
    at = np.flatnonzero(is_alias)
    targets = table["target"][at]
    bad = at[targets >= at]
    yield from _some("AIB-E411", "alias of no earlier tensor", bad, tensor=names, found=table["target"])
    at, targets = at[targets < at], targets[targets < at]
    yield from _some("AIB-E411", "alias of an alias", at[is_alias[targets]], tensor=names)
    for field in ("scheme", "dtype", "rank", "parameters", "shape"):
        differs = table[field][at] != table[field][targets]
        differs = differs.any(axis=1) if differs.ndim > 1 else differs
        yield from _some("AIB-E411", f"alias differs from its target in {field}", at[differs], tensor=names)
    transposed = (table["flags"][at] ^ table["flags"][targets]) & layout.TENSOR_TRANSPOSED
    yield from _some("AIB-E411", "alias differs from its target in flags", at[transposed > 0], tensor=names)
    bad = np.flatnonzero(~is_alias & (table["target"] != 0))
    yield from _some("AIB-E411", "has a target and is no alias", bad, tensor=names, found=table["target"])


def _planes(info: FileInfo) -> Iterator[Problem]:
    tensors, planes, names = info.tensor_table, info.plane_table, info.names
    group, firsts = _groups(tensors)
    unknown = info.opaque
    wanted, problems = [], []
    for i in firsts.tolist():
        specs, problem = _specs(info, i, bool(unknown[i]))
        wanted.append(specs)
        problems += [(i, problem)] if problem else []
    if problems:  # tensors whose planes are unknown would only make others look wrong
        yield from (problem for _, problem in sorted(problems, key=lambda found: found[0]))
        return
    is_alias = (tensors["flags"] & layout.TENSOR_ALIAS).astype(bool)
    counts = np.array([len(specs) for specs in wanted], np.int64)[group]
    counts[unknown & ~is_alias] = tensors["plane_count"][unknown & ~is_alias]
    if len(tensors) and not np.array_equal(counts, tensors["plane_count"]):
        bad = np.flatnonzero(counts != tensors["plane_count"])
        yield from _some("AIB-E401", "number of planes", bad, tensor=names, expected=counts,
                         found=tensors["plane_count"])  # fmt: skip
    if counts.sum() != len(planes):
        yield Problem("AIB-E401", "planes in the table", expected=int(counts.sum()), found=len(planes))
        return
    first = np.where(counts > 0, np.cumsum(counts) - counts, 0)
    first[is_alias] = 0
    bad = np.flatnonzero(first != tensors["first_plane"])
    yield from _some("AIB-E401", "first plane", bad, tensor=names, expected=first, found=tensors["first_plane"])

    owner = np.repeat(np.arange(len(tensors)), counts)
    # The specs of all groups in one list, and for each plane of a known scheme the index of its spec.
    every = [spec for specs in wanted for spec in specs]
    starts = np.cumsum([0, *map(len, wanted)])
    known = np.flatnonzero(~unknown[owner])
    at = (np.arange(len(planes)) + np.repeat(starts[group] - first, counts))[known]

    def differ(code: str, column: str, expected: np.ndarray, places: np.ndarray) -> Iterator[Problem]:
        differs = np.flatnonzero(planes[column][places] != expected)
        yield from _some(code, f"plane {column}", differs, tensor=lambda k: names[owner[places[k]]],
                         plane=lambda k: layout.role_name(int(planes["role"][places[k]])), expected=expected,
                         found=planes[column][places])  # fmt: skip

    yield from differ("AIB-E412", "tensor", owner, np.arange(len(planes)))
    if len(known) < len(planes):
        yield from _unknown_planes(info, owner, np.flatnonzero(unknown[owner]))
    roles, dtypes = [layout.role_code(spec.role) for spec in every], [DTYPES[spec.dtype].code for spec in every]
    yield from differ("AIB-E412", "role", np.array(roles, np.uint64)[at], known)
    yield from differ("AIB-E412", "dtype", np.array(dtypes, np.uint64)[at], known)
    yield from differ("AIB-E405", "length", np.array([spec.nbytes for spec in every], np.uint64)[at], known)


def _unknown_planes(info: FileInfo, owner: np.ndarray, places: np.ndarray) -> Iterator[Problem]:
    """Check planes of tensors in unknown schemes: each role is there once, and lengths are whole elements."""
    planes = info.plane_table[places]
    where: dict[str, Any] = {
        "tensor": lambda k: info.names[owner[places[k]]],
        "plane": lambda k: layout.role_name(int(planes["role"][k])),
    }
    _, firsts = np.unique(owner[places].astype(np.uint64) << np.uint64(16) | planes["role"], return_index=True)
    repeated = np.setdiff1d(np.arange(len(places)), firsts)
    yield from _some("AIB-E412", "role of two planes", repeated, **where, found=planes["role"])
    sizes = _SIZES[planes["dtype"]]
    bad = np.flatnonzero(planes["length"] % sizes)
    expected = [f"a multiple of {size}" for size in sizes.tolist()]
    yield from _some("AIB-E405", "plane length", bad, **where, expected=expected, found=planes["length"])


def _groups(tensors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group tensors that need the same planes; returns the group of each, and the first tensor of each group."""
    words = _words(tensors)
    words = words[:, [k for k in range(_FLAGS // 8, words.shape[1]) if words[:, k].any()]]  # zeros distinguish nothing
    # Sorting one hash word per record is far cheaper than sorting whole records; a collision takes the slow path.
    # Asked for indices, np.unique does not import numpy.ma, which costs more than the rest of opening a file.
    odd = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    _, firsts, group = np.unique(words @ odd, return_index=True, return_inverse=True)
    if not np.array_equal(words, words[firsts[group]]):
        _, firsts, group = np.unique(words, axis=0, return_index=True, return_inverse=True)
    return group.reshape(-1), firsts


def _specs(info: FileInfo, i: int, unknown: bool) -> tuple[tuple[Any, ...], Problem | None]:
    """Return the planes that tensor ``i`` must have, and the problem if it cannot have any; none if it is unknown."""
    record = info.tensor_table[i]
    shape = tuple(record["shape"][: record["rank"]].tolist())
    name = info.names[i]
    try:
        scheme = info.schemes[record["scheme"]].for_tensor(record["parameters"].tolist())
        specs = () if unknown else scheme.planes(shape, BY_CODE[int(record["dtype"])].name)
    except SchemeError as error:
        return (), Problem("AIB-E413", str(error), tensor=name)
    # Python integers: no shape can make this wrap. Zeros are left out, so that an array of any of the dimensions,
    # whatever its elements, stays within what an index can hold.
    if math.prod(size for size in shape if size) > layout.MAX_ELEMENTS:
        return (), Problem("AIB-E403", f"shape {shape} is larger than any file", tensor=name)
    return (() if record["flags"] & layout.TENSOR_ALIAS else specs), None


def _places(info: FileInfo, size: int) -> Iterator[Problem]:
    documents, planes = info.document_table, info.plane_table
    bad = np.flatnonzero(documents["length"] > layout.MAX_DOCUMENT)
    yield from _some(
        "AIB-E702", "document size", bad, expected=lambda _: f"at most {layout.MAX_DOCUMENT}", found=documents["length"]
    )
    if len(bad):
        return
    # Halves of the lengths: a sum of 64-bit numbers may wrap; these cannot.
    high, low = (planes["length"] >> np.uint64(32)).sum(), (planes["length"] & np.uint64(0xFFFF_FFFF)).sum()
    if (total := (int(high) << 32) + int(low)) > size:
        yield Problem("AIB-E408", "planes are larger than the file", expected=f"at most {size}", found=total)
        return
    placed = info.placement
    bad = np.flatnonzero(documents["offset"] != placed.document_offsets)
    yield from _some("AIB-E704", "document offset", bad, expected=placed.document_offsets, found=documents["offset"])
    yield from _plane_places(info, placed, size)
    if placed.data_end != size:
        yield Problem("AIB-E108", "file size", expected=placed.data_end, found=size)
    if info.file_size != size:
        yield Problem("AIB-E108", "file size in the header", offset=16, expected=size, found=info.file_size)
    if len(info.leaves) != placed.leaves:
        yield Problem("AIB-E601", "number of leaves", expected=placed.leaves, found=len(info.leaves))
    if (strong := info.strong_leaves) is not None and len(strong) != placed.leaves:
        yield Problem("AIB-E601", "number of strong leaves", expected=placed.leaves, found=len(strong))


def _plane_places(info: FileInfo, placed: Placement, size: int) -> Iterator[Problem]:
    planes = info.plane_table
    beyond = planes["offset"] > np.uint64(size) - planes["length"]  # no length is larger than the file here
    bad = np.flatnonzero(beyond | (planes["offset"] != placed.plane_offsets))
    pooled = layout.pooled(planes["role"], planes["length"], info.alignment)
    for i in bad.tolist()[:EACH]:
        offset, length = int(planes["offset"][i]), int(planes["length"][i])
        alignment = layout.ALIGNMENT if pooled[i] else info.alignment
        if offset < placed.data_start or offset > size - length:
            code, what = "AIB-E408", "plane outside the data region"
        elif offset % alignment:
            code, what = "AIB-E409", f"plane is not aligned to {alignment}"
        else:
            code, what = "AIB-E410", "plane overlaps another, leaves a hole or is out of order"
        yield Problem(
            code, what, info.names[planes["tensor"][i]], layout.role_name(int(planes["role"][i])), offset,
            int(placed.plane_offsets[i]), offset,
        )  # fmt: skip


def _metadata(info: FileInfo) -> Iterator[Problem]:
    values = info.metadata
    wrong = [key for key, kind in KNOWN_KEYS.items() if key in values and not _fits(values[key], kind)]
    for key in wrong:
        yield Problem("AIB-E309", f"metadata key {key!r}: type", None, None, None, KNOWN_KEYS[key], _kind(values[key]))
    if wrong:
        return
    for table in _TABLES:
        present = [key for key in table if key in values]
        if present and (present != table or len({len(values[key]) for key in present}) != 1):
            yield Problem("AIB-E310", f"{', '.join(table)} must be present together, with equal lengths", found=present)
            return
    if "model.architecture" in values and "config.json" not in info.document_names:
        yield Problem("AIB-E310", "model.architecture is set, but there is no document config.json")
    yield from _vocabulary(info)
    yield from _pruning(info)
    if any(key.startswith(SHARD) for key in values):
        yield from _shard(info)  # figures about all tensors are compared when the set is opened
    else:
        yield from figures(values, parameters(info), len(info.tensor_table))


def _vocabulary(info: FileInfo) -> Iterator[Problem]:
    """Check that a vocabulary which was cut has both its size and its map, of whole ids, not more than there were."""
    size, document = info.metadata.get(vocabulary.SIZE), info.documents.get(vocabulary.DOCUMENT)
    if size is None and document is None:
        return
    if size is None or document is None or document.length % 4 or not 1 <= document.length // 4 <= size:
        found = None if document is None else document.length
        what = f"{vocabulary.SIZE} and the document {vocabulary.DOCUMENT!r}"
        yield Problem("AIB-E310", what, expected=f"both, and 4 bytes for each of 1 to {size} rows", found=found)


def _pruning(info: FileInfo) -> Iterator[Problem]:
    """Check that the map of what a pruned model has kept has a number for each that the tables count, one or more."""
    stated, document = info.metadata.get(pruning.COUNT), info.documents.get(pruning.DOCUMENT)
    if stated is None and document is None:
        return
    counts = [] if stated is None else [int(count) for count in stated]
    if document is None or min(counts, default=0) < 1 or document.length != 4 * sum(counts):
        found = None if document is None else document.length
        what = f"{pruning.COUNT} and the document {pruning.DOCUMENT!r}"
        yield Problem("AIB-E310", what, expected="both, and 4 bytes for each that is counted, 1 or more", found=found)


def parameters(info: FileInfo) -> int:
    """Count the elements of all tensors except aliases."""
    table = info.tensor_table[(info.tensor_table["flags"] & layout.TENSOR_ALIAS) == 0]
    within = np.arange(layout.MAX_RANK) < table["rank"][:, None]
    return sum(np.prod(table["shape"], axis=1, where=within, dtype=np.uint64).tolist())


def figures(metadata: Mapping[str, Value], elements: int, tensors: int) -> Iterator[Problem]:
    """Check what metadata say of all tensors against the number of elements and tensors, of a file or of all shards."""
    if metadata.get("model.parameters", elements) != elements:
        found = metadata["model.parameters"]
        yield Problem("AIB-E310", "metadata key 'model.parameters'", expected=elements, found=found)
    places = metadata.get("quantization.error.tensor", ())
    if len(places) and (min(places) < 0 or max(places) >= tensors):
        found = int(min(places)) if min(places) < 0 else int(max(places))
        yield Problem("AIB-E310", "quantization.error.tensor names no tensor", found=found)


def _shard(info: FileInfo) -> Iterator[Problem]:
    """Check what one file says of its set of shards, as far as this file alone can tell."""
    values = info.metadata
    index, count = values.get("shard.index"), values.get("shard.count")
    if index is None or count is None or not 1 <= index <= count <= layout.MAX_SHARDS:
        limits = f"1 <= shard.index <= shard.count <= {layout.MAX_SHARDS}"
        yield Problem("AIB-E609", "place in the set of shards", expected=limits, found=f"{index} of {count}")
    elif index == 1:
        roots = list(values.get("shard.roots", ()))
        if not {"shard.roots", "shard.places"} <= values.keys():
            yield Problem("AIB-E609", "shard.roots and shard.places must be present in the first shard")
        if len(roots) != count - 1 or not all(_DIGEST.fullmatch(root) for root in roots):
            what = "shard.roots: root digests of the other shards"
            yield Problem("AIB-E609", what, expected=f"{count - 1} of 32 hex digits", found=roots)
    elif extra := sorted(values.keys() - {"shard.index", "shard.count"}):
        yield Problem("AIB-E609", f"metadata of shard {index} of {count}, which belong in the first", found=extra)
    elif info.document_names:
        what = f"documents of shard {index} of {count}, which belong in the first"
        yield Problem("AIB-E609", what, found=info.document_names)


def _fits(value: Any, kind: str) -> bool:
    """Tell whether a metadata value has this type; an empty array has any array type."""
    found = _kind(value)
    return found == kind or (found == "empty" and kind.endswith("s"))


def _kind(value: Any) -> str:
    """Return the name of a metadata value's type."""
    if isinstance(value, np.ndarray):
        return "empty" if not len(value) else "floats" if value.dtype.kind == "f" else "ints"
    if isinstance(value, list):
        return _SCALARS[type(value[0])] + "s"
    return _SCALARS[type(value)]


_SCALARS = {int: "int", float: "float", bool: "bool", str: "string", bytes: "bytes"}
