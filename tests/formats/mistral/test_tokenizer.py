"""Mistral's tokenizers against transformers' converter, and against mistral-common where it is installed."""

from __future__ import annotations

import base64
import json

import pytest
import tokenizers
import torch
from transformers.integrations.mistral.tokenizer import MistralConverter

import aibit_format as aibit
from aibit_format.errors import AibitError
from aibit_format.formats.mistral import tokenizer as own
from aibit_format.formats.sources import open_source
from tests.support import makers

TEXTS = ["hello the thing", "  in  hell, the café's 12345 things\n\n", "he'll go", "日本語 hello\t the", " t" * 9]
TOKENS = makers.ranks()
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}"
    r"\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMES = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "<pad>")
SPECIAL, UNUSED = 12, 2
PARAMS = {"dim": 32, "n_layers": 1, "hidden_dim": 32, "n_heads": 2, "norm_eps": 1e-5,
          "vocab_size": SPECIAL + len(TOKENS)}  # fmt: skip


def tekken(**more) -> dict:
    """What ``tekken.json`` holds."""
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate([*TOKENS, *(b"never %d" % i for i in range(UNUSED))])
    ]
    return {
        "config": {"pattern": PATTERN, "num_vocab_tokens": len(vocab), "default_vocab_size": SPECIAL + len(TOKENS),
                   "default_num_special_tokens": SPECIAL, "version": "v7"},
        "vocab": vocab,
        "special_tokens": [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(NAMES)],
    } | more  # fmt: skip


def written(folder, files: dict):
    """A small Mistral with these files beside it."""
    random, count = torch.Generator().manual_seed(1), PARAMS["vocab_size"]
    shapes = {
        "tok_embeddings": (count, 32), "output": (count, 32), "norm": (32,), "layers.0.attention_norm": (32,),
        "layers.0.ffn_norm": (32,), **{f"layers.0.attention.w{each}": (32, 32) for each in "qkvo"},
        **{f"layers.0.feed_forward.w{each}": (32, 32) for each in (1, 2, 3)},
    }  # fmt: skip
    tensors = {f"{name}.weight": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    makers.write_whole(folder, tensors, PARAMS)
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())
    return folder


def test_tekken_becomes_what_transformers_makes_of_it(tmp_path):
    folder = written(tmp_path / "m", {"tekken.json": tekken()})
    documents = open_source(folder).documents
    assert "tekken.json" not in documents
    found = tokenizers.Tokenizer.from_str(documents["tokenizer.json"].decode())
    expected = MistralConverter(str(folder / "tekken.json")).converted()
    one, other = json.loads(found.to_str()), json.loads(expected.to_str())
    assert one["model"]["merges"] == other["model"]["merges"] and one["pre_tokenizer"] == other["pre_tokenizer"]
    kept = {token: i for token, i in one["model"]["vocab"].items() if not token.startswith("<SPECIAL_")}
    assert kept == {token: i for token, i in other["model"]["vocab"].items() if not token.startswith("<SPECIAL_")}
    for text in [*TEXTS, "a[INST]the[/INST]"]:
        assert found.encode(text).ids == [1, *expected.encode(text).ids]
        assert found.decode(found.encode(text).ids, skip_special_tokens=False) == "<s>" + text
    config = json.loads(documents["config.json"])
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 6]


def test_ids_are_those_of_mistral_common(tmp_path):
    module = "mistral_common.tokens.tokenizers.tekken"
    library = pytest.importorskip(module, reason="mistral-common is not installed (pip install mistral-common)")
    folder = written(tmp_path / "m", {"tekken.json": tekken()})
    found = tokenizers.Tokenizer.from_str(open_source(folder).documents["tokenizer.json"].decode())
    theirs = library.Tekkenizer.from_file(folder / "tekken.json")
    for text in TEXTS:
        assert found.encode(text).ids == theirs.encode(text, bos=True, eos=False)
    assert [str(entry["token_str"].value) for entry in library.Tekkenizer.DEPRECATED_SPECIAL_TOKENS] == list(
        own._UNLISTED
    )


