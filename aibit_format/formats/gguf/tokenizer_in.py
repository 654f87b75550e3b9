"""Turns the tokenizer of a GGUF file into the documents that transformers loads.

GGUF has the vocabulary, the merges or scores, the kind of each token and the ids of the special ones as metadata.
The result tokenizes like llama.cpp: ``gpt2`` becomes byte-level BPE with the regular expression that
``tokenizer.ggml.pre`` stands for; ``llama`` (SentencePiece) becomes BPE with byte fallback, its merges in the order of
the scores. See https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ``llama-vocab.cpp`` of llama.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import SourceError
from .pre_tokenizers import DIGITS, GPT2, PRE, Pre

# Kinds of token (``tokenizer.ggml.token_type``).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
SPACE = "\u2581"  # SentencePiece's symbol for a space
TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class Vocabulary:
    """Hold the tokens of a GGUF file: texts, kinds and the ids of special ones, checked against each other.

    Raises:
        SourceError: there is no tokenizer, or its parts contradict each other.
    """

    def __init__(self, metadata: Mapping[str, Any], rows: int) -> None:
        self._metadata = metadata
        self.tokens: list[str] = self.get("tokens", list, [])
        if not 0 < len(self.tokens) <= rows:
            raise SourceError(f"tokenizer.ggml.tokens has {len(self.tokens)} tokens, the embeddings {rows} rows")
        kinds = self.get("token_type", np.ndarray, np.full(len(self.tokens), NORMAL))
        if len(kinds) != len(self.tokens):
            raise SourceError(f"tokenizer.ggml.token_type has {len(kinds)} entries for {len(self.tokens)} tokens")
        self.kinds: list[int] = kinds.tolist()
        # Converters give such names to ids that no token has.
        self.ids = {
            token: i
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if not (kind == UNUSED and token == f"[PAD{i}]")
        }
        self.special = {name: self.id_of(key) for name, key in SPECIAL.items()}

    def get(self, key: str, kind: type, otherwise: Any) -> Any:
        """Return a value of ``tokenizer.ggml``, checked to be a ``kind``; ``otherwise`` if it is missing."""
        value = self._metadata.get(f"tokenizer.ggml.{key}", otherwise)
        if value is not otherwise and not isinstance(value, kind):
            raise SourceError(f"tokenizer.ggml.{key} is a {type(value).__name__}, a {kind.__name__} is needed")
        return value

    def id_of(self, key: str) -> int | None:
        """Return the id of a special token, or ``None`` if there is none."""
        value = self.get(key, int, None)
        # In files, the largest number means "none".
        if value is None or value == 0xFFFF_FFFF:
            return None
        if not 0 <= value < len(self.tokens):
            raise SourceError(f"tokenizer.ggml.{key} is {value}, there are {len(self.tokens)} tokens")
        return value

    def added(self) -> list[dict[str, Any]]:
        """List the tokens that are matched literally in a text, before anything else is done to it."""
        kinds = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
        return [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": kinds[kind]}
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in kinds and token and self.ids[token] == i
        ]  # fmt: skip


def documents_of(metadata: Mapping[str, Any], rows: int, context: int | None) -> dict[str, bytes]:
    """Make ``tokenizer.json``, ``tokenizer_config.json`` and the chat templates.

    Args:
        metadata: of the GGUF file.
        rows: number of rows of the embeddings.
        context: length of the longest input of the model, in tokens; ``None`` if there is no longest.

    Raises:
        SourceError: the kind of tokenizer, or its way to cut text, is unknown here; or it is damaged.
    """
    vocabulary = Vocabulary(metadata, rows)
    kind = vocabulary.get("model", str, "none")
    if kind not in _KINDS:
        raise SourceError(f"tokenizer.ggml.model {kind!r} is unknown here; known: {', '.join(_KINDS)}")
    tokenizer, adds_bos = _KINDS[kind](vocabulary)
    adds = {
        "bos": vocabulary.get("add_bos_token", bool, adds_bos),
        "eos": vocabulary.get("add_eos_token", bool, False),
    }
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": vocabulary.added()} | tokenizer
    tokenizer["post_processor"] = _template(vocabulary, adds)
    return {
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json(_config(vocabulary, context)),
        **_chat_templates(metadata),
    }


def _byte_level(vocabulary: Vocabulary) -> tuple[dict[str, Any], bool]:
    name = vocabulary.get("pre", str, "default")
    pre = next((pre for pre in PRE if name in pre.names), None)
    if pre is None:
        raise SourceError(f"tokenizer.ggml.pre {name[:60]!r} is unknown here: no way to cut text by that name is known")
    return {
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(pre),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, _merges(vocabulary), ignore_merges=pre.ignore_merges),
    }, pre.adds_bos


def _sentencepiece(vocabulary: Vocabulary) -> tuple[dict[str, Any], bool]:
    """Make BPE over characters, with a space before each piece of text between special tokens, as in llama.cpp.

    transformers' own GGUF loader puts a space before the first piece only, and none if it begins with a space.
    """
    for name, usual in {"unk": 0, "bos": 1, "eos": 2}.items():  # if the file does not say
        if vocabulary.special[name] is None and vocabulary.kinds[usual : usual + 1] in ([CONTROL], [UNKNOWN]):
            vocabulary.special[name] = usual
    merges = _merges(vocabulary) if vocabulary.get("merges", list, None) else _merges_of_scores(vocabulary)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = vocabulary.get("add_space_prefix", bool, True)
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    unknown = vocabulary.special["unk"]
    token = None if unknown is None else vocabulary.tokens[unknown]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": decoders + ([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
        },
        "model": _bpe(vocabulary, merges, unk_token=token, fuse_unk=True, byte_fallback=True),
    }, True


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _bpe(vocabulary: Vocabulary, merges: list[tuple[str, str]], **options: Any) -> dict[str, Any]:
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    }  # fmt: skip
    return model | options | {"vocab": vocabulary.ids, "merges": merges}


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return the merges that a file lists; both tokens of a merge and its result must be in the vocabulary."""
    ids, merges = vocabulary.ids, []
    for i, text in enumerate(vocabulary.get("merges", list, [])):
        left, _, right = text.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise SourceError(f"tokenizer.ggml.merges: entry {i}, {text[:60]!r}, is not two tokens that make a third")
        merges.append((left, right))
    return merges


