"""How far products of int8 layers are from the true ones: ``python -m tools.bench.exactness``. See docs/benchmarks.md.

The true product is that of the same inputs and the same dequantized weight, in float64. Errors are relative: the RMS
of the difference over the RMS of the true product. Nothing here is timed, and nothing depends on the processor but
the order of sums: every way is taken, also those that this processor would not choose.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import bitsandbytes
import torch

from aibit_format import schemes
from aibit_format.interop import to_numpy
from aibit_format.torch.kernels import functional, matmul
from aibit_format.torch.layers.dequantized import QuantizedLinear

Product = Callable[[torch.Tensor], torch.Tensor]

_SIZES = 2048, 2048  # rows and columns of the weight
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Inputs: name -> what a few of the columns are multiplied by. Above the threshold of 6 LLM.int8 keeps them aside.
_INPUTS = {"normal": 1.0, "four columns 20 times as large": 20.0}


def ways(planes: dict[str, torch.Tensor], shape: tuple[int, int]) -> dict[str, tuple[int, Product]]:
    """Label -> rows of the input, and the product."""
    layer = QuantizedLinear(schemes.make("int8"), planes, shape, "f32")
    theirs: Any = bitsandbytes.nn.Linear8bitLt(
        shape[1], shape[0], bias=False, has_fp16_weights=False, threshold=6.0, device="meta"
    )
    theirs.weight = bitsandbytes.nn.Int8Params(
        planes["codes"], requires_grad=False, has_fp16_weights=False, SCB=planes["row_absmax"]
    ).to("cpu")
    theirs.eval()

    def weight_only(bf16: bool) -> Product:
        def product(x: torch.Tensor) -> torch.Tensor:
            kept, matmul.BF16 = matmul.BF16, bf16
            try:
                return layer(x)
            finally:
                matmul.BF16 = kept

        return product

    def decoded(x: torch.Tensor) -> torch.Tensor:
        return functional.by_pieces(x, layer.shape, layer.rows)

    return {
        "LLM.int8, bitsandbytes' and ours": (64, theirs),
        "weight only, up to 16 rows": (16, weight_only(False)),
        "weight only, more rows, processor with bf16": (64, weight_only(True)),
        "weight only, more rows, processor without": (64, weight_only(False)),
        "dequantized to the inputs' dtype, then multiplied": (64, decoded),
    }


def errors(out_features: int, in_features: int) -> dict[tuple[str, str], list[float]]:
    """(Inputs, way) -> relative RMS errors by dtype of the inputs."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    generator = torch.Generator().manual_seed(0)
    scheme = schemes.make("int8")
    shape = out_features, in_features
    weight = torch.randn(shape, generator=generator)
    arrays = scheme.encode(to_numpy(weight)[0], "f32")
    planes = {role: torch.from_numpy(array) for role, array in arrays.items()}
    dequantized = torch.from_numpy(scheme.decode(arrays, shape, "f32")).double()
    found: dict[tuple[str, str], list[float]] = {}
    for name, factor in _INPUTS.items():
        values = torch.randn(64, in_features, generator=generator)
        values[:, :4] *= factor
        for label, (rows, product) in ways(planes, shape).items():
            for dtype in _DTYPES.values():
                x = values[:rows].to(dtype)
                true = x.double() @ dequantized.T
                with torch.no_grad():
                    difference = product(x).double() - true
                error = difference.square().mean().sqrt() / true.square().mean().sqrt()
                found.setdefault((name, label), []).append(float(error))
    return found


def main() -> None:
    print(f"| inputs | product | {' | '.join(_DTYPES)} |\n|---|---|{'--:|' * len(_DTYPES)}")
    for (name, label), figures in errors(*_SIZES).items():
        print(f"| {name} | {label} | {' | '.join(f'{figure:.1e}' for figure in figures)} |")


if __name__ == "__main__":
    main()
