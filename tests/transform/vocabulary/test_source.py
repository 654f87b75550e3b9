"""A source with fewer tokens: tensors, documents, and what cannot be cut."""

import json

import numpy as np
import pytest

from aibit_format.container.vocabulary import Kept
from aibit_format.errors import SourceError
from aibit_format.formats.models import meta_model_of
from aibit_format.formats.sources import open_source, values
from aibit_format.transform.vocabulary.source import Trimmed, needed, size_of
from aibit_format.transform.vocabulary.tokenizer import tokenizer_of
from tests.support import vocabularies
from tests.support.vocabularies import ROWS

KEPT = Kept(np.array([*range(300), 599], np.uint32), ROWS)


def trimmed(folder, kept=KEPT, before=None):
    source = open_source(folder)
    return source, Trimmed(source, meta_model_of(source), tokenizer_of(source.documents), kept, before)


def edit(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
    vocabularies.save("byte-level", tmp_path / "hf", "llama-untied")
    return tmp_path / "hf"


def test_rows_of_embedding_and_head_are_cut_and_other_tensors_are_read_where_they_lie(folder):
    source, made = trimmed(folder)
    assert sorted(made.cut) == ["lm_head.weight", "model.embed_tokens.weight"] and made.files == source.files
    for name in made.cut:
        assert made.tensors[name].shape == (301, 64) and made.tensors[name].offset is None
        assert np.array_equal(values(made, name)[0], values(source, name)[0][KEPT.ids])
    norm = "model.norm.weight"
    assert made.tensors[norm] == source.tensors[norm] and made.planes(norm)["values"] is not None
    assert made.before == 2 * ROWS * 256 and made.after == 2 * 301 * 256


def test_ids_that_a_class_takes_where_the_config_names_none_are_stated(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["bos_token_id"], config["eos_token_id"], config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 599}))
    with pytest.raises(SourceError):  # the class has 32000 rows by default, and the tensors do not
        trimmed(folder)
    edit(folder, vocab_size=ROWS)
    source, made = trimmed(folder)
    assert {1, 2, 599} <= needed(source, meta_model_of(source)) and size_of(meta_model_of(source)) == ROWS
    found = json.loads(made.documents["config.json"])
    assert (found["bos_token_id"], found["eos_token_id"], found["pad_token_id"], found["vocab_size"]) == (
        1,
        2,
        300,
        301,
    )


def test_added_tokens_of_settings_have_new_ids(folder):
    edit(
        folder, "tokenizer_config.json", added_tokens_decoder={"599": {"content": "<extra>"}, "400": {"content": "no"}}
    )
    made = trimmed(folder)[1]
    assert json.loads(made.documents["tokenizer_config.json"])["added_tokens_decoder"] == {
        "300": {"content": "<extra>"}
    }


def test_what_a_gguf_file_said_has_new_ids(folder):
    source = open_source(folder)
    source.documents["gguf.json"] = json.dumps({
        "tokenizer.ggml.padding_token_id": 599, "llama.vocab_size": ROWS, "general.name": "x",
    }).encode()  # fmt: skip
    made = Trimmed(source, meta_model_of(source), tokenizer_of(source.documents), KEPT)
    found = json.loads(made.documents["gguf.json"])
    assert found == {"tokenizer.ggml.padding_token_id": 300, "llama.vocab_size": 301, "general.name": "x"}


def test_the_map_is_to_the_first_original(folder):
    before = Kept(np.arange(10, 10 + ROWS, dtype=np.uint32), 5000)
    made = trimmed(folder, before=before)[1]
    assert made.kept.ids.tolist() == [*range(10, 310), 609] and made.metadata["vocabulary.size"] == 5000


@pytest.mark.parametrize(("changes", "message"), [
    ({"tgt_vocab_size": 5}, "tgt_vocab_size: a model of several vocabularies is not cut"),
    ({"encoder": {"vocab_size": 7}}, "vocab_size is 7, and the embeddings have 640 rows"),
])  # fmt: skip
def test_several_vocabularies(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(SourceError, match=message):
        trimmed(folder)
