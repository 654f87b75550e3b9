"""Tests lie where the module does that they are of, and stand alone."""

import ast

import pytest

from tests.support.paths import ROOT

PACKAGE, TESTS, TOOLS = ROOT / "aibit_format", ROOT / "tests", ROOT / "tools"
MODULES = sorted(
    path.relative_to(PACKAGE)
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py", "_version.py")
)
# Folders whose modules are rows of one table, and the tests that run over all of it. Each row is a case there, and a
# test of one module would repeat it; a module there may have a file of its own, and any elsewhere must.
TABLES = {"formats/gguf/architectures": ("formats/gguf/test_conversions.py", "formats/gguf/test_architectures.py")}
FILES = sorted([*TESTS.rglob("*.py"), *TOOLS.rglob("*.py")])


def imported_by(path):
    """Yield the full names that a file imports, whichever way and wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def files_of(module):
    """Return the paths of the files that test a module: one of its name, or those of the table that it is part of."""
    own = TESTS / module.with_name(f"test_{module.name}")
    tables = TABLES.get(module.parent.as_posix(), ())
    return [own] if own.exists() or not tables else [TESTS / path for path in tables]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_test_file_of_its_name(module):
    for path in files_of(module):
        assert path.exists(), path.relative_to(ROOT)
        names = [node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
        assert any(name.startswith("test_") for name in names), f"{path.relative_to(ROOT)} has no test"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_a_test_or_edits_the_search_path(path):
    parts = [part for name in imported_by(path) for part in name.split(".")]
    assert not [part for part in parts if part.startswith("test_") or part == "conftest"]
    if TOOLS in path.parents:
        assert not [name for name in imported_by(path) if name.split(".")[0] == "tests"], "tools need no tests"
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            assert "test_" in path.name and isinstance(node.ctx, ast.Load)
        if isinstance(node, (ast.Call, ast.Subscript)):
            changed = node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
            changed = node.value if isinstance(node, ast.Subscript) else changed
            assert changed is None or ast.unparse(changed) != "sys.path"
