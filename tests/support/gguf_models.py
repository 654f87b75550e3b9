"""Write models and tokenizers as GGUF, and read them as others do."""

from __future__ import annotations

import shutil
import struct
from itertools import pairwise

import gguf
import numpy as np
import pytest
import torch
import transformers

import aibit_format as aibit
from aibit_format.formats.gguf.export import export
from aibit_format.formats.gguf.file import NUMBERS, GGUFFile
from aibit_format.schemes.ggml import LAYOUTS

NAMES = list(LAYOUTS)


THEIRS = [name for name in NAMES if name not in ("gguf:q1_0", "gguf:q2_0")]  # what gguf-py decodes


def kind(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.removeprefix("gguf:").upper()]


def random_blocks(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Blocks of any bytes, with finite scales of a size that keeps a model's activations finite."""
    random, layout = np.random.default_rng(seed), LAYOUTS[name]
    rows = random.integers(0, 256, (*shape[:-1], shape[-1] // layout.block * layout.size), np.uint8)
    blocks, start = rows.reshape(-1, layout.size), 0
    for field, size in layout.fields.items():
        if field in ("d", "dmin", "m") and size == 2:
            scales = random.normal(size=(len(blocks), 1)) * 10.0 ** -random.integers(2, 7, (len(blocks), 1))
            blocks[:, start : start + 2] = scales.astype("<f2").view(np.uint8)
        start += size
    if name == "gguf:mxfp4":
        blocks[:, 0] = random.integers(110, 125, len(blocks))
    elif name == "gguf:nvfp4":
        blocks[:, :4] = random.integers(0, 0x20, (len(blocks), 4))
    elif name == "gguf:iq1_m":  # its float16 is in the upper nibbles of four words
        blocks[:, 53], blocks[:, 55] = blocks[:, 53] & 15, blocks[:, 55] & 15 | 0x20
    return rows


SMALL = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.1, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama-tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "llama-bias": lambda: transformers.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, head_dim=32),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=1024, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, initializer_range=0.1
    ),
}
IDS = torch.tensor([[5, 900, 77, 300, 2, 8, 8, 41]])


@pytest.fixture(scope="module")
def models(tmp_path_factory, fixtures):
    """A function: the folder of a small random model of that name, as a file of this package, and its configuration."""
    folder = tmp_path_factory.mktemp("models")

    def made(name: str, **changes):
        path = folder / "-".join([name, *map(str, changes)])
        if not path.exists():
            torch.manual_seed(0)
            config = CONFIGS[name]()
            for key, value in changes.items():
                setattr(config, key, value)
            model = transformers.AutoModelForCausalLM.from_config(config).eval()
            for key, value in model.named_parameters():
                if "norm" in key or "ln_" in key or "bias" in key:
                    value.data += torch.randn_like(value) * 0.2
            model.save_pretrained(path / "hf")
            if name == "gpt2":  # by which transformers' loader knows the size of its vocabulary
                shutil.copy(fixtures / "models" / "tiny-gpt2" / "tokenizer.json", path / "hf")
            aibit.convert(path / "hf", path / "m.aibit", scheme="keep")
        return path

    return made


def written(path, out, **options) -> GGUFFile:
    """The GGUF file that the ``.aibit`` file ``path`` becomes."""
    with aibit.open(path) as file:
        assert export(file, str(out), **options) == [str(out), str(out.parent / "Modelfile")]
    return GGUFFile(str(out))


