"""Reads and writes files of statistics: a safetensors file of our own, or llama.cpp's imatrix, chosen by suffix.

A safetensors file of statistics has a tensor ``NAME.in_KEY`` for each weight ``NAME`` and each KEY of ``KEYS`` that is
known. Weights with the same inputs share their Hessians, which are stored once. The header's metadata have ``format``,
``version`` and, as JSON, ``about``, ``ties``, the names of the weights in the model's order (``tensors``), those with
statistics by expert (``experts``), those whose Hessian is another's (``hessians``: name -> the other's name), and the
angles of blocks (``angles``: name -> number). Any tool for such files shows it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import SourceError, WriteError
from ..formats.files import begins_with
from ..formats.safetensors.reader import SafetensorsFile
from ..formats.safetensors.writer import Entry
from ..formats.safetensors.writer import SafetensorsFile as SafetensorsWriter
from ..io.atomic import AtomicFile
from .statistics import PERCENTILES, About, Inputs, Statistics

FORMAT, VERSION = "aibit-statistics", "1"
# Key -> dtype, and its shape with G experts and K columns.
KEYS: dict[str, tuple[str, Callable[[int, int], tuple[int, ...]]]] = {
    "counts": ("i64", lambda g, k: (g,)),
    "sum2": ("f64", lambda g, k: (g, k)),
    "sum": ("f64", lambda g, k: (g, k)),
    "magnitude": ("f64", lambda g, k: (g, k)),
    "largest": ("f32", lambda g, k: (g, k)),
    "low": ("f32", lambda g, k: (g,)),
    "high": ("f32", lambda g, k: (g,)),
    "percentiles": ("f32", lambda g, k: (len(PERCENTILES),)),
    "hessian": ("f32", lambda g, k: (g, k, k)),
    "routed": ("f64", lambda g, k: (g,)),
}
_NOT_NEGATIVE = ("counts", "sum2", "magnitude", "largest")
_TILE = 512  # rows and columns of a Hessian that are checked at a time


def entries_of(inputs: Mapping[str, Inputs]) -> tuple[list[Entry], dict[str, np.ndarray]]:
    """Return the entries of a safetensors file for statistics, and their arrays by name."""
    entries, arrays = [], {}
    others = shared(inputs)
    for name, found in inputs.items():
        for key, (dtype, _) in KEYS.items():
            if (array := getattr(found, key)) is not None and not (key == "hessian" and name in others):
                arrays[f"{name}.in_{key}"] = array
                entries.append(Entry(f"{name}.in_{key}", dtype, array.shape))
    return entries, arrays


def shared(inputs: Mapping[str, Inputs]) -> dict[str, str]:
    """Return which weights have the same Hessian, one array, as another before them: name -> the first one's name."""
    first: dict[int, str] = {}
    owners = {
        name: first.setdefault(id(found.hessian), name) for name, found in inputs.items() if found.hessian is not None
    }
    return {name: owner for name, owner in owners.items() if name != owner}


def rejoin(arrays: Mapping[str, dict[str, np.ndarray]], owners: Mapping[str, str], where: str) -> None:
    """Give weights that share another's Hessian, as ``shared`` says, that array.

    Raises:
        SourceError: there is no such Hessian, or it has other columns.
    """
    for name, owner in owners.items():
        hessian = arrays.get(owner, {}).get("hessian")
        if hessian is None or name not in arrays or "hessian" in arrays[name] or owner in owners:
            raise SourceError(f"{where}: tensor {name!r}: shares the Hessian of {owner!r}, which is not there")
        arrays[name]["hessian"] = hessian


def header(statistics: Statistics) -> dict[str, str]:
    """Return the metadata of a safetensors file for statistics."""
    experts = [name for name, found in statistics.inputs.items() if found.experts]
    return {
        "format": FORMAT, "version": VERSION, "about": statistics.about.text_of,
        "ties": json.dumps(dict(statistics.ties), sort_keys=True), "experts": json.dumps(experts),
        "tensors": json.dumps(list(statistics.inputs)), "hessians": json.dumps(shared(statistics.inputs)),
        "angles": json.dumps(dict(statistics.angles)),
    }  # fmt: skip


def save(statistics: Statistics, path: str, overwrite: bool = False) -> None:
    """Write a safetensors file of statistics, all of it or nothing.

    Raises:
        WriteError: it exists, or cannot be written.
    """
    entries, arrays = entries_of(statistics.inputs)
    write(path, entries, arrays, header(statistics), overwrite)


def write(
    path: str, entries: Sequence[Entry], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str],
    overwrite: bool = False,
) -> None:  # fmt: skip
    """Write a safetensors file that appears when it is whole; arrays may be views of other files."""
    try:
        with AtomicFile(path, overwrite) as out:
            with SafetensorsWriter(path, entries, metadata, out.file) as file:
                for entry in entries:
                    file.write(entry.name, arrays[entry.name])
            out.publish()
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror or error}") from error


def is_imatrix(path: str) -> bool:
    """Tell by a path's suffix whether statistics are to be written there as llama.cpp's imatrix."""
    return path.endswith((".gguf", ".dat"))


