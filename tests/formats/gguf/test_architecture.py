"""An architecture's rows: which tensors of GGUF make which of transformers."""

from __future__ import annotations

import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.gguf.architecture import EMBEDDINGS, Architecture, Row
from aibit_format.formats.gguf.config_keys import Number
from aibit_format.formats.gguf.operations import JOINED

SMALL = Architecture(
    "small", "small", "SmallModel",
    (
        Row("embed.weight", (EMBEDDINGS,)),
        Row("layers.{}.up.weight", ("blk.{}.gate.weight", "blk.{}.up.weight"), JOINED),
        Row("layers.{}.o.weight", ("blk.{}.o.weight",)),
        Row("layers.{}.o.bias", ("blk.{}.o.bias",), flag="use_bias"),
    ),
    (Number("block_count", "num_hidden_layers"),),
)  # fmt: skip
SHAPES = {
    EMBEDDINGS: (10, 4), "blk.0.gate.weight": (2, 3, 4), "blk.0.up.weight": (2, 3, 4), "blk.0.o.weight": (4, 4),
}  # fmt: skip


def test_each_tensor_has_a_place_and_those_of_a_layer_its_number():
    places = SMALL.places(SHAPES)
    assert {name: place.parts for name, place in places.items()} == {
        "embed.weight": (EMBEDDINGS,), "layers.0.o.weight": ("blk.0.o.weight",),
        "layers.0.up.weight": ("blk.0.gate.weight", "blk.0.up.weight"),
    }  # fmt: skip
    assert SMALL.names(1, places.keys()) == places


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["blk.0.nothing.weight"], r"'blk\.0\.nothing\.weight' has no place in SmallModel"),
        (["blk.01.o.weight"], "has no place"),
        (["blk.0.gate.weight"], r"'blk\.0\.gate\.weight' is there without 'blk\.0\.up\.weight'"),
    ],
)
def test_a_tensor_without_a_place_or_its_other_half_is_named(names, message):
    with pytest.raises(SourceError, match=message):
        SMALL.places(names)


def test_the_config_follows_from_keys_and_shapes():
    config = SMALL.config({"small.block_count": 1}, SHAPES, {})
    assert config["num_hidden_layers"] == 1 and config["vocab_size"] == 10 and config["use_bias"] is False
    assert config["tie_word_embeddings"] is True and config["architectures"] == ["SmallModel"]
    assert SMALL.values(config) == {"small.block_count": 1, "small.vocab_size": 10}
    assert SMALL.config({"small.block_count": 1}, SHAPES | {"blk.0.o.bias": (4,)}, {})["use_bias"] is True


@pytest.mark.parametrize(
    ("metadata", "shapes", "message"),
    [
        ({"small.block_count": 1, "small.twist": 2}, {}, r"small\.twist is unknown here"),
        ({"small.block_count": 1000}, {}, "1000 layers and embeddings"),
        ({"small.block_count": 1}, {EMBEDDINGS: (10,)}, r"embeddings of \[10\]"),
        ({"small.block_count": 1}, {"blk.0.up.weight": (2, 3, 5)}, r"'blk\.0\.gate\.weight' has shape"),
        ({"small.block_count": 1, "small.logit_scale": 2.0}, {}, r"small\.logit_scale is 2\.0"),
    ],
)
def test_what_the_model_cannot_be_is_refused(metadata, shapes, message):
    with pytest.raises(SourceError, match=message):
        SMALL.config(metadata, SHAPES | shapes, {})


def test_a_flag_is_of_all_layers_or_none():
    shapes = SHAPES | {"blk.1.gate.weight": (2, 3, 4), "blk.1.up.weight": (2, 3, 4), "blk.1.o.weight": (4, 4)}
    with pytest.raises(SourceError, match="use_bias is all of them or none"):
        SMALL.config({"small.block_count": 2}, shapes | {"blk.1.o.bias": (4,)}, {})
