"""Loads the tokenizer of a file, exactly as transformers loads it from a directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..file import sharded_reader
from ..file.sharded_reader import Opened
from ..hf.tokenizer import build_tokenizer
from ..io.mapped import Path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: Path | Opened) -> PreTrainedTokenizerBase:
    """Load the tokenizer, with its chat template and special tokens; see ``hf.tokenizer``.

    Raises:
        LoadError: the file holds no tokenizer, one with ids beyond the model's vocabulary, one of a class that is no
            tokenizer, or transformers refuses it.
    """
    file = sharded_reader.whole(path if isinstance(path, Opened) else sharded_reader.open_local(path))
    tokenizer = build_tokenizer(file.documents, file.check_document, str(file.path))
    name = os.fspath(file.path) if file.path else ""
    tokenizer.name_or_path = name
    tokenizer.init_kwargs["name_or_path"] = name
    return tokenizer