def check_target(path: str, overwrite: bool, hessians: bool) -> None:
    """Raise WriteError, before any work is done, if statistics cannot be written to a path."""
    if os.path.lexists(path) and not overwrite:
        raise WriteError(f"{path}: exists; say overwrite=True (--force) to replace it")
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or "."):
        raise WriteError(f"{path}: is a directory, or in one that does not exist; give the name of the file to write")
    if is_imatrix(path) and hessians:
        raise WriteError(f"{path}: an imatrix holds no Hessians: write a file of another suffix, such as .safetensors")


def holds_imatrix(path: str) -> bool:
    """Tell whether a file of statistics is llama.cpp's: by its first bytes, or the suffix of the old form."""
    return path.endswith(".dat") or begins_with(path, b"GGUF")


def is_statistics(path: str) -> bool:
    """Tell whether a path is a file of statistics, and no text: by its first bytes, or llama.cpp's suffix."""
    if not os.path.isfile(path):
        return False
    if holds_imatrix(path):
        return True
    with open(path, "rb") as file:
        head = file.read(16)
    return len(head) == 16 and head[8:].startswith(b'{"__meta')


def load(path: str) -> Statistics:
    """Read a safetensors file of statistics; arrays are views of the file.

    Raises:
        SourceError: it is damaged, of a later version, of something else, or has values that no statistics have.
    """
    file = SafetensorsFile(path)
    if file.metadata.get("format") != FORMAT:
        raise SourceError(f"{path}: a safetensors file, and none of statistics: aibit calibrate makes them")
    if (version := file.metadata.get("version")) != VERSION:
        raise SourceError(f"{path}: statistics of version {version!r}, this reader knows {VERSION!r}: take them again")
    about = About.parse(file.metadata.get("about", ""), path)
    ties, order = _parsed(file, "ties", dict), _parsed(file, "tensors", list)
    experts = set(_parsed(file, "experts", list))
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in file.tensors:
        weight, dot, key = name.rpartition(".in_")
        if not dot or key not in KEYS or file.tensors[name].dtype != KEYS[key][0]:
            raise SourceError(f"{path}: tensor {name!r}: no statistics that this reader knows")
        found.setdefault(weight, {})[key] = file.read(name)
    if sorted(order) != sorted(found):
        raise SourceError(f"{path}: it lists {len(order)} weights, and has statistics of {len(found)}")
    if "hessians" in file.metadata:
        rejoin(found, _parsed(file, "hessians", dict), path)
    checked: set[int] = set()
    for name, arrays in found.items():
        _check(path, name, arrays)
        if (hessian := arrays.get("hessian")) is not None and id(hessian) not in checked:
            checked.add(id(hessian))
            _check_hessians(f"{path}: tensor {name!r}", hessian)
    inputs = {name: Inputs(**found[name], experts=name in experts) for name in order}
    return Statistics(about, inputs, ties, _angles(file))


def _angles(file: SafetensorsFile) -> dict[str, float]:
    """Parse the angles of blocks; older files have none."""
    try:
        found = json.loads(file.metadata.get("angles", "{}"))
        if all(isinstance(name, str) and 0 <= float(angle) <= 1 for name, angle in found.items()):
            return {name: float(angle) for name, angle in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise SourceError(f"{file.path}: angles: a JSON object of numbers from 0 to 1 is needed")


def _parsed(file: SafetensorsFile, key: str, kind: type) -> Any:
    """Parse a value of the header's metadata: a JSON object or list of strings."""
    try:
        value = json.loads(file.metadata.get(key, "null"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file.path}: {key}: not JSON: {error}") from error
    items = [*value, *value.values()] if isinstance(value, dict) else value
    if not isinstance(value, kind) or not all(isinstance(item, str) for item in items):
        raise SourceError(f"{file.path}: {key}: a JSON {'object' if kind is dict else 'list'} of strings is needed")
    return value


def _check(path: str, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Check the statistics of one weight."""
    counts, sum2 = arrays.get("counts"), arrays.get("sum2")
    if counts is None or sum2 is None or sum2.ndim != 2:
        raise SourceError(f"{path}: tensor {name!r}: its counts or sums of squares are missing")
    groups, columns = sum2.shape
    for key, array in arrays.items():
        if array.shape != KEYS[key][1](groups, columns):
            raise SourceError(
                f"{path}: tensor {name!r}: in_{key} has shape {list(array.shape)}, as {groups} x {columns}"
            )
        if key != "hessian" and not np.isfinite(array).all():  # which is checked once for all that share it
            raise SourceError(f"{path}: tensor {name!r}: in_{key} is not finite")
        if key in _NOT_NEGATIVE and array.size and array.min() < 0:
            raise SourceError(f"{path}: tensor {name!r}: in_{key} is negative")
    if sum2[counts == 0].any():
        raise SourceError(f"{path}: tensor {name!r}: sums of no tokens")


def _check_hessians(where: str, hessians: np.ndarray) -> None:
    """Check that matrices are sums of x^T x, as far as is cheap: finite, symmetric, the diagonal not negative."""
    for hessian in hessians:
        if not (hessian.diagonal() >= 0).all():
            raise SourceError(f"{where}: in_hessian is negative or not finite on its diagonal")
        for i in range(0, len(hessian), _TILE):
            for j in range(i, len(hessian), _TILE):
                tile, other = hessian[i : i + _TILE, j : j + _TILE], hessian[j : j + _TILE, i : i + _TILE]
                if not np.isfinite(tile).all():
                    raise SourceError(f"{where}: in_hessian is not finite")
                if not np.array_equal(tile, other.T):
                    raise SourceError(f"{where}: in_hessian is not symmetric")
