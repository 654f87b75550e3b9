"""Decoding in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aibit_format import interop, schemes
from aibit_format.torch.kernels import decode


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
