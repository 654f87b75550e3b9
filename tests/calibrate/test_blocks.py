"""A model that is run a block at a time gives its blocks what they get in one forward, or it is found out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aibit_format.calibrate.blocks import Forward, NotByBlocksError, Output, blocks_of
from aibit_format.calibrate.trees import NotPlainError, flatten, unflatten


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, bias=None):
        return self.inner(x) if bias is None else (self.inner(x) + bias, bias * 2)


class Model(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way, self.layers, self.last = way, nn.ModuleList([Block() for _ in range(3)]), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(getattr(self, self.way)(x, *self.layers))

    def chain(self, x, a, b, c):
        return c(b(a(x) + 1) * 2)

    def passes_on(self, x, a, b, c):
        x, bias = a(x, torch.ones(4))
        x, bias = b(x, bias)
        return c(x, bias)[0]

    def skips(self, x, a, b, c):
        x = a(x)
        return c(b(x) + x)

    def repeats(self, x, a, b, c):
        return c(b(a(b(x))))

    def writes(self, x, a, b, c):
        first = a(x)
        second = b(first.clone())
        first.zero_()
        return c(second)


def walked(model, samples):
    """Inputs of the Linear inside each block, a block at a time."""
    blocks, kept, seen = blocks_of(model), {}, {}
    forward = Forward(model, lambda i: model(samples[i]), blocks, lambda of, i: kept[of, i])
    with torch.no_grad():
        while (name := forward.following(0)) is not None:
            module, inputs = blocks[name].module.inner, []
            hook = module.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
            made = [forward.output(name, i) for i in range(len(samples))]
            hook.remove()
            kept |= {(blocks[name].list, i): output for i, output in enumerate(made)}
            forward.done.append(name)
            seen[name] = inputs
        last = []
        hook = model.last.register_forward_pre_hook(lambda _, args: last.append(args[0]))
        for i in range(len(samples)):
            forward.rest(i)
        hook.remove()
    return seen | {"last": last}


def whole(model, samples):
    """The same inputs in forwards of the whole model."""
    seen, handles = {}, []
    modules = {name: block.module.inner for name, block in blocks_of(model).items()} | {"last": model.last}
    for name, module in modules.items():
        hook = lambda _, args, name=name: seen.setdefault(name, []).append(args[0])  # noqa: E731
        handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        for sample in samples:
            model(sample)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("way", ["chain", "passes_on"])
def test_blocks_get_what_they_get_in_one_forward(way):
    torch.manual_seed(0)
    model, samples = Model(way), torch.randn(3, 2, 4)
    found, expected = walked(model, samples), whole(model, samples)
    assert list(found) == ["layers.0", "layers.1", "layers.2", "last"]
    for name, inputs in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(found[name], inputs, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(("way", "why"), [
    ("skips", r"layers\.2 depends on more than the block before it"), ("repeats", "not run once each"),
    ("writes", "writes to what its blocks have returned"),
])  # fmt: skip
def test_models_that_are_no_chains_are_found(way, why):
    with pytest.raises(NotByBlocksError, match=why):
        walked(Model(way), torch.randn(2, 2, 4))


def test_blocks_are_what_lists_hold_that_has_modules_inside():
    model = Model("chain")
    model.tables = nn.ModuleList([nn.Linear(2, 2)])
    model.outer = nn.ModuleList([nn.ModuleList([Block()]), nn.ModuleList([Block(), Block()])])
    model.layers[0].experts = nn.ModuleList([Block()])
    found = blocks_of(model)
    assert [*found] == [*(f"layers.{i}" for i in range(3)), "outer.0.0", "outer.1.0", "outer.1.1"]
    assert found["outer.1.1"].list == "outer.1"


def test_what_a_block_returns_is_taken_apart_and_put_together():
    value = (torch.ones(2), None, [torch.zeros(1), 3, "x"], True)
    tensors, form = flatten(value)
    again = unflatten(form, iter(tensors))
    assert again[1:2] + again[3:] == (None, True) and again[2][1:] == [3, "x"] and torch.equal(again[0], value[0])
    assert Output(form, tensors).unknown.is_unknown and not Output(form, tensors).is_unknown
    with pytest.raises(NotPlainError, match="dict"):
        flatten(({"x": torch.ones(1)},))
