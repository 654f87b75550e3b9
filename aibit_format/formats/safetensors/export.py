"""Exports to safetensors without quantization: a model directory that transformers loads like any other."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from ...errors import LoadError
from ...file.progress import Progress
from ...file.sharded_reader import Opened
from ..export_tensors import DTYPE_OPTIONS, config_of, documents_of, model_of, stored, values_item
from .writer import SHARD_BYTES, write_directory


def export(
    file: Opened,
    path: str,
    *,
    dtype: str | None = None,
    max_shard_size: int | str = SHARD_BYTES,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> list[str]:
    """Write every tensor's values and the documents into the directory ``path``; returns the paths written.

    Args:
        file: the model to write. Without a config, it becomes a directory of tensors and documents.
        path: the directory.
        dtype: of all floating-point tensors: ``"f32"``, ``"f16"`` or ``"bf16"``. By default each tensor has its
            logical dtype, to which decoded values are rounded.
        max_shard_size: most bytes of weights in one file, a number or a size such as ``"5GB"``.
        overwrite: replace files in a directory that is not empty.
        on_progress: called with bytes done, total bytes, and the tensor's name.

    Raises:
        WriteError: the directory is not empty, or cannot be written; or the file lacks weights of its model.
        SchemeError: a value is too large for the dtype.
    """
    if dtype is not None and dtype not in DTYPE_OPTIONS:
        raise ValueError(f"dtype={dtype!r}: one of {', '.join(DTYPE_OPTIONS)}")
    config = config_of(file)
    if config is not None and "model.architecture" in file.metadata and find_spec("transformers"):
        with suppress(LoadError):  # what transformers cannot build it cannot fill in either
            model_of(file, config)
    if config is not None and dtype is not None:
        config = _with_dtype(config, DTYPE_OPTIONS[dtype])
    items = [values_item(file, info, dtype) for info in stored(file)]
    return write_directory(
        path, items, documents_of(file, config),
        max_shard_size=max_shard_size, overwrite=overwrite, on_progress=on_progress,
    )  # fmt: skip


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config with its dtype, and that of its sub-configs if they state one, replaced by ``dtype``."""
    inner = {
        key: _with_dtype(value, dtype)
        for key, value in config.items()
        if isinstance(value, dict) and not {"dtype", "torch_dtype"}.isdisjoint(value)
    }
    rest = {key: value for key, value in config.items() if key != "torch_dtype"}
    return {**rest, **inner, "dtype": dtype}
