"""Exports to a GGUF file for llama.cpp and programs built on it, with an Ollama ``Modelfile`` beside it.

Blocks that came from a GGUF file go back unchanged. Names, the order of rows, the metadata and the choice of float32
for small tensors are those of llama.cpp's own ``convert_hf_to_gguf.py``; the file is written by gguf-py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ...container.tables import TensorInfo
from ...dtypes import from_float32
from ...errors import MissingPackageError, SchemeError, SourceError, WriteError
from ...file.progress import Progress
from ...file.sharded_reader import Opened
from ...io.atomic import AtomicFile
from ...schemes import Scheme, make
from ...schemes.ggml import GGML
from ...schemes.plain import Plain
from ..export_tensors import config_of, stored
from .architectures import BY_MODEL_TYPE, ROPE_FACTORS, Family, gguf_rows, head_dim_of, keys_of
from .file import NUMBERS
from .rope import frequency_factors, parameters_of
from .source import DOCUMENT
from .tokenizer_out import metadata_of

KEEP = "keep"
# Type of the matrices -> llama.cpp's number for a file mostly of that type (``general.file_type``).
TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32,
    "q2_k": 10, "q3_k": 12, "q4_k": 15, "q5_k": 17, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23,
    "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30, "iq1_m": 31, "tq1_0": 36, "tq2_0": 37,
    "mxfp4": 38, "nvfp4": 39, "q1_0": 40, "q2_0": 41,
}  # fmt: skip
ENCODED = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_PLAIN = ("f32", "f16", "bf16")
# Buffers that some checkpoints hold and GGUF does not.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_QUANTIZATION_VERSION = 2  # of GGML's blocks, since 2023
_OWN = frozenset(f"general.{key}" for key in ("architecture", "type", "file_type", "quantization_version", "alignment"))


@dataclass(frozen=True, slots=True)
class Item:
    """Describe a tensor to be written: name, type and shape in GGUF, its size in bytes, and how to make its array."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    make: Callable[[], np.ndarray]


