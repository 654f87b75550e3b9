"""Save models in the ways that others do."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
import torch
import transformers as tf

import aibit_format as aibit
from aibit_format.convert.convert import convert
from aibit_format.errors import AibitError
from tests.support import architectures

INT8 = {"load_in_8bit": True}
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
}
FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": torch.bfloat16}
QUANTIZED = {
    "llama-8bit": ("llama-tied", INT8),
    "llama-nf4": ("llama-tied", NF4),
    "llama-fp4": ("llama-untied", FP4),
    "gpt2-8bit": ("gpt2", INT8),
    "gpt2-nf4": ("gpt2", NF4),
}
Q = "model.layers.0.self_attn.q_proj"


def quantized_model(folder, name: str, options: dict):
    family = architectures.MODELS[name][0]
    return family.from_pretrained(folder, quantization_config=tf.BitsAndBytesConfig(**options), device_map="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """A folder of models, plain under their names and as transformers saves them quantized."""
    folder = tmp_path_factory.mktemp("saved")
    for name in {name for name, _ in QUANTIZED.values()}:
        dtype = torch.float16 if name == "llama-untied" else torch.float32
        architectures.save(name, folder / name, dtype=dtype)
    for key, (name, options) in QUANTIZED.items():
        quantized_model(folder / name, name, options).save_pretrained(folder / key)
    return folder


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """An empty directory for a source, with room for the output beside it."""
    (tmp_path / "hf").mkdir()
    return tmp_path / "hf"


def refused(source, where: pathlib.Path, match: str, **options) -> AibitError:
    """``source`` is refused, and there is nothing in ``where`` that was not there before."""
    before = set(where.iterdir())
    with pytest.raises(AibitError, match=match) as caught:
        convert(source, where / "m.aibit", **options)
    assert set(where.iterdir()) == before
    return caught.value


def same_files(a, b) -> None:
    """Two files hold the same tensors, in the same schemes, bit for bit."""
    with aibit.open(a) as first, aibit.open(b, verify="full") as second:
        assert first.keys() == second.keys()
        for name in first:
            x, y = first.info(name), second.info(name)
            assert (x.shape, x.dtype, x.scheme, x.transposed) == (y.shape, y.dtype, y.scheme, y.transposed)
            for role, plane in first.planes(name).items():
                assert plane.tobytes() == second.planes(name)[role].tobytes(), (name, role)


def put(name, edit):
    def change(tensors, _):
        tensors[name] = np.array(edit(tensors[name]), order="C")

    return change


def text(content: bytes):
    return put(f"{Q}.weight.quant_state.bitsandbytes__nf4", lambda _: np.frombuffer(content, np.uint8))


def config(**changes):
    return lambda _, said: said["quantization_config"].update(changes)


def first(value):
    """Another first entry."""

    def edit(array):
        array = array.copy()
        array[0] = value
        return array

    return edit


def with_config(saved, folder, key="llama-tied"):
    for name in ("config.json", "generation_config.json"):
        shutil.copy(saved / key / name, folder)
    return folder


class Evil:
    """What runs when it is unpickled."""

    def __init__(self, trace: pathlib.Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return pathlib.Path.touch, (self.trace,)
