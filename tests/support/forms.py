"""Lay single weights out in a form of checkpoint, from planes that are written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from aibit_format.dtypes import DTYPES
from aibit_format.formats.huggingface import origin
from aibit_format.formats.huggingface.forms import Form, Stored, form_class
from aibit_format.schemes import parse
from tests.support.exported_models import small


def form(name: str, folder: Any, said: Mapping[str, Any] | None = None, parts: Any = (), left_out: Any = ()) -> Form:
    """A form for a file that was made from a checkpoint of these settings and parts of weights, if ``said``."""
    number = len([*folder.iterdir()])
    file = small(folder / f"{number}.aibit", {"b": np.ones(1, np.float32)})
    found = form_class(name)(file)
    metadata = {origin.SAID: json.dumps({"quant_method": name, **said}), origin.PARTS: [*parts]} if said else {}
    found.origin = origin.origin_of(metadata | ({origin.LEFT_OUT: [*left_out]} if left_out else {}))
    found.said = found.origin.said
    return found


def weight(
    scheme: str, shape: tuple[int, ...], name: str = "m.q.weight", kind: str = "linear", **planes: Any
) -> Stored:
    """A weight with these planes, which are of the dtypes and shapes that its scheme has."""
    parsed = parse(scheme)
    specs = {spec.role: spec for spec in parsed.planes(shape, "f32")}
    found = {}
    for role, values in planes.items():
        spec = specs[role]
        found[role] = np.asarray(values).astype(DTYPES[spec.dtype].numpy).reshape(spec.stored)
    return Stored(name, shape, "f32", parsed, lambda: found, kind=kind)


def laid_out(form: Form, stored: Stored) -> dict[str, np.ndarray]:
    """The tensors of a weight, by the ends of their names behind the module's, of the dtypes that are promised."""
    item = form.item(stored)
    found = {}
    for entry, array in zip(item.entries, item.make(), strict=True):
        assert array.shape == entry.shape and array.nbytes == DTYPES[entry.dtype].numpy.itemsize * array.size
        found[entry.name.removeprefix(stored.module)] = array
    return found
