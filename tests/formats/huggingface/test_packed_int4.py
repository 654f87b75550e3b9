"""Grouped int4: the scheme, and GPTQ and AWQ checkpoints against their published arithmetic."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import aibit_format as aibit
from aibit_format.errors import AibitError, SourceError
from aibit_format.formats.sources import open_source
from aibit_format.schemes import parse
from tests.support.int4_checkpoints import (
    AWQ_SAID,
    CHECKPOINTS,
    GPTQ_SAID,
    checkpoint,
    packed,
    reference,
)
from tests.support.int4_checkpoints import plain as plain
from tests.support.int4_modules import one_module

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
    aibit.export(tmp_path / "m.aibit", "huggingface", tmp_path / "back")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "back"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype and np.array_equal(value, after[name]), name
    aibit.convert(tmp_path / "back", tmp_path / "again.aibit")
    with aibit.open(tmp_path / "again.aibit") as again, aibit.open(tmp_path / "m.aibit") as file:
        assert [again.info(name).scheme for name in again] == [file.info(name).scheme for name in file]
    config = json.loads((tmp_path / "back/config.json").read_text())["quantization_config"]
    assert all(config[key] == value for key, value in said.items())


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
    ("gptq", say(bits=5), "bits 5, only 2 and 3 and 4 and 8"),
    ("gptq", say(bits=8), r"qzeros. has shape"),
    ("awq", say(bits=True), "bits True, only 4"),
    ("gptq", say(checkpoint_format="marlin"), "'marlin', only 'gptq' and 'gptq_v2'"),
    ("gptq", say(checkpoint_format=["gptq"]), "checkpoint_format"),
    ("gptq", say(is_marlin_format=True), "is_marlin_format"),
    ("gptq", say(dynamic={r"+:m\..*": {"bits": 8}}), r"go with qweight \[8, 16\], bits 8 and group_size 32"),
    ("gptq", say(dynamic={r".*\.q": {"bits": 5}}), r"bits 5 for modules '\.\*\\\\\.q', only 2 and 3"),
    ("gptq", say(dynamic={"m": {"group_size": 5}}), "group_size 5 for modules 'm', expected one of"),
    ("gptq", say(dynamic={"m": {"group_size": 64}}), r"has shape \[2, 2\], \[1, 2\] go with .* group_size 64"),
    ("gptq", say(dynamic={"m": {"sym": True}}), "zero points 1 to 16, a symmetric checkpoint 8"),
    ("gptq", say(dynamic={"m": {"format": "gptq_v2"}}), "format 'gptq_v2' for some modules, None for others"),
    ("gptq", say(dynamic={"-:m": {}}), "is quantized, but dynamic '-:m' leaves it out"),
    ("gptq", say(dynamic={"m(": {}}), r"dynamic for modules 'm\(', no regular expression"),
    ("gptq", say(dynamic={"m" * 600: {}}), "no regular expression: 600 characters"),
    ("gptq", say(dynamic={"m": 4}), "dynamic 4 for modules 'm', expected an object"),
    ("gptq", say(dynamic=["m"]), r"dynamic \['m'\], expected an object"),
    ("gptq", say(extra_config={"m.q": {"bits": 16}}), "is quantized, but extra_config 'm.q' leaves it out"),
    ("awq", say(extra_config={"m.q": {"data_type": "fp"}}), "is quantized, but extra_config 'm.q' leaves it out"),
    ("awq", say(extra_config={"m.q": {"bits": 8}}), "bits 8 for modules 'm.q', only 4"),
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
