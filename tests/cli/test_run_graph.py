"""The command ``aibit run --graph``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import aibit_format as aibit
from tests.support.command_models import shell


@pytest.fixture(scope="module")
def chatty(tmp_path_factory, fixtures):
    """The fixture Llama, converted, with its graph."""
    folder = tmp_path_factory.mktemp("chatty")
    aibit.convert(fixtures / "models" / "tiny-llama", folder / "m.aibit")
    aibit.add_graph(folder / "m.aibit", folder / "g.aibit")
    return folder / "g.aibit"


def test_the_text_is_that_of_the_model(chatty):
    done = shell("run", "--graph", chatty, "The ", "-n", "12")
    assert done.returncode == 0 and "12 tokens in" in done.stderr
    wanted = shell("run", "--weight-only", chatty, "The ", "-n", "12")
    assert done.stdout == wanted.stdout and done.stdout.startswith("The ") and len(done.stdout.split()) > 4
    again = json.loads(shell("run", "--graph", chatty, "--json", "-n", "12", input="The ").stdout)
    assert again["new_tokens"] == 12 and ("The " + again["text"]).split() == done.stdout.split()
    assert 0 < again["load_seconds"] < again["first_seconds"]


def test_a_seed_repeats_a_sample(chatty):
    command = ("run", "--graph", chatty, "The ", "-n", "12", "--temperature", "5", "--seed")
    first, again, other = (shell(*command, seed).stdout for seed in "112")
    assert first == again != other


def test_neither_transformers_nor_bitsandbytes_is_imported(chatty):
    done = _imports("run", "--graph", str(chatty), "The ", "-n", "2")
    assert done.stdout.endswith("[]\n")
    done = _imports("run", str(chatty), "The ", "-n", "2")
    assert "'transformers'" in done.stdout  # so that what is looked for is what would be there


def _imports(*arguments):
    code = (
        "import sys\nfrom aibit_format.cli import main\n"
        f"main({list(arguments)!r})\n"
        "print([name for name in ('transformers', 'bitsandbytes') if hasattr(sys.modules.get(name), '__file__')])"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_it_stops_where_the_graph_s_tokens_end(chatty):
    size = aibit.load_graph(chatty).context
    done = shell("run", "--graph", chatty, "The ", "-n", str(2 * size), "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["new_tokens"] <= size
    done = shell("run", "--graph", chatty, "The queue " * size, "-n", "1")
    assert done.returncode == 1 and f"the graph takes {size}: shorten it" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--chat"], "leave out --chat and --device"),
        (["--device", "cuda"], "leave out --chat and --device"),
    ],
)
def test_what_a_graph_does_not_do_is_said(chatty, arguments, says):
    done = shell("run", "--graph", chatty, "The ", *arguments)
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


def test_a_file_without_a_graph_says_how_to_get_one(chatty):
    done = shell("run", "--graph", chatty.with_name("m.aibit"), "The ")
    assert done.returncode == 1 and "holds no graph; write one with: aibit graph" in done.stderr
