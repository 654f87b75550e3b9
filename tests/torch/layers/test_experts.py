"""Fused experts that stay in their planes: every scheme, every way in which code uses them, and the pages touched."""

from __future__ import annotations

import copy
import mmap

import numpy as np
import pytest
import torch
import transformers as tf
from torch.nn import functional

import aibit_format as aibit
from aibit_format import schemes
from aibit_format.hf import compat
from aibit_format.interop import to_numpy, to_torch
from aibit_format.torch.kernels import packed
from aibit_format.torch.layers.experts import ExpertWeight, QuantizedExperts

SCHEMES = ["int8", "nf4", "nf4,nested=1", "fp4,block_size=128", "int8-absmax", "int8-zp,group=32",
           "int8-absmax,group=tensor", "fp8-e4m3", "int4-group,group=32", "cluster", "gguf:q4_0", "gguf:q8_0",
           "fp8-block,rows=16,columns=32",
           "int-group,bits=3,group=32,zero=bias", "mxfp4", "mxfp8", "nvfp4", "ternary", "int8-outlier"]  # fmt: skip
E, N, K = 3, 48, 64
TEXT = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
# One family for each way in which code uses the weights of experts, and what each brings besides.
FAMILIES = {
    "linear": (tf.MixtralForCausalLM, tf.MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "matmul, biases, interleaved": (tf.GptOssForCausalLM, tf.GptOssConfig, {
        "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}),
    "batched": (tf.Llama4ForCausalLM, tf.Llama4TextConfig, {
        "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 96, "head_dim": 16,
        "interleave_moe_layer_step": 1}),
    "every expert": (tf.GraniteMoeForCausalLM, tf.GraniteMoeConfig, {
        "num_local_experts": 4, "num_experts_per_tok": 2}),
}  # fmt: skip


def stack(scheme: str, transposed: bool = False, shape: tuple[int, ...] = (E, N, K)) -> QuantizedExperts:
    """Random experts in a scheme."""
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    fitted = schemes.parse(scheme).fitted(values, "f32")
    dtypes = {spec.role: spec.dtype for spec in fitted.planes(shape, "f32")}
    planes = {role: to_torch(np.array(plane), dtypes[role]) for role, plane in fitted.encode(values, "f32").items()}
    return QuantizedExperts(fitted, planes, shape, "f32", transposed)


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_are_those_of_the_decoded_weight(scheme, transposed):
    experts = stack(scheme, transposed)
    x, whole = torch.randn(5, K), experts.weight
    arrays = {role: to_numpy(plane)[0] for role, plane in experts.planes().items()}
    values = torch.from_numpy(experts.scheme.decode(arrays, (E, N, K), "f32"))
    assert torch.equal(whole, values.mT if transposed else values)
    for e in range(E):
        expert = experts[torch.tensor(e)]
        assert expert.shape == whole[e].shape and expert.dtype == torch.float32
        assert torch.equal(expert.decoded(), whole[e])
        found = x @ expert if transposed else functional.linear(x, expert)
        assert (found - x @ values[e].mT).abs().max() < 1e-4


def test_an_expert_is_what_code_takes_it_for():
    experts = stack("int8-zp")
    weight, x = experts[1], torch.randn(2, 4, K)
    values = weight.decoded()
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(functional.linear(x, weight, torch.ones(N)), functional.linear(x, values) + 1, **close)
    torch.testing.assert_close(torch.matmul(x, weight.T), x @ values.T, **close)
    torch.testing.assert_close(x.matmul(weight.T), x @ values.T, **close)
    torch.testing.assert_close(x[..., :N] @ weight, x[..., :N] @ values, **close)  # the sum is over stored rows
    torch.testing.assert_close(x.double() @ weight.T, x.double() @ values.double().T, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.cat([weight, weight]), torch.cat([values, values]))
    assert torch.equal(torch.mul(weight, 2), values * 2) and torch.equal(weight.sum(0), values.sum(0))
    assert torch.equal(torch.einsum("bsk,nk->bsn", x, weight), torch.einsum("bsk,nk->bsn", x, values))
    assert torch.equal(experts[[2, 0]], experts.weight[[2, 0]])
    assert isinstance(experts[-1], ExpertWeight) and torch.equal(experts[-1].decoded(), experts[2].decoded())
    assert functional.linear(x[:0].reshape(0, K), weight).shape == (0, N)
    for wrong in (3, -4):
        with pytest.raises(IndexError, match=f"expert {wrong} of 3"):
            experts[wrong]


def test_batches_leave_experts_alone_that_get_zeros():
    experts = stack("fp8-e4m3", transposed=True)
    x = torch.randn(E, 4, K)
    torch.testing.assert_close(torch.bmm(x, experts), torch.bmm(x, experts.weight))
    experts.scale[1] = torch.nan  # whoever reads it finds out
    x[1] = 0
    found = torch.bmm(x, experts)
    assert found.isfinite().all() and not found[1].any()
    assert torch.bmm(torch.ones_like(x), experts).isnan().any()


def test_a_stack_is_turned_as_a_tensor_is():
    experts, x = stack("int8-zp"), torch.randn(E, 4, K)
    turned = experts.transpose(1, 2)
    assert turned.transposed and not experts.transposed and experts.transpose(-1, -2)[0].shape == (K, N)
    torch.testing.assert_close(torch.bmm(x, turned), torch.bmm(x, experts.weight.mT), atol=1e-5, rtol=1e-5)
    assert torch.equal(experts.transpose(0, 1), experts.weight.transpose(0, 1))


def test_gradients_reach_the_input():
    experts = stack("int4-group,group=32")
    x = torch.randn(5, K, requires_grad=True)
    functional.linear(x, experts[2]).square().sum().backward()
    again = x.detach().clone().requires_grad_()
    functional.linear(again, experts[2].decoded()).square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad)


@pytest.mark.parametrize("scheme", ["int8", "nf4,nested=1", "cluster"])
def test_casts_leave_planes_as_they_are(scheme):
    experts = stack(scheme)
    before, expected = {role: plane.clone() for role, plane in experts.planes().items()}, experts[0].decoded()
    assert "scheme=" in repr(experts) and len(experts) == E
    moved = copy.deepcopy(experts).to(torch.bfloat16)
    assert all(torch.equal(plane, before[role]) for role, plane in moved.planes().items())
    assert torch.equal(moved[0].decoded(), expected.bfloat16()) and torch.equal(moved[0].float().decoded(), expected)


def saved(name: str, folder, dtype: torch.dtype = torch.float32):
    """A small model of a family, saved."""
    family, make, more = FAMILIES[name]
    torch.manual_seed(0)
    model = family(make(**TEXT, **more)).to(dtype).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("scheme", ["int8", "nf4", "fp8-e4m3", "gguf:q8_0"])
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_are_those_of_the_decoded_weights(name, scheme, tmp_path):
    plain = saved(name, tmp_path / "hf")
    rules = {r"experts|moe\..*_linear": scheme}
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="fp8-e4m3", tensors=rules)
    file = aibit.open(tmp_path / "m.aibit", verify="full")
    model = aibit.load_model(file)
    found = [module for module in model.modules() if isinstance(module, QuantizedExperts)]
    assert len(found) == 4 and {module.scheme.text for module in found} == {schemes.parse(scheme).text}
    with torch.no_grad():
        for key, place in plain.state_dict().items():
            values = torch.from_numpy(file.dequantize(key))
            place.copy_(values.mT if file.info(key).transposed else values)
    compat.run_experts_by_themselves(plain)
    ids = torch.arange(24).view(2, 12) * 5 % 160
    with torch.no_grad():
        expected, output = plain(ids).logits, model(ids).logits
        assert (output - expected).abs().max() < 1e-4 * expected.abs().max()
        assert model.generate(ids, max_new_tokens=4, do_sample=False).shape == (2, 16)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_model_is_saved_and_converted_again(name, tmp_path):
    saved(name, tmp_path / "hf")
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="int4-group,group=32")
    assert sum(len(tensor.shape) == 3 and tensor.scheme.startswith("int4-group") for tensor in report.tensors) == 4
    model = aibit.load_model(tmp_path / "m.aibit")
    model.save_pretrained(tmp_path / "saved")
    ids = torch.arange(12)[None]
    again = FAMILIES[name][0].from_pretrained(tmp_path / "saved").eval()
    compat.run_experts_by_themselves(again)
    with torch.no_grad():
        expected, found = model(ids).logits, again(ids).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    aibit.convert(model, tmp_path / "again.aibit")
    with aibit.open(tmp_path / "m.aibit") as one, aibit.open(tmp_path / "again.aibit") as two:
        for key in one:
            assert one.info(key).scheme == two.info(key).scheme and one.info(key).transposed == two.info(key).transposed
            for role, plane in one.planes(key).items():
                assert np.array_equal(plane, two.planes(key)[role]), key


