"""The command ``aibit run``."""

from __future__ import annotations

import json

import pytest

import aibit_format as aibit
from tests.support.command_models import shell


@pytest.fixture(scope="module")
def chatty(tmp_path_factory, fixtures):
    """The fixture Llama, converted."""
    file = tmp_path_factory.mktemp("chatty") / "tiny-llama.aibit"
    aibit.convert(fixtures / "models" / "tiny-llama", file)
    return file


def test_run_streams_text(chatty):
    done = shell("run", chatty, "The ", "-n", "12")
    assert done.returncode == 0 and done.stdout.startswith("The ") and len(done.stdout.split()) > 4
    assert "12 tokens in" in done.stderr and "Warning" not in done.stderr and "MatMul" not in done.stderr
    again = shell("run", chatty, "--json", "-n", "12", input="The ")
    result = json.loads(again.stdout)
    assert result["new_tokens"] == 12 and ("The " + result["text"]).split() == done.stdout.split()


def test_run_uses_the_chat_template(chatty):
    plain = json.loads(shell("run", chatty, "What is a list?", "-n", "8", "--json").stdout)
    chat = json.loads(shell("run", chatty, "What is a list?", "-n", "8", "--json", "--chat").stdout)
    assert chat["new_tokens"] > 0 and chat["text"] != plain["text"]


def test_run_stops_where_the_model_s_context_ends_and_says_so(chatty):
    size = json.loads(bytes(aibit.open(chatty).documents["config.json"]))["max_position_embeddings"]
    done = shell("run", chatty, "The ", "-n", str(2 * size), "--json")
    prompt = len(aibit.load_tokenizer(chatty)("The ").input_ids)
    new = json.loads(done.stdout)["new_tokens"]
    assert done.returncode == 0 and prompt + new <= size
    assert prompt + new < size or f"the model's context of {size} tokens is full" in done.stderr
    done = shell("run", chatty, "The queue " * size, "-n", "1")
    assert done.returncode == 1 and f"the model's context holds {size}" in done.stderr
