"""Tokenizers of files."""

from __future__ import annotations

import jinja2
import pytest

import aibit_format as aibit
from tests.support.hostile_documents import MESSAGES, with_document
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
