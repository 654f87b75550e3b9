"""Convert models to be exported, and load what was."""

import json

import pytest
import torch
import transformers as tf

import aibit_format as aibit
from aibit_format.file import writer
from aibit_format.schemes import make
from tests.support import architectures

# Rows of whole blocks of 64: for others bitsandbytes' CPU kernels give wrong numbers (spec/schemes/fourbit.md).
LLAMA = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "tied": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "untied": (tf.LlamaForCausalLM, lambda: tf.LlamaConfig(**LLAMA, tie_word_embeddings=False)),
    "gpt2": architectures.MODELS["gpt2"],
    "t5": architectures.MODELS["t5"],
}


def save(name, folder, dtype=torch.float32):
    family, config = MODELS[name]
    torch.manual_seed(0)
    model = family(config())
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim >= 2 and name != "t5":
                value.mul_(3)
    model.to(dtype).save_pretrained(folder)
    return folder


def convert(folder, path, scheme, tensors=()):
    aibit.convert(folder, path, scheme, tensors)
    return aibit.open(path)


def load(name, folder, **arguments):
    return MODELS[name][0].from_pretrained(folder, device_map={"": "cpu"}, **arguments).eval()


def logits(model, name):
    return architectures.output(model, "t5" if name == "t5" else "llama-tied")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Folders of the models, float16, made when asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = save(name, tmp_path_factory.mktemp(name), torch.float16)
        return made[name]

    return folder


def small(path, tensors, documents=None, metadata=None):
    """A file of float32 arrays, or of (array, scheme)."""
    planned = {}
    for name, value in tensors.items():
        array, scheme = value if isinstance(value, tuple) else (value, make("f32"))
        planned[writer.Tensor(name, array.shape, "f32", scheme)] = scheme.encode(array, "f32")
    writer.write(path, planned, metadata, documents)
    return aibit.open(path)
