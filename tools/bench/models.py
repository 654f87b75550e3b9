"""The files that the rows read, made from configs and formulas and kept in the work folder.

Nothing is downloaded: weights are random, which costs a loader and a converter what trained ones cost. (Speed and
memory are measured here, quality is not.) Checkpoints depend on nothing but this module and are kept from run to run.
Files that the package itself writes are made again by every run, because the package is what is under test.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

_DEVIATION = 0.02  # of the weights; transformers' own initializer_range
_SPARE = 1 << 30  # bytes to leave free on the disk
_ROWS = 1 << 11  # rows of random numbers held at a time


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama, under the names that its config gives them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the order of the file."""
        hidden, inner = self.hidden_size, self.intermediate_size
        pairs = hidden // self.num_attention_heads * self.num_key_value_heads
        yield "lm_head.weight", (self.vocab_size, hidden)
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for i in range(self.num_hidden_layers):
            layer = f"model.layers.{i}"
            yield f"{layer}.input_layernorm.weight", (hidden,)
            yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
            yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
            yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
            yield f"{layer}.post_attention_layernorm.weight", (hidden,)
            yield f"{layer}.self_attn.k_proj.weight", (pairs, hidden)
            yield f"{layer}.self_attn.o_proj.weight", (hidden, hidden)
            yield f"{layer}.self_attn.q_proj.weight", (hidden, hidden)
            yield f"{layer}.self_attn.v_proj.weight", (pairs, hidden)
        yield "model.norm.weight", (hidden,)

    @property
    def bytes(self) -> int:
        """Of the weights in float16."""
        return sum(2 * int(np.prod(shape)) for _, shape in self.tensors())


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return {"I8": 1, "U8": 1, "F16": 2, "I32": 4, "I64": 8}[self.dtype] * math.prod(self.shape)


SHAPES = {
    "1.1b": Shape(32000, 2048, 5632, 22, 32, 4),
    "160m": Shape(32000, 768, 2048, 12, 12, 4),
    "tiny": Shape(1024, 256, 704, 4, 8, 4),
    "small": Shape(1024, 256, 768, 4, 8, 4),  # whole blocks of every format: what `formats` warms up with
    "7b-8-layers": Shape(32000, 4096, 11008, 8, 32, 32),  # for a GPU, which 1.1b keeps busy with anything but weights
}


def need(work: Path, wanted: int) -> None:
    """Stop before the disk is full, not after."""
    free = shutil.disk_usage(work).free
    if free < wanted + _SPARE:
        raise SystemExit(f"{work}: {free >> 20} MiB free, {(wanted + _SPARE) >> 20} MiB wanted; give another --work")


def checkpoint(name: str, work: Path) -> Path:
    """The float16 checkpoint of a model, as a hub would hold it: config and one safetensors file, no tokenizer."""
    folder, shape = work / f"{name}-fp16", SHAPES[name]
    if (folder / "config.json").is_file():  # written last
        return folder
    need(work, shape.bytes)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", float16(shape), normal(np.random.default_rng(0)))
    write_config(folder, shape)
    return folder


def write_config(folder: Path, shape: Shape, **more: object) -> None:
    """The config of a model, written when its weights are there: a folder that has one is whole."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **asdict(shape),
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")


def write_safetensors(
    path: Path,
    entries: Iterable[Entry],
    bands: Callable[[Entry], Iterable[np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """A safetensors file, one of the ``bands`` of an entry in memory at a time."""
    entries = list(entries)
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            for band in bands(entry):
                out.write(band.tobytes())


def float16(shape: Shape) -> list[Entry]:
    """The tensors of a model that is not quantized."""
    return [Entry(name, "F16", size) for name, size in shape.tensors()]


def normal(random: np.random.Generator) -> Callable[[Entry], Iterator[np.ndarray]]:
    """Bands of rows of random float16 weights; norms are ones."""

    def bands(entry: Entry) -> Iterator[np.ndarray]:
        if len(entry.shape) == 1:
            yield np.ones(entry.shape, np.float16)  # the gain of a norm
            return
        for start in range(0, entry.shape[0], _ROWS):
            band = random.standard_normal((min(_ROWS, entry.shape[0] - start), entry.shape[1]), np.float32)
            yield (band * np.float32(_DEVIATION)).astype(np.float16)

    return bands


def many_tensors(count: int, work: Path) -> Path:
    """An ``.aibit`` file of ``count`` int8 tensors of 2 x 4, named as those of a mixture of experts are."""
    from aibit_format.file import writer
    from aibit_format.schemes import make

    path, scheme = work / f"many-{count}.aibit", make("int8")
    kinds = ("gate_proj", "up_proj", "down_proj")
    names = (f"model.layers.{i // 192}.mlp.experts.{i // 3 % 64}.{kinds[i % 3]}.weight" for i in range(count))
    planes = {"codes": np.full((2, 4), 127, np.int8), "row_absmax": np.ones(2, np.float32)}
    writer.write(path, {writer.Tensor(name, (2, 4), "f16", scheme): planes for name in names}, overwrite=True)
    return path


def read_through(path: Path) -> None:
    """Bring every file of a checkpoint, or one file, into the page cache."""
    buffer = bytearray(8 << 20)
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with file.open("rb", buffering=0) as data:
            while data.readinto(buffer):
                pass


def remove(path: Path) -> None:
    """Remove a file or a folder that a run has made, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    return path.stat().st_size if path.is_file() else sum(os.path.getsize(p) for p in path.iterdir())
