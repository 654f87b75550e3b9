"""Tests that public modules, classes and functions have docstrings, and that these begin with what the thing does."""

import ast
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import aibit_format

ROOT = Path(aibit_format.__file__).parent
VERBLESS = frozenset({"What", "Whether", "Of", "As", "How", "Which", "Why", "Where"})

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def _definitions(node: Definition, name: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield the definitions in a module with their qualified names, those inside functions excepted."""
    yield name, node
    for inner in node.body:
        if isinstance(inner, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            qualified = f"{name}.{inner.name}" if name else inner.name
            if isinstance(inner, ast.ClassDef):
                yield from _definitions(inner, qualified)
            else:
                yield qualified, inner


# Names of methods that a base class or protocol documents for all that implement them.
DOCUMENTED = set(dir(io.RawIOBase)) | {
    name.rsplit(".", 1)[1]
    for tree in TREES.values()
    for name, node in _definitions(tree)
    if "." in name and ast.get_docstring(node)
}


def _needs_one(name: str) -> bool:
    """Tell whether a definition is public and cannot inherit its docstring."""
    return not any(part.startswith("_") for part in name.split(".")) and not (
        "." in name and name.rsplit(".", 1)[1] in DOCUMENTED
    )


@pytest.mark.parametrize("module", TREES)
def test_what_is_public_has_a_docstring(module: str):
    lacking = [name or "the module" for name, node in _definitions(TREES[module]) if not ast.get_docstring(node)]
    assert [name for name in lacking if _needs_one(name)] == []


@pytest.mark.parametrize("module", TREES)
def test_a_docstring_begins_with_what_the_thing_does(module: str):
    """Private things are checked too: somebody reads them."""
    firsts = {
        name or "the module": re.match(r"[\w']*", text)[0]  # type: ignore[index]  # it always matches
        for name, node in _definitions(TREES[module])
        if (text := ast.get_docstring(node))
    }
    assert {name: word for name, word in firsts.items() if word in VERBLESS} == {}
