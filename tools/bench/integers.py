"""The model as HQQ, torchao and llama.cpp save it: random codes with constant scales, which a converter takes over.

Each function makes its output whole or not at all, and leaves one that is there as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tools.bench import models
from tools.bench.models import Entry, Shape

_SCALES = {"hqq": np.float16(0.004), "torchao": np.float16(0.0003)}  # weights are about 0.02
_GROUP = 64  # columns of HQQ with one scale
_PACKING = np.frombuffer(b"4bit_u8", np.uint8)
# Type of GGUF -> offset of a float16 in its block -> value.
_BLOCKS = {"q4_k": {0: 1e-4, 2: 7.5e-4}, "q6_k": {208: 6.2e-5}}
# A part of a weight, by its end behind the module's name: its entry, and its values if they are not random.
_Parts = Callable[[str, int, int], dict[Entry, np.ndarray | None]]


def hqq(shape: Shape, folder: Path) -> Path:
    """A directory of 4 bits in groups of 64 along rows (``axis`` 1), as transformers saves HQQ's layers."""
    said = {"quant_config": {"weight_quant_params": {"nbits": 4, "group_size": _GROUP, "axis": 1}}}

    def parts(module: str, rows: int, columns: int) -> dict[Entry, np.ndarray | None]:
        groups = rows * columns // _GROUP
        numbers = {"nbits": 4, "group_size": _GROUP, "axis": 1, "view_as_float": 0}
        return {
            Entry(f"{module}.W_q", "U8", (groups // 2, _GROUP)): None,
            Entry(f"{module}.scale", "F16", (groups, 1)): np.full((groups, 1), _SCALES["hqq"]),
            Entry(f"{module}.zero", "F16", (groups, 1)): np.full((groups, 1), np.float16(7.5)),
            Entry(f"{module}.shape", "I64", (2,)): np.array([rows, columns], np.int64),
            Entry(f"{module}.packing", "U8", (len(_PACKING),)): _PACKING,
            **{Entry(f"{module}.{key}", "I32", ()): np.array(value, np.int32) for key, value in numbers.items()},
        }

    return _written(shape, folder, {"quant_method": "hqq", **said}, parts, {})


def torchao(shape: Shape, folder: Path) -> Path:
    """A directory of int8 with a scale a row, as torchao's tensors are saved (``Int8WeightOnlyConfig``)."""
    metadata: dict[str, str] = {}

    def parts(module: str, rows: int, columns: int) -> dict[Entry, np.ndarray | None]:
        data = {"block_size": [1, columns], "dtype": {"_type": "torch.dtype", "_data": "float16"}}
        said = {"_type": "Int8Tensor", "_data": data, "_tensor_data_names": ["qdata", "scale"]}
        metadata[f"{module}.weight"] = json.dumps(said)
        return {
            Entry(f"{module}._weight_qdata", "I8", (rows, columns)): None,
            Entry(f"{module}._weight_scale", "F16", (rows, 1)): np.full((rows, 1), _SCALES["torchao"]),
        }

    said = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
    return _written(shape, folder, said, parts, metadata)


def gguf_blocks(kind: str, template: Path, path: Path) -> Path:
    """A GGUF file like ``template``, whose q8_0 tensors are random blocks of another type."""
    if path.is_file():
        return path
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter

    reader, partial = GGUFReader(template), path.with_suffix(".partial")
    stored = GGMLQuantizationType[kind.upper()]
    elements, size = GGML_QUANT_SIZES[stored]
    writer, random = GGUFWriter(partial, reader.fields["general.architecture"].contents()), np.random.default_rng(0)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for tensor in reader.tensors:
        if tensor.tensor_type != GGMLQuantizationType.Q8_0:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        columns, rows = map(int, tensor.shape)
        blocks = np.frombuffer(random.bytes(rows * columns // elements * size), np.uint8).reshape(-1, size).copy()
        for offset, value in _BLOCKS[kind].items():
            blocks[:, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        writer.add_tensor(tensor.name, blocks.reshape(rows, -1), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
    return path


def _written(shape: Shape, folder: Path, said: dict[str, object], parts: _Parts, metadata: dict[str, str]) -> Path:
    """Write a directory; ``metadata`` of its file is what there is once all parts are made."""
    if (folder / "config.json").is_file():
        return folder
    models.need(folder.parent, shape.bytes * 5 // 8)
    folder.mkdir(exist_ok=True)
    made: dict[Entry, np.ndarray | None] = {}
    plain: set[Entry] = set()
    for entry in models.float16(shape):
        if ".layers." in entry.name and len(entry.shape) == 2:
            made |= parts(entry.name.removesuffix(".weight"), *entry.shape)
        else:
            plain.add(entry)
            made[entry] = None
    random = np.random.default_rng(0)
    normal = models.normal(random)

    def bands(entry: Entry) -> Iterator[np.ndarray]:
        value = made[entry]
        if entry in plain:
            yield from normal(entry)
        elif value is not None:
            yield value
        else:
            yield np.frombuffer(random.bytes(entry.bytes), np.uint8)

    models.write_safetensors(folder / "model.safetensors", made, bands, metadata)
    models.write_config(folder, shape, quantization_config=said)
    return folder
