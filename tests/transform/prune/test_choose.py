"""What is kept is what scores most, of numbers that the model has."""

import numpy as np
import pytest

from aibit_format.errors import RecipeError
from aibit_format.transform.prune.choose import Choice
from aibit_format.transform.prune.plan import Wanted
from tests.support import decoders


def choice(name="llama", **more):
    source, _ = decoders.source_of(name, **more)
    return Choice(source, decoders.statistics(source))


def test_blocks_of_channels_go_together():
    made = choice()
    single, blocks = (made.plan(Wanted.parse(f"channels=48{more}")).channels[0] for more in ("", ",block=16"))
    assert len(single) == len(blocks) == 48 and set(blocks % 16) == set(range(16)) and (np.diff(single) > 0).all()
    assert np.array_equal(blocks.reshape(3, 16) % 16, np.tile(np.arange(16), (3, 1)))
    assert not np.array_equal(single, blocks)


def test_channels_of_the_experts_that_stay():
    plan = choice("mixtral").plan(Wanted.parse("experts=3,channels=32"))
    assert plan.channels[0].shape == (3, 32) and plan.experts[0].shape == (3,)
    whole = choice("mixtral").plan(Wanted.parse("channels=32"))
    assert np.array_equal(plan.channels[1], whole.channels[1][plan.experts[1]])


def test_layers_that_are_named():
    assert choice(num_hidden_layers=4).plan(Wanted.parse("drop=1+2")).layers.tolist() == [0, 3]


def test_what_is_cut_where_nobody_says():
    assert choice().kinds() == "channels" and choice("mixtral").kinds() == "experts"
    assert choice().most("heads") == (4, 2) and choice().most("channels") == (96, 32)
    assert choice("mixtral").most("experts") == (4, 1) and choice().most("layers") == (2, 1)


@pytest.mark.parametrize(("name", "wanted", "message"), [
    ("llama", "layers=3", "3 layers to keep, and there are 2"), ("llama", "channels=97", "97 channels to keep, and"),
    ("llama", "heads=3", "3 heads to keep: 2 share keys and values, so that a multiple"),
    ("llama", "channels=40,block=16", "in blocks of 16, which do not divide"), ("llama", "experts=2", "no experts"),
    ("llama", "drop=2", "layers 2 to drop, of 2"), ("llama", "drop=0+1", "layers 0, 1 to drop, of 2"),
    ("mixtral", "experts=5", "there are 4"),
])  # fmt: skip
def test_numbers_that_cannot_be(name, wanted, message):
    with pytest.raises(RecipeError, match=message):
        choice(name).plan(Wanted.parse(wanted))