def test_a_rule_keeps_experts_as_they_are(tmp_path):
    saved("linear", tmp_path / "hf", torch.bfloat16)
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", tensors={"experts": "keep"})
    assert {t.scheme for t in report.tensors if len(t.shape) == 3} == {"bf16"}
    assert any("experts" in reason for reason in report.unquantized)
    report = aibit.convert(tmp_path / "hf", tmp_path / "n.aibit", scheme="nf4-cpu")  # which holds matrices alone
    assert {t.scheme for t in report.tensors if len(t.shape) == 3} <= {"bf16", "nf4"}


def present(address: int, length: int) -> int:
    """Count the pages of this process that are there, of those that lie wholly in a range of addresses."""
    first, last = -(-address // mmap.PAGESIZE), (address + length) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(8 * first)
        return int((np.frombuffer(file.read(8 * (last - first)), np.uint64) >> np.uint64(63)).sum())


@pytest.mark.parametrize("transposed", [False, True], ids=["", "batched"])
def test_only_experts_that_are_used_are_read(transposed, tmp_path):
    """What the kernel maps around a page that is touched is at most 2 MiB on either side."""
    name = "batched" if transposed else "linear"
    family, make, more = FAMILIES[name]
    config = make(**TEXT | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1}, **more)
    torch.manual_seed(0)
    family(config).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="int8-absmax")
    model = aibit.load_model(tmp_path / "m.aibit")
    stacks = [module for module in model.modules() if isinstance(module, QuantizedExperts)]
    chosen: set[int] = set()
    for module in model.modules():
        if "Router" in type(module).__name__:
            module.register_forward_hook(lambda _, __, out: chosen.update(_routed(out)))

    def touched() -> list[int]:
        size = stacks[0].codes[0].numel()
        return [present(stacks[0].codes.data_ptr() + e * size + (2 << 20), size - (4 << 20)) for e in range(4)]

    assert not any(touched())
    with torch.inference_mode():
        model(torch.tensor([[7]]))
    assert chosen and len(chosen) < 4
    assert {e for e, pages in enumerate(touched()) if pages} == chosen


