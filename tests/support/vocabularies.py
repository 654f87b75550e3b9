"""Tokenizers of each kind, trained on the text that comes with this package, and models that have them."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support import architectures

TEXT = files("aibit_format.calibrate").joinpath("default_text.txt").read_text("utf-8")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
TOKENS = 600
ROWS = 640  # of models; the last stand for nothing
# Texts of words that are in it, of others, and of characters that no token has.
STRANGE = "Zyx qué 漢字 \U0001f600 ok\n\n  two  spaces\tand a tab"


def _byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=TOKENS - 1, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    return made


def _spaces(made: Tokenizer) -> Tokenizer:
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def _byte_fallback() -> Tokenizer:
    """Joins tokens over a whole text, as Gemma's does; characters that are no tokens become bytes."""
    made = _spaces(Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)))  # noqa: S106
    made.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    made.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=TOKENS - 1, special_tokens=[*SPECIAL, *BYTES], show_progress=False))  # fmt: skip
    found = json.loads(made.to_str())
    found["added_tokens"] = [token for token in found["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(found))


def _unigram() -> Tokenizer:
    made = _spaces(Tokenizer(models.Unigram()))
    made.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    made.train_from_iterator([TEXT], trainers.UnigramTrainer(
        vocab_size=340, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False))  # noqa: S106  # fmt: skip
    return made


def _unigram_bytes() -> Tokenizer:
    """The same, with tokens for bytes before the learned ones."""
    document = json.loads(_unigram().to_str())
    learned = document["model"]["vocab"]
    document["model"] |= {
        "vocab": [*learned[:3], *([token, 0.0] for token in BYTES), *learned[3:]], "byte_fallback": True,
    }  # fmt: skip
    return Tokenizer.from_str(json.dumps(document))


def _wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))  # noqa: S106
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator([TEXT], trainers.WordPieceTrainer(
        vocab_size=TOKENS - 1, special_tokens=SPECIAL, show_progress=False))  # fmt: skip
    return made


KINDS = {
    "byte-level": _byte_level, "byte-fallback": _byte_fallback, "unigram": _unigram, "unigram-bytes": _unigram_bytes,
    "wordpiece": _wordpiece,
}  # fmt: skip


@cache
def document(kind: str) -> str:
    """The ``tokenizer.json`` of a kind: texts begin with <s>, and an added token follows what is learned."""
    made = KINDS[kind]()
    made.add_special_tokens(["<extra>"])
    template = {"single": "<s> $A", "pair": "<s> $A $B", "special_tokens": [("<s>", made.token_to_id("<s>"))]}
    made.post_processor = processors.TemplateProcessing(**template)
    return made.to_str()


def save(kind: str, folder, name: str = "llama-tied", **changes) -> None:
    """Save a model with random weights, whose rows are ``ROWS``, and a tokenizer of a kind."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    architectures.save(name, folder, changes={"vocab_size": ROWS, **ids, **changes})
    (folder / "tokenizer.json").write_text(document(kind), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ '<s>' + m['role'] + ': ' }}{{ m['content'] }}</s>{% endfor %}",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def size(kind: str) -> int:
    """How many tokens a kind has."""
    return Tokenizer.from_str(document(kind)).get_vocab_size()
