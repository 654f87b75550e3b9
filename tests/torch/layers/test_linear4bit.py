"""nf4, fp4 and nf4-cpu against bitsandbytes: codes, scales, modules, logits."""

from __future__ import annotations

from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import aibit_format as aibit
from aibit_format import native, schemes
from aibit_format.convert import encoders
from aibit_format.schemes import capabilities
from aibit_format.torch import bnb_compat
from aibit_format.torch.load import modules
from tests.support import architectures
from tests.support.four_bit import DTYPES
from tests.support.memory import offset_of, parameters_outside, place_in_file

AVX512 = pytest.mark.skipif(not F.has_avx512bf16(), reason="needs a processor with AVX512-BF16; this one has none")


def four_bit(family, folder, dtype, name, nested=False):
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=name, bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=dtype
    )
    return family.from_pretrained(folder, quantization_config=config, device_map="cpu").eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", ["nf4", "fp4", "nf4,nested=1", "nf4-cpu", "nf4-cpu,nested=1"])
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_output_equals_load_in_4bit(name, scheme, dtype, tmp_path, monkeypatch):
    family, _ = architectures.MODELS[name]
    architectures.save(name, tmp_path / "hf", dtype)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=scheme)
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        model = aibit.load_model(file)
        assert parameters_outside(model, file) == []
    with monkeypatch.context() as patch:
        # torch adds the scales up in float32, in an order that depends on threads and processor.
        patch.setattr(torch.Tensor, "mean", lambda scales: scales.double().sum().div(scales.numel()).float())
        reference = four_bit(family, tmp_path / "hf", dtype, scheme[:3], "nested" in scheme)
    assert model.is_loaded_in_4bit and not model.training
    layers = {n for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert layers == {n for n, m in reference.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    expected, found = architectures.output(reference, name), architectures.output(model, name)
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(found, expected)
    ids = architectures.inputs(name)["input_ids"]
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), reference.generate(ids, **options))


@pytest.mark.parametrize("name", ["opt", "qwen2", "bert", "t5", "mixtral"])
def test_other_architectures(name, tmp_path):
    family, _ = architectures.MODELS[name]
    architectures.save(name, tmp_path / "hf", torch.bfloat16)
    kept = {"experts": "keep"} if name == "mixtral" else {}  # transformers leaves experts as they are
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="nf4", tensors=kept)
    model, reference = aibit.load_model(tmp_path / "m.aibit"), four_bit(family, tmp_path / "hf", torch.bfloat16, "nf4")
    assert torch.equal(architectures.output(model, name), architectures.output(reference, name))


@pytest.mark.parametrize("nested", [0, 1])
@pytest.mark.parametrize("width", [96, 100, 33])
def test_rows_that_blocks_reach_over_are_decoded_rightly(width, nested, tmp_path):
    """bitsandbytes 0.50 decodes rows of 96 wrongly on a CPU, and asks for multiples of 64 where it rewrites weights."""
    architectures.save("llama-untied", tmp_path / "hf", torch.float32, intermediate_size=width)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=f"nf4,nested={nested}")
    file = aibit.open(tmp_path / "m.aibit")
    model = aibit.load_model(file)
    plain = architectures.load("llama-untied", tmp_path / "hf")
    with torch.no_grad():
        for name in file:
            if file.info(name).scheme.lossy:
                plain.get_parameter(name).copy_(torch.from_numpy(file.dequantize(name)))
    layer = model.model.layers[0].mlp.down_proj
    assert isinstance(layer, bnb.nn.Linear4bit)
    assert place_in_file(file)(layer.weight) == offset_of(file, "model.layers.0.mlp.down_proj.weight", "codes")
    found, expected = architectures.output(model, "llama-untied"), architectures.output(plain, "llama-untied")
    # Where a shape fits, bitsandbytes computes in bfloat16: what is left of the difference is that.
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    x = torch.randn(3, width)
    assert torch.allclose(layer(x), plain.model.layers[0].mlp.down_proj(x), atol=1e-5)


def layers_of(text, shape, dtype, bias=False):
    """A layer of ours, as it is by default and with ``weight_only``, and the planes that both are over."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3)).mul_(0.02)
    scheme = schemes.parse(text)
    planes = encoders.encode(scheme, values.numpy(), "f32")
    kind = next(name for name, found in DTYPES.items() if found is dtype)
    info = SimpleNamespace(scheme=scheme, shape=shape, dtype=kind)
    tensors = {role: torch.from_numpy(plane) for role, plane in planes.items()}
    made = []
    for weight_only in (False, True):
        target = modules.Target(torch.device("cpu"), weight_only=weight_only)
        module = torch.nn.Linear(*shape[::-1], bias=bias, device="meta")
        layer = capabilities.find(scheme, "build_module")(module, info, tensors, target).eval()
        layer.bias = torch.nn.Parameter(torch.linspace(-1, 1, shape[0]).to(dtype), False) if bias else None
        made.append(layer)
    return *made, torch.from_numpy(scheme.decode(planes, shape, kind))


def refuse(*_, **__):
    raise AssertionError("bitsandbytes decoded")


COMPILED = pytest.mark.skipif(not native.available or F.has_avx512bf16(), reason="bitsandbytes' own product is used")


@COMPILED
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 130])
@pytest.mark.parametrize(
    ("text", "shape", "bias"),
    [("nf4", (200, 256), False), ("fp4,block_size=128", (1500, 640), True), ("nf4,nested=1", (704, 2048), True)],
)
def test_products_of_compiled_decoders(text, shape, bias, rows, dtype, monkeypatch):
    """By default equal to bitsandbytes'; with ``weight_only`` as close to what float64 gives, or closer."""
    layer, fast, weight = layers_of(text, shape, dtype, bias)
    x = torch.randn(2, rows, shape[1], generator=torch.Generator().manual_seed(rows)).to(dtype)[:1]
    theirs = bnb.nn.Linear4bit.forward(layer, x)
    monkeypatch.setattr(bnb, "matmul_4bit", refuse)
    found, close = layer(x), fast(x)
    assert torch.equal(found, theirs) and close.shape == found.shape and close.dtype == found.dtype
    true = torch.nn.functional.linear(x.double(), weight.double(), layer.bias.double() if bias else None)
    off, allowed = ((values.double() - true).norm() / true.norm() for values in (close, theirs))
    # float32: sums in another order. Else bitsandbytes' are off by the rounding of weights too.
    assert off <= allowed * (1.6 if dtype is torch.float32 else 1)


