"""The registry of what exists for a scheme: each function against the numpy oracle, and a scheme from outside."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from aibit_format import schemes
from aibit_format.convert import error
from aibit_format.errors import SchemeError
from aibit_format.file import writer
from aibit_format.file.reader import File
from aibit_format.file.slice_rows import slice_rows
from aibit_format.interop import to_torch
from aibit_format.schemes import Scheme, capabilities
from aibit_format.schemes.ggml import LAYOUTS
from aibit_format.schemes.ggml_encode import ENCODERS
from aibit_format.schemes.ggml_quantizer import ggml_quantizer
from aibit_format.torch.kernels import packed
from aibit_format.torch.kernels.functional import Weight
from aibit_format.torch.kernels.matmul import FEW_ROWS
from aibit_format.torch.load.modules import Target
from tests.support.gguf_models import random_blocks

SHAPE = (128, 256)  # whole tiles, blocks and groups
NAMES = [
    "f32", "f16", "bf16", "int8", "int8-absmax", "int8-absmax,group=row", "int8-absmax,group=tensor", "int8-zp",
    "int8-zp,group=32", "int8-outlier,threshold=3", "fp8-e4m3", "cluster,bits=3", "int4-group",
    "int4-group,symmetric=1", "nf4", "nf4,nested=1", "fp4,block_size=128", "nf4-cpu", *LAYOUTS,
    "fp8-block,rows=32,columns=64", "fp8-block,rows=1,columns=all,scale=bf16", "fp8-block,rows=all,columns=all",
    "fp8-block,rows=16,scale=f8_e8m0", "int-group,bits=3,zero=code", "int-group,bits=8,group=row",
    "int-group,zero=float,scale=f32", "int-group,bits=6,zero=bias,scale=bf16", "mxfp4", "mxfp8,element=f8_e5m2",
    "nvfp4", "ternary,reciprocal=1", "cluster-group,bits=3,group=16", "cluster-group,group=row",
    *(f"{text},search=1" for text in ("int4-group", "int-group,bits=3,zero=code", "nf4", "fp8-e4m3", "mxfp4", "nvfp4",
                                      "fp8-block,rows=16,columns=48")), "int8-dynamic", "int8-static,asymmetric=1",
    "gguf:q5_1,version=2", "gguf:iq2_s,version=2",
]  # fmt: skip
CASES = [
    pytest.param(text, capability, id=f"{text}-{capability}")
    for text in NAMES
    for capability in capabilities.CAPABILITIES
    if capabilities.has(schemes.parse(text), capability)
]


class Case:
    """A tensor in a scheme, encoded and decoded by the scheme's own numpy code."""

    def __init__(self, text: str, folder: pathlib.Path) -> None:
        self.values = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
        self.values[::7, 3] *= 30
        self.dtype = text if text in ("f16", "bf16") else "f32"
        self.scheme = schemes.parse(text).fitted(self.values, "f32")
        self.scheme = self.scheme.calibrated(np.full(1, -2.5, np.float32), np.full(1, 4, np.float32))
        name = self.scheme.name
        kept = name in LAYOUTS  # most of them are made by llama.cpp alone
        self.planes = {"blocks": random_blocks(name, SHAPE)} if kept else self.scheme.encode(self.values, "f32")
        if self.scheme.unordered != self.scheme:
            self.planes["column_order"] = np.random.default_rng(1).permutation(SHAPE[1]).astype(np.int32)
        self.decoded = self.scheme.decode(self.planes, SHAPE, self.dtype)
        self.folder = folder

    def tensors(self) -> dict[str, torch.Tensor]:
        specs = self.scheme.planes(SHAPE, self.dtype)
        return {spec.role: to_torch(self.planes[spec.role], spec.dtype) for spec in specs}

    def file(self) -> File:
        tensor = writer.Tensor("w.weight", SHAPE, self.dtype, self.scheme)
        writer.write(self.folder / "m.aibit", {tensor: self.planes})
        return File(self.folder / "m.aibit", "touched")


def encode_fast(case, function):
    check_encoded(case, function, case.scheme.encode)


