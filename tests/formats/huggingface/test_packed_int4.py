"""Grouped int4: the scheme, and GPTQ and AWQ checkpoints against their published arithmetic."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

import aibit_format as aibit
from aibit_format.errors import AibitError, SchemeError, SourceError
from aibit_format.formats.huggingface.gptq import GPTQ
from aibit_format.formats.sources import open_source
from aibit_format.schemes import make, parse
from aibit_format.schemes.int4_group import GROUP_SIZES
from tests.support.int4_checkpoints import (
    AWQ_SAID,
    CHECKPOINTS,
    GPTQ_SAID,
    checkpoint,
    nibbles,
    packed,
    reference,
)

RNG = np.random.default_rng(4)


# The scheme.


def exact(planes: dict[str, np.ndarray], group: int, shape) -> np.ndarray:
    """(code - zero) * scale, element by element in float64, which is exact."""
    values = np.zeros(shape)
    index = planes.get("group_index", np.arange(shape[1]) // (group or shape[1]))
    for n, k in np.ndindex(*shape):
        byte = int(planes["codes"][n, k // 2])
        code = byte & 15 if k % 2 else byte >> 4
        zero = int(planes["zero_point"][n, index[k]]) if "zero_point" in planes else 8
        values[n, k] = (code - zero) * float(planes["scale"][n, index[k]])
    return values


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=70),
        elements=st.floats(-4e5, 4e5, width=32) | st.floats(-1, 1, width=32),
    ),
    st.sampled_from(GROUP_SIZES),
    st.integers(0, 1),
)
def test_encoding_keeps_its_error_bound(values, group, symmetric):
    scheme = make("int4-group", 1, (group, symmetric))
    planes = scheme.encode(values, "f32")
    assert {spec.role: (spec.shape, spec.dtype) for spec in scheme.planes(values.shape, "f32")} == {
        role: (plane.shape, {"uint8": "u8", "float16": "f16"}[str(plane.dtype)]) for role, plane in planes.items()
    }
    assert not [*scheme.bad_values(planes), *scheme.bad_codes(planes, values.shape)]
    decoded = scheme.decode(planes, values.shape, "f32")
    assert np.array_equal(decoded, exact(planes, group, values.shape))
    scale = np.repeat(planes["scale"].astype(np.float64), group or values.shape[1], axis=1)[:, : values.shape[1]]
    bound = scale * (1 / 2 + 1 / 128) + np.where(scale < 2**-14, 2**-21, 0)
    assert (np.abs(decoded - values.astype(np.float64)) <= bound).all()


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("symmetric", [0, 1])
def test_encoding_is_rounding_to_nearest_with_the_scales_of_gptq(symmetric, dtype):
    values = RNG.normal(size=(3, 80)).astype(np.float32)
    stored = torch.from_numpy(values).to({"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype])
    array = stored.view(torch.uint16).numpy() if dtype == "bf16" else stored.numpy()
    planes = make("int4-group", 1, (32, symmetric)).encode(array, dtype)
    for n in range(3):
        for g in range(3):
            block = stored[n, 32 * g : 32 * g + 32].float()
            low, high = min(float(block.min()), 0), max(float(block.max()), 0)
            if symmetric:
                low, high = -max(-low, high), max(-low, high)
            scale = ((torch.tensor(high) - torch.tensor(low)) / 15).half()
            zero = 8 if symmetric else int(torch.round(-low / scale.float()).clamp(0, 15))
            assert planes["scale"][n, g] == scale.numpy()
            if not symmetric:
                assert planes["zero_point"][n, g] == zero
            codes = (torch.round(block / scale.float()) + zero).clamp(0, 15).to(torch.uint8).numpy()
            found = planes["codes"][n, 16 * g : 16 * g + 16]
            assert np.array_equal(np.stack([found >> 4, found & 15], axis=1).reshape(-1)[: len(codes)], codes)


def test_zero_tiny_and_large_groups():
    for symmetric in (0, 1):
        scheme = make("int4-group", 1, (16, symmetric))
        zeros = scheme.encode(np.zeros((1, 16), np.float32), "f32")
        assert not zeros["scale"].any() and set(zeros["codes"].ravel()) == {0x88 if symmetric else 0}
        assert not scheme.decode(zeros, (1, 16), "f32").any()
        tiny = np.full((1, 16), 1e-9, np.float32)  # its scale would be zero in float16
        planes = scheme.encode(tiny, "f32")
        assert planes["scale"][0, 0] == np.float16(2**-24)
        assert np.abs(scheme.decode(planes, (1, 16), "f32") - tiny).max() <= 2**-25
        large = np.zeros((1, 16), np.float32)
        large[0, 3] = 65504 * (7.5 if symmetric else 15)
        assert scheme.encode(large, "f32")["scale"][0, 0] == 65504
        for factor in (1.01, 1e32, np.inf):
            bad = large.copy()
            bad[0, 3] *= factor
            with pytest.raises(SchemeError, match=r"65504|not finite"):
                scheme.encode(bad, "f32")
    with pytest.raises(SchemeError, match="not finite"):
        scheme.encode(np.full((2, 16), np.nan, np.float32), "f32")


def test_bytes_of_the_planes():
    scheme = parse("int4-group,group=row")
    planes = scheme.encode(np.array([[0, 1.5, -0.5, 0.3, 1.0], [0, 0, 0, -3, 0]], np.float32), "f32")
    assert planes["codes"].tobytes().hex() == "4f06c0" + "fff0f0"
    assert planes["zero_point"].tolist() == [[4], [15]]
    assert planes["scale"].tobytes().hex() == "4430" + "6632"


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (1, 1), (2, 3, 40), (2, 0, 40)])
@pytest.mark.parametrize("group", [0, 32])
def test_every_shape_of_a_matrix_or_more(shape, group):
    scheme = make("int4-group", 1, (group,))
    values = RNG.normal(size=shape).astype(np.float32)
    planes = scheme.encode(values, "f32")
    assert [(spec.role, spec.shape) for spec in scheme.planes(shape, "f32")] == [
        (role, plane.shape) for role, plane in planes.items()
    ]
    decoded = scheme.decode(planes, shape, "f32")
    assert decoded.shape == shape and not [*scheme.bad_values(planes), *scheme.bad_codes(planes, shape)]
    if len(shape) == 3 and values.size:  # an expert's planes are its slice of them
        one = {role: plane[1] for role, plane in planes.items()}
        assert np.array_equal(scheme.decode(one, shape[1:], "f32"), decoded[1])


@pytest.mark.parametrize(("symmetric", "ordered"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_some_rows_decode_as_they_do_in_the_whole(symmetric, ordered):
    scheme, shape = make("int4-group", 1, (32, symmetric, ordered)), (9, 77)
    planes = {
        "codes": RNG.integers(0, 256, (9, 39)).astype(np.uint8) & np.uint8([0xFF] * 38 + [0xF0]),
        "scale": RNG.normal(size=(9, 3)).astype(np.float16),  # negative ones too
        "zero_point": RNG.integers(0, 17, (9, 3)).astype(np.uint8),
        "group_index": RNG.integers(0, 3, 77).astype(np.int32),
    }
    planes = {spec.role: planes[spec.role] for spec in scheme.planes(shape, "f16")}
    whole = scheme.decode(planes, shape, "f16")
    assert np.array_equal(whole, exact(planes, 32, shape))
    for rows in (slice(2, 5), slice(0, 0), np.array([8, 1, 1]), np.arange(0, 9, 4)):
        assert np.array_equal(scheme.decode_rows(planes, shape, "f16", rows), whole[rows])
    assert not [*scheme.bad_values(planes), *scheme.bad_codes(planes, shape)]


@pytest.mark.parametrize(
    ("role", "place", "value"),
    [("scale", (1, 1), np.nan), ("scale", (0, 0), np.inf), ("zero_point", (1, 0), 17), ("group_index", 3, 2),
     ("group_index", 0, -1), ("codes", (1, 16), 0x01)],
)  # fmt: skip
def test_planes_that_no_checkpoint_holds_are_named(role, place, value):
    scheme, shape = make("int4-group", 1, (32, 0, 1)), (2, 33)
    planes = {
        "codes": np.full((2, 17), 0x10, np.uint8), "scale": np.ones((2, 2), np.float16),
        "zero_point": np.full((2, 2), 16, np.uint8), "group_index": (np.arange(33) // 32).astype(np.int32),
    }  # fmt: skip
    problems = lambda: [*scheme.bad_values(planes), *scheme.bad_codes(planes, shape)]  # noqa: E731
    assert not problems()
    planes[role][place] = value
    assert [found for found, _ in problems()] == [role]


def test_parameters():
    assert parse("int4-group,group=row,symmetric") == make("int4-group", 1, (0, 1))
    assert make("int4-group", 1, (0, 1)).text == "int4-group,group=row,symmetric=1"
    assert parse("int4-group").bits_per_weight((8, 1024), "f16") == 4 + 24 / 128
    assert parse("int4-group,symmetric=1,group=32").bits_per_weight((8, 1024), "f16") == 4 + 16 / 32
    for text in ("group=33", "group=8", "group=tensor", "symmetric=2", "ordered=2", "ordered=1,group=row"):
        with pytest.raises(SchemeError) as caught:
            parse(f"int4-group,{text}")
        assert caught.value.code == "AIB-E407"
    with pytest.raises(SchemeError, match="comes with a checkpoint"):
        parse("int4-group,ordered=1").encode(np.zeros((2, 32), np.float32), "f32")
    for shape, dtype in (((5,), "f16"), ((4, 4), "i8")):
        with pytest.raises(SchemeError):
            parse("int4-group").planes(shape, dtype)


# Checkpoints. Words are random, and decoded as the two projects describe their formats, by torch's integer shifts.

@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_is_stored_as_it_is(case, plain, tmp_path):
    said, scheme = CHECKPOINTS[case]
    modules = checkpoint(plain, said, tmp_path / "hf")
    assert len(modules) == 14
    source = open_source(tmp_path / "hf")
    assert source.kind == said["quant_method"] and len(source.tensors) == len(plain["llama-untied"][0])
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    assert {t.scheme for t in report.tensors if t.name.removesuffix(".weight") in modules} == {scheme}
    assert not report.unused and "config.json:quantization_config" in report.dropped_keys
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        for module, parts in modules.items():
            info = file.info(f"{module}.weight")
            expected = reference(said, parts)
            assert info.shape == expected.shape and info.dtype == "f16" and info.scheme.text == scheme
            assert np.array_equal(file.dequantize(info.name), expected)
            assert np.array_equal(file.planes(info.name)["scale"], parts["scales"].T)
        head = plain["llama-untied"][0]["lm_head.weight"]
        assert np.array_equal(file.planes("lm_head.weight")["values"], head)


@pytest.mark.parametrize("case", ["gptq-act-order", "awq"])
def test_a_checkpoint_can_be_quantized_anew(case, plain, tmp_path):
    said, _ = CHECKPOINTS[case]
    modules = checkpoint(plain, said, tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", "int8", {"layers.0.mlp.up_proj": "int4-group,group=16"})
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        for module, parts in modules.items():
            name, values = f"{module}.weight", reference(said, parts).astype(np.float16)
            scheme = parse("int4-group,group=16" if module.endswith("layers.0.mlp.up_proj") else "int8")
            for role, plane in scheme.encode(values, "f16").items():
                assert np.array_equal(file.planes(name)[role], plane), (name, role)


def test_conv1d_weights_of_gpt2_are_the_other_way_round(plain, tmp_path):
    tensors, config = plain["gpt2"]
    said, name = CHECKPOINTS["gptq-act-order"][0], "transformer.h.0.mlp.c_fc"
    tensors = dict(tensors)
    columns, rows = tensors.pop(f"{name}.weight").shape
    parts = packed(said, rows, columns)
    (tmp_path / "hf").mkdir()
    save_file(tensors | {f"{name}.{part}": value for part, value in parts.items()}, tmp_path / "hf/model.safetensors")
    (tmp_path / "hf/config.json").write_text(json.dumps(config | {"quantization_config": said}))
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit") as file:
        info = file.info(f"{name}.weight")
        assert info.transposed and info.shape == (rows, columns) and info.dtype == "f16"
        assert np.array_equal(file.dequantize(info.name), reference(said, parts))


def one_module(folder, said: dict, parts: dict[str, np.ndarray], config: dict | None = None) -> GPTQ:
    """A source of one quantized module ``m.q``, and a plain tensor beside it."""
    folder.mkdir(exist_ok=True)
    save_file({"m.b": np.ones(3, np.float32)} | {f"m.q.{part}": value for part, value in parts.items()},
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text(json.dumps((config or {"dtype": "bfloat16"}) | {"quantization_config": said}))
    return open_source(folder)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(sorted(CHECKPOINTS)), st.integers(1, 5), st.integers(1, 9))
def test_a_module_of_any_size_decodes_as_published(tmp_path_factory, case, rows, columns):
    said, _ = CHECKPOINTS[case]
    columns *= said["group_size"] if case == "awq" else 8
    parts = packed(said, 8 * rows, columns)
    source = one_module(tmp_path_factory.mktemp("one"), said, parts)
    tensor = source.tensors["m.q.weight"]
    assert list(source.tensors) == ["m.b", "m.q.weight"] and tensor.dtype == "bf16"
    planes = source.planes("m.q.weight")
    assert [(spec.role, spec.shape) for spec in tensor.stored.planes(tensor.shape, "bf16")] == [
        (role, plane.shape) for role, plane in planes.items()
    ]
    assert not list(tensor.stored.bad_values(planes))
    assert np.array_equal(tensor.stored.decode(planes, tensor.shape, "bf16"), reference(said, parts))


def test_zero_points_that_gptqmodel_borrowed_for(tmp_path):
    parts = packed(GPTQ_SAID, 16, 64)
    parts["qzeros"][0, 0] &= ~15  # a zero, for which the subtraction borrows from the next nibble
    zeros = nibbles(parts["qzeros"]).flatten(1).numpy()  # what they were before 0x11111111 was taken from the words
    stored = parts | {"qzeros": (parts["qzeros"].view(np.uint32) - np.uint32(0x11111111)).view(np.int32)}
    said = GPTQ_SAID | {"meta": {"quantizer": ["gptqmodel:2.0.0"]}}
    assert np.array_equal(one_module(tmp_path / "a", said, stored).planes("m.q.weight")["zero_point"], zeros.T)
    other = one_module(tmp_path / "b", GPTQ_SAID, stored).planes("m.q.weight")["zero_point"]
    assert other.max() == 16 and not np.array_equal(other, zeros.T)


def test_a_quantize_config_beside_is_read(tmp_path):
    parts = packed(GPTQ_SAID, 8, 32)
    one_module(tmp_path / "hf", GPTQ_SAID, parts)
    (tmp_path / "hf/config.json").write_text("{}")
    assert open_source(tmp_path / "hf").kind == "huggingface"
    said = {key: value for key, value in GPTQ_SAID.items() if key != "quant_method"}
    (tmp_path / "hf/quantize_config.json").write_text(json.dumps(said))
    source = open_source(tmp_path / "hf")
    assert source.kind == "gptq" and source.tensors["m.q.weight"].dtype == "f32"  # transformers' default


def test_scales_of_another_float_are_taken_if_they_are_exact(tmp_path):
    parts = packed(GPTQ_SAID, 8, 64)
    wide = parts | {"scales": parts["scales"].astype(np.float32)}
    planes = one_module(tmp_path / "hf", GPTQ_SAID, wide).planes("m.q.weight")
    assert np.array_equal(planes["scale"], parts["scales"].T) and planes["scale"].dtype == np.float16
    wide["scales"][1, 2] = 0.1
    with pytest.raises(SourceError, match=r"m\.q\.scales' has 0\.1\d* for group 1, row 2"):
        one_module(tmp_path / "hf", GPTQ_SAID, wide).planes("m.q.weight")


def test_a_missing_g_idx_means_the_plain_order(tmp_path):
    parts = packed(GPTQ_SAID, 8, 64)
    index = parts.pop("g_idx")
    source = one_module(tmp_path / "hf", GPTQ_SAID, parts)
    decoded = source.tensors["m.q.weight"].stored.decode(source.planes("m.q.weight"), (8, 64), "f32")
    assert np.array_equal(decoded, reference(GPTQ_SAID, parts | {"g_idx": index}))


def drop(part):
    return lambda said, parts: parts.pop(part)


def set_to(part, value):
    return lambda said, parts: parts.update({part: value(parts[part])})


def poke(part, place, value):
    return lambda said, parts: parts[part].__setitem__(place, value)


def say(**changes):
    return lambda said, parts: said.update(changes)


DAMAGE = [
    ("gptq", lambda said, parts: parts.clear(), "none of 1 tensors quantized"),
    ("gptq", drop("qweight"), r"m\.q\.qweight is missing"),
    ("gptq", drop("qzeros"), r"m\.q\.qzeros is missing"),
    ("awq", drop("scales"), r"m\.q\.scales is missing"),
    ("gptq", set_to("qweight", lambda a: a.astype(np.int64)), r"'m\.q\.qweight' is i64\[8, 16\], expected i32"),
    ("gptq", set_to("scales", lambda a: a[0]), r"'m\.q\.scales' is f16\[16\]"),
    ("gptq", set_to("scales", lambda a: a[:1]), r"'m\.q\.scales' has shape \[1, 16\], \[2, 16\] go with"),
    ("gptq", set_to("qzeros", lambda a: a[:, :1]), r"'m\.q\.qzeros' has shape \[2, 1\], \[2, 2\] go with"),
    ("gptq", set_to("g_idx", lambda a: a[:-8]), r"'m\.q\.g_idx' has shape \[56\], \[64\] go with"),
    ("gptq", set_to("qweight", lambda a: a[:, :13]), r"weight \[13, 64\], not in multiples of 8"),
    ("awq", set_to("qweight", lambda a: a[:-1]), r"weight \[16, 63\], not in multiples of 8"),
    ("awq", set_to("qweight", lambda a: a[:48]), r"48 columns, not a multiple of group_size 32"),
    ("awq", set_to("qweight", lambda a: a[:32]), r"has shape \[2, 2\], \[1, 2\] go with qweight \[32, 2\]"),
    ("gptq", poke("g_idx", 5, 2), r"g_idx' names groups 0 to 2, there are 2"),
    ("gptq", poke("g_idx", 0, -1), r"g_idx' names groups -1 to 1, there are 2"),
    ("gptq", say(group_size=64), r"has shape \[2, 2\], \[1, 2\] go with .* group_size 64"),
    ("gptq", say(group_size=33), "group_size 33, expected one of -1, 16"),
    ("gptq", say(group_size=None), "group_size None"),
    ("gptq", say(bits=8), "bits 8, only 4"),
    ("gptq", say(bits=3), "bits 3, only 4"),
    ("awq", say(bits=True), "bits True, only 4"),
    ("gptq", say(checkpoint_format="marlin"), "'marlin', only 'gptq' and 'gptq_v2'"),
    ("gptq", say(checkpoint_format=["gptq"]), "checkpoint_format"),
    ("gptq", say(is_marlin_format=True), "is_marlin_format"),
    ("gptq", say(dynamic={r"+:.*\.0\..*": {"bits": 8}}), "bits 8 for modules"),
    ("awq", say(version="gemv"), "version 'gemv'"),
    ("awq", say(version="marlin"), "version 'marlin'"),
    ("awq", say(backend="llm-awq"), "llm-awq"),
    ("awq", say(modules_to_not_convert=["m"]), "modules_to_not_convert names 'm'"),
    ("awq", set_to("scales", lambda a: np.where(np.arange(16) == 9, np.float16("nan"), a)), "nan for group 0, row 9"),
    ("gptq", poke("scales", (1, 3), np.inf), "inf for group 1, row 3"),
    ("gptq", say(sym=True), "zero points 1 to 16, a symmetric checkpoint 8"),
    ("awq", say(zero_point=False), "zero points 0 to 15, a symmetric checkpoint 8"),
    ("gptq", lambda said, parts: (said.update(sym=True), parts["qzeros"].fill(-0x77777778)), "'gptq_v2' they would be"),
    ("gptq", lambda said, parts: (said.update(desc_act=True), parts.pop("g_idx")), "has no g_idx"),
    ("gptq", lambda said, parts: parts.update(weight=np.ones((2, 2), np.float32)), r"'m\.q\.weight' is there beside"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "damage", "message"), DAMAGE, ids=[f"{kind}-{text[:24]}" for kind, _, text in DAMAGE])
def test_what_contradicts_itself_is_refused(kind, damage, message, tmp_path):
    said = dict({"gptq": GPTQ_SAID, "awq": AWQ_SAID}[kind])
    parts = packed(said, 16, 64)
    parts["qzeros"][0, 0] = 0x01234567
    parts["qzeros"][1, 1] = np.uint32(0x89ABCDEF).view(np.int32)
    assert one_module(tmp_path / "good", said, parts).planes("m.q.weight")
    damage(said, parts)
    with pytest.raises(SourceError, match=message) as caught:
        one_module(tmp_path / "bad", said, parts).planes("m.q.weight")
    assert str(tmp_path / "bad") in str(caught.value)


def test_nothing_is_left_of_a_conversion_that_failed(plain, tmp_path):
    modules = checkpoint(plain, GPTQ_SAID, tmp_path / "hf")
    tensors = load_file(tmp_path / "hf/model.safetensors")
    name = f"{list(modules)[-1]}.scales"
    tensors[name][0, 0] = np.nan
    save_file(tensors, tmp_path / "hf/model.safetensors")
    with pytest.raises(AibitError, match=name):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_modules_that_dynamic_leaves_out_or_says_again_are_no_contradiction(tmp_path):
    said = GPTQ_SAID | {"dynamic": {r"-:.*lm_head.*": {}, r".*\.q": {"bits": 4}}}
    assert one_module(tmp_path / "hf", said, packed(said, 8, 32)).planes("m.q.weight")


@pytest.mark.parametrize("case", ["gptq-act-order", "awq"])
def test_memory_is_that_of_one_tensor(case, tmp_path):
    said, _ = CHECKPOINTS[case]
    parts = packed(said, 1200, 4096)  # more than is transposed at a time, and not a multiple of it
    source = one_module(tmp_path / "hf", said, parts)
    tracemalloc.start()
    planes = source.planes("m.q.weight")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * sum(plane.nbytes for plane in planes.values())
    decoded = source.tensors["m.q.weight"].stored.decode(planes, (1200, 4096), "f16")
    assert np.array_equal(decoded, reference(said, parts))
