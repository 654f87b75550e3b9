"""Steps that run several nodes: which are joined, and that they give what the nodes give alone."""

from __future__ import annotations

import pytest
import torch

import aibit_format as aibit
from aibit_format.torch.graph import fuse
from aibit_format.torch.kernels import operators
from tests.support.graphs import IDS, recorded

needs_compiled = pytest.mark.skipif(not operators.COMPILED, reason="joined steps are compiled, which is not here")


def _alone(binding):
    return [fuse.Step(*binding.step(node), (number,)) for number, node in fuse._numbered(binding.program)]


@needs_compiled
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "olmo2", "starcoder2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_joined_steps_give_the_same(family, dtype, tmp_path, monkeypatch):
    path = recorded(family, tmp_path, dtype=dtype)
    joined = aibit.load_graph(path)
    monkeypatch.setattr("aibit_format.torch.graph.model.plan", _alone)
    alone = aibit.load_graph(path)
    assert len(joined._steps) < len(alone._steps) == len(alone.program.nodes)
    torch.testing.assert_close(joined(IDS).logits, alone(IDS).logits, atol=0.03, rtol=0.03)
    for model in (joined, alone):
        model._kept = []
    for ids in IDS[0].split([5, 1, 1, 3, 1, 1]):
        found = [model._run(ids.tolist()) for model in (joined, alone)]
        torch.testing.assert_close(*found, atol=0.03, rtol=0.03)
    ids = joined.generate(IDS, 12, eos_token_id=())
    assert ids.shape == (1, 24)


@needs_compiled
def test_projections_of_one_input_and_rotary_attention_are_one_step_each(tmp_path):
    steps = aibit.load_graph(recorded("llama", tmp_path))._steps
    sizes = sorted(len(step.results) for step in steps)
    assert sizes[-4:] == [2, 2, 3, 3]  # gate and up, and queries, keys and values, of two layers
    attention = [step for step in steps if step.run.__qualname__.startswith("_turned_attention")]
    assert [len(step.operands) for step in attention] == [5, 5]


def test_without_compiled_code_each_node_is_a_step(tmp_path, monkeypatch):
    path = recorded("llama", tmp_path, "f8_e4m3")
    wanted = aibit.load_graph(path)(IDS).logits
    monkeypatch.setattr(operators, "COMPILED", False)
    model = aibit.load_graph(path)
    assert len(model._steps) == len(model.program.nodes)
    torch.testing.assert_close(model(IDS).logits, wanted, atol=0.03, rtol=0.03)
