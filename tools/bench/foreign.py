"""The same model as others store it: what the row ``sources`` converts, beside what ``models`` and transformers make.

Weights that are only taken over are random bits with a constant scale. Each function makes its output whole or not at
all, and leaves one that is there as it is.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tools.bench import models
from tools.bench.loaders import STATE_DICT
from tools.bench.models import Entry, Shape

_SCALE = np.float16(0.01)
_GROUP = 128  # columns of GPTQ and AWQ with one scale, where the sizes of the model allow it
_CODES = 8  # of 4 bits in a word
_SYMMETRIC = 0x77777777  # eight zero points, as GPTQ stores them
_BLOCK = 32  # values of a q8_0 block, which is a float16 scale and a byte for each


def pytorch_bin(source: Path, folder: Path) -> Path:
    """A directory with the state dict of ``source`` as torch.save writes it."""
    if not (folder / "config.json").is_file():
        models.need(folder.parent, models.size_of(source))
        folder.mkdir(exist_ok=True)
        _save(source / "model.safetensors", folder / "pytorch_model.bin")
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return folder


def archive(saved: Path, path: Path) -> Path:
    """The ZIP archive that came before the format, of a directory that transformers saved in 8 bits."""
    if not path.is_file():
        models.need(path.parent, 2 * models.size_of(saved))
        weights, partial = path.with_suffix(".pt"), path.with_suffix(".partial")
        _save(saved / "model.safetensors", weights)
        config = (saved / "config.json").read_text("utf-8")
        with zipfile.ZipFile(partial, "w") as file:  # stored: a compressed state dict is unpacked in memory
            file.write(weights, "model/weights.pt")
            file.writestr("config.json", config)
            file.writestr("metadata.json", json.dumps({"format": "aibit", "config": json.loads(config)}))
        weights.unlink()
        partial.rename(path)
    return path


def state_dict(saved: Path, folder: Path) -> Path:
    """What was in that archive, as files: the state dict and the config."""
    if not (folder / "config.json").is_file():
        models.need(folder.parent, models.size_of(saved))
        folder.mkdir(exist_ok=True)
        _save(saved / "model.safetensors", folder / STATE_DICT)
        (folder / "config.json").write_bytes((saved / "config.json").read_bytes())
    return folder


def _save(weights: Path, path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(weights), path)


def four_bit_words(method: str, shape: Shape, folder: Path) -> Path:
    """A directory as GPTQ ("gptq") or AWQ ("awq") tools write it: four-bit codes in 32-bit words."""
    if (folder / "config.json").is_file():
        return folder
    models.need(folder.parent, shape.bytes // 2)
    folder.mkdir(exist_ok=True)
    group = math.gcd(_GROUP, shape.hidden_size, shape.intermediate_size)
    said: dict[str, object] = {"quant_method": method, "bits": 4, "group_size": group}
    said |= {"desc_act": False, "sym": True} if method == "gptq" else {"zero_point": True, "version": "gemm"}
    entries = [part for entry in models.float16(shape) for part in _parts(method, entry, group)]
    random = np.random.default_rng(0)
    plain = models.normal(random)

    def bands(entry: Entry) -> Iterator[np.ndarray]:
        part = entry.name.rpartition(".")[2]
        if part == "weight":
            yield from plain(entry)
        elif part == "scales":
            yield np.full(entry.shape, _SCALE)
        elif part == "g_idx":
            yield np.arange(entry.shape[0], dtype=np.int32) // np.int32(group)
        elif part == "qzeros" and method == "gptq":
            yield np.full(entry.shape, _SYMMETRIC, np.int32)
        else:
            yield np.frombuffer(random.bytes(entry.bytes), np.int32)

    models.write_safetensors(folder / "model.safetensors", entries, bands)
    models.write_config(folder, shape, quantization_config=said)
    return folder


def _parts(method: str, entry: Entry, group: int) -> list[Entry]:
    """What stands in the place of a weight: of the Linear modules in layers that is several tensors."""
    if ".layers." not in entry.name or len(entry.shape) == 1:
        return [entry]
    (rows, columns), module = entry.shape, entry.name.removesuffix(".weight")
    gptq = method == "gptq"
    found = [
        Entry(f"{module}.qweight", "I32", (columns // _CODES, rows) if gptq else (columns, rows // _CODES)),
        Entry(f"{module}.qzeros", "I32", (columns // group, rows // _CODES)),
        Entry(f"{module}.scales", "F16", (columns // group, rows)),
    ]
    return [*found, Entry(f"{module}.g_idx", "I32", (columns,))] if gptq else found


def gguf_q8_0(shape: Shape, path: Path) -> Path:
    """A GGUF file whose matrices are all q8_0, without a tokenizer; its norms are float32, as llama.cpp has them."""
    if path.is_file():
        return path
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map

    models.need(path.parent, shape.bytes * 5 // 8)
    partial = path.with_suffix(".partial")
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, shape.num_hidden_layers)
    random, row = np.random.default_rng(0), _BLOCK + _SCALE.nbytes
    writer = GGUFWriter(partial, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("none")  # llama.cpp opens no file that does not say
    tensors = [(f"{names.get_name(name.removesuffix('.weight'))}.weight", size) for name, size in shape.tensors()]
    for name, size in tensors:
        if len(size) == 1:
            writer.add_tensor_info(name, size, np.dtype(np.float32), 4 * size[0], GGMLQuantizationType.F32)
        else:
            stored = size[0], size[1] // _BLOCK * row
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, size in tensors:
        if len(size) == 1:
            writer.write_tensor_data(np.ones(size, np.float32))
            continue
        blocks = np.frombuffer(bytearray(random.bytes(math.prod(size) // _BLOCK * row)), np.uint8).reshape(-1, row)
        blocks[:, : _SCALE.nbytes] = np.frombuffer(_SCALE.tobytes(), np.uint8)
        writer.write_tensor_data(blocks)
    writer.close()
    os.replace(partial, path)
    return path
