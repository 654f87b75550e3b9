"""Turns the documents of a model into GGUF's tokenizer metadata: the inverse of ``tokenizer_in``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import SourceError
from ...file.sharded_reader import Opened
from ...hf.tokenizer_files import CONVERTED, vocabularies, why_no_tokenizer
from . import unigram, wordpiece
from .pre_tokenizers import PRE
from .source import DOCUMENT
from .tokenizer_in import cuts_of
from .vocabulary import BYTE, CONTROL, NORMAL, SPACE, SPECIAL, TEMPLATE_NAME, UNKNOWN, UNUSED, USER_DEFINED

Values = dict[str, Any]
_HARMLESS = frozenset({"NFC"})  # normalizers of byte-level tokenizers that llama.cpp ignores


def metadata_of(file: Opened, config: Mapping[str, Any]) -> Values:
    """Make all keys that begin with ``tokenizer.``, and their values; mostly ``none`` for a file without a tokenizer.

    Raises:
        SourceError: llama.cpp has no such tokenizer, or it is only in documents that this module does not read.
    """
    if CONVERTED not in file.documents:
        if why_no_tokenizer(file.documents) is None:
            found = ", ".join(vocabularies(file.documents) or ["tokenizer_config.json"])
            raise SourceError(
                f"the tokenizer is in {found}, and GGUF's is made from tokenizer.json: if transformers has that form "
                "of it, aibit_format.load_tokenizer(FILE).save_pretrained(FOLDER) writes it, and aibit edit FILE -o "
                "OUT --document tokenizer.json=FOLDER/tokenizer.json puts it into the model"
            )
        ids = {f"tokenizer.ggml.{key}": config.get(f"{name}_token_id") for name, key in SPECIAL.items()}
        return {"tokenizer.ggml.model": "none"} | {key: i for key, i in ids.items() if type(i) is int}
    try:
        values = _values(file, config)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise SourceError(f"tokenizer.json: not as the tokenizers library writes it: {error!r}") from error
    return {f"tokenizer.{key}": value for key, value in values.items()}


def _values(file: Opened, config: Mapping[str, Any]) -> Values:
    tokenizer = file.check_document("tokenizer.json")
    named = file.check_document("tokenizer_config.json") if "tokenizer_config.json" in file.documents else {}
    model = tokenizer["model"]
    kind = model.get("type")
    if kind not in ("BPE", "Unigram", "WordPiece"):
        raise SourceError(f"tokenizer.json: a tokenizer of type {kind}; GGUF is written for BPE, Unigram and WordPiece")
    tokens, kinds = _tokens(tokenizer, config["vocab_size"])
    ids = {token: i for i, token in enumerate(tokens)}
    if kind == "Unigram":
        values = unigram.to_metadata(tokenizer, tokens, kinds)
    elif kind == "WordPiece":
        values = wordpiece.to_metadata(tokenizer, tokens, kinds)
    else:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        before = file.check_document(DOCUMENT) if DOCUMENT in file.documents else {}
        if model.get("byte_fallback"):
            values = _sentencepiece(tokenizer, tokens, kinds, merges)
            if config.get("model_type") == "gemma4_text":  # whose merges are not in the order of any scores
                values |= {"ggml.model": "gemma4", "ggml.merges": merges}
        else:
            values = _byte_level(tokenizer, merges, before.get("tokenizer.ggml.pre"))
    values |= {"ggml.tokens": tokens, "ggml.token_type": kinds}
    for name, key in SPECIAL.items():
        text = named.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        found = ids.get(text) if isinstance(text, str) else config.get(f"{name}_token_id")
        if isinstance(found, int):
            values[f"ggml.{key}"] = found
    values |= _ends(file, values, len(tokens))
    values |= _added_around(tokenizer.get("post_processor"), ids, values)
    return values | _chat_templates(file, named)


def _tokens(tokenizer: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Return the text and kind of every id; ids without a token are filled in as llama.cpp's converter does."""
    tokens = [f"[PAD{i}]" for i in range(rows)]
    kinds = [UNUSED] * rows
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # of Unigram, with scores, and with such tokens for ids that have none
        vocabulary = {token: i for i, (token, _) in enumerate(vocabulary) if token != f"[PAD{i}]"}
    for token, i in vocabulary.items():
        _check_id(token, i, rows)
        tokens[i], kinds[i] = token, NORMAL
    for added in tokenizer.get("added_tokens") or []:
        i, text = added["id"], added["content"]
        _check_id(text, i, rows)
        tokens[i], kinds[i] = text, CONTROL if added.get("special") else USER_DEFINED
    return tokens, kinds


def _check_id(token: str, i: Any, rows: int) -> None:
    if type(i) is not int or not 0 <= i < rows:
        raise SourceError(f"tokenizer.json: token {token!r} has id {i}, the embeddings {rows} rows")


def _byte_level(tokenizer: Mapping[str, Any], merges: list[str], before: Any) -> Values:
    """Make the metadata of byte-level BPE; ``before`` is the pre-tokenizer's name in the original GGUF file, if any.

    That name is kept if it fits, as several names mean the same.
    """
    normalizer = tokenizer.get("normalizer")
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    if unknown := [step["type"] for step in steps if step["type"] not in _HARMLESS]:
        raise SourceError(f"tokenizer.json: normalizer {unknown[0]}, llama.cpp has none for byte-level BPE")
    cuts = cuts_of(tokenizer.get("pre_tokenizer"))
    fitting = [pre for pre in PRE if pre.cuts == cuts]
    if not fitting:
        raise SourceError("tokenizer.json: GGUF has no name for this pre-tokenizer")
    ignore = bool(tokenizer["model"].get("ignore_merges"))
    alike = [pre for pre in fitting if pre.ignore_merges == ignore] or fitting
    pre = next((pre for pre in alike if before in pre.names), alike[0])
    name = before if before in pre.names else pre.names[0]
    return {"ggml.model": "gpt2", "ggml.pre": name, "ggml.merges": merges}


