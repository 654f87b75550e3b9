"""Loads the tokenizer of a file, exactly as transformers loads it from a directory."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from ..errors import LoadError, MissingPackageError
from ..file import sharded_reader
from ..file.sharded_reader import Opened
from ..hf.vocabulary import check_tokenizer, vocabulary_size
from ..io.mapped import Path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Any of these makes a tokenizer.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json")
_IN_MEMORY = "/dev/shm"  # noqa: S108 - a file system in memory, where Linux has one; the directory made there is private


def load_tokenizer(path: Path | Opened) -> PreTrainedTokenizerBase:
    """Load the tokenizer, with its chat template and special tokens.

    transformers chooses and completes tokenizers from a directory of files, by rules of its own that change with its
    version. So it gets that directory: in memory where the system has such a place, private, and gone afterwards.

    Raises:
        LoadError: the file holds no tokenizer, one with ids beyond the model's vocabulary, or transformers refuses it.
    """
    file = sharded_reader.whole(path if isinstance(path, Opened) else sharded_reader.open(path))
    if not any(name.endswith(_VOCABULARIES) for name in file.documents):
        raise LoadError(f"{file.path}: holds no tokenizer")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingPackageError("a tokenizer needs transformers: pip install 'aibit-format[hf]'") from error
    memory = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    parsed = {name: file.check_document(name) for name in file.documents}
    config, rules = parsed.get("config.json"), parsed.get("tokenizer.json")
    if isinstance(config, dict) and isinstance(rules, dict):
        check_tokenizer(rules, vocabulary_size(config))
    with tempfile.TemporaryDirectory(prefix="aibit-", dir=memory) as folder:
        for name, data in file.documents.items():
            target = os.path.join(folder, *name.split("/"))  # names are checked when a file is opened
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as out:
                out.write(data)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of many kinds, from many libraries
            raise LoadError(f"{file.path}: transformers cannot build the tokenizer: {error}") from error
    name = os.fspath(file.path) if file.path else ""
    tokenizer.name_or_path = name
    tokenizer.init_kwargs["name_or_path"] = name
    for key in [key for key, value in tokenizer.init_kwargs.items() if isinstance(value, str) and folder in value]:
        del tokenizer.init_kwargs[key]  # paths that no longer exist
    return tokenizer
