"""What a file keeps of how a checkpoint stored its weights."""

import numpy as np

from aibit_format.formats.huggingface.origin import LEFT_OUT, PARTS, SAID, Origin, origin_of, record
from aibit_format.formats.huggingface.settings import Settings
from aibit_format.formats.source import SourceTensor


def test_settings_and_the_parts_of_weights_come_back():
    parts = [
        (f"m.{i}.weight", [SourceTensor(f"m.{i}.weight", (4, 4), "f8_e4m3", "f"),
                           SourceTensor(f"m.{i}.weight_scale", (4,)[: i % 2], "f32", "f")])
        for i in range(3)
    ]  # fmt: skip
    parts.append(("m.experts.up", [SourceTensor("m.experts.up_scales", (2, 4, 1), "u8", "f")]))
    found = record(Settings("fp8", {"b": 1, "a": [2]}), parts)
    assert found == {
        SAID: '{"quant_method": "fp8", "b": 1, "a": [2]}',
        PARTS: [".weight f8_e4m3 2", ".weight_scale f32 0", ".weight_scale f32 1", "_scales u8 3"],
    }
    origin = origin_of({**found, LEFT_OUT: ["1 tensors input_scale"]})
    assert origin.method == "fp8" and list(origin.said) == ["quant_method", "b", "a"] and origin.left_out
    assert origin.part(".weight_scale", ("bf16", "f32")) == ("f32", 0)
    assert origin.part(".weight_scale", ("bf16",)) is None and origin.part(".scale", ("f32",)) is None


def test_a_method_is_what_the_settings_are_read_as():
    text = '{"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}'
    assert origin_of({SAID: text}).method == "awq"
    assert record(Settings("mlx", {"bits": 4, "group_size": 64}), [])[SAID].startswith('{"quant_method": "mlx", "bits"')


def test_what_has_no_meaning_is_nothing():
    for value in (None, 7, b"{}", "{", "[1]", '{"a": 1, "a": 2}', np.ones(2), ["{}"]):
        assert origin_of({SAID: value}) == Origin()
    assert origin_of({SAID: '{"quant_method": "fp8"}', PARTS: "no list"}).parts == {}
    assert record(Settings("fp8", {"x": "y" * (1 << 20)}), []) == {}
