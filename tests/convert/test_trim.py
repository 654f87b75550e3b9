"""Models with a smaller vocabulary: logits of the kept rows bit for bit, documents with new ids, and what cannot be."""

import json

import numpy as np
import pytest
import torch

import aibit_format as aibit
from aibit_format import schemes
from aibit_format.convert import trim as trimming
from aibit_format.errors import RecipeError, SourceError
from aibit_format.file import writer
from tests.support import architectures, pieces, vocabularies
from tests.support.vocabularies import KINDS, ROWS, STRANGE, TEXT

LINES = TEXT.splitlines()[:30]
EMBEDDING = "model.embed_tokens.weight"
SCHEMES = [
    "bf16", "f32", "int8", "int8-absmax,group=32", "int8-zp", "int8-outlier,threshold=3", "fp8-e4m3", "cluster,bits=3",
    "int4-group", "int-group,bits=3,zero=code", "nf4", "nf4,nested=1", "nf4-cpu", "mxfp4", "mxfp8", "nvfp4", "ternary",
    "cluster-group", "gguf:q8_0", "gguf:q4_1", "int8-dynamic", "fp8-block,rows=all,columns=all",
]  # fmt: skip


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def logits(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def compare(whole, cut, text):
    """Compare the two files of a model on a text: ids are mapped, and logits are those of the kept rows."""
    kept = trimming.map_of(cut)
    (old, before), (new, after) = aibit.load(whole), aibit.load(cut)
    ids = before(text)["input_ids"][:60]
    mapped = after(text)["input_ids"][:60]
    assert mapped == kept.new(ids).tolist() and kept.old(mapped).tolist() == ids and len(ids) > 20
    wanted, found = logits(old, ids), logits(new, mapped)
    assert found.shape == (len(ids), len(kept.ids)) and len(kept.ids) < kept.size == ROWS
    assert torch.equal(found, wanted[:, torch.from_numpy(kept.ids.astype(np.int64))])
    return kept


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_are_those_of_the_kept_rows_in_every_scheme_with_rows(scheme, tied, tmp_path, text):
    vocabularies.save("byte-level", tmp_path / "hf", "llama-tied" if tied else "llama-untied")
    rules = {"embed_tokens|lm_head": scheme}
    aibit.convert(tmp_path / "hf", tmp_path / "whole.aibit", "int8", rules)
    report = aibit.trim(tmp_path / "whole.aibit", tmp_path / "cut.aibit", [text])
    compare(tmp_path / "whole.aibit", tmp_path / "cut.aibit", LINES[2])
    assert report.rows % 64 == 0 and report.bytes_after < report.bytes_before
    with aibit.open(tmp_path / "cut.aibit", "full") as file, aibit.open(tmp_path / "whole.aibit") as whole:
        file.verify()
        info = file.info("lm_head.weight")
        assert (info.alias_of == EMBEDDING) == tied and info.shape == (report.rows, 64)
        assert np.array_equal(file.dequantize(EMBEDDING), whole.dequantize(EMBEDDING)[report.kept.ids])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer(kind, tmp_path, text):
    vocabularies.save(kind, tmp_path / "hf")
    report = aibit.trim(tmp_path / "hf", tmp_path / "cut.aibit", [text], multiple=1, measure=[text])
    aibit.convert(tmp_path / "hf", tmp_path / "whole.aibit", "keep")
    compare(tmp_path / "whole.aibit", tmp_path / "cut.aibit", LINES[2])
    assert report.figures.changed == 0 and report.figures.tokens_before == report.figures.tokens_after
    other = tmp_path / "other.txt"
    other.write_text(STRANGE, encoding="utf-8")
    figures = trimming.prepare(tmp_path / "hf", [text], measure=[other]).figures
    assert figures.texts == 2 and figures.words == 10 and figures.tokens_after >= figures.tokens_before


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen2", "t5", "mixtral", "bert-classifier"])
def test_other_families(name, tmp_path, text):
    vocabularies.save("byte-level", tmp_path / "hf", name)
    report = aibit.trim(tmp_path / "hf", tmp_path / "cut.aibit", [text])
    aibit.convert(tmp_path / "hf", tmp_path / "whole.aibit", "keep")
    old, new = aibit.load_model(tmp_path / "whole.aibit"), aibit.load_model(tmp_path / "cut.aibit")
    ids = aibit.load_tokenizer(tmp_path / "whole.aibit")(LINES[2])["input_ids"][:40]
    kept, rows = report.kept, torch.from_numpy(report.kept.ids.astype(np.int64))
    mapped = kept.new(ids)
    more = ({}, {}) if name != "t5" else ({"decoder_input_ids": torch.tensor([ids[:5]])},
                                           {"decoder_input_ids": torch.from_numpy(mapped[None, :5])})  # fmt: skip
    with torch.inference_mode():
        wanted = old(input_ids=torch.tensor([ids]), **more[0]).logits
        found = new(input_ids=torch.from_numpy(mapped[None]), **more[1]).logits
    assert torch.equal(found, wanted if name == "bert-classifier" else wanted[..., rows])
    assert new.config.vocab_size == report.rows and new.get_input_embeddings().weight.shape[0] == report.rows


def test_documents_have_the_new_ids_and_the_file_says_what_was_kept(tmp_path, text):
    vocabularies.save("byte-level", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    last = vocabularies.size("byte-level") - 1
    config["eos_token_id"] = [2, last]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps({
        "eos_token_id": [2, last], "suppress_tokens": [last, 639, 300], "bad_words_ids": [[last], [last, 300]],
    }))  # fmt: skip
    report = aibit.trim(tmp_path / "hf", tmp_path / "cut.aibit", ids=[5, 9], multiple=1)
    kept = report.kept
    assert 300 not in kept.ids and last in kept.ids
    with aibit.open(tmp_path / "cut.aibit") as file, aibit.open(tmp_path / "cut.aibit") as again:
        new = int(kept.new([last])[0])
        assert json.loads(bytes(file.documents["config.json"]))["eos_token_id"] == [2, new]
        assert json.loads(bytes(file.documents["config.json"]))["vocab_size"] == report.rows
        found = json.loads(bytes(file.documents["generation_config.json"]))
        assert found == {"eos_token_id": [2, new], "suppress_tokens": [new], "bad_words_ids": [[new]]}
        assert file.metadata["vocabulary.size"] == ROWS
        assert file.metadata["vocabulary.source"] == again.metadata["source.xxh3_128"]
        assert bytes(file.documents["vocabulary.kept"]) == kept.ids.astype("<u4").tobytes()


def test_trimming_twice_and_converting_again_keep_the_map_to_the_first_original(tmp_path, text):
    vocabularies.save("byte-level", tmp_path / "hf")
    first = aibit.trim(tmp_path / "hf", tmp_path / "a.aibit", [text])
    short = tmp_path / "short.txt"
    short.write_text("\n".join(LINES[2:4]))
    second = aibit.trim(tmp_path / "a.aibit", tmp_path / "b.aibit", [short], scheme="nf4")
    assert second.rows < first.rows == second.rows_before and set(second.kept.ids) < set(first.kept.ids)
    aibit.convert(tmp_path / "b.aibit", tmp_path / "c.aibit", "int8")
    aibit.convert(tmp_path / "hf", tmp_path / "whole.aibit", "nf4")
    compare(tmp_path / "whole.aibit", tmp_path / "b.aibit", LINES[2])
    with aibit.open(tmp_path / "a.aibit") as a, aibit.open(tmp_path / "c.aibit") as c:
        for key in ("vocabulary.size", "vocabulary.source"):
            assert a.metadata[key] == c.metadata[key]
    assert np.array_equal(trimming.map_of(tmp_path / "c.aibit").ids, second.kept.ids)


def test_bytes_are_the_same_whatever_the_threads_and_the_way(tmp_path, text):
    vocabularies.save("byte-level", tmp_path / "hf", "llama-untied")
    for name, jobs in (("a", 1), ("b", 3)):
        aibit.trim(tmp_path / "hf", tmp_path / f"{name}.aibit", [text], scheme="nf4", jobs=jobs)
    assert (tmp_path / "a.aibit").read_bytes() == (tmp_path / "b.aibit").read_bytes()
    aibit.trim(tmp_path / "hf", tmp_path / "s.aibit", [text], scheme="nf4", max_shard_size="100KB")
    shards = sorted(tmp_path.glob("s-*.aibit"))
    assert len(shards) > 1
    aibit.merge(shards[0], tmp_path / "m.aibit")
    assert (tmp_path / "m.aibit").read_bytes() == (tmp_path / "a.aibit").read_bytes()


def test_ids_are_mapped_both_ways(tmp_path, text):
    vocabularies.save("byte-level", tmp_path / "hf")
    report = aibit.trim(tmp_path / "hf", tmp_path / "a.aibit", [text], multiple=1)
    every = np.arange(report.rows)
    assert np.array_equal(trimming.undo_ids(tmp_path / "a.aibit", every), report.kept.ids)
    assert np.array_equal(trimming.new_ids(tmp_path / "a.aibit", report.kept.ids), every)
    gone = np.setdiff1d(np.arange(ROWS), report.kept.ids)
    assert (trimming.new_ids(tmp_path / "a.aibit", gone) == -1).all() and len(gone)
    with pytest.raises(RecipeError, match="id -3: ids are not negative"):
        trimming.undo_ids(tmp_path / "a.aibit", [1, -3])
    aibit.convert(tmp_path / "hf", tmp_path / "whole.aibit")
    with pytest.raises(RecipeError, match="its vocabulary is whole"):
        trimming.undo_ids(tmp_path / "whole.aibit", [1])


def test_signatures_are_left_out_and_said_to_be(tmp_path, text):
    vocabularies.save("byte-level", tmp_path / "hf")
    aibit.convert(tmp_path / "hf", tmp_path / "whole.aibit")
    aibit.new_key(tmp_path / "key")
    aibit.sign(tmp_path / "whole.aibit", tmp_path / "key.pem", tmp_path / "signed.aibit")
    report = aibit.trim(tmp_path / "signed.aibit", tmp_path / "cut.aibit", [text])
    assert any("sign it again" in note for note in report.conversion.notes)
    assert not aibit.trim(tmp_path / "whole.aibit", tmp_path / "b.aibit", [text]).conversion.notes


@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "nothing says which tokens to keep"), ({"ids": [ROWS]}, f"id {ROWS} is beyond the table of {ROWS} rows"),
    ({"ids": []}, "the list of ids keeps nothing"), ({"scripts": ["runes"]}, "unknown script 'runes'; known: arabic"),
    ({"languages": ["xx"]}, "unknown language 'xx'"), ({"ids": [1], "coverage": 1.5}, "coverage 1.5, above 0 to 1"),
])  # fmt: skip
def test_what_keeps_nothing_or_too_much(arguments, message, tmp_path):
    vocabularies.save("byte-level", tmp_path / "hf")
    with pytest.raises(RecipeError, match=message):
        aibit.trim(tmp_path / "hf", tmp_path / "a.aibit", **arguments)
    assert not (tmp_path / "a.aibit").exists()


