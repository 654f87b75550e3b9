"""Recognizes models in formats that are not read, and says why and what to give instead: one row a format."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..io.regular import open_regular

__all__ = ["FOREIGN", "Foreign", "recognize"]

_MOST = 64  # bytes of a file that are looked at
_ORIGINAL = "give the checkpoint that it was made from"


class Foreign(NamedTuple):
    """Describes a format: how its files are told from others, why they are not read, and what to do."""

    name: str
    why: str
    instead: str = _ORIGINAL
    endings: tuple[str, ...] = ()
    magic: tuple[tuple[int, bytes], ...] = ()  # offset and bytes; one of them is enough
    inside: tuple[str, ...] = ()  # files of a directory; one of them is enough


# What decides is the first row that fits: magic numbers before endings, within a row and between files.
FOREIGN: tuple[Foreign, ...] = (
    Foreign(
        "ONNX",
        "a graph of operators, with weights under its own names and often folded into one another",
        endings=(".onnx",),
        inside=("model.onnx", "onnx/model.onnx"),
    ),
    Foreign(
        "TensorRT engine",
        "machine code for one kind of GPU and one version of TensorRT",
        endings=(".engine", ".plan", ".trt"),
        magic=((0, b"ftrt"),),
        inside=("rank0.engine",),
    ),
    Foreign(
        "HDF5 or Keras",
        "layers of Keras, which transformers no longer builds",
        "give the PyTorch weights of the same model (pytorch_model.bin or model.safetensors)",
        endings=(".h5", ".hdf5", ".keras"),
        magic=((0, b"\x89HDF\r\n\x1a\n"),),
        inside=("tf_model.h5",),
    ),
    Foreign(
        "TensorFlow SavedModel",
        "a graph of TensorFlow with variables beside it",
        "give the PyTorch weights of the same model (pytorch_model.bin or model.safetensors)",
        inside=("saved_model.pb",),
    ),
    Foreign(
        "Flax",
        "weights for Flax, which transformers no longer builds",
        "give the PyTorch weights of the same model (pytorch_model.bin or model.safetensors)",
        endings=(".msgpack",),
        inside=("flax_model.msgpack",),
    ),
    Foreign(
        "TensorFlow Lite",
        "a graph for phones, its weights quantized and fused",
        endings=(".tflite",),
        magic=((4, b"TFL3"),),
    ),
    Foreign("ExecuTorch", "a program lowered to a device's backends", endings=(".pte",), magic=((4, b"ET12"),)),
    Foreign(
        "torch.export program",
        "a program of torch with pickled parts",
        "give the weights that save_pretrained writes; aibit graph stores a program as data",
        endings=(".pt2",),
    ),
    Foreign(
        "OpenVINO IR",
        "a graph of OpenVINO's operators (.xml) and constants without names (.bin)",
        inside=("openvino_model.xml",),
    ),
    Foreign(
        "Core ML",
        "a program for Apple's devices",
        endings=(".mlmodel", ".mlpackage", ".mlmodelc"),
        inside=("Data/com.apple.CoreML",),
    ),
    Foreign(
        "GGML before GGUF",
        "it names neither architecture nor tokenizer as GGUF does",
        "make a GGUF file of it with the llama.cpp of its time, or " + _ORIGINAL,
        magic=((0, b"lmgg"), (0, b"fmgg"), (0, b"tjgg"), (0, b"algg")),
    ),
    Foreign(
        "llamafile",
        "a program with a GGUF file inside",
        "take the GGUF file out of it first (it is a ZIP archive: unzip FILE '*.gguf')",
        endings=(".llamafile",),
        magic=((0, b"MZqFpD"),),
    ),
    Foreign("MLC", "weights packed for TVM's kernels", inside=("mlc-chat-config.json", "ndarray-cache.json")),
    Foreign(
        "NeMo",
        "an archive of NeMo's own configuration and weights",
        "export it to Hugging Face with NeMo",
        endings=(".nemo",),
    ),
    Foreign(
        "PEFT adapter",
        "what fine-tuning adds to a model, without the model",
        "convert the base model; merge the adapter into it first with peft's merge_and_unload",
        inside=("adapter_config.json",),
    ),
    Foreign(
        "NumPy arrays",
        "arrays without a config",
        "write them as safetensors with config.json beside them",
        endings=(".npz", ".npy"),
    ),
)


def recognize(path: str) -> str | None:
    """Return what a file or directory is, why it is not read and what to do; ``None`` if no row fits."""
    found = _inside(path) if os.path.isdir(path) else _of_file(path)
    return None if found is None else f"is of the format {found.name}: {found.why}; {found.instead}"


def _inside(path: str) -> Foreign | None:
    for row in FOREIGN:
        if any(os.path.exists(os.path.join(path, name)) for name in row.inside):
            return row
    return _by_ending(path.rstrip("/"))


def _of_file(path: str) -> Foreign | None:
    try:
        with open_regular(path) as file:
            head = file.read(_MOST)
    except OSError:
        return None  # whoever reads it finds out
    for row in FOREIGN:
        if any(head[offset:].startswith(magic) for offset, magic in row.magic):
            return row
    return _by_ending(path)


def _by_ending(path: str) -> Foreign | None:
    return next((row for row in FOREIGN if path.lower().endswith(row.endings)), None)