def theirs(path, **options):
    """The model that transformers' own loader makes of a GGUF file, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, **options
    ).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def all_types(path, names=NAMES, factors=None, **keys) -> dict[str, np.ndarray]:
    """Write a Llama whose matrices are of all these types, with gguf-py; the blocks by GGUF's names.

    ``factors`` are tensors of float32 beside them.
    """
    width, rows, layers = 256, 64, 4
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(256)
    writer.add_block_count(layers)
    writer.add_head_count(8)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_name("all types")
    writer.add_vocab_size(rows)
    for key, value in keys.items():
        writer.add_uint32(f"llama.{key}", value)
    shapes = {
        "attn_q": (width, width), "attn_k": (128, width), "attn_v": (128, width), "attn_output": (width, width),
        "ffn_gate": (256, width), "ffn_up": (256, width), "ffn_down": (width, 256),
    }  # fmt: skip
    matrices = {"token_embd": (rows, width), "output": (rows, width)}
    matrices |= {f"blk.{i}.{name}": shape for i in range(layers) for name, shape in shapes.items()}
    arrays = {}
    random = np.random.default_rng(0)
    for i, (name, shape) in enumerate(matrices.items()):
        scheme = names[i % len(names)]
        if LAYOUTS[scheme].encode:
            blocks = gguf.quants.quantize(random.normal(size=shape).astype(np.float32) / 16, kind(scheme))
        else:
            blocks = random_blocks(scheme, shape, i)
        arrays[f"{name}.weight"] = blocks
        # The number of a type, as gguf-py does not know q2_0; the shape is that of elements from any dtype but u8.
        number = NUMBERS[scheme.removeprefix("gguf:")]
        writer.add_tensor(f"{name}.weight", blocks.view(np.int8), raw_shape=shape, raw_dtype=number)
    norms = ["output_norm", *(f"blk.{i}.{name}" for i in range(layers) for name in ("attn_norm", "ffn_norm"))]
    for name in norms:
        arrays[f"{name}.weight"] = 1 + random.integers(-8, 8, width).astype(np.float32) / 64
        writer.add_tensor(f"{name}.weight", arrays[f"{name}.weight"])
    for name, values in (factors or {}).items():
        arrays[name] = values
        writer.add_tensor(name, values)
    finish(writer)
    return arrays


def finish(writer) -> None:
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()


SPM = [
    "<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"\u2581abcdefgh", "<|x|>", "\u2581ab", "ab", "bc",
    "abc", "\u2581abc", "cd", "de", "cde", "\u2581a", "gh", "fgh", "\u2581\u2581",
]  # fmt: skip


def sentencepiece(path, **keys) -> dict[str, float]:
    """A model with a small SentencePiece vocabulary; its pieces and their scores."""
    writer = gguf.GGUFWriter(path, "llama")
    scores = {piece: -float((i * 37) % 91) for i, piece in enumerate(SPM)}
    kinds = [2, 3, 3, *[6] * 256, *[1] * 9, 4, *[1] * (len(SPM) - 269)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(SPM)
    writer.add_token_scores(list(scores.values()))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for key, value in keys.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    writer.add_chat_template([{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "{{ b }}"}])
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    one = np.ones((32, 32), np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", one)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", one[0])
    writer.add_tensor("token_embd.weight", np.ones((len(SPM) + 3, 32), np.float32))
    finish(writer)
    return scores


def merged(text: str, scores: dict[str, float]) -> list[int]:
    """SentencePiece's algorithm: join the two neighbours whose piece has the best score, the leftmost of equals."""
    parts = list(text)
    while True:
        joined = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not joined:
            break
        _, i = min(joined)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    ids = {piece: i for i, piece in enumerate(SPM)}
    return [j for part in parts for j in ([ids[part]] if part in ids else [3 + byte for byte in part.encode()])]


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    path = tmp_path_factory.mktemp("spm") / "m.gguf"
    scores = sentencepiece(path)
    aibit.convert(path, path.with_suffix(".aibit"), scheme="keep")
    return path, scores, aibit.load_tokenizer(path.with_suffix(".aibit"))


def plain(path, architecture="strange", name="blk.0.w", array=None, raw=None, **keys) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        writer.add_uint16(key, value) if key.startswith("split") else writer.add_uint32(key, value)
    writer.add_array("strange.list", [1.5, float("nan")])
    writer.add_tensor(name, np.ones((2, 32), np.float32) if array is None else array, raw_dtype=raw)
    finish(writer)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data
