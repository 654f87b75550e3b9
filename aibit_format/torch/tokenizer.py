"""Loads the tokenizer of a file, exactly as transformers loads it from a directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import LoadError, MissingPackageError, told_by
from ..file import sharded_reader
from ..file.sharded_reader import Opened
from ..hf import compat
from ..hf.tokenizer_files import DOCUMENTS, why_no_tokenizer
from ..hf.vocabulary import check_added_tokens, check_built, check_tokenizer, vocabulary_size
from ..io.mapped import Path
from ..io.scratch import folder_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Keys of config.json by which transformers chooses the class of the tokenizer. It would build a whole configuration.
_CHOOSING = ("model_type", "model_name", "tokenizer_class", "_name_or_path", "architectures", "transformers_version")
_COMPOSITE = ("encoder", "decoder")  # keys of configurations that are made of two, and need both
# Keys of tokenizer_config.json that become arguments of a constructor, which takes text there for the name of a file.
_FILES = ("vocab", "merges", "tokenizer_object", "gguf_file", "subfolder")


def load_tokenizer(path: Path | Opened) -> PreTrainedTokenizerBase:
    """Load the tokenizer, with its chat template and special tokens.

    transformers chooses and completes tokenizers from a directory of files, by rules of its own that change with its
    version. So it gets that directory: in memory where the system has such a place, private, and gone afterwards.

    Raises:
        LoadError: the file holds no tokenizer, one with ids beyond the model's vocabulary, one of a class that is no
            tokenizer, or transformers refuses it.
    """
    file = sharded_reader.whole(path if isinstance(path, Opened) else sharded_reader.open(path))
    if reason := why_no_tokenizer(file.documents):
        raise LoadError(f"{file.path}: {reason}")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingPackageError("a tokenizer needs transformers: pip install 'aibit-format[hf]'") from error
    parsed = {name: file.check_document(name) for name in file.documents}
    try:
        config, size = _checked(parsed)
    except LoadError as error:
        raise LoadError(f"{file.path}: {error}") from error
    texts: dict[str, Any] = {name: file.documents[name] for name in parsed if DOCUMENTS.fullmatch(name)}
    if config:
        texts["config.json"] = json.dumps(config).encode()
    with folder_of(texts) as folder:  # names are checked when a file is opened
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            check_built(tokenizer, size)
        except LoadError as error:
            raise LoadError(f"{file.path}: {error}") from error
        except BaseException as error:  # of many kinds, from many libraries
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # tokenizers, in Rust
                raise
            raise LoadError(f"{file.path}: transformers cannot build the tokenizer: {told_by(error)}") from error
    name = os.fspath(file.path) if file.path else ""
    tokenizer.name_or_path = name
    tokenizer.init_kwargs["name_or_path"] = name
    for key in [key for key, value in tokenizer.init_kwargs.items() if isinstance(value, str) and folder in value]:
        del tokenizer.init_kwargs[key]  # paths that no longer exist
    return tokenizer


def _checked(parsed: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Check what the parsed documents say of the tokenizer.

    Returns:
        The part of ``config.json`` by which transformers chooses its class, and the size of the model's vocabulary.

    Raises:
        LoadError: names the document.
    """
    whole = parsed.get("config.json") or {}
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if name in parsed and not isinstance(parsed[name], dict):
            raise LoadError(f"{name} is {type(parsed[name]).__name__}, and no JSON object")
        found = parsed.get(name, {}).get("tokenizer_class") if name.endswith("config.json") else None
        if found is not None and not compat.is_tokenizer(found):
            raise LoadError(f"{name}: tokenizer_class {str(found)[:80]!r} is not one of transformers' tokenizers")
    size = vocabulary_size(whole)
    if isinstance(rules := parsed.get("tokenizer.json"), dict):
        check_tokenizer(rules, size)
    for name in ("tokenizer_config.json", "added_tokens.json"):
        check_added_tokens(name, parsed.get(name, {}), size)
    for key in _FILES:
        if parsed.get("tokenizer_config.json", {}).get(key) is not None:
            raise LoadError(f"tokenizer_config.json: {key} would name a file or hold what tokenizer.json is for")
    kept = (*_CHOOSING, *_COMPOSITE) if all(key in whole for key in _COMPOSITE) else _CHOOSING
    return {key: whole[key] for key in kept if key in whole}, size