def _routed(output) -> list[int]:
    """The experts that a router's output chooses: indices, or scores of which some are zero."""
    for value in output:
        if value.dtype == torch.int64:
            return value.flatten().tolist()
    scores = output[0] if output[0].shape == output[1].shape else output[1]
    return scores.reshape(-1, 4).ne(0).any(0).nonzero().flatten().tolist()


@pytest.mark.skipif(not packed.COMPILED, reason="the compiled code is not here")
def test_experts_round_activations_as_they_are_told(tmp_path):
    experts, x = stack("int4-group,group=32"), torch.randn(2, K)
    exact = functional.linear(x, experts[1])
    experts.activations = "int8"
    rounded = functional.linear(x, experts[1])
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()
    kind, config, options = FAMILIES["linear"]
    kind(config(**TEXT, **options)).save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="int4-group,group=32")
    model = aibit.load_model(tmp_path / "m.aibit", activations="int8")
    found = [module.activations for module in model.modules() if isinstance(module, QuantizedExperts)]
    assert found and set(found) == {"int8"}


@pytest.mark.slow
def test_a_compiled_mixture_says_what_it_says_eagerly(tmp_path):
    """Experts are chosen by data, so the compiler leaves them to Python, and their products with them."""
    kind, config, options = FAMILIES["linear"]
    kind(config(**TEXT, **options)).save_pretrained(tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="int4-group,group=32")
    model, ids = aibit.load_model(tmp_path / "m.aibit"), torch.arange(1, 9)[None]
    with torch.no_grad():
        expected = model(ids).logits
        found = torch.compile(model)(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
