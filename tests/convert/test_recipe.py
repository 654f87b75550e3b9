"""Recipes say which scheme is for which tensors."""

from __future__ import annotations

import warnings

import pytest

import aibit_format as aibit
from aibit_format.errors import RecipeError
from tests.support import architectures

warnings.filterwarnings("ignore", message="MatMul8bitLt")


def test_a_rule_that_matches_nothing_is_an_error(tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    with pytest.raises(RecipeError, match="no_such_layer"):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", tensors={"no_such_layer": "bf16"})
    assert not (tmp_path / "m.aibit").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("scheme = 3", "a recipe is"), ("shceme = 'int8'", "a recipe is"), ("[tensors]\na = 1", "a recipe is"),
     ("scheme = 'int9'", "unknown scheme"), ("= 3", "not TOML"), ("[tensors]\n'(' = 'int8'", "regular expression"),
     ("scheme = 'nf4,block=3'", "block_size"), ("scheme = 'nf4,block_size=63'", "63"),
     ("[tensors]\nx9 = 'int8'", "x9"), ("transform = 'awq'", "a recipe is"), ("transform = [1]", "a recipe is"),
     ("transform = ['x9']", "unknown transformation 'x9'; known: rotate, smooth, awq")],
)  # fmt: skip
def test_recipes_that_say_nothing_sensible_are_refused(text, complaint, tmp_path):
    architectures.save("llama-untied", tmp_path / "hf")
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(aibit.AibitError, match=complaint):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", recipe_file=tmp_path / "r.toml")
    assert not (tmp_path / "m.aibit").exists()


def test_a_scheme_has_its_fallback_as_the_default_and_none_where_a_rule_names_it(tmp_path):
    """nf4-cpu holds whole tiles of 32 rows and 64 columns; the down projection here has 96 columns."""
    architectures.save("llama-untied", tmp_path / "hf", intermediate_size=96)
    report = aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="nf4-cpu")
    schemes = {t.name: t.scheme for t in report.tensors}
    assert schemes["model.layers.0.mlp.down_proj.weight"] == "nf4"
    assert schemes["model.layers.0.mlp.up_proj.weight"] == "nf4-cpu"
    with pytest.raises(RecipeError, match=r"down_proj.weight': nf4-cpu needs a matrix of whole tiles"):
        aibit.convert(tmp_path / "hf", tmp_path / "n.aibit", tensors={"down_proj": "nf4-cpu"})
    assert not (tmp_path / "n.aibit").exists()