def encode_weighted_fast(case, function):
    importance = np.exp(np.random.default_rng(1).normal(0, 1, SHAPE[-1])).astype(np.float32)

    def fast(scheme, array, dtype):
        return function(scheme, array, dtype, importance)

    check_encoded(case, fast, lambda array, dtype: case.scheme.encode_weighted(array, dtype, importance))


def check_encoded(case, function, oracle):
    try:
        wanted = oracle(case.values, "f32")
    except SchemeError as error:  # llama.cpp alone makes them
        with pytest.raises(SchemeError, match=re.escape(str(error))):
            function(case.scheme, case.values, "f32")
        return
    found = function(case.scheme, case.values, "f32")
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[role], plane) for role, plane in wanted.items())


def quantizer(case, function):
    made = function(case.scheme, SHAPE[1])
    if made is None:  # what only llama.cpp makes, and blocks without a choice of scales
        assert case.scheme.name in LAYOUTS and case.scheme.name not in ENCODERS
        return
    spans = [slice(start, start + made.span) for start in range(0, SHAPE[1], made.span)]
    weights = np.exp(np.random.default_rng(1).normal(0, 1, SHAPE[1])).astype(np.float32)
    found = [made.find(case.values[:, span], weights[span]) for span in spans]
    codes = np.random.default_rng(2).integers(0, made.high + 1, SHAPE).astype(np.uint8)
    planes = made.planes(codes, found)
    shaped = {spec.role: planes[spec.role].reshape(spec.stored) for spec in case.scheme.planes(SHAPE, "f32")}
    parameters = np.concatenate([made.parameters(each) for each in found], axis=1)
    scale, zero, offset = np.repeat(parameters, made.group, axis=1)[:, : SHAPE[1]].swapaxes(1, 2)
    levels = codes - zero if made.book is None else made.book[15:][codes]
    assert np.array_equal(case.scheme.decode(shaped, SHAPE, "f32"), levels * scale + offset)
    if case.scheme.name in ENCODERS:  # the search of numpy
        oracle = ggml_quantizer(case.scheme, SHAPE[1])
        other = [oracle.find(case.values[:, span], weights[span]) for span in spans]
        assert np.array_equal(oracle.planes(codes, other)["blocks"], planes["blocks"])


def errors_fast(case, function):
    rows = range(0, SHAPE[0], 3)
    noise, signal, largest = function(case.scheme, case.planes, case.values, "f32", rows)
    difference = (case.decoded - case.values)[::3]
    assert noise == pytest.approx(float((difference.astype(np.float64) ** 2).sum()), rel=1e-6)
    assert signal == pytest.approx(float((case.values[::3].astype(np.float64) ** 2).sum()), rel=1e-6)
    assert largest == np.abs(difference).max()


def decode_torch(case, function):
    for rows in (slice(0, SHAPE[0]), slice(3, 9), torch.tensor([0, 5, 77]), torch.tensor([], dtype=torch.int64)):
        found = function(case.scheme, case.tensors(), SHAPE, rows)
        assert np.array_equal(found.numpy(), case.decoded[rows if isinstance(rows, slice) else rows.numpy()])


def product(case, function):
    multiply = function(case.scheme)
    if multiply is None:  # act-order; groups that end within 16 columns; blocks that are not compiled
        assert "group_index" in case.planes or case.planes.keys() == {"blocks"} or case.scheme.group % 16
        return
    tensors, bias = case.tensors(), torch.linspace(-1, 1, SHAPE[0])
    for count in (1, FEW_ROWS, 40):
        x = torch.randn(count, SHAPE[1], generator=torch.Generator().manual_seed(0))
        if isinstance(multiply, packed.PackedProduct) and not multiply.accepts(x):
            assert count > FEW_ROWS or not packed.COMPILED
            continue
        found = multiply.multiply(x, tensors, SHAPE, bias)
        true = x.double() @ torch.from_numpy(case.decoded).double().T + bias
        assert found.shape == (count, SHAPE[0]) and found.dtype == x.dtype
        assert (found - true).abs().max() < 0.02 * true.abs().max()


