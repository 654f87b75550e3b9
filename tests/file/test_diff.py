"""How two files differ."""

from __future__ import annotations

import numpy as np

from aibit_format.file import writer
from aibit_format.file.diff import Difference
from aibit_format.file.writer import Tensor
from aibit_format.schemes import make
from tests.support.edited_models import compared
from tests.support.edited_models import model as model
from tools.fixtures import file_builder


def test_layout_and_shards_are_no_difference(model, fixtures, tmp_path):
    assert compared(model / "m.aibit", sorted(model.glob("s-*.aibit"))[0]) == []
    tensor = Tensor("w", (8, 600), "f32", make("f32"))
    planes = {"values": file_builder.values("f32", (8, 600))}
    for alignment in (64, 4096):
        writer.write(tmp_path / f"{alignment}", {tensor: planes}, alignment=alignment)
    assert compared(tmp_path / "64", tmp_path / "4096") == []


def test_tensors_that_differ(tmp_path):
    def file(name, **tensors):
        content = {}
        for key, (scheme, values) in tensors.items():
            kind = make(scheme)
            planes = {"values": values} if scheme == "f32" else kind.encode(values, "f32")  # not finite ones, too
            content[Tensor(key, values.shape, "f32", kind)] = planes
        writer.write(tmp_path / name, content)
        return tmp_path / name

    x = np.array([[3, 4], [0, 0]], np.float32)
    up = np.array([[0, 1], [0, 0]], np.float32)
    nan = np.array([[np.nan, np.inf], [0, 0]], np.float32)
    a = file("a", same=("f32", x), moved=("f32", x), other=("f32", x), shape=("f32", x), gone=("f32", x),
             odd=("f32", nan), finer=("int8", x), zero=("f32", x * 0), nan=("f32", nan))  # fmt: skip
    b = file("b", moved=("f32", x), same=("f32", x), other=("f32", x + up), shape=("f32", x[:1]),
             odd=("f32", x), finer=("f32", x), zero=("f32", x), nan=("f32", nan + 0), new=("int8", x))  # fmt: skip
    found = compared(a, b)
    assert found[0] == Difference("order", "tensors", "same", "moved")
    assert Difference("planes", "other", ["values"], ["values"]) in found
    assert Difference("values", "other", 0.2, 1.0) in found
    assert Difference("shape", "shape", (2, 2), (1, 2)) in found
    assert Difference("tensor", "gone", "f32 [2, 2]", None) in found
    assert Difference("tensor", "new", None, "int8 [2, 2]") in found
    assert Difference("values", "odd", None, None) in found and Difference("values", "zero", None, 4.0) in found
    assert Difference("scheme", "finer", "int8", "f32") in found
    error = next(d for d in found if (d.kind, d.name) == ("values", "finer"))
    assert 0 < error.a < 0.01 and 0 < error.b < 0.04
    assert not {"same", "moved", "nan"} & {d.name for d in found}