def test_a_text_that_keeps_nothing(tmp_path):
    vocabularies.save("byte-level", tmp_path / "hf")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "few.txt").write_text("a b")
    with pytest.raises(RecipeError, match="the text keeps nothing: of its 0 tokens none is there 1 times"):
        aibit.trim(tmp_path / "hf", tmp_path / "a.aibit", [tmp_path / "empty.txt"])
    with pytest.raises(RecipeError, match="none is there 9 times; give more text, or a smaller least count"):
        aibit.trim(tmp_path / "hf", tmp_path / "a.aibit", [tmp_path / "few.txt"], min_count=9)


def test_what_cannot_be_cut(tmp_path, text):
    vocabularies.save("byte-level", tmp_path / "hf")
    for scheme, message in (("nf4,block_size=128", "blocks that reach over the ends of rows"),
                            ("fp8-block,rows=32,columns=64", "numbers that several rows share")):  # fmt: skip
        aibit.convert(tmp_path / "hf", tmp_path / "a.aibit", "keep", {"embed_tokens": scheme}, overwrite=True)
        with pytest.raises(SourceError, match=rf"tensor .*{message}.*; convert it to another scheme first"):
            aibit.trim(tmp_path / "a.aibit", tmp_path / "b.aibit", [text])
    (tmp_path / "hf" / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"holds no tokenizer.*a vocabulary is cut together with its tokenizer"):
        aibit.trim(tmp_path / "hf", tmp_path / "b.aibit", [text])
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "tokenizer.json").write_text(vocabularies.document("byte-level"))
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"entity_vocab_size": 7}))
    with pytest.raises(SourceError, match="entity_vocab_size: a model of several vocabularies is not cut"):
        aibit.trim(tmp_path / "hf", tmp_path / "b.aibit", [text])


