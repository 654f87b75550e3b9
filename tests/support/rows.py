"""Write tensors by rows."""

import pytest
import torch
import transformers as tf

from aibit_format.file import writer
from aibit_format.io import preallocate


@pytest.fixture(scope="module", autouse=True)
def small_pages():
    """Stretches of one leaf, whatever the file system of temporary files: as many cuts as there can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "make_room", paged(4096))
        yield


def paged(page):
    """``make_room`` of a file system whose pages have so many bytes."""

    def make_room(*arguments):
        preallocate.make_room(*arguments)
        return page

    return make_room


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """dtype -> a directory with a model of some leaves, in shards whose tensors have another order than the model's."""
    config = tf.LlamaConfig(
        hidden_size=320, intermediate_size=1152, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=5,
        vocab_size=3001, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    found = {}
    for dtype in ("float16", "bfloat16", "float32"):
        found[dtype] = tmp_path_factory.mktemp(dtype)
        tf.LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(found[dtype], max_shard_size="3MB")
    assert len(list(found["float16"].glob("*.safetensors"))) > 2
    return found