def linear(case, function):
    """Inputs of whole steps lose nothing when they are rounded."""
    x = torch.randint(-90, 91, (5, SHAPE[1]), generator=torch.Generator().manual_seed(0)) * 6.5 / 255
    x[:, 0] = 127 * 6.5 / 255
    weight = Weight(case.scheme, case.tensors(), SHAPE, "f32")
    found = function(x.clamp(-2.49, 4), weight, torch.linspace(-1, 1, SHAPE[0]))
    true = x.clamp(-2.49, 4).double() @ torch.from_numpy(case.decoded).double().T + torch.linspace(-1, 1, SHAPE[0])
    assert (found - true).abs().max() < 0.01 * true.abs().max()


def build_module(case, function):
    info = SimpleNamespace(scheme=case.scheme, shape=SHAPE, dtype="f32", transposed=False)
    module = nn.Linear(SHAPE[1], SHAPE[0], bias=False, device="meta")
    layer = function(module, info, case.tensors(), Target(torch.device("cpu"))).eval()
    x = torch.randn(3, SHAPE[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = layer(x)
    true = x @ torch.from_numpy(case.decoded).T
    assert (found - true).abs().max() < 0.05 * true.abs().max()


def rows_sliced(case, function):
    file = case.file()
    for rows in (slice(0, 64), slice(64, 128)):
        part, planes = slice_rows(file, file.info("w.weight"), rows)
        found = part.scheme.decode(planes, part.shape, case.dtype)
        assert np.array_equal(found, case.decoded[rows])


def take_rows(case, function):
    rows = np.array([0, 2, 3, 5, 21, 77, 127])
    if case.scheme.row_multiple(SHAPE) > 1:
        with pytest.raises(SchemeError, match="numbers that several rows share"):
            function(case.scheme, case.planes, SHAPE, case.dtype, rows)
        return
    scheme, planes = function(case.scheme, case.planes, SHAPE, case.dtype, rows)
    shape = (len(rows), SHAPE[1])
    assert {role: plane.shape for role, plane in planes.items()} == {
        spec.role: spec.stored for spec in scheme.planes(shape, case.dtype)
    }
    assert np.array_equal(scheme.decode(planes, shape, case.dtype), case.decoded[rows])


def join(case, function):
    two = {writer.Tensor(name, SHAPE, case.dtype, case.scheme): case.planes for name in ("a", "b")}
    writer.write(case.folder / "two.aibit", two)
    file = File(case.folder / "two.aibit")
    plane = function([file.info("a"), file.info("b")])
    assert np.array_equal(file.view(plane), np.concatenate([case.planes["codes"]] * 2))
    assert function([file.info("b"), file.info("a")]) is None


def export_bnb(case, function):
    file = case.file()
    layer = function(file, file.info("w.weight"))
    arrays = dict(zip([entry.name for entry in layer.item.entries], layer.item.make(), strict=True))
    codes = arrays["w.weight"]
    if layer.family == "8-bit":
        found = codes.astype(np.float32) * arrays["w.SCB"][:, None] * np.float32(1 / 127)
    else:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        stats = {key.removeprefix("w.weight."): torch.from_numpy(np.array(a)) for key, a in arrays.items()}
        stats.pop("w.weight")
        state = QuantState.from_dict(stats, torch.device("cpu"))
        found = dequantize_4bit(torch.from_numpy(np.array(codes)), state).float().numpy()
    assert np.array_equal(found, case.decoded)


CHECKS = {
    "encode_fast": encode_fast, "encode_weighted_fast": encode_weighted_fast, "quantizer": quantizer,
    "errors_fast": errors_fast, "decode_torch": decode_torch, "product": product, "linear": linear,
    "build_module": build_module, "slice_rows": rows_sliced, "take_rows": take_rows,
    "join": join, "export_bnb": export_bnb,
}  # fmt: skip


@pytest.mark.parametrize(("text", "capability"), CASES)
def test_every_registered_function_gives_what_the_oracle_gives(text, capability, tmp_path, encoders):
    case = Case(text, tmp_path)
    function = capabilities.find(case.scheme, capability)
    CHECKS[capability](case, function)


def test_every_line_of_the_registry_is_checked():
    assert CHECKS.keys() == capabilities.CAPABILITIES.keys()
    checked = {(type(schemes.parse(text)), capability) for text, capability in (case.values for case in CASES)}
    found = {(kind, capability) for kind, capability, _ in capabilities.registered()}
    for kind, capability in found ^ checked:  # an older version has what the newest has
        assert kind.is_numbered and any((base, capability) in checked for base in kind.__mro__)


def test_errors_without_a_fast_way_are_those_of_numpy(tmp_path, encoders):
    case = Case("int8-zp", tmp_path)
    found = error.measure(case.scheme, case.planes, case.values, "f32")
    wide = case.values.astype(np.float64)
    assert found.relative_rms == pytest.approx(
        np.sqrt(((case.decoded - case.values).astype(np.float64) ** 2).sum() / (wide**2).sum()), rel=1e-5
    )


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="unknown capability 'fly'; known: encode_fast"):
        capabilities.register(Scheme, "fly", "a:b")
    with pytest.raises(ValueError, match=r"'a\.b': expected 'module:function'"):
        capabilities.register(Scheme, "join", "a.b")


_OUTSIDE = '''
"""A scheme of another package: rows of 8-bit codes whose scale is a power of two."""
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from aibit_format.dtypes import to_float32
from aibit_format.schemes.base import PlaneSpec, Scheme, check_weights, matrix


@dataclass(frozen=True)
class Shifted(Scheme):
    name: ClassVar[str] = "shifted"
    bits: int = 8

    def planes(self, shape, dtype):
        check_weights(self.name, shape, dtype)
        return PlaneSpec("codes", "i8", shape), PlaneSpec("scale", "f32", shape[:-1])

    def encode(self, array, dtype):
        rows = to_float32(array, dtype).reshape(matrix(array.shape))
        largest = np.maximum(np.abs(rows).max(axis=1), np.float32(1e-30))
        scale = np.exp2(np.ceil(np.log2(largest / 127))).astype(np.float32)
        codes = np.rint(rows / scale[:, None]).astype(np.int8)
        return {"codes": codes.reshape(array.shape), "scale": scale.reshape(array.shape[:-1])}

    def decode_rows(self, planes, shape, dtype, rows):
        codes = planes["codes"].reshape(matrix(shape))[rows].astype(np.float32)
        return codes * planes["scale"].reshape(-1)[rows, None]


CALLS = []


def decode(scheme, planes, shape, rows):
    CALLS.append(scheme.text)
    return planes["codes"].view(matrix(shape))[rows].float() * planes["scale"].view(-1)[rows, None]
'''

_PROGRAM = """
import json, sys
import aibit_format as aibit
import numpy as np, torch
from aibit_format.cli import main

source, folder = sys.argv[1:]
report = aibit.convert(source, folder + "/m.aibit", scheme="shifted")
quantized = [t for t in report.tensors if t.scheme == "shifted"]
assert len(quantized) == 28 and all(t.error.relative_rms < 0.02 for t in quantized), report
assert main(["verify", folder + "/m.aibit"]) == 0
model = aibit.load_model(folder + "/m.aibit")
from aibit_outside import CALLS
ids = torch.arange(1, 9)[None]
with torch.no_grad():
    found = model(ids).logits
assert CALLS and set(CALLS) == {"shifted"}, "decoded by what the entry point names"
whole = aibit.export(folder + "/m.aibit", "safetensors", folder + "/hf")
import transformers
with torch.no_grad():
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder + "/hf").eval()(ids).logits
assert (found - expected).abs().max() < 0.02 * expected.abs().max(), (found - expected).abs().max()
text = folder + "/text.txt"
open(text, "w").write("If the queue is not required, it is returned. " * 40)
assert main(["eval", folder + "/m.aibit", "--text", text, "--ref", source, "--context", "256", "--json"]) == 0
"""


def test_a_scheme_from_outside_is_registered_by_entry_points_alone(tmp_path, fixtures):
    (tmp_path / "aibit_outside.py").write_text(_OUTSIDE)
    info = tmp_path / "aibit_outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aibit-outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[aibit_format.schemes]\nshifted = aibit_outside:Shifted\n\n"
        "[aibit_format.capabilities]\nshifted.decode_torch = aibit_outside:decode\n"
    )
    (tmp_path / "out").mkdir()
    paths = [str(tmp_path), str(pathlib.Path.cwd()), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(fixtures / "models" / "tiny-llama"), str(tmp_path / "out")],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout[done.stdout.index("{") :])
    assert figures["perplexity"] > 1
