"""Decoding in torch.

Planes on the meta device have a shape and no contents, so what is computed from them shows that none leaves its device.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aibit_format import interop, schemes
from aibit_format.schemes import capabilities
from aibit_format.schemes.base import matrix
from aibit_format.schemes.fourbit import FourBit
from aibit_format.schemes.ggml import LAYOUTS
from aibit_format.schemes.plain import Plain
from aibit_format.torch.kernels import decode, functional
from aibit_format.torch.layers.dequantized import QuantizedLinear
from tests.support.gguf_models import random_blocks
from tests.support.random_planes import random_planes

EVERY = [
    "int8", "int8-absmax", "int8-absmax,group=48", "int8-absmax,group=tensor", "int8-zp", "int8-zp,group=48",
    "int8-outlier,threshold=3", "int8-outlier,version=1,threshold=3", "fp8-e4m3", "fp8-e4m3,group=tensor",
    "int4-group,group=32", "int4-group,group=row", "int4-group,symmetric=1", "int4-group,ordered=1", "nf4",
    "nf4,block_size=32", "nf4,nested=1", "fp4", "fp4,block_size=32,nested=1", "nf4-cpu", "nf4-cpu,nested=1",
    *(f"cluster,bits={bits}" for bits in range(2, 9)), "fp8-block,rows=5,columns=7", "int-group,bits=1,group=48",
    "int-group,bits=5,zero=float", "mxfp4", "mxfp8", "nvfp4,reciprocal=1", "ternary", "int8-dynamic",
    "int8-static,asymmetric=1", *LAYOUTS,
    "gguf:q4_k,version=2", "cluster-group,bits=3,group=48", "cluster-group,group=row",
]  # fmt: skip


def of(text, shape, seed=0):
    """Scheme and planes of a tensor: any codes, with finite scales."""
    scheme = schemes.parse(text)
    name = text.partition(",")[0]
    if name in LAYOUTS:
        order = np.random.default_rng(seed).permutation(shape[-1]).astype("<i4")
        planes = {"blocks": random_blocks(name, shape, seed), "column_order": order}
        return scheme, {spec.role: planes[spec.role] for spec in scheme.planes(shape, "f32")}
    if isinstance(scheme, FourBit) or text.startswith(("int8-outlier", "nf4-cpu")):  # not any index, or any offset
        values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        values[..., ::3, :1] *= 40
        scheme = scheme.fitted(values, "f32")
        return scheme, scheme.encode(values, "f32")
    return scheme, random_planes(scheme, shape, seed=seed)


def tensors(scheme, planes, shape, device="cpu"):
    dtypes = {spec.role: spec.dtype for spec in scheme.planes(shape, "f32")}
    return {role: interop.to_torch(plane, dtypes[role]).to(device) for role, plane in planes.items()}


@st.composite
def places(draw, text):
    """A shape that the scheme has, of rank 2 or more and maybe empty, and some rows of its matrix."""
    lead = draw(st.lists(st.integers(0, 3), max_size=2))
    if text.startswith("nf4-cpu"):
        shape = 32 * draw(st.integers(0, 2)), 64 * draw(st.integers(1, 3))
    elif (name := text.partition(",")[0]) in LAYOUTS:
        shape = *lead, draw(st.integers(0, 5)), LAYOUTS[name].block * draw(st.integers(0, 3))
    else:
        step = {"mxfp4": 32, "mxfp8": 32, "nvfp4": 16, "ternary": 4}.get(text.partition(",")[0], 1)
        shape = *lead, draw(st.integers(0, 5)), step * draw(st.integers(0, 160 // step))
    count = matrix(shape)[0]
    bounds = sorted(draw(st.tuples(st.integers(0, count), st.integers(0, count))))
    indices = st.lists(st.integers(0, count - 1), max_size=5) if count else st.just([])
    return shape, draw(st.one_of(st.just(slice(*bounds)), indices.map(sorted)))


@pytest.mark.parametrize("text", EVERY)
@settings(max_examples=25)
@given(data=st.data())
def test_torch_gives_the_bits_that_numpy_gives(text, data):
    (shape, rows), seed = data.draw(places(text)), data.draw(st.integers(0, 99))
    scheme, planes = of(text, shape, seed)
    chosen = rows if isinstance(rows, slice) else torch.tensor(rows, dtype=torch.int64)
    found = capabilities.find(scheme, "decode_torch")(scheme, tensors(scheme, planes, shape), shape, chosen)
    with np.errstate(all="ignore"):
        wanted = scheme.decode_rows(planes, shape, "f32", rows if isinstance(rows, slice) else chosen.numpy())
    assert found.shape == wanted.shape and found.dtype == torch.float32
    assert found.numpy().tobytes() == wanted.tobytes()


def test_every_scheme_but_plain_ones_is_among_these():
    kinds = {type(schemes.parse(text)) for text in EVERY}
    assert kinds == {kind for kind, capability, _ in capabilities.registered() if capability == "decode_torch"}
    assert {type(schemes.make(name)) for name in schemes.BUILTIN} - kinds == {Plain}


@pytest.mark.parametrize("text", EVERY)
def test_no_plane_leaves_its_device(text):
    shape = (64, 256)
    scheme, planes = of(text, shape)
    elsewhere = tensors(scheme, planes, shape, "meta")
    for rows, count in ((slice(3, 9), 6), (torch.tensor([0, 5], device="meta"), 2)):
        found = decode.decode_rows(scheme, elsewhere, shape, "f16", rows)
        assert found.is_meta and found.shape == (count, 256) and found.dtype == torch.float32
    x = torch.empty(3, 256, dtype=torch.float16, device="meta")
    assert QuantizedLinear(scheme, elsewhere, shape, "f16", None)(x).shape == (3, 64)
    stack = functional.Weight(scheme, elsewhere, (8, 256), "f16", shape, 16)
    assert functional.linear(x, stack, None).shape == (3, 8)


@pytest.mark.parametrize("scheme", ["int8", "int8-absmax", "int8-absmax,group=48", "int8-absmax,group=tensor",
    "int8-zp", "int8-zp,group=48", "fp8-e4m3", "fp8-e4m3,group=tensor", "int4-group,group=32", "int4-group,group=row",
    "int4-group,symmetric=1", "nf4", "gguf:q8_0", "cluster",
    "fp8-block,rows=5,columns=7", "int-group,bits=1,group=48", "int-group,bits=5,zero=float", "mxfp4",
    "nvfp4,reciprocal=1", "ternary"])  # fmt: skip
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_torch_decodes_what_the_scheme_decodes(scheme, dtype):
    scheme, shape = schemes.parse(scheme), (37, 160)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(interop.torch_dtypes()[dtype])
    planes = scheme.encode(interop.to_numpy(values)[0], dtype)
    dtypes = {spec.role: spec.dtype for spec in scheme.planes(shape, dtype)}
    tensors = {role: interop.to_torch(plane, dtypes[role]) for role, plane in planes.items()}
    some = [0, 7, 36]
    for rows, indices in ((slice(0, 37), slice(0, 37)), (slice(5, 9), slice(5, 9)), (torch.tensor(some), some)):
        found = decode.decode_rows(scheme, tensors, shape, dtype, rows).numpy()
        assert np.array_equal(found, scheme.decode(planes, shape, dtype)[indices])
