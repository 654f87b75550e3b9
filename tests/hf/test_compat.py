"""The insides of transformers that are leaned on: they are in one file, and are there in the installed version."""

from __future__ import annotations

import ast
import pathlib
from dataclasses import replace
from importlib.util import find_spec

import pytest
import transformers

import aibit_format
from aibit_format.errors import IncompatibleLibraryError
from aibit_format.hf import compat
from tests.support import architectures

PACKAGE = pathlib.Path(aibit_format.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "hf" / "compat.py")
# Deep modules whose contents transformers documents.
DOCUMENTED = {"transformers.utils.logging"}
PRIVATE = {name for entry in compat.INSIDES.values() for name in entry.attribute.split(".") if name.startswith("_")} | {
    "_is_quantized",
    "all_tied_weights_keys",
}


def names_of_transformers(tree):
    """Yield modules of transformers that a file imports or names in a string, and what it takes of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names if name.name.split(".")[0] == "transformers")
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] == "transformers":
            yield from ((node.module, name.name) for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("transformers."):
            yield node.value, ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_else_leans_on_the_insides_of_transformers(path):
    tree = ast.parse(path.read_text("utf-8"))
    for module, name in names_of_transformers(tree):
        assert module == "transformers" or module in DOCUMENTED, f"{module} belongs into hf/compat.py"
        assert not name.startswith("_"), f"{module}.{name} belongs into hf/compat.py"
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & PRIVATE, f"{used & PRIVATE} belong into hf/compat.py"


@pytest.mark.parametrize("name", compat.INSIDES)
def test_every_name_is_as_expected_in_the_installed_version(name):
    compat.inside(name)
    assert compat.INSIDES[name].reason


def test_the_installed_version_was_checked():
    assert ".".join(transformers.__version__.split(".")[:2]) in compat.CHECKED
    assert find_spec(compat.SLOW_TO_IMPORT)


@pytest.mark.parametrize("name", compat.INSIDES)
@pytest.mark.parametrize(
    "change",
    [{"attribute": "gone"}, {"module": "gone"}, {"attribute": "PreTrainedModel.gone", "module": "modeling_utils"}],
    ids=["attribute", "module", "of-class"],
)
def test_a_missing_name_is_a_typed_error(name, change, monkeypatch):
    monkeypatch.setitem(compat.INSIDES, name, replace(compat.INSIDES[name], **change))
    with pytest.raises(IncompatibleLibraryError, match="checked with") as caught:
        compat.inside(name)
    error = caught.value
    assert (error.library, error.version, error.checked) == ("transformers", transformers.__version__, compat.CHECKED)
    assert "gone" in error.attribute and compat.INSIDES[name].reason in str(error) and error.code == "AIB-E905"


def test_other_arguments_are_a_typed_error(monkeypatch):
    entry = compat.INSIDES["should_convert_module"]
    monkeypatch.setitem(compat.INSIDES, "should_convert_module", replace(entry, arguments=("full_name", "renamed")))
    with pytest.raises(IncompatibleLibraryError, match=r"should_convert_module\(full_name, renamed\)"):
        compat.is_quantized_beside("a", [])


USES = {  # a name of the table -> what needs it
    "CONFIG_MAPPING": lambda folder, file: aibit_format.load_model(file),
    "MODEL_FOR_CAUSAL_LM_MAPPING": lambda folder, file: aibit_format.load_model(file),
    "PreTrainedModel._get_dtype_plan": lambda folder, file: aibit_format.load_model(file),
    "Bnb8BitHfQuantizer": lambda folder, file: aibit_format.load_model(file),
    "rename_source_key": lambda folder, file: aibit_format.convert(folder, f"{file}.again"),
    "HfQuantizer.get_modules_to_not_convert": lambda folder, file: aibit_format.convert(folder, f"{file}.again"),
    "Conv1D": lambda folder, file: aibit_format.convert(folder, f"{file}.again"),
}


@pytest.mark.parametrize("name", USES)
def test_what_needs_a_missing_name_raises_the_typed_error(name, tmp_path, monkeypatch):
    architectures.save("llama-untied", tmp_path / "hf")
    aibit_format.convert(tmp_path / "hf", tmp_path / "m.aibit")
    monkeypatch.setitem(compat.INSIDES, name, replace(compat.INSIDES[name], attribute="gone"))
    with pytest.raises(IncompatibleLibraryError, match="gone"):
        USES[name](tmp_path / "hf", tmp_path / "m.aibit")
    assert not (tmp_path / "m.aibit.again").exists()
