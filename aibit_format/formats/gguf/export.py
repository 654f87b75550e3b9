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
from ...hf.tokenizer_files import REASON
from ...io.atomic import AtomicFile
from ...schemes import Scheme, capabilities, make
from ...schemes.base import swapped
from ...schemes.ggml import GGML
from ...schemes.plain import Plain
from ..export_tensors import config_of, stored
from .architecture import EMBEDDINGS, Architecture, Place
from .architectures import KNOWN, of_config
from .file import NUMBERS
from .operations import SAME
from .rope import factors_of
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
ENCODED = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k",
    "q2_k",
)  # fmt: skip
_PLAIN = ("f32", "f16", "bf16")
_STORED = (*_PLAIN, "f64", "i8", "i16", "i32", "i64")  # dtypes that GGUF has
# Names whose matrices are f32: llama.cpp computes with them so, and its own conversion writes them so.
_FLOAT32 = (
    "_norm.weight", "position_embd.weight", "token_types.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight",
    "ssm_conv1d.weight", "shortconv.conv.weight", "ssm_a", "ssm_d", ".bias", "attn_rel_b.weight", ".scale",
)  # fmt: skip
# Buffers that some checkpoints hold and GGUF does not.
_BUFFERS = ("embeddings.position_ids", ".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_QUANTIZATION_VERSION = 2  # of GGML's blocks, since 2023
_CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
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
        file: a file that holds a model of one of ``architectures``, or what came from GGUF without being a model.
        path: the file to write.
        type: of the matrices: ``"keep"`` for the blocks and dtypes that they are stored in, and f16 for schemes that
            GGUF lacks; or one of ``ENCODED``. Vectors, norms and positions are f32, as llama.cpp wants them; a
            matrix whose rows are not whole blocks has the type's fallback, as in llama.cpp, or is f16.
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
        if config_of(file) is None and DOCUMENT in file.documents:
            architecture, items, values = _without_model(file, type)
        else:
            model, config = _model(file)
            items = _items(file, model, config, type)
            architecture, values = model.gguf, _metadata(file, model, config, items, type, path)
    except SourceError as error:
        raise WriteError(f"{file.path}: {error}") from error
    text = _modelfile(os.path.basename(path), values).encode()
    try:
        with AtomicFile(path, overwrite) as out, AtomicFile(modelfile, overwrite) as side:
            _write(library, out.name, architecture, values, items, on_progress)
            side.write(text)
            out.publish()
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


def _model(file: Opened) -> tuple[Architecture, dict[str, Any]]:
    config = config_of(file)
    if config is None:
        raise SourceError("holds tensors but no model: GGUF needs one")
    stated = file.metadata.get("model.architecture")
    found = [model for model in of_config(config) if model.architecture == stated]
    if not found:
        raise SourceError(
            f"holds a {stated or config.get('model_type')} ({config.get('model_type')}); GGUF is written for "
            f"{', '.join(KNOWN)}"
        )
    embeddings = next(row.name for row in found[0].rows if row.parts == (EMBEDDINGS,))
    if embeddings not in file:
        raise SourceError(f"tensor {embeddings!r} is missing")
    config = config | {"vocab_size": file.info(embeddings).shape[0]}
    if (layers := _layers(found[0], config)) > len(file):
        raise SourceError(f"config.json: {layers} layers in a file of {len(file)} tensors")
    problems, fitting = [], []
    for model in found:  # of several forms of one model, such as Falcon's, those which its config describes
        try:
            model.values(config)
            factors_of(config)
            fitting.append(model)
        except SourceError as error:
            problems.append(error)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            problems.append(SourceError(f"config.json: {error!r}: a value is missing, or has no meaning"))
    if not fitting:
        raise problems[0]
    return min(fitting, key=lambda model: _decoded(file, model, config)), config


def _decoded(file: Opened, model: Architecture, config: dict[str, Any]) -> int:
    """Count the tensors whose blocks do not go into this form of a model as they are."""
    places = _places(file, model, config)
    stored_in_blocks = (
        info for info in stored(file) if isinstance(info.scheme.unordered, GGML) and info.name in places
    )
    return sum(not _moves(file, info, places[info.name], config) for info in stored_in_blocks)


def _places(file: Opened, model: Architecture, config: dict[str, Any]) -> dict[str, Place]:
    return model.names(_layers(model, config), set(file))


def _layers(model: Architecture, config: dict[str, Any]) -> int:
    return max((count for key in model.layers if isinstance(count := config.get(key), int)), default=0)


def _without_model(file: Opened, wanted: str) -> tuple[str, list[Item], dict[str, Any]]:
    """Return architecture, tensors and metadata of what came from GGUF and is no model of transformers: as they came.

    Raises:
        SourceError: the metadata are not GGUF's, a tensor is in a scheme that GGUF lacks, or a type is wanted: nothing
            says which tensors it would be for.
    """
    if wanted != KEEP:
        raise SourceError(f"type {wanted!r}: nothing says which tensors it is for, as there is no model; say {KEEP!r}")
    before = file.check_document(DOCUMENT)
    architecture = before.get("general.architecture") if isinstance(before, dict) else None
    if not isinstance(architecture, str):
        raise SourceError("holds tensors but no model, and no metadata of GGUF")
    left_out = ("general.architecture", "general.alignment", "split.no", "split.count", "split.tensors.count", REASON)
    values = {key: value for key, value in before.items() if key not in left_out}
    if isinstance(table := values.get(_CHARSMAP), list) and {type(i) for i in table} == {int}:
        values[_CHARSMAP] = bytes(i & 255 for i in table)  # which files have as bytes
    for key, value in values.items():
        kinds = {*map(type, value)} if isinstance(value, list) else {type(value)}
        if len(kinds) != 1 or not kinds <= {bool, int, float, str, bytes}:
            raise SourceError(f"{DOCUMENT}: {key} holds what GGUF's metadata cannot, or nothing")
    items = []
    for info in stored(file):
        kept = isinstance(info.scheme, GGML) or (isinstance(info.scheme, Plain) and info.scheme.name in _STORED)
        if not kept:
            raise SourceError(f"tensor {info.name!r} is in {info.scheme.text}, which GGUF lacks")
        (plane,) = info.scheme.planes(info.shape, info.dtype)
        kind = info.scheme.name.removeprefix("gguf:")
        items.append(Item(info.name, kind, info.shape, plane.nbytes, lambda info=info: _plane(file, info)))
    return architecture, items, values


def _plane(file: Opened, info: TensorInfo) -> np.ndarray:
    planes = file.planes(info.name)
    file.check_values(info, planes)
    (plane,) = planes.values()
    return plane


def _items(file: Opened, model: Architecture, config: dict[str, Any], wanted: str) -> list[Item]:
    places = _places(file, model, config)
    items = []
    for name, factors in factors_of(config).items():
        items.append(Item(name, "f32", factors.shape, factors.nbytes, lambda factors=factors: factors))
    for info in stored(file):
        if info.name in places:
            items += _parts(file, info, places[info.name], config, wanted)
        elif info.alias_of is None and info.name not in model.left_out and not info.name.endswith(_BUFFERS):
            raise SourceError(f"tensor {info.name!r} has no place in GGUF's {model.gguf}")
    return items


def _parts(file: Opened, info: TensorInfo, place: Place, config: dict[str, Any], wanted: str) -> list[Item]:
    """Return what a tensor of transformers becomes in GGUF: one tensor, or two of the same type."""
    operation = place.row.operation
    # Rows of GGUF are rows of a Linear, so a Conv1D of transformers is transposed, and so are gpt-oss's experts.
    turned = info.transposed != operation.turned
    shape = swapped(info.shape) if turned else info.shape
    try:
        shapes = operation.parts(shape, config)
    except SourceError as error:
        raise SourceError(f"tensor {info.name!r} has shape {list(shape)}, for {error}") from error
    scheme = _target(file, info, place, shapes[0], turned, config, wanted)
    made: list[list[np.ndarray]] = []  # of the tensor at hand: its parts are written one after the other

    def make_part(i: int) -> np.ndarray:
        if i == 0:
            made[:] = [_arrays(file, info, place, scheme, turned, config)]
        return np.ascontiguousarray(made.pop()[i] if i == len(shapes) - 1 else made[0][i])

    items = []
    for i, (name, part) in enumerate(zip(place.parts, shapes, strict=True)):
        (plane,) = scheme.planes(part, scheme.name if isinstance(scheme, Plain) else "f32")
        kind = scheme.name.removeprefix("gguf:")
        items.append(Item(name, kind, tuple(part), plane.nbytes, lambda i=i: make_part(i)))
    return items


def _target(
    file: Opened, info: TensorInfo, place: Place, shape: Sequence[int], turned: bool, config: dict[str, Any],
    wanted: str,
) -> Scheme:  # fmt: skip
    """Choose the scheme of a tensor in GGUF."""
    held = info.scheme.unordered
    if wanted == KEEP and not turned and isinstance(held, GGML) and _moves(file, info, place, config):
        return held
    if len(shape) < 2 or place.parts[0].endswith(_FLOAT32):
        return make("f32")
    if wanted == KEEP:
        return make(info.scheme.name if info.scheme.name in _PLAIN else "f16")
    scheme: Scheme | None = make(wanted if wanted in _PLAIN else f"gguf:{wanted}")
    while isinstance(scheme, GGML) and shape[-1] % scheme.layout.block:
        scheme = scheme.fallback
    return scheme or make("f16")


def _moves(file: Opened, info: TensorInfo, place: Place, config: dict[str, Any]) -> bool:
    """Tell whether the tensor's planes can go through the operation as they are."""
    operation = place.row.operation
    if info.scheme.unordered != info.scheme:  # the order that undoes what llama.cpp did is the only one it wants
        order = operation.column_order(info.shape[-1], config)
        return order is not None and np.array_equal(file.planes(info.name)["column_order"], order)
    if operation is SAME:
        return True
    block = info.scheme.layout.block if isinstance(info.scheme, GGML) else 1
    return (block == 1 or len(info.shape) > 1) and operation.moves_blocks(block, config)


def _arrays(
    file: Opened, info: TensorInfo, place: Place, scheme: Scheme, turned: bool, config: dict[str, Any]
) -> list[np.ndarray]:
    """Make the one plane of ``scheme`` of each part that a tensor becomes; each of its rows is a row of the model."""
    planes = file.planes(info.name)
    file.check_values(info, planes)
    operation = place.row.operation
    if scheme == info.scheme.unordered and _moves(file, info, place, config):
        plane, *order = planes.values()
        if order:
            return [plane]
        return operation.to_gguf(np.swapaxes(plane, -1, -2) if turned else plane, config)
    values = info.scheme.decode(planes, info.shape, info.dtype)
    values = np.ascontiguousarray(np.swapaxes(values, -1, -2)) if turned else values
    arrays = [np.ascontiguousarray(array) for array in operation.to_gguf(values, config)]
    try:
        if isinstance(scheme, Plain):
            return [from_float32(array, scheme.name) for array in arrays]
        encode = capabilities.find(scheme, "encode_fast") or type(scheme).encode
        return [encode(scheme, array, "f32")["blocks"] for array in arrays]
    except SchemeError as error:
        raise SchemeError(f"{file.path}: tensor {info.name!r}: {error}") from error


def _metadata(
    file: Opened, model: Architecture, config: dict[str, Any], items: Sequence[Item], wanted: str, path: str
) -> dict[str, Any]:
    """Collect all metadata except the architecture's name, which the writer adds."""
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.type] = sizes.get(item.type, 0) + item.nbytes
    mostly = max(sizes, key=lambda kind: sizes[kind], default="f32") if wanted == KEEP else wanted
    before = file.check_document(DOCUMENT) if DOCUMENT in file.documents else {}
    general = {key: value for key, value in before.items() if key.startswith("general.") and _is_text(value)}
    return {
        "general.type": "model",
        "general.name": os.path.splitext(os.path.basename(path))[0],
        **{key: value for key, value in general.items() if key not in _OWN},
        "general.file_type": TYPES[mostly],
        "general.quantization_version": _QUANTIZATION_VERSION,
        **model.values(config),
        **{key: before[key] for key in (f"{model.gguf}.pooling_type",) if key in before},
        **metadata_of(file, config),
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
    )


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
        bool: writer.add_bool, int: lambda key, value: _whole(writer, value)(key, value), float: writer.add_float32,
        str: writer.add_string, list: writer.add_array, bytes: writer.add_array,
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


def _whole(writer: Any, value: int) -> Callable[[str, int], None]:
    """Return what writes an integer: unsigned, in 32 bits if it fits."""
    if value < 0:
        return writer.add_int32 if value >= -(1 << 31) else writer.add_int64
    return writer.add_uint32 if value < 1 << 32 else writer.add_uint64


def _modelfile(name: str, values: dict[str, Any]) -> str:
    """Write Ollama's Modelfile. Ollama reads the chat template from the GGUF file; stop tokens are repeated here."""
    tokens = values.get("tokenizer.ggml.tokens", [])
    ids = dict.fromkeys(values.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot"))
    ends = [tokens[i] for i in ids if isinstance(i, int) and tokens]
    quotable = (end for end in ends if end.isprintable() and '"' not in end)
    return "".join([f"FROM ./{name}\n", *(f'PARAMETER stop "{end}"\n' for end in quotable)])