def export(
    file: Opened,
    path: str,
    *,
    type: str = KEEP,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> list[str]:
    """Write the GGUF file ``path`` and ``Modelfile`` in its directory; returns the paths written.

    Args:
        file: a file that holds a Llama, Qwen2 or GPT-2 model.
        path: the file to write.
        type: of the matrices: ``"keep"`` for the blocks and dtypes that they are stored in, and f16 for schemes that
            GGUF lacks; or one of ``ENCODED``. Vectors, norms and positions are f32, as llama.cpp wants them; a
            matrix whose rows are not whole blocks is f16.
        overwrite: replace the two files if they exist.
        on_progress: called with bytes done, total bytes, and the tensor's name in GGUF.

    Raises:
        WriteError: GGUF cannot hold the model or tokenizer; a file exists; or it cannot be written.
        SchemeError: the type cannot hold a value.
        MissingPackageError: gguf-py is not installed.
    """
    if type not in (KEEP, *ENCODED):
        raise ValueError(f"type={type!r}: one of {', '.join((KEEP, *ENCODED))}")
    library = _library()
    path = os.fspath(path)
    modelfile = os.path.join(os.path.dirname(path), "Modelfile")
    for target in (path, modelfile):
        if os.path.lexists(target) and not overwrite:
            raise WriteError(f"{target}: exists; say overwrite=True (--force) to replace it")
    try:
        family, config = _model(file)
        items = _items(file, family, config, type)
        values = _metadata(file, family, config, items, type, path)
    except SourceError as error:
        raise WriteError(f"{file.path}: {error}") from error
    text = _modelfile(os.path.basename(path), values).encode()
    try:
        with AtomicFile(path, overwrite) as model, AtomicFile(modelfile, overwrite) as side:
            _write(library, model.name, family.gguf, values, items, on_progress)
            side.write(text)
            model.publish()
            side.publish()
    except OSError as error:
        raise WriteError(f"{path}: {error.strerror or error}") from error
    return [path, modelfile]


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise MissingPackageError("writing GGUF needs gguf: pip install 'aibit-format[gguf]'") from error
    return gguf


def _model(file: Opened) -> tuple[Family, dict[str, Any]]:
    config = config_of(file)
    if config is None:
        raise SourceError("holds tensors but no model: GGUF needs one")
    family = BY_MODEL_TYPE.get(str(config.get("model_type")))
    found = file.metadata.get("model.architecture")
    if family is None or found != family.architecture:
        known = ", ".join(family.architecture for family in BY_MODEL_TYPE.values())
        raise SourceError(f"holds a {found or config.get('model_type')}; GGUF is written for {known}")
    embeddings = f"{family.outer['token_embd']}.weight"
    if embeddings not in file:
        raise SourceError(f"tensor {embeddings!r} is missing")
    return family, config | {"vocab_size": file.info(embeddings).shape[0]}


def _items(file: Opened, family: Family, config: dict[str, Any], wanted: str) -> list[Item]:
    layers = config.get(family.integers["block_count"])
    names = family.names(layers if isinstance(layers, int) else 0)
    items = []
    if family.rope and (parameters := parameters_of(config))["rope_type"] == "llama3":
        factors = frequency_factors(parameters, head_dim_of(config))
        items.append(Item(ROPE_FACTORS, "f32", factors.shape, factors.nbytes, lambda: factors))
    for info in stored(file):
        if info.name in names:
            items.append(_item(file, info, names[info.name], family, config, wanted))
        elif not info.name.endswith(_BUFFERS):
            raise SourceError(f"tensor {info.name!r} has no place in GGUF's {family.gguf}")
    return items


def _item(file: Opened, info: TensorInfo, name: str, family: Family, config: dict[str, Any], wanted: str) -> Item:
    # Rows of GGUF are rows of a Linear, so a Conv1D of transformers is transposed.
    turned = info.transposed != family.is_conv1d(name)
    shape = info.shape[::-1] if turned else info.shape
    key = family.heads_key(name)
    order = gguf_rows(shape[0], _heads(config, family.integers[key])) if key else None
    scheme = _target(info, name, shape, turned, wanted)
    (plane,) = scheme.planes(shape, scheme.name if isinstance(scheme, Plain) else "f32")

    def make_array() -> np.ndarray:
        array = _array(file, info, scheme, turned)
        return np.ascontiguousarray(array if order is None else array[order])

    return Item(name, scheme.name.removeprefix("gguf:"), tuple(shape), plane.nbytes, make_array)


def _heads(config: dict[str, Any], key: str) -> int:
    return config.get(key) or config["num_attention_heads"]


def _target(info: TensorInfo, name: str, shape: Sequence[int], turned: bool, wanted: str) -> Scheme:
    """Choose the scheme of a tensor in GGUF."""
    kept = not turned and isinstance(info.scheme, GGML)
    if wanted == KEEP and kept:
        return info.scheme
    if len(shape) < 2 or name.endswith("_norm.weight") or name == "position_embd.weight":
        return make("f32")
    if wanted == KEEP:
        return make(info.scheme.name if info.scheme.name in _PLAIN else "f16")
    scheme = make(wanted if wanted in _PLAIN else f"gguf:{wanted}")
    if isinstance(scheme, GGML) and shape[-1] % scheme.layout.block:
        return make("f16")
    return scheme


def _array(file: Opened, info: TensorInfo, scheme: Scheme, turned: bool) -> np.ndarray:
    """Make the one plane of ``scheme`` that a tensor becomes; each of its rows is a row of the model."""
    planes = file.planes(info.name)
    file.check_values(info, planes)
    if scheme == info.scheme:
        (plane,) = planes.values()
        return plane.T if turned else plane
    values = info.scheme.decode(planes, info.shape, info.dtype)
    values = np.ascontiguousarray(values.T) if turned else values
    try:
        if isinstance(scheme, Plain):
            return from_float32(values, scheme.name)
        return scheme.encode(values, "f32")["blocks"]
    except SchemeError as error:
        raise SchemeError(f"{file.path}: tensor {info.name!r}: {error}") from error


def _metadata(
    file: Opened, family: Family, config: dict[str, Any], items: Sequence[Item], wanted: str, path: str
) -> dict[str, Any]:
    """Collect all metadata except the architecture's name, which the writer adds."""
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.type] = sizes.get(item.type, 0) + item.nbytes
    mostly = max(sizes, key=lambda kind: sizes[kind], default="f32") if wanted == KEEP else wanted
    before = file.check_document(DOCUMENT) if DOCUMENT in file.documents else {}
    general = {key: value for key, value in before.items() if key.startswith("general.") and isinstance(value, str)}
    return {
        "general.type": "model",
        "general.name": os.path.splitext(os.path.basename(path))[0],
        **{key: value for key, value in general.items() if key not in _OWN},
        "general.file_type": TYPES[mostly],
        "general.quantization_version": _QUANTIZATION_VERSION,
        **keys_of(family, config),
        **metadata_of(file, config),
    }


def _write(
    library: ModuleType,
    path: str,
    architecture: str,
    values: dict[str, Any],
    items: Sequence[Item],
    on_progress: Progress | None,
) -> None:
    writer = library.GGUFWriter(path, architecture)
    add = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
        list: writer.add_array,
    }  # fmt: skip
    try:
        for key, value in values.items():
            add[value.__class__](key, value)
        for item in items:
            # The shape is that of elements, which the library understands from any dtype but uint8. The number of the
            # type is not the library's own, as an older one does not know the newest types.
            writer.add_tensor_info(item.name, item.shape, np.dtype(np.float32), item.nbytes, NUMBERS[item.type])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(item.nbytes for item in items)
        for item in items:
            writer.write_tensor_data(item.make())
            done += item.nbytes
            if on_progress is not None:
                on_progress(done, total, item.name)
    finally:
        writer.close()


def _modelfile(name: str, values: dict[str, Any]) -> str:
    """Write Ollama's Modelfile. Ollama reads the chat template from the GGUF file; stop tokens are repeated here."""
    tokens = values.get("tokenizer.ggml.tokens", [])
    ids = dict.fromkeys(values.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot"))
    ends = [tokens[i] for i in ids if isinstance(i, int) and tokens]
    quotable = (end for end in ends if end.isprintable() and '"' not in end)
    return "".join([f"FROM ./{name}\n", *(f'PARAMETER stop "{end}"\n' for end in quotable)])
