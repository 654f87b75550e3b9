"""Make small files of every kind that a converter reads, each by the library that writes it for others."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from typing import Any

from .safetensors_bytes import BITS, pack


def safetensors() -> dict[str, bytes]:
    """Files by the library itself, and of dtypes that numpy has not."""
    import numpy as np
    from safetensors.numpy import save

    dtypes = {f"t.{dtype}": (dtype, (4, 3), bytes(12 * bits // 8)) for dtype, bits in BITS.items()}
    return {
        "plain": save({"a.weight": np.ones((3, 4), np.float32), "a.bias": np.ones(3, np.float16)}),
        "metadata": save({"w": np.arange(5, dtype=np.int64)}, {"format": "pt"}),
        "shapes": save(
            {"scalar": np.array(1, np.float32), "none": np.zeros((0, 3), np.float32), "b": np.array([True])}
        ),
        "dtypes": pack(dtypes),
        "empty": save({}),
    }


def gguf(folder: str) -> dict[str, bytes]:
    """Models of the known architectures with tokenizers of both kinds, and a file of every type of block."""
    import gguf
    import numpy as np

    from aibit_format.formats.gguf import rope
    from aibit_format.formats.gguf.file import NUMBERS
    from aibit_format.schemes.ggml import LAYOUTS

    path = os.path.join(folder, "seed.gguf")

    def written(architecture: str, fill, **options: Any) -> bytes:
        writer = gguf.GGUFWriter(path, architecture, **options)
        fill(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open(path, "rb") as file:
            data = file.read()
        os.unlink(path)
        return data

    def blocks(writer) -> None:
        for name, layout in LAYOUTS.items():
            stored = np.full((2, 256 // layout.block * layout.size), 1, np.int8)  # from u8, only types of the library
            writer.add_tensor(name, stored, raw_shape=(2, 256), raw_dtype=NUMBERS[name.removeprefix("gguf:")])
        writer.add_tensor("half", np.ones((2, 3), np.float16))
        writer.add_array("some.list", [1, 2, 3])
        writer.add_bool("some.bool", True)
        writer.add_float32("some.float", 0.5)

    def vocabulary(writer, model: str) -> None:
        writer.add_tokenizer_model(model)
        texts = ["<unk>", "<s>", "</s>", "a", "b", "ab", "c", "abc"]
        writer.add_token_list(texts)
        writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(True)
        writer.add_chat_template([{"name": "default", "template": "{{ x }}"}, {"name": "tool", "template": "t"}])
        if model == "llama":
            writer.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0])
        else:
            writer.add_tokenizer_pre("llama-bpe")
            writer.add_token_merges(["a b", "ab c"])

    def llama(model: str, scaled: str | None = None):
        def fill(writer) -> None:
            writer.add_context_length(64)
            writer.add_embedding_length(32)
            writer.add_feed_forward_length(32)
            writer.add_block_count(1)
            writer.add_head_count(4)
            writer.add_head_count_kv(2)
            writer.add_layer_norm_rms_eps(1e-5)
            writer.add_rope_freq_base(100.0)  # so that two of four factors lie where llama3's scaling computes them
            if scaled == "yarn":
                writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
                writer.add_rope_scaling_factor(4.0)
                writer.add_rope_scaling_orig_ctx_len(16)
            vocabulary(writer, model)
            q8 = gguf.GGMLQuantizationType.Q8_0
            for name, rows in {
                "token_embd": 8, "output": 8, "blk.0.attn_q": 32, "blk.0.attn_k": 16, "blk.0.attn_v": 16,
                "blk.0.attn_output": 32, "blk.0.ffn_gate": 32, "blk.0.ffn_up": 32, "blk.0.ffn_down": 32,
            }.items():  # fmt: skip
                writer.add_tensor(f"{name}.weight", np.full((rows, 34), 1, np.uint8), raw_dtype=q8)
            for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
                writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
            if scaled == "llama3":
                parameters = {
                    "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }  # fmt: skip
                writer.add_tensor("rope_freqs.weight", rope.frequency_factors(parameters, 8))

        return fill

    def gpt2(writer) -> None:
        writer.add_context_length(4)
        writer.add_embedding_length(8)
        writer.add_feed_forward_length(16)
        writer.add_block_count(1)
        writer.add_head_count(2)
        writer.add_layer_norm_eps(1e-5)
        vocabulary(writer, "gpt2")
        for name, shape in {
            "token_embd.weight": (8, 8), "position_embd.weight": (4, 8), "output_norm.weight": (8,),
            "output_norm.bias": (8,), "blk.0.attn_qkv.weight": (24, 8), "blk.0.attn_qkv.bias": (24,),
            "blk.0.ffn_up.weight": (16, 8), "blk.0.ffn_down.weight": (8, 16),
        }.items():  # fmt: skip
            writer.add_tensor(name, np.ones(shape, np.float32))

    return {
        "blocks": written("nobody-knows", blocks),
        "llama-bpe": written("llama", llama("gpt2")),
        "llama-sentencepiece": written("llama", llama("llama")),
        "llama-yarn": written("llama", llama("none", "yarn")),
        "llama-3": written("llama", llama("gpt2", "llama3")),
        "qwen2": written("qwen2", llama("gpt2")),
        "gpt2": written("gpt2", gpt2),
    }


def pickles() -> dict[str, bytes]:
    """State dicts as ``torch.save`` writes them, in both of its formats."""
    import torch

    base = torch.arange(12.0)
    values = {
        "plain": {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3, dtype=torch.bfloat16)},
        "views": {"row": base[3:6], "column": base.view(3, 4)[:, 1], "turned": base.view(3, 4).T, "whole": base},
        "odd": {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 3), "flags": torch.tensor([True, False])},
        "parameter": {"p": torch.nn.Parameter(torch.ones(2)), "long": torch.arange(3)},
        "complex": {"c": torch.ones(2, dtype=torch.complex64)},
        "sparse": {"s": torch.eye(2).to_sparse()},
        "nested": {"a": {"b": torch.ones(1)}, "n": 3},
        "meta": {"m": torch.ones(2, device="meta")},
    }
    made = {}
    for name, value in values.items():
        for ending, zipped in (("", True), ("-before-zip", False)):
            stream = io.BytesIO()
            torch.save(value, stream, _use_new_zipfile_serialization=zipped)
            made[name + ending] = stream.getvalue()
    return made


def archives() -> dict[str, bytes]:
    """Archives of a config and a state dict, plain and quantized to 8 bits."""
    import torch

    states = {
        "plain": ({"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}, {"dtype": "float32"}),
        "int8": (
            {"a.weight": torch.ones(3, 4, dtype=torch.int8), "a.SCB": torch.ones(3), "b": torch.ones(2)},
            {"torch_dtype": "float16", "quantization_config": {"load_in_8bit": True}},
        ),
    }
    made = {}
    for name, (state, config) in states.items():
        for ending, zipped, method in (
            ("", True, zipfile.ZIP_STORED), ("-deflated", True, zipfile.ZIP_DEFLATED),
            ("-before-zip", False, zipfile.ZIP_STORED),
        ):  # fmt: skip
            stream, archive = io.BytesIO(), io.BytesIO()
            torch.save(state, stream, _use_new_zipfile_serialization=zipped)
            with zipfile.ZipFile(archive, "w", method) as file:
                file.writestr("model/weights.pt", stream.getvalue())
                if ending != "-deflated":
                    file.writestr("config.json", json.dumps(config))
                file.writestr("tokenizer/tokenizer.json", "{}")
                file.writestr("metadata.json", json.dumps({"format": "aibit", "config": config}))
            made[name + ending] = archive.getvalue()
    return made


def checkpoints() -> dict[str, dict[str, bytes]]:
    """Directories: with an index of either kind of weights, and quantized in each way that is known."""
    import numpy as np
    import torch
    from bitsandbytes import functional
    from safetensors.numpy import save
    from safetensors.torch import save as save_torch

    words = np.frombuffer(random.Random(0).randbytes(4096), np.int32)
    scales = np.full((2, 16), 0.5, np.float16)
    gptq = {
        "q.qweight": words[: 8 * 16].reshape(8, 16), "q.qzeros": words[:4].reshape(2, 2), "q.scales": scales,
        "q.g_idx": np.arange(64, dtype=np.int32) // 32,
    }  # fmt: skip
    even = gptq | {"q.qzeros": np.full((2, 2), 0x77777777, np.int32), "q.g_idx": np.repeat([0, 1], 32).astype(np.int32)}
    awq = {"q.qweight": words[:128].reshape(64, 2), "q.qzeros": words[:4].reshape(2, 2), "q.scales": scales}
    said = {"bits": 4, "group_size": 32}
    parts = [{"a": np.ones(3, np.float32)}, {"b": np.ones((2, 2), np.float16)}]
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}, "metadata": {"total_size": 20}}
    pickled = []
    for part in parts:
        stream = io.BytesIO()
        torch.save({name: torch.from_numpy(value) for name, value in part.items()}, stream)
        pickled.append(stream.getvalue())
    weight, state = functional.quantize_4bit(torch.ones(8, 64), quant_type="nf4", compress_statistics=True)
    four = {"q.weight": weight} | {f"q.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    eight = {"q.weight": torch.ones(3, 4, dtype=torch.int8), "q.SCB": torch.ones(3)}
    eight["q.weight_format"] = torch.tensor(0, dtype=torch.uint8)

    def folder(weights: bytes, config: dict[str, Any], **others: Any) -> dict[str, bytes]:
        documents = {f"{name}.json": json.dumps(value).encode() for name, value in others.items()}
        return {"config.json": json.dumps(config).encode(), "model.safetensors": weights, **documents}

    def quantized(method: str, **config: Any) -> dict[str, Any]:
        return {"dtype": "float16", "model_type": "gpt2", "quantization_config": {"quant_method": method, **config}}

    return {
        "plain": folder(save(parts[0]), {"model_type": "llama"}, generation_config={"eos_token_id": 2}),
        "index": {
            "config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(),
            "one.safetensors": save(parts[0]), "two.safetensors": save(parts[1]),
        },
        "index-of-pickles": {
            "config.json": b"{}",
            "pytorch_model.bin.index.json": json.dumps({"weight_map": {"a": "one.bin", "b": "two.bin"}}).encode(),
            "one.bin": pickled[0], "two.bin": pickled[1],
        },
        "gptq": folder(save(gptq), quantized("gptq", desc_act=True, dynamic={"q": {"bits": 4}, "-:b": {}}, **said)),
        "gptq-symmetric": folder(save(even), quantized("gptq", sym=True, meta={"quantizer": ["gptqmodel:5"]}, **said)),
        "gptq-2": folder(save(even), quantized("gptq", checkpoint_format="gptq_v2", **said)),
        "gptq-beside": folder(save(gptq), {"dtype": "bfloat16"}, quantize_config=said | {"sym": False}),
        "awq": folder(save(awq), quantized("awq", version="gemm", modules_to_not_convert=["b"], **said)),
        "nf4": folder(save_torch(four), quantized("bitsandbytes", load_in_4bit=True, bnb_4bit_compute_dtype="float16")),
        "int8": folder(save_torch(eight), quantized("bitsandbytes", load_in_8bit=True, llm_int8_threshold=6.0)),
    }  # fmt: skip
