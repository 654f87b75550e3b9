"""OpenVINO runs what is exported for it."""

from __future__ import annotations

import numpy as np
import pytest

import aibit_format as aibit
from tests.support.graphs import IDS, recorded
from tests.support.onnx_graphs import close, expected

openvino = pytest.importorskip("openvino", reason="openvino is large, and installed by hand")
pytest.importorskip("onnx")


def test_decoded_weights(tmp_path):
    path = recorded("llama", tmp_path, "nf4")
    aibit.export(path, "onnx", tmp_path / "m.onnx", decoded=True)
    model = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    past = {
        each.get_any_name(): np.zeros([size.get_length() if size.is_static else 0 for size in each.get_partial_shape()])
        for each in model.inputs if each.get_any_name().startswith("past_key_values.")
    }  # fmt: skip
    found = model({
        "input_ids": IDS.numpy(), "position_ids": np.arange(IDS.shape[1])[None],
        **{name: values.astype(np.float32) for name, values in past.items()},
    })  # fmt: skip
    assert close(found["logits"], expected(path)[0])
