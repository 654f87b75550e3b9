"""Layers of different widths are built as the config's own key says, and nothing else is believed."""

import pytest

from aibit_format.errors import LoadError
from aibit_format.hf.limits import Limits
from aibit_format.hf.meta_model import build_meta_model
from tests.support import decoders

LIMITS = Limits(100, 1 << 20)


def built(name="llama", **stated):
    config = decoders.config(name).to_dict() | {"architectures": [f"{name.capitalize()}ForCausalLM"]}
    config.pop("dtype", None)
    return build_meta_model({**config, "aibit_widths": stated or None}, LIMITS)


def shapes(model, name):
    return [model.parameters[f"model.layers.{i}.{name}"].shape for i in range(2)]


def test_each_layer_has_its_own():
    plain, found = built(), built(channels=[96, 40], heads=[1, 2])
    assert shapes(found, "mlp.up_proj.weight") == [(96, 64), (40, 64)] == shapes(found, "mlp.gate_proj.weight")
    assert shapes(found, "mlp.down_proj.weight") == [(64, 96), (64, 40)]
    assert shapes(found, "self_attn.q_proj.weight") == [(32, 64), (64, 64)]
    assert shapes(found, "self_attn.v_proj.weight") == [(16, 64), (32, 64)]
    assert shapes(found, "self_attn.o_proj.weight") == [(64, 32), (64, 64)]
    assert shapes(plain, "mlp.up_proj.weight") == [(96, 64)] * 2
    assert {name: spec.role for name, spec in plain.parameters.items()} == {
        name: spec.role for name, spec in found.parameters.items()
    }


@pytest.mark.parametrize(("stated", "message"), [
    ({"channels": [1]}, "channels: 2 numbers from 1 to 96"), ({"channels": [0, 1]}, "from 1 to 96"),
    ({"channels": [97, 1]}, "from 1 to 96"), ({"channels": [True, 1]}, "from 1 to 96"), ({"heads": 3}, "from 1 to 2"),
    ({"rows": [1, 1]}, "an object of channels, heads is needed"),
])  # fmt: skip
def test_what_cannot_be(stated, message):
    with pytest.raises(LoadError, match=message):
        built(**stated)


def test_a_family_whose_modules_have_other_names():
    with pytest.raises(LoadError, match="Phi3ForCausalLM has no layers whose channels are known"):
        built("phi3", channels=[96, 40])
