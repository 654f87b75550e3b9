"""Turns the tokenizer of a GGUF file into the documents that transformers loads.

GGUF has the vocabulary, the merges or scores, the kind of each token and the ids of the special ones as metadata.
The result tokenizes like llama.cpp: ``gpt2`` becomes byte-level BPE with the regular expression that
``tokenizer.ggml.pre`` stands for; ``llama`` (SentencePiece) becomes BPE with byte fallback, its merges in the order of
the scores; ``t5`` is Unigram and ``bert`` WordPiece, each in a file of its own, with its way out. See
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ``llama-vocab.cpp`` of llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import SourceError
from . import unigram, wordpiece
from .pre_tokenizers import DIGITS, GPT2, PRE, Pre
from .vocabulary import SPACE, TEMPLATE_NAME, Around, Vocabulary


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
    tokenizer, around = _KINDS[kind](vocabulary)
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": vocabulary.added()} | tokenizer
    tokenizer["post_processor"] = _template(vocabulary, around)
    return {
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json(_config(vocabulary, context)),
        **_chat_templates(metadata),
    }


def _byte_level(vocabulary: Vocabulary) -> tuple[dict[str, Any], Around]:
    name = vocabulary.get("pre", str, "default")
    pre = next((pre for pre in PRE if name in pre.names), None)
    if pre is None:
        raise SourceError(f"tokenizer.ggml.pre {name[:60]!r} is unknown here: no way to cut text by that name is known")
    return {
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(pre),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, _merges(vocabulary), ignore_merges=pre.ignore_merges),
    }, Around(starts=pre.adds_bos)


def _sentencepiece(vocabulary: Vocabulary) -> tuple[dict[str, Any], Around]:
    """Make BPE over characters, with a space before each piece of text between special tokens, as in llama.cpp.

    Gemma 4's kind lists its merges and puts no space.

    transformers' own GGUF loader puts a space before the first piece only, and none if it begins with a space.
    """
    vocabulary.assume(unk=0, bos=1, eos=2)
    merges = _merges(vocabulary) if vocabulary.get("merges", list, None) else _merges_of_scores(vocabulary)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = vocabulary.get("add_space_prefix", bool, vocabulary.get("model", str, "llama") == "llama")
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
    }, Around(starts=True)


_KINDS: dict[str, Callable[[Vocabulary], tuple[dict[str, Any], Around]]] = {
    "gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _sentencepiece, "t5": unigram.to_tokenizer,
    "bert": wordpiece.to_tokenizer,
}  # fmt: skip


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
    ids, values = vocabulary.ids, vocabulary.scores()
    ranked: list[tuple[float, int, int, str, str]] = []
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


def _template(vocabulary: Vocabulary, around: Around) -> dict[str, Any]:
    """Make the template that puts special tokens around a text."""
    adds = {
        around.start: vocabulary.get("add_bos_token", bool, around.starts),
        around.end: vocabulary.get(f"add_{around.end}_token", bool, around.ends),
    }
    used = {name: i for name, adding in adds.items() if adding and (i := vocabulary.special[name]) is not None}

    def token(name: str, kind: int = 0) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": vocabulary.tokens[used[name]], "type_id": kind}}] if name in used else []

    second = int(around.pairs)
    a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": second}}
    between = [] if around.pairs else token(around.start)
    whole = [*token(around.start), a, *token(around.end)]
    texts = {vocabulary.tokens[i]: i for i in used.values()}
    return {
        "type": "TemplateProcessing",
        "single": whole,
        "pair": [*whole, *between, b, *token(around.end, second)],
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in texts.items()},
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
