"""Tokenizers of files."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import jinja2
import pytest
import torch
import transformers
from safetensors.torch import save_file

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.hf.compat import is_tokenizer
from tests.support.hostile_documents import MESSAGES, MODEL, with_document
from tests.support.hostile_documents import good as good

REACHES_OUT = "{{ ''.__class__.__mro__[1].__subclasses__() | length }}"
ENDLESS = "{% for i in range(10 ** 12) %}{% endfor %}"


def test_a_template_is_not_rendered_by_loading_and_has_no_way_out_when_it_is(good, tmp_path):
    assert int(jinja2.Template(REACHES_OUT).render()) > 100  # control: every class of the process, subprocess.Popen too
    for i, template in enumerate((REACHES_OUT, "{% endfor %} not even a template")):
        (tmp_path / str(i)).mkdir()
        path = with_document(good, tmp_path / str(i), "chat_template.jinja", template.encode())
        tokenizer = aibit.load_tokenizer(path)
        assert tokenizer.chat_template == template
        with pytest.raises((jinja2.exceptions.SecurityError, jinja2.exceptions.TemplateSyntaxError)):
            tokenizer.apply_chat_template(MESSAGES)


def test_a_template_without_end_does_not_keep_a_model_from_loading(good, tmp_path, monkeypatch):
    path = with_document(good, tmp_path, "chat_template.jinja", ENDLESS.encode())
    rendered = []
    with monkeypatch.context() as patch:
        patch.setattr(jinja2.Template, "render", lambda self, *_, **__: rendered.append(self) or "")
        _, tokenizer = aibit.load(path)
        assert tokenizer.chat_template == ENDLESS and rendered == []
        tokenizer.apply_chat_template(MESSAGES)
        assert len(rendered) == 1  # control: this is where it would hang
    with pytest.raises(OverflowError):  # if the sandbox had no end of its own for such a loop
        tokenizer.apply_chat_template(MESSAGES)


# Which class, and which documents it sees


def test_a_file_chooses_no_class_but_a_tokenizer(good, tmp_path, monkeypatch):
    """transformers calls from_pretrained of any class that it exports, and a model's opens what an index names."""
    index = {"metadata": {}, "weight_map": {"embed_tokens.weight": "../secret.safetensors"}}
    naive = tmp_path / "naive"
    shutil.copytree(MODEL, naive)
    for name in naive.glob("*.safetensors"):
        name.unlink()
    (naive / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"embed_tokens.weight": torch.full((1024, 128), 7.0)}, tmp_path / "secret.safetensors", {"format": "pt"})
    change = {"tokenizer_class": "LlamaModel"}
    config = json.loads((naive / "tokenizer_config.json").read_text()) | change
    (naive / "tokenizer_config.json").write_text(json.dumps(config))
    opened = transformers.AutoTokenizer.from_pretrained(naive, local_files_only=True)  # control
    assert isinstance(opened, transformers.LlamaModel)
    path = with_document(good, tmp_path, "tokenizer_config.json", change)
    with pytest.raises(LoadError, match=r"tokenizer_config\.json: tokenizer_class 'LlamaModel' is not one"):
        aibit.load_tokenizer(path)
    (tmp_path / "other").mkdir()
    path = with_document(good, tmp_path / "other", "config.json", change)
    with pytest.raises(LoadError, match=r"config\.json: tokenizer_class 'LlamaModel' is not one"):
        aibit.load_tokenizer(path)


@pytest.mark.parametrize(
    ("name", "fine"),
    [("LlamaTokenizer", True), ("LlamaTokenizerFast", True), ("PreTrainedTokenizerFast", True),
     ("TokenizersBackend", True), ("DistilBertTokenizer", True), ("BloomTokenizerFast", True),
     ("OfNobodyTokenizer", True), ("LlamaModel", False), ("AutoTokenizer", False), ("pipeline", False),
     ("LlamaConfig", False), ("models", False), ("AutoModelForCausalLM", False), ("__loader__", False),
     ("os.Tokenizer", False), (["LlamaTokenizer"], False)],
)  # fmt: skip
def test_names_of_tokenizers(name, fine):
    assert is_tokenizer(name) == fine


def test_only_documents_of_tokenizers_lie_where_transformers_looks(good, tmp_path, monkeypatch):
    path = with_document(good, tmp_path, "model.safetensors.index.json", b"{}")
    seen = []

    def look(folder, **options):
        seen.extend(sorted(os.listdir(folder)))
        seen.append(json.loads(pathlib.Path(folder, "config.json").read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", look)
    with pytest.raises(KeyboardInterrupt):
        aibit.load_tokenizer(path)
    *names, config = seen
    assert "tokenizer.json" in names and "config.json" in names
    assert not any("index" in name or name.startswith(("LICENSE", "README", "generation")) for name in names)
    assert "hidden_size" not in config and config["model_type"] == "llama"


def test_a_panic_of_the_tokenizers_library_is_a_load_error(good, monkeypatch):
    class PanicException(BaseException):  # pyo3's derives from BaseException too
        pass

    def panic(*_, **__):
        raise PanicException("index out of bounds")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", panic)
    with pytest.raises(LoadError, match="index out of bounds"):
        aibit.load_tokenizer(good)


@pytest.mark.parametrize("key", ["vocab", "merges", "tokenizer_object", "gguf_file", "subfolder"])
def test_arguments_that_name_files_are_refused(key, good, tmp_path):
    path = with_document(good, tmp_path, "tokenizer_config.json", {key: "/etc/passwd"})
    with pytest.raises(LoadError, match=f"tokenizer_config.json: {key}"):
        aibit.load_tokenizer(path)
