"""Models of stored graphs: calls, generation, kept sequences, and files whose graphs are none."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
import torch

import aibit_format as aibit
from aibit_format.errors import GraphError, LoadError
from aibit_format.file import rewrite
from aibit_format.graph.program import DOCUMENT
from tests.support.graphs import IDS, document, encoded, recorded


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small Gemma 2, which has a window, caps and groups of heads, with its graph."""
    return recorded("gemma2", tmp_path_factory.mktemp("graph"), "int8")


def test_sampling_with_a_seed_is_repeatable(path):
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(aibit.load_graph(path).generate(IDS, 16, True, 3.0, top_k=50, top_p=0.95, eos_token_id=()))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert found[0].shape == (1, 28)


def test_a_shared_beginning_is_used_and_gives_the_same_as_a_new_model(path):
    model = aibit.load_graph(path)
    model.generate(IDS, 8, eos_token_id=())
    runs = []
    step, model._run = model._run, lambda ids, **options: (runs.append(len(ids)), step(ids, **options))[1]
    other = torch.cat((IDS[:, :9], torch.tensor([[60, 61, 62]])), 1)
    for ids, computed in ((other, 3), (other[:, :5], 1), (IDS, 7)):
        alone = aibit.load_graph(path).generate(ids, 8, eos_token_id=())
        assert torch.equal(model.generate(ids, 8, eos_token_id=()), alone)
        assert runs[0] == computed
        runs.clear()


def test_a_call_is_a_sequence_of_its_own(path):
    model = aibit.load_graph(path)
    first = model(IDS).logits
    assert first.shape == (1, 12, 160)
    model.generate(IDS, 4, eos_token_id=())
    assert torch.equal(model(IDS).logits, first)
    assert torch.equal(model(input_ids=IDS[:, :5]).logits[0, 0], model(IDS[:, :1]).logits[0, 0])


def test_new_tokens_are_told_and_ends_end(path):
    model = aibit.load_graph(path)
    told = []
    new = model.generate(IDS, 8, eos_token_id=(), on_token=told.append)[0, 12:].tolist()
    assert told == new and len(new) == 8
    assert model.generate(IDS, 8, eos_token_id=new[0])[0, 12:].tolist() == new[:1]
    assert model.generate(IDS, 8, eos_token_id=[159, new[-1]])[0, 12:].tolist() == new[: new.index(new[-1]) + 1]
    assert model.ends == {2} and model.can_generate()
    assert torch.equal(model.generate(IDS, 0), IDS)


def test_more_tokens_than_positions_are_an_error(path):
    model = aibit.load_graph(path)
    assert model.context == 64
    assert model.generate(IDS, 53, eos_token_id=()).shape == (1, 65)  # of the last, no keys are kept
    with pytest.raises(LoadError, match="65 tokens, of which the graph takes 64"):
        model.generate(IDS, 54, eos_token_id=())
    with pytest.raises(LoadError, match="65 tokens, of which the graph takes 64"):
        model(torch.ones(1, 65, dtype=torch.long))
    assert model.generate(IDS, 8).shape[1] > 12  # and it runs on


@pytest.mark.parametrize("ids", [torch.ones(2, 3, dtype=torch.long), torch.ones(3, dtype=torch.long), torch.ones(1, 0)])
def test_other_than_one_sequence_is_refused(path, ids):
    model = aibit.load_graph(path)
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=r"a graph takes one sequence, \[1, tokens\]"):
            run(ids)


@pytest.mark.parametrize("ids", [[[160]], [[-1]]])
def test_ids_beyond_the_table_are_refused(path, ids):
    with pytest.raises(IndexError):
        aibit.load_graph(path)(torch.tensor(ids))


def test_load_model_returns_it_too(path):
    model = aibit.load_model(path, graph=True)
    assert torch.equal(model(IDS).logits, aibit.load_graph(path)(IDS).logits)
    with aibit.open(path) as file:
        assert torch.equal(aibit.load_graph(file)(IDS).logits, model(IDS).logits)
    for options in ({"device": "cuda"}, {"trainable": True}, {"dtype": "float32"}):
        with pytest.raises(LoadError, match="a graph runs on a CPU as it was recorded"):
            aibit.load_model(path, graph=True, **options)


def test_no_library_that_is_not_needed_is_imported(path):
    program = (
        "import sys, torch, aibit_format as aibit\n"
        "model = aibit.load_model(sys.argv[1], graph=True)\n"
        "ids = torch.tensor([[1, 2]])\n"
        "print(model(ids).logits.shape[1], model.generate(ids, max_new_tokens=1).shape)\n"
        "print([name for name in ('transformers', 'bitsandbytes', 'accelerate') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "2 torch.Size([1, 3])\n[]\n", done.stderr


def test_a_file_without_a_graph_says_how_to_get_one(path):
    with pytest.raises(LoadError, match="holds no graph; write one with: aibit graph"):
        aibit.load_graph(path.with_name("m.aibit"))


@pytest.mark.parametrize("data", [b'{"version": 2}', encoded(document())])
def test_a_graph_that_is_none_of_the_file_is_refused_before_anything_runs(path, data, tmp_path):
    rewrite.edit(path, tmp_path / "b.aibit", documents={DOCUMENT: data})
    with pytest.raises(GraphError, match=r"b\.aibit: graph\.json: .*AIB-E907"):
        aibit.load_graph(tmp_path / "b.aibit")
    assert aibit.load_model(tmp_path / "b.aibit") is not None  # readers that do not run graphs take no notice


def test_neither_transformers_nor_bitsandbytes_is_imported(path):
    code = (
        "import sys, torch, aibit_format as aibit\n"
        f"aibit.load_graph({str(path)!r}).generate(torch.tensor([[1, 2]]), 2)\n"
        "print([name for name in ('transformers', 'bitsandbytes', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['numpy']\n"


def test_the_fixture_computes_what_the_specification_says():
    path = pathlib.Path(__file__).resolve().parents[3] / "fixtures" / "container" / "graph.aibit"
    with aibit.open(path) as file:
        table = torch.from_numpy(file.dequantize("weight")).float()
    x = (table.bfloat16()[[0, 3, 5]] + torch.tensor([0, 0.5, -1, 2])).bfloat16()
    expected = x.float() @ table.T
    logits = aibit.load_graph(path)(torch.tensor([[0, 3, 5]])).logits
    assert logits.dtype == torch.bfloat16 and torch.allclose(logits[0].float(), expected, rtol=1e-2, atol=1e-2)