def test_the_tokenizer_is_loaded(tmp_path):
    aibit.convert(written(tmp_path / "m", {"tekken.json": tekken()}), tmp_path / "m.aibit")
    tokenizer = aibit.load_tokenizer(tmp_path / "m.aibit")
    assert tokenizer("hello").input_ids == [1, SPECIAL + TOKENS.index(b"hello")]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")


def test_files_from_before_special_tokens_were_listed(tmp_path):
    said = tekken()
    del said["special_tokens"]
    said["config"] |= {"default_num_special_tokens": 20, "default_vocab_size": 20 + 200}
    documents = open_source(written(tmp_path / "m", {"tekken.json": said})).documents
    found = tokenizers.Tokenizer.from_str(documents["tokenizer.json"].decode())
    assert found.token_to_id("[TOOL_CONTENT]") == 19 and found.token_to_id("<pad>") == 11


def vocabulary(folder) -> dict:
    documents = open_source(folder).documents
    assert not any(name.startswith("tokenizer.model") for name in documents)
    return json.loads(documents["tokenizer.json"])["model"]["vocab"]


def test_the_latest_sentencepiece_model_is_read(tmp_path):
    texts = {f"tokenizer.model.v{number}": makers.sentencepiece(["a", f"v{number}"]) for number in (1, 7, 10)}
    assert "v10" in vocabulary(written(tmp_path / "m", texts))
    found = vocabulary(written(tmp_path / "n", texts | {"tokenizer.model": makers.sentencepiece(["a", "b"])}))
    assert "b" in found and "v10" not in found


def config(**more):
    return lambda said: said["config"].update(more)


def put(key, i, field, value):
    return lambda said: said[key][i].update({field: value})


DAMAGE = [
    (lambda said: said.pop("config"), r"has no object 'config'"),
    (config(pattern=None), r"pattern is None, expected a regular expression"),
    (config(pattern="a" * 5000), r"pattern is 'aaa"),
    (config(default_num_special_tokens=3), r"default_num_special_tokens is 3, there are 7"),
    (config(default_num_special_tokens=1 << 40), r"default_num_special_tokens is 1099511627776"),
    (config(default_vocab_size=SPECIAL), r"default_vocab_size is 12, 12 are special"),
    (config(default_vocab_size=10**9), r"default_vocab_size is 1000000000, 12 are special and 271 more"),
    (config(default_vocab_size=None), r"283 tokens, the embeddings have 281 rows"),
    (put("special_tokens", 2, "rank", 1), r"ranks of special_tokens are not 0, 1 and on, each once"),
    (put("special_tokens", 1, "token_str", "[S]"), r"'<s>' is no special token, or one is there twice"),
    (put("special_tokens", 2, "token_str", "<s>"), r"'<s>' is no special token, or one is there twice"),
    (lambda said: said.update(special_tokens="x"), r"ranks of special_tokens"),
    (lambda said: said.update(special_tokens=5), r"ranks of special_tokens"),
    (put("special_tokens", 4, "token_str", "\ud800"), r"special_tokens: .* has no text as token_str"),
    (put("special_tokens", 4, "token_str", 4), r"special_tokens: .* has no text as token_str"),
    (config(pattern="\udfff"), r"pattern is '\\udfff'"),
    (lambda said: said.update(vocab={}), r"vocab is no list"),
    (put("vocab", 3, "rank", 4), r"is no token of rank 3"),
    (put("vocab", 3, "token_bytes", 5), r"is no token of rank 3"),
    (put("vocab", 3, "token_bytes", "&"), r"rank 3: '&' is no token in base64"),
    (put("vocab", 3, "token_bytes", "AA=="), r"b'\\x00' is there twice"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[message[:30] for _, message in DAMAGE])
def test_what_is_damaged_is_refused(damage, message, tmp_path):
    said = tekken()
    damage(said)
    folder = written(tmp_path / "bad", {"tekken.json": said})
    with pytest.raises(AibitError, match=message) as caught:
        aibit.convert(folder, tmp_path / "m.aibit")
    assert str(folder / "tekken.json") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]