@COMPILED
def test_gradients_and_training_are_left_to_bitsandbytes(monkeypatch):
    layer, fast, _ = layers_of("nf4", (128, 64), torch.float32)
    x = torch.randn(3, 64, requires_grad=True)
    for each in (layer, fast):
        each(x).sum().backward()
    expected, x.grad = x.grad / 2, None
    layer(x).sum().backward()
    assert torch.equal(x.grad, expected)
    monkeypatch.setattr(bnb, "matmul_4bit", refuse)
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x.detach()))
        for each in (layer.train(), fast.train()):
            with pytest.raises(AssertionError, match="bitsandbytes decoded"):
                each(x)
    with pytest.raises(AssertionError, match="bitsandbytes decoded"):
        layer.eval()(x)


@COMPILED
def test_without_compiled_code_bitsandbytes_decodes(monkeypatch):
    layer, fast, _ = layers_of("nf4", (128, 64), torch.float32)
    x = torch.randn(3, 64)
    expected = layer(x)
    monkeypatch.setattr(native, "available", False)
    assert torch.equal(layer(x), expected) and torch.equal(fast(x), expected)


@COMPILED
def test_weights_of_several_sizes_and_dtypes_share_a_scratch():
    shapes = (64, 64), (256, 128), (32, 64)
    made = [layers_of("nf4", shape, dtype)[0] for shape in shapes for dtype in DTYPES.values()]
    inputs = [torch.randn(2, layer.in_features).to(layer.compute_dtype) for layer in made]
    with torch.inference_mode():
        first = [layer(x) for layer, x in zip(made, inputs, strict=True)]
    again = [layer(x) for layer, x in reversed(list(zip(made, inputs, strict=True)))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("scheme", ["nf4", "nf4,nested=1"])
def test_weight_only_output_is_close_to_load_in_4bit(scheme, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=scheme)
    expected, found = (
        architectures.output(aibit.load_model(tmp_path / "m.aibit", weight_only=each), "llama-untied")
        for each in (False, True)
    )
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="goes wrong with AVX512 only")
def test_wrong_rows_are_bitsandbytes_own():
    """The reason for ``MappedLinear4bit.decode``; when this fails, it can go."""
    x = torch.randn(64, 96)
    codes, state = F.quantize_4bit(x, quant_type="nf4", compress_statistics=False)
    assert (F.dequantize_4bit(codes, state) - x).abs().max() > 1


@AVX512
def test_tiles_are_mapped_and_not_made_at_the_first_forward(tmp_path, monkeypatch):
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="nf4-cpu")
    file = aibit.open(tmp_path / "m.aibit")
    model = aibit.load_model(file)
    name = "model.layers.0.mlp.up_proj"
    layer = model.get_submodule(name)
    tiles = offset_of(file, f"{name}.weight", "tiles")
    assert place_in_file(file)(layer.weight) == tiles

    def repacked(*_):
        raise AssertionError("a weight was rewritten")

    monkeypatch.setattr(bnb.nn.modules, "_convert_weight_packed_for_cpu", repacked)
    output = architectures.output(model, "llama-untied")
    assert place_in_file(file)(layer.weight) == tiles
    monkeypatch.undo()
    # Another bitsandbytes may want other tiles: then the canonical planes are used, and give the same.
    monkeypatch.setattr(bnb_compat, "CHECKED", ("0.49",))
    with pytest.warns(UserWarning, match=r"bitsandbytes 0\.50.* was not checked with the tiles of nf4-cpu"):
        other = aibit.load_model(file)
    assert place_in_file(file)(other.get_submodule(name).weight) == offset_of(file, f"{name}.weight", "codes")
    assert torch.equal(architectures.output(other, "llama-untied"), output)


@pytest.mark.parametrize("scheme", ["nf4", "nf4,nested=1", "nf4-cpu", "fp4"])
def test_a_model_that_has_run_is_saved_without_loss(scheme, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=scheme)
    model = aibit.load_model(tmp_path / "m.aibit")
    expected = architectures.output(model, "llama-untied")
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", device_map="cpu").eval()
    assert torch.equal(architectures.output(again, "llama-untied"), expected)
