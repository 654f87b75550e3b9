"""Whatever belongs to a channel, a head or an expert goes together: a smaller model is the whole one without them."""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from aibit_format.errors import RecipeError
from aibit_format.formats.in_memory import Pretrained
from aibit_format.formats.models import meta_model_of
from aibit_format.transform.changes import Scale
from aibit_format.transform.prune.plan import Plan
from aibit_format.transform.prune.source import Pruned
from aibit_format.transform.prune.widths import layers_of
from tests.support import architectures, decoders

CLOSE = 1e-6  # norms compute in float32
OF_ALL_HEADS = {"olmo2", "olmo3"}  # have a norm over all heads of queries together
WITHOUT_WORDS = {"helium", "olmoe", "stablelm"}  # the size of a head follows from their number


def some(count, keep, seed):
    return np.sort(np.random.default_rng(seed).permutation(count)[:keep])


@pytest.mark.parametrize("name", decoders.NAMES)
def test_channels_that_are_dropped_are_as_if_nothing_read_them(name):
    source, expected = decoders.source_of(name)
    kept, silent = {}, {}
    layers = layers_of(source.model)
    stacked = any(layer.experts for layer in layers.values())
    for number, layer in layers.items():
        if stacked and not layer.experts:
            continue
        rows = [some(layer.count, 16, i) for i in range(max(layer.experts, 1))]
        kept[number] = np.stack(rows) if layer.experts else rows[0]
        factors = np.zeros((max(layer.experts, 1), layer.count))
        for each, index in zip(factors, rows, strict=True):
            each[index] = 1
        silent[layer.down] = [Scale(-1, factors if layer.experts else factors[0])]
    made = Pruned(source, Plan(channels=kept))
    without = source.transformed("silent", silent)
    assert decoders.apart(made, decoders.logits(decoders.rebuilt(without))) < CLOSE < decoders.apart(made, expected)


@pytest.mark.parametrize("name", decoders.NAMES)
def test_heads_that_are_dropped_are_as_if_nothing_read_them(name):
    source, expected = decoders.source_of(name)
    layers = layers_of(source.model)
    kept, silent = {number: np.array([number % 2]) for number in layers}, {}
    for number, layer in layers.items():
        factors = np.zeros(layer.heads * layer.size)
        each = layer.heads // layer.groups * layer.size
        factors[number % 2 * each : (number % 2 + 1) * each] = 1
        silent[layer.output] = [Scale(-1, factors)]
    if name in WITHOUT_WORDS:
        with pytest.raises(RecipeError, match=r"would have shape \[.*its config has no words for that"):
            Pruned(source, Plan(heads=kept))
        return
    made = Pruned(source, Plan(heads=kept))
    config = made.model.module.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    if name in OF_ALL_HEADS:
        assert np.isfinite(decoders.logits(decoders.rebuilt(made)).numpy()).all()
        return
    without = source.transformed("silent", silent)
    assert decoders.apart(made, decoders.logits(decoders.rebuilt(without))) < CLOSE < decoders.apart(made, expected)


class Without(TorchFunctionMode):
    """Lets no token go to an expert: its row of a router's logits is as low as can be."""

    def __init__(self, expert, experts):
        super().__init__()
        self._expert, self._experts = expert, experts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and len(args[1]) == self._experts:
            found[..., self._expert] = -1e30
        return found


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe"])
def test_experts_that_are_dropped_are_as_if_no_token_went_there(name):
    source, expected = decoders.source_of(name)
    layers = {number: layer for number, layer in layers_of(source.model).items() if layer.experts}
    made = Pruned(source, Plan(experts=dict.fromkeys(layers, np.array([0, 1, 3]))))
    with Without(2, 4):
        without = decoders.logits(decoders.rebuilt(source))
    assert decoders.apart(made, without) < CLOSE < decoders.apart(made, expected)


def test_other_families_are_refused_by_name():
    family, config = architectures.MODELS["gpt2"]
    with pytest.raises(RecipeError, match=r"GPT2LMHeadModel \(model type 'gpt2'\).*layers can be dropped.*llama"):
        layers_of(meta_model_of(Pretrained(family(config()))))
