"""Plans of files, and what cannot be planned."""

import numpy as np
import pytest

from aibit_format.container import layout
from aibit_format.errors import AibitError
from aibit_format.file.writer import Tensor, plan
from tests.support.written_files import F32, INT8, A, Q


def tensors(*names, **aliases):
    return [Tensor(n, (2,), "f32", F32) for n in names] + [Tensor(n, (2,), "f32", F32, t) for n, t in aliases.items()]


PLANS = [
    ("duplicate name", tensors("a", "a"), {}, {}, "AIB-E414"),
    ("empty name", tensors(""), {}, {}, "AIB-E211"),
    ("name with a space", tensors("a b"), {}, {}, "AIB-E214"),
    ("name with a quote", tensors("a'"), {}, {}, "AIB-E214"),
    ("name not ASCII", tensors("caf\u00e9"), {}, {}, "AIB-E214"),
    ("name with NUL", tensors("a\0"), {}, {}, "AIB-E214"),
    ("name with a line feed", tensors("a\nb"), {}, {}, "AIB-E214"),
    ("reserved name", tensors("__metadata__"), {}, {}, "AIB-E214"),
    ("name of 256 bytes", tensors("a" * 256), {}, {}, None),
    ("name of 65537 bytes", tensors("a" * 65537), {}, {}, None),
    ("name with a lone surrogate", tensors("a\ud800"), {}, {}, None),
    ("alias to nothing", tensors("a", b="c"), {}, {}, "AIB-E411"),
    ("alias to itself", tensors("a", b="b"), {}, {}, "AIB-E411"),
    ("alias to a later tensor", [*tensors(b="a"), *tensors("a")], {}, {}, "AIB-E411"),
    ("alias to an alias", tensors("a", b="a", c="b"), {}, {}, "AIB-E411"),
    ("alias of another shape", [*tensors("a"), Tensor("b", (1, 2), "f32", F32, "a")], {}, {}, "AIB-E411"),
    ("alias of another scheme", [Q, Tensor("b", (4, 8), "f32", F32, "q")], {}, {}, "AIB-E411"),
    ("alias transposed", [A, Tensor("b", (4, 8), "f32", F32, "a", True)], {}, {}, "AIB-E411"),
    ("rank 9", [Tensor("a", (1,) * 9, "f32", F32)], {}, {}, None),
    ("rank 300", [Tensor("a", (1,) * 300, "f32", F32)], {}, {}, None),
    ("negative dimension", [Tensor("a", (-1,), "f32", F32)], {}, {}, None),
    ("dimension 2^64", [Tensor("a", (1 << 64,), "f32", F32)], {}, {}, None),
    ("dimension 2^62 of f32", [Tensor("a", (1 << 62,), "f32", F32)], {}, {}, None),
    ("total beyond 2^63", [Tensor(f"t{i}", (1 << 60,), "f32", F32) for i in range(4)], {}, {}, None),
    ("unknown dtype", [Tensor("a", (1,), "f33", F32)], {}, {}, None),
    ("dtype that the scheme does not store", [Tensor("a", (1,), "f16", F32)], {}, {}, "AIB-E501"),
    ("int8 of rank 1", [Tensor("a", (1,), "f32", INT8)], {}, {}, "AIB-E501"),
    ("int8 of integers", [Tensor("a", (1, 1), "i8", INT8)], {}, {}, "AIB-E501"),
    ("document with a path", [], {}, {"../a": 1}, "AIB-E701"),
    ("document with an absolute path", [], {}, {"/a": 1}, "AIB-E701"),
    ("document named like a device", [], {}, {"nul": 1}, "AIB-E701"),
    ("documents that differ in case", [], {}, {"A": 1, "a": 1}, "AIB-E703"),
    ("document over the cap", [], {}, {"a": layout.MAX_DOCUMENT + 1}, "AIB-E702"),
    ("too many documents", [], {}, dict.fromkeys(map(str, range(layout.MAX_DOCUMENTS + 1)), 0), "AIB-E204"),
    ("key without a namespace", [], {"a": 1}, {}, "AIB-E302"),
    ("key in upper case", [], {"A.b": 1}, {}, "AIB-E302"),
    ("value NaN", [], {"a.b": float("nan")}, {}, "AIB-E307"),
    ("value NaN in an array", [], {"a.b": np.array([np.nan])}, {}, "AIB-E307"),
    ("value of mixed types", [], {"a.b": [1, "a"]}, {}, "AIB-E304"),
    ("value nested", [], {"a.b": [[1]]}, {}, "AIB-E304"),
    ("value of rank 2", [], {"a.b": np.ones((2, 2))}, {}, "AIB-E304"),
    ("value None", [], {"a.b": None}, {}, "AIB-E304"),
    ("value of 65 bits", [], {"a.b": 1 << 63}, {}, "AIB-E304"),
    ("array of 65 bits", [], {"a.b": np.array([1 << 63], np.uint64)}, {}, "AIB-E304"),
    ("text with a control character", [], {"a.b": "\x1b"}, {}, "AIB-E207"),
    ("text with a lone surrogate", [], {"a.b": "\ud800"}, {}, "AIB-E206"),
    ("known key of another type", [], {"model.parameters": "0"}, {}, "AIB-E309"),
    ("wrong number of parameters", tensors("a"), {"model.parameters": 3}, {}, "AIB-E310"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "metadata", "documents", "code"),
    [pytest.param(*row[1:], id=row[0].replace(" ", "-")) for row in PLANS],
)
def test_what_a_reader_refuses_is_not_planned(content, metadata, documents, code):
    with pytest.raises(AibitError) as caught:
        plan(content, metadata, documents)
    assert code is None or caught.value.code == code


@pytest.mark.parametrize("alignment", [0, 1, 128, 8192, 1 << 30, -64])
def test_an_alignment_outside_the_list_is_not_planned(alignment):
    with pytest.raises(AibitError):
        plan([A], {}, {}, alignment)


def test_more_metadata_than_allowed_is_not_planned():
    values = {f"a.k{i}": 1 for i in range(layout.MAX_METADATA + 1)}
    with pytest.raises(AibitError):
        plan([], values, {})


def test_front_matter_over_the_cap_is_not_planned():
    with pytest.raises(AibitError):
        plan([], {"a.b": bytes(layout.MAX_FRONT_MATTER)}, {})
