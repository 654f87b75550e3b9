"""Rows of tensors, cut for a device each."""

from __future__ import annotations

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format import schemes
from aibit_format.file import slice_rows, writer
from aibit_format.schemes import capabilities


def test_every_scheme_can_be_cut():
    assert all(capabilities.has(schemes.make(name), "slice_rows") for name in schemes.BUILTIN)


@pytest.mark.parametrize("count", [2, 8, 64])
@pytest.mark.parametrize("scheme", [
    "f32", "int8", "int8-absmax", "int8-absmax,group=48", "int8-absmax,group=tensor", "int8-zp",
    "int8-outlier,threshold=3", "fp8-e4m3", "int4-group", "int4-group,symmetric=1", "cluster,bits=3",
    "nf4", "fp4,block_size=128", "nf4,nested=1",
    "nf4-cpu", "nf4-cpu,nested=1", "gguf:q4_0", "gguf:q8_0"])  # fmt: skip
def test_parts_decode_to_the_rows_of_the_whole(scheme, count, tmp_path):
    # 1024 blocks of 64 have four groups of nested scales: halves begin with one, other parts inside.
    values = np.random.default_rng(0).standard_normal((512, 128)).astype(np.float32)
    values[::7, 3] *= 30
    values[0] = 0
    kind = schemes.parse(scheme).fitted(values, "f32")
    writer.write(tmp_path / "m.aibit", {writer.Tensor("w", values.shape, "f32", kind): kind.encode(values, "f32")})
    file = aibit.open(tmp_path / "m.aibit", verify="touched")
    info, whole, share = file.info("w"), file.dequantize("w"), 512 // count
    for rank in range(count):
        wanted = slice(rank * share, (rank + 1) * share)
        assert not slice_rows.obstacle(info, count)
        part, planes = slice_rows.slice_rows(file, info, wanted)
        found = part.scheme
        assert part.shape == (share, 128)
        for spec in found.planes((share, 128), "f32"):
            assert planes[spec.role].shape == spec.shape
        assert np.array_equal(found.decode(planes, (share, 128), "f32"), whole[wanted])
        if "tiles" in planes:
            canonical = {role: planes[role] for role in planes if not role.startswith("tile")}
            tiled = found.tiled(canonical, (share, 128))
            assert all(np.array_equal(planes[role], tiled[role]) for role in planes)


@pytest.mark.parametrize("scheme", [
    "f32", "int8", "int8-absmax", "int8-absmax,group=tensor", "int8-zp", "int8-outlier,threshold=3", "fp8-e4m3",
    "fp8-block,rows=16,columns=32", "int4-group,group=32", "int-group,group=32,zero=code", "cluster,bits=3", "mxfp4",
    "nvfp4", "ternary", "nf4", "nf4,nested=1", "gguf:q4_0"])  # fmt: skip
@pytest.mark.parametrize(("count", "rows"), [(2, 24), (8, 40), (4, 1)])
def test_parts_of_a_stack_decode_to_its_matrices(scheme, count, rows, tmp_path):
    """Matrices of 24 and 40 rows are no whole blocks of 16, and those of 1 row no groups of nested scales."""
    shape = (8, rows, 128)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    values[:, ::7, 3] *= 30
    kind = schemes.parse(scheme).fitted(values, "f32")
    writer.write(tmp_path / "m.aibit", {writer.Tensor("w", shape, "f32", kind): kind.encode(values, "f32")})
    with aibit.open(tmp_path / "m.aibit", verify="touched") as file:
        info, whole, share = file.info("w"), file.dequantize("w"), 8 // count
        assert not slice_rows.obstacle(info, count)
        for rank in range(count):
            wanted = slice(rank * share, (rank + 1) * share)
            part, planes = slice_rows.slice_rows(file, info, wanted)
            assert part.shape == (share, rows, 128)
            assert np.array_equal(part.scheme.decode(planes, part.shape, "f32"), whole[wanted])


def test_blocks_that_run_over_the_ends_of_matrices_are_not_cut(tmp_path):
    kind, values = schemes.parse("nf4"), np.ones((4, 3, 16), np.float32)
    writer.write(tmp_path / "m.aibit", {writer.Tensor("w", values.shape, "f32", kind): kind.encode(values, "f32")})
    with aibit.open(tmp_path / "m.aibit") as file:
        assert "whole blocks" in slice_rows.obstacle(file.info("w"), 2)
        assert "does not divide" in slice_rows.obstacle(file.info("w"), 3)
