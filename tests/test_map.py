"""Maps of the repository say what is there: layers, links in pages, pictures."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tomllib
from urllib.parse import unquote

import pytest

import aibit_format

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "aibit_format"
SKIPPED = {".venv", ".git", "node_modules", "build", "out", "shared"}
PAGES = sorted(
    str(page.relative_to(ROOT)) for page in ROOT.rglob("*.md") if not SKIPPED & set(page.relative_to(ROOT).parts)
)


def layers_of_the_map():
    """Names of each layer, lowest first, as the docstring of the package lists them."""
    text = (aibit_format.__doc__ or "").partition("The layers, lowest first")[2]
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    assert lines and all(re.fullmatch(r"    \w+(, \w+)*  +[a-z].+", line) for line in lines)
    return [set(re.split(r"  +", line.strip())[0].split(", ")) for line in lines]


def layers_of_the_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "layers")
    return [{name.strip().removeprefix("aibit_format.") for name in layer.split("|")} for layer in reversed(layers)]


def test_the_map_is_the_contract():
    assert layers_of_the_map() == layers_of_the_contract()


def test_the_map_has_every_room():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set().union(*layers_of_the_map()) == modules | folders


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.S)
    targets = re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", re.sub(r"`[^`\n]*`", "", text))
    missing = [
        target
        for target in (unquote(target.partition("#")[0]) for target in targets)
        if target and not re.match(r"[a-z]+:", target) and not ((ROOT / page).parent / target).exists()
    ]
    assert not missing


def test_files_that_the_pages_for_contributors_name_are_there():
    text = (ROOT / "docs" / "contributing.md").read_text("utf-8")
    named = set(re.findall(r"`(?:aibit_format/)?((?:\w+/)+\w+\.py)`", text))
    assert len(named) > 15
    missing = {name for name in named if not (PACKAGE / name).exists() and not (ROOT / name).exists()}
    assert not missing - {"schemes/NAME.py", "cli/VERB.py"}


def test_pictures_are_what_the_command_draws():
    command = [sys.executable, "-m", "tools.spec.draw_layout", "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
