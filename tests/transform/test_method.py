"""Transformations are parsed as users write them, and done in one order."""

import pytest

from aibit_format.errors import RecipeError
from aibit_format.transform.method import METHODS, Context, parse
from tests.support import decoders


def test_they_are_written_with_all_parameters_and_done_in_order():
    found = parse(["awq", "smooth,alpha=0.25", "rotate"])
    assert [each.text for each in found] == ["rotate,seed=0", "smooth,alpha=0.25", "awq"]
    assert parse([each.text for each in found]) == found and parse([]) == ()
    assert [each.text for each in parse(["smooth", "rotate,seed=7"])] == ["rotate,seed=7", "smooth,alpha=0.5"]


@pytest.mark.parametrize(("texts", "message"), [
    (["spin"], "unknown transformation 'spin'; known: rotate, smooth, awq"), (["awq", "awq"], "named twice"),
    (["awq,bits=4"], "awq: unknown parameter 'bits'; it takes none"),
    (["smooth,seed=1"], "smooth: unknown parameter 'seed'; it takes alpha"),
    (["smooth,alpha=2"], "alpha '2': a number from 0 to 1"), (["smooth,alpha=x"], "alpha 'x'"),
    (["smooth,alpha"], "alpha ''"), (["smooth,alpha=nan"], "alpha 'nan'"), (["rotate,seed=-1"], "seed '-1'"),
    (["rotate,seed=1.5"], "seed '1.5'"),
])  # fmt: skip
def test_what_is_not_understood_is_refused(texts, message):
    with pytest.raises(RecipeError, match=message):
        parse(texts)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_statistics])
def test_statistics_are_asked_for(name):
    source, _ = decoders.source_of("llama")
    (found,) = parse([name])
    with pytest.raises(RecipeError, match=f"{name} goes by statistics of activations, and there are none"):
        found.apply(source, None, Context(lambda *_: None))