def test_no_model(tmp_path, text):
    tensor = writer.Tensor("a", (2, 2), "f32", schemes.make("f32"))
    writer.write(tmp_path / "a.aibit", {tensor: {"values": np.zeros((2, 2), np.float32)}})
    with pytest.raises(RecipeError, match="no model whose vocabulary could be cut"):
        aibit.trim(tmp_path / "a.aibit", tmp_path / "b.aibit", [text])


def test_a_file_of_ids(tmp_path):
    (tmp_path / "ids").write_text("1 2,3\n\n40\n")
    assert trimming.read_ids(tmp_path / "ids").tolist() == [1, 2, 3, 40]
    (tmp_path / "ids").write_text("1 two")
    with pytest.raises(RecipeError, match="'two' is no id"):
        trimming.read_ids(tmp_path / "ids")


def test_a_model_of_sentencepiece_where_it_is_all_there_is(tmp_path):
    pytest.importorskip("sentencepiece")  # transformers reads the model with both
    pytest.importorskip("google.protobuf")
    count = len(pieces.SPECIAL) + len(pieces.BYTES) + 8
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    architectures.save("llama-tied", tmp_path / "hf", changes={"vocab_size": count, **ids})
    (tmp_path / "hf" / "tokenizer.model").write_bytes(pieces.bpe())
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    (tmp_path / "text.txt").write_text("ab ab")
    report = aibit.trim(tmp_path / "hf", tmp_path / "cut.aibit", [tmp_path / "text.txt"], multiple=1)
    assert report.rows < count and report.figures.changed == 0
    aibit.convert(tmp_path / "hf", tmp_path / "whole.aibit", "keep")
    before, after = (aibit.load_tokenizer(tmp_path / f"{name}.aibit") for name in ("whole", "cut"))
    ids = before("ab ab")["input_ids"]
    assert after("ab ab")["input_ids"] == report.kept.new(ids).tolist()
    with aibit.open(tmp_path / "cut.aibit") as file:
        assert "tokenizer.model" in file.documents and "tokenizer.json" not in file.documents