def _merges_of_scores(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Derive merges from scores: every way to join two tokens into a third, the best-scored result first.

    Of two ways with the same score, the one with the longer left part comes first.
    """
    ids = vocabulary.ids
    scores = vocabulary.get("scores", np.ndarray, np.zeros(len(vocabulary.tokens)))
    if len(scores) != len(vocabulary.tokens):
        raise SourceError(f"tokenizer.ggml.scores has {len(scores)} entries, there are {len(vocabulary.tokens)} tokens")
    ranked: list[tuple[float, int, int, str, str]] = []
    values = scores.tolist()
    for token, i in ids.items():
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-values[i], -cut, cut - len(token), left, right))
    ranked.sort(key=lambda entry: entry[:3])
    return [entry[3:] for entry in ranked]


def _pre_tokenizer(pre: Pre) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for cut in pre.cuts:
        if cut == DIGITS:
            steps.append({"type": "Digits", "individual_digits": True})
        elif cut != GPT2:
            steps.append({"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False})
    # ``ByteLevel`` always comes last: it turns bytes into the characters of the vocabulary.
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": GPT2 in pre.cuts}
    return {"type": "Sequence", "pretokenizers": [*steps, last]} if steps else last


def _template(vocabulary: Vocabulary, adds: Mapping[str, bool]) -> dict[str, Any]:
    """Make the template that puts special tokens around a text."""

    def token(name: str) -> list[dict[str, Any]]:
        i = vocabulary.special[name]
        return [{"SpecialToken": {"id": vocabulary.tokens[i], "type_id": 0}}] if adds[name] and i is not None else []

    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    used = {vocabulary.tokens[i]: i for name in adds if token(name) and (i := vocabulary.special[name]) is not None}
    return {
        "type": "TemplateProcessing",
        "single": [*token("bos"), a, *token("eos")],
        "pair": [*token("bos"), a, *token("eos"), *token("bos"), b, *token("eos")],
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in used.items()},
    }


def _config(vocabulary: Vocabulary, context: int | None) -> dict[str, Any]:
    named = {f"{name}_token": vocabulary.tokens[i] for name, i in vocabulary.special.items() if i is not None}
    others = [t["content"] for t in vocabulary.added() if t["special"] and t["content"] not in named.values()]
    return {
        "tokenizer_class": "TokenizersBackend",
        "clean_up_tokenization_spaces": False,
        **({} if context is None else {"model_max_length": context}),
        "extra_special_tokens": others,
        **named,
    }


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the document of ``tokenizer.chat_template``, and those of named templates."""
    documents, start = {}, "tokenizer.chat_template"
    for key, text in metadata.items():
        name = key.removeprefix(start + ".")
        if key == start and isinstance(text, str):
            documents["chat_template.jinja"] = text.encode()
        elif key.startswith(start + ".") and isinstance(text, str) and TEMPLATE_NAME.fullmatch(name):
            documents[f"additional_chat_templates/{name}.jinja"] = text.encode()
    return documents


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def cuts_of(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Return the ``Pre.cuts`` of a ``pre_tokenizer`` of ``tokenizer.json``; ``None`` if it does anything else."""
    steps: Sequence[Mapping[str, Any]] = [pre_tokenizer] if pre_tokenizer else []
    if pre_tokenizer and pre_tokenizer.get("type") == "Sequence":
        steps = pre_tokenizer["pretokenizers"]
    cuts: list[str] = []
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            cuts += [GPT2] if step.get("use_regex", True) else []
        elif kind == "Digits" and step.get("individual_digits"):
            cuts.append(DIGITS)
        elif kind == "Split" and step.get("behavior") == "Isolated" and "Regex" in step.get("pattern", {}):
            cuts.append(step["pattern"]["Regex"])
        else:
            return None
    return tuple(cuts) if steps and steps[-1].get("type") == "ByteLevel" else None
