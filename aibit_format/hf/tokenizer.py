"""Builds tokenizers from the documents of a file or a source, exactly as transformers does from a directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import LoadError, MissingPackageError, told_by
from ..io.scratch import folder_of
from . import compat
from .tokenizer_files import DOCUMENTS, Documents, why_no_tokenizer
from .vocabulary import check_added_tokens, check_built, check_tokenizer, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Keys of config.json by which transformers chooses the class of the tokenizer. It would build a whole configuration.
_CHOOSING = ("model_type", "model_name", "tokenizer_class", "_name_or_path", "architectures", "transformers_version")
_COMPOSITE = ("encoder", "decoder")  # keys of configurations that are made of two, and need both
# Keys of tokenizer_config.json that become arguments of a constructor, which takes text there for the name of a file.
_FILES = ("vocab", "merges", "tokenizer_object", "gguf_file", "subfolder")


def build_tokenizer(documents: Documents, check: Callable[[str], Any], where: str) -> PreTrainedTokenizerBase:
    """Build a tokenizer, with its chat template and special tokens.

    transformers chooses and completes tokenizers from a directory of files, by rules of its own that change with its
    version. So it gets that directory: in memory where the system has such a place, private, and gone afterwards.

    Args:
        documents: by name; names are checked to lead nowhere else.
        check: checks a document by name, and returns its value if it is JSON; see ``container.documents.check``.
        where: what they are of, as messages name it.

    Raises:
        LoadError: there is no tokenizer among them, or one with ids beyond the model's vocabulary, or of a class that
            is no tokenizer, or transformers refuses it.
    """
    if reason := why_no_tokenizer(documents):
        raise LoadError(f"{where}: {reason}")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingPackageError("a tokenizer needs transformers: pip install 'aibit-format[hf]'") from error
    parsed = {name: check(name) for name in documents}
    try:
        config, size = _checked(parsed)
    except LoadError as error:
        raise LoadError(f"{where}: {error}") from error
    texts: dict[str, Any] = {name: documents[name] for name in parsed if DOCUMENTS.fullmatch(name)}
    if config:
        texts["config.json"] = json.dumps(config).encode()
    with folder_of(texts) as folder:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            check_built(tokenizer, size)
        except LoadError as error:
            raise LoadError(f"{where}: {error}") from error
        except BaseException as error:  # of many kinds, from many libraries
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # tokenizers, in Rust
                raise
            raise LoadError(f"{where}: transformers cannot build the tokenizer: {told_by(error)}") from error
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
