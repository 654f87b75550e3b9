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
