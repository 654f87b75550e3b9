"""Loads what is compared, whatever it is: ``.aibit`` files, GGUF files, and directories of transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...convert.convert import convert
from ...errors import LoadError, told_by
from ...file import sharded_reader
from ...formats.gguf.source import GGUF
from ...io.scratch import temporary_folder
from ..load.model import load


@contextmanager
def operand(path: str, device: str = "cpu", weight_only: bool = False) -> Iterator[tuple[Any, Any]]:
    """Load a causal model and its tokenizer, for as long as the context lasts.

    A directory is loaded by transformers, in the dtype that is stored there. Of a GGUF file an ``.aibit`` file is made
    first, with its blocks as they are, in the system's temporary folder.

    Raises:
        LoadError: the model predicts no next token, or transformers cannot load the directory.
    """
    if Path(path).is_dir():
        model, tokenizer = _of_directory(path, device)
    elif is_gguf(path):
        with temporary_folder() as folder:
            made = os.path.join(folder.name, "model.aibit")
            convert(path, made)
            with operand(made, device, weight_only) as found:
                yield found
        return
    else:
        model, tokenizer = load(path, device, weight_only=weight_only)
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise LoadError(f"{path}: {type(model).__name__} does not predict the next token")
    yield model, tokenizer


def stored_bytes(path: str) -> int:
    """Return the bytes of a model's files, or of the weights in its directory."""
    if Path(path).is_dir():
        return sum(each.stat().st_size for ending in ("safetensors", "bin") for each in Path(path).glob(f"*.{ending}"))
    if is_gguf(path):
        return Path(path).stat().st_size
    with sharded_reader.open(path) as file:
        return file.size


def is_gguf(path: str) -> bool:
    """Return whether a path is that of a GGUF file."""
    return Path(path).is_file() and GGUF.matches(path)


def _of_directory(path: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map=device, local_files_only=True)
        return model.eval(), AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: transformers cannot load it: {told_by(error)}") from error
