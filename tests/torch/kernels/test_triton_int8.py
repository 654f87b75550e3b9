"""The Triton kernel without a GPU: its arithmetic in Triton's interpreter, and that it compiles for two GPUs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with torch for CUDA; without it there is no kernel")

_CHECK = """
import torch
from aibit_format.torch.kernels.triton_int8 import small_product

generator = torch.Generator().manual_seed(0)
dtype = torch.float16  # the interpreter multiplies the bits of bf16 as if they were whole numbers
for rows, out, inner in ((1, 48, 512), (3, 50, 300), (16, 33, 256), (7, 16, 1)):
    x = torch.randn(rows, inner, generator=generator).to(dtype)
    codes = torch.randint(-127, 128, (out, inner), generator=generator).to(torch.int8)
    scales = torch.rand(out, generator=generator) + 0.5
    for bias in (None, torch.randn(out, generator=generator).to(dtype)):
        found = small_product(x, codes, scales, 1 / 127, bias)
        true = x.double() @ (codes.double() * scales.double()[:, None] / 127).T
        true = true if bias is None else true + bias.double()
        assert found.dtype == dtype and found.shape == (rows, out)
        error = (found.double() - true).square().mean().sqrt() / true.square().mean().sqrt()
        assert error < 3e-4, (rows, out, inner, error)

from aibit_format import schemes
from aibit_format.torch.kernels import matmul
from aibit_format.torch.layers.dequantized import QuantizedLinear

scheme = schemes.make("int8")
weight = torch.randn(48, 64, generator=generator).numpy()
arrays = scheme.encode(weight, "f32")
planes = {role: torch.from_numpy(plane) for role, plane in arrays.items()}
layer = QuantizedLinear(scheme, planes, (48, 64), "f32")
matmul.has_kernel = lambda x: True
matmul.RowProduct.accepts = lambda self, x: True
matmul.times_codes = None
x = torch.randn(2, 3, 64, generator=generator).half()
true = x.double() @ torch.from_numpy(scheme.decode(arrays, (48, 64), "f32")).double().T
assert layer(x).shape == (2, 3, 48) and (layer(x).double() - true).abs().max() < 2e-3 * true.abs().max()
print("checked")
"""

# For two GPUs that are not here, in both dtypes; "mma" is their tensor cores' product, and "cp.async" brings 16 bytes
# while others are multiplied. Addresses and widths are multiples of 16, as those of planes and of most models are.
_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from aibit_format.torch.kernels.triton_int8 import TILE, _kernel

for dtype in ("bf16", "fp16"):
    for capability in (80, 90):
        types = {"x": f"*{dtype}", "codes": "*i8", "scales": "*fp32", "bias": f"*{dtype}", "product": f"*{dtype}"}
        types |= dict.fromkeys(("rows", "out_features", "in_features"), "i32") | {"factor": "fp32"}
        constants = {"has_bias": True, "tile_rows": 16, "tile_out": TILE.out, "tile_in": TILE.inner}
        aligned = [i for i, name in enumerate(_kernel.arg_names) if name in types and name not in ("rows", "factor")]
        source = ASTSource(_kernel, types | dict.fromkeys(constants, "constexpr"), constexprs=constants,
                           attrs={(i,): [["tt.divisibility", 16]] for i in aligned})
        options = {"num_stages": TILE.stages, "num_warps": TILE.warps}
        compiled = triton.compile(source, GPUTarget("cuda", capability, 32), options=options)
        text = compiled.asm["ptx"]
        assert "mma" in text and "cp.async.cg.shared.global" in text and compiled.asm["cubin"]
        assert not [line for line in text.splitlines() if "ld.global" in line and ".b8" in line], "byte by byte"
        assert compiled.metadata.shared <= 99 << 10
print("checked")
"""


@pytest.mark.parametrize("interpreted", [True, False], ids=["interpreted", "compiled"])
def test_in_the_interpreter_products_are_right_and_for_gpus_they_compile(interpreted, tmp_path):
    # The variable is read when the kernel is defined, so each runs in a process of its own.
    environment = os.environ | {"TRITON_INTERPRET": str(int(interpreted)), "TRITON_CACHE_DIR": str(tmp_path)}
    program = [sys.executable, "-c", _CHECK if interpreted else _COMPILE]
    ended = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert ended.stdout == "checked\n", ended.stderr[-2000:]
