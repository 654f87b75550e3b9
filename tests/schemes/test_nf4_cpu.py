"""NF4 with the tiles that bitsandbytes makes for processors."""

from __future__ import annotations

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format import schemes
from aibit_format.errors import SchemeError
from aibit_format.file import writer
from tests.support import architectures


def test_tiles_that_contradict_the_codes_are_refused(tmp_path, monkeypatch):
    scheme = schemes.make("nf4-cpu")
    planes = scheme.encode(np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32), "f32")
    planes["tiles"] = planes["tiles"] ^ 1
    tensors = {writer.Tensor("w", (32, 64), "f32", scheme): planes}
    with pytest.raises(SchemeError, match="tiles"):
        writer.write(tmp_path / "m.aibit", tensors)
    with monkeypatch.context() as patch:
        patch.setattr(type(scheme), "bad_codes", lambda *_: iter(()))
        writer.write(tmp_path / "m.aibit", tensors)
    with pytest.raises(aibit.FormatError) as caught:
        aibit.open(tmp_path / "m.aibit", verify="full")
    assert caught.value.code == "AIB-E503" and caught.value.plane == "tiles"


def test_shapes_without_tiles_fall_back_to_nf4(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf", intermediate_size=100)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="nf4-cpu")
    file = aibit.open(tmp_path / "m.aibit")
    assert file.info("model.layers.0.self_attn.q_proj.weight").scheme.name == "nf4-cpu"
    assert file.info("model.layers.0.mlp.up_proj.weight").scheme.name == "nf4"
