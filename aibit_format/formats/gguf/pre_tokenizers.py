"""Lists the ways to cut text into words that GGUF files of byte-level BPE name (``tokenizer.ggml.pre``).

The names are those of llama.cpp's ``llama-vocab.cpp``, and so are the expressions, in the form that the models' own
``tokenizer.json`` has them in. Not listed are ``kimi-k2`` and ``afmoe``, which llama.cpp cuts by code of its own, names
of tokenizers that encode no bytes (``gemma4``, ``sarvam-moe``, ``whitespace``), and of those that put a separator after
a text (``roberta-bpe``, ``jina-v1-en``, ``jina-v2-code``).
"""

from __future__ import annotations

from dataclasses import dataclass

GPT2, DIGITS = "ByteLevel", "Digits"  # the expression built into ``ByteLevel``; every digit by itself


@dataclass(frozen=True)
class Pre:
    """Describe a way to cut text into words before merging: llama.cpp's names for it, and equivalent pre-tokenizers.

    ``cuts`` are applied in order: regular expressions, ``DIGITS`` and ``GPT2``.
    """

    names: tuple[str, ...]
    cuts: tuple[str, ...]
    ignore_merges: bool = False  # a word that is in the vocabulary is one token, whatever the merges
    adds_bos: bool = False  # if the file does not say


_WORDS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_WORDS}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_WORDS}+{_LOWER}*%s"
_LETTERS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+"
_LLAMA3 = rf"{_LETTERS}|\p{{N}}{{1,3}}|{_OTHERS}[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_LETTERS}|\p{{N}}|{_OTHERS}[\r\n]*|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}|{_OTHERS}[\r\n/]*|{_SPACES}"
_CASED_CONTRACTIONS = _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?")
_GPT4O = rf"{_CASED_CONTRACTIONS}|\p{{N}}{{1,3}}|{_OTHERS}[\r\n/]*|{_SPACES}"
# The expression built into ``ByteLevel``, where another comes after it.
_WORDS_OF_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUNCTUATED = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
)
_DEEPSEEK3 = rf"{_PUNCTUATED}[\r\n]*|{_SPACES}"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HALVES = "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_JAIS2 = rf"{_LETTERS}|\p{{N}}{{1,3}}|{_OTHERS}[\r\n]*|\s*[\r\n]+{_HALVES}|\s{{1,2}}(?!\S)|\s{{1}}"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    "|[\u3105-\u312f]+|" + _CJK
)
_SHORT = r"'(?i:[sdmt]|ll|ve|re)"
_BAILING = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = rf"{_LETTERS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_EXAONE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|{_OTHERS}[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_CASED_LETTERS = (  # of scripts with two cases, as DeepSeek's first tokenizer lists them
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-"
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-"
    "\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-"
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-"
    "\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-"
    "\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-"
    "\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK = (
    "[\r\n]", rf"\s?[{_CASED_LETTERS}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
    _HAN, r"\p{N}+",
)  # fmt: skip

PRE = (
    Pre(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "mellum", "exaone4", "modern-bert", "trillion",
         "granite-docling", "a.x-4.0", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
        (GPT2,),
    ),
    Pre(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _WORDS_OF_GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    Pre(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        (_LLAMA3,), ignore_merges=True, adds_bos=True,
    ),
    Pre(("smaug-bpe", "dbrx", "chatglm-bpe"), (_LLAMA3,)),
    Pre(("glm4", "glm5"), (_LLAMA3,), ignore_merges=True),
    Pre(
        ("qwen2", "deepseek-r1-qwen", "stablelm2", "kormo", "megrez", "hunyuan", "f2llmv2", "solar-open", "grok-2"),
        (_QWEN2,),
    ),
    Pre(("qwen35",), (_QWEN35,)),
    Pre(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), (DIGITS, GPT2)
    ),
    Pre(("tekken",), (_TEKKEN,), ignore_merges=True, adds_bos=True),
    Pre(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (_GPT4O,)),
    Pre(("granite-embed-multi-97m",), (_GPT4O,), ignore_merges=True),
    Pre(("tiny_aya", "cohere2moe"), (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    Pre(("deepseek-llm",), _DEEPSEEK),
    Pre(("deepseek-coder",), ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")),
    Pre(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), (r"\p{N}{1,3}", _CJK, _DEEPSEEK3)),
    Pre(("spark2_5",), (r"\p{N}{1,3}", _CJK, rf"{_PUNCTUATED}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    Pre(("youtu",), (_YOUTU, rf"{_CASED_CONTRACTIONS}|\p{{N}}|{_OTHERS}[\r\n/]*|{_SPACES}"), ignore_merges=True),
    Pre(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", _WORDS_OF_GPT2, "[0-9][0-9][0-9]")),
    Pre(("jais-2",), (_JAIS2,)),
    Pre(("bloom", "gpt3-finnish", "poro-chat"), (_BLOOM,)),
    Pre(("viking",), (_BLOOM, r"\p{N}")),
    Pre(("bailingmoe", "bailingmoe2", "llada-moe"), (_BAILING,)),
    Pre(("seed-coder",), (_SEED,)),
    Pre(("ufakzeka",), (rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_OTHERS}[\r\n]*|{_SPACES}",)),
    Pre(("laguna",), (r"[^\n]+|[\n]+", _QWEN2)),
    Pre(("exaone-moe",), (_EXAONE,)),
    Pre(
        ("minicpm5",), (r"\p{N}{1,3}", rf"{_LETTERS}|\p{{N}}+|{_OTHERS}[\r\n]*|{_SPACES}"), ignore_merges=True
    ),
    Pre(("superbpe",), (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
)  # fmt: skip