def _sentencepiece(tokenizer: Mapping[str, Any], tokens: list[str], kinds: list[int], merges: list[str]) -> Values:
    """Make SentencePiece's metadata, with scores for merges: the later a merge makes a token, the lower its score."""
    unknown = tokenizer["model"].get("unk_token")
    last = float(-len(merges) - 1)
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge.split(" ", 1)), float(-rank))
    scores = [ranks.get(token, last) for token in tokens]
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if token == unknown:
            kinds[i] = UNKNOWN
        elif kind == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[i] = BYTE
        elif kind == USER_DEFINED:
            tokens[i] = token.replace(SPACE, " ")
    return {
        "ggml.model": "llama", "ggml.pre": "default", "ggml.scores": scores,
        "ggml.add_space_prefix": _prepends(tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")),
    }  # fmt: skip


def _prepends(normalizer: Mapping[str, Any] | None, pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Tell whether a space is put before the text."""
    steps = [*_steps(normalizer, "normalizers"), *_steps(pre_tokenizer, "pretokenizers")]
    return any(
        step["type"] == "Prepend"
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
            and step.get("add_prefix_space", True))
        for step in steps
    )  # fmt: skip


def _steps(value: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    return list(value.get(inside, [value])) if value else []


def _ends(file: Opened, values: Values, count: int) -> Values:
    """Return ``eot_token_id``: the first token other than ``eos`` that ends generation."""
    ends: Any = None
    if "generation_config.json" in file.documents:
        ends = file.check_document("generation_config.json").get("eos_token_id")
    listed = [i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int and 0 <= i < count]
    others = [i for i in listed if i != values.get("ggml.eos_token_id")]
    if not others:
        return {}
    if "ggml.eos_token_id" not in values:
        return {"ggml.eos_token_id": others[0]}
    return {"ggml.eot_token_id": others[0]}


def _added_around(post_processor: Mapping[str, Any] | None, ids: Mapping[str, int], values: Values) -> Values:
    """Tell which tokens come before and after a text: ``bos`` or ``cls`` before, ``eos`` or ``sep`` after it."""
    template: list[Any] = []
    for step in _steps(post_processor, "processors"):
        if step["type"] == "TemplateProcessing":
            template = step["single"]
        elif step["type"] == "BertProcessing":
            template = [{"SpecialToken": {"id": step[end][0]}} for end in ("cls", "sep")]
    around = [ids.get(part["SpecialToken"]["id"]) if "SpecialToken" in part else None for part in template] or [None]
    stated = {name: values.get(f"ggml.{SPECIAL[name]}") for name in ("bos", "eos", "sep", "cls")}
    first, last = around[0], around[-1]
    found: Values = {
        "ggml.add_bos_token": first is not None and first in (stated["bos"], stated["cls"]),
        "ggml.add_eos_token": last is not None and last == stated["eos"],
    }
    if last is not None and last == stated["sep"]:
        found["ggml.add_sep_token"] = True
    if stated["bos"] is None and stated["cls"] is not None:  # what llama.cpp puts before a text
        found[f"ggml.{SPECIAL['bos']}"] = stated["cls"]
    return found


def _chat_templates(file: Opened, named: Mapping[str, Any]) -> Values:
    """Return all chat templates. A config has one, or a list of named ones; documents of their own go before them."""
    start, folder = "chat_template", "additional_chat_templates/"
    values: Values = {}
    for document in ("chat_template.json", "tokenizer_config.json"):
        holder = named if document == "tokenizer_config.json" else _object(file, document)
        values |= _templates(holder.get(start), document)
    for name in file.documents:
        if name == f"{start}.jinja":
            values[start] = bytes(file.documents[name]).decode()
        elif name.startswith(folder):
            values[f"{start}.{name.removeprefix(folder).removesuffix('.jinja')}"] = bytes(file.documents[name]).decode()
    if others := [key.removeprefix(f"{start}.") for key in values if key != start]:
        values["chat_templates"] = others
    return values


def _templates(found: Any, document: str) -> Values:
    """Return the templates of a config's value, by their keys in GGUF; the one called default has no name there."""
    entries: Any = [{"name": "default", "template": found}] if isinstance(found, str) else found or ()
    try:
        pairs = [(entry["name"], entry["template"]) for entry in entries]
    except (TypeError, KeyError) as error:
        raise SourceError(f"{document}: chat_template: not a text, and not a list of names and templates") from error
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str) or not TEMPLATE_NAME.fullmatch(name):
            raise SourceError(f"{document}: chat_template {name!r:.60} has no name that GGUF can hold, or no text")
    return {"chat_template" if name == "default" else f"chat_template.{name}": text for name, text in pairs}


def _object(file: Opened, name: str) -> Mapping[str, Any]:
    found = file.check_document(name) if name in file.documents else {}
    return found if isinstance(found, Mapping) else {}
