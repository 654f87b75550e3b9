"""What importing costs, and what it must not bring."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "bitsandbytes", "accelerate", "safetensors", "tokenizers", "tqdm", "cryptography"]


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running ``code``."""
    script = f"{code}\nimport sys\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import aibit_format",
        "import aibit_format; aibit_format.open; aibit_format.FormatError; dir(aibit_format)",
        "import aibit_format.numpy",
        "from aibit_format.cli import main; main(['inspect', 'fixtures/container/hello.aibit'])",
        "from aibit_format.cli import main; main(['verify', 'fixtures/container/hello.aibit'])",
    ],
)
def test_the_core_imports_nothing_heavy(code, fixtures):
    code = code.replace("fixtures/", f"{fixtures}/")
    assert not imported_by(code) & set(HEAVY)


def test_import_alone_does_not_even_import_construct():
    assert "construct" not in imported_by("import aibit_format")


def test_public_names_resolve():
    import aibit_format as aibit

    for name in aibit.__all__:
        assert getattr(aibit, name) is not None
    assert callable(aibit.convert) and callable(aibit.open)
    with pytest.raises(AttributeError):
        aibit.no_such_name  # noqa: B018


def test_names_whose_package_is_missing_say_so_when_they_are_called():
    code = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
import aibit_format
assert all(hasattr(aibit_format, name) for name in aibit_format.__all__)
from aibit_format import *
for function in (load, load_model, load_tokenizer):
    try:
        function("m.aibit")
    except aibit_format.AibitError as error:
        assert error.code == "AIB-E905", error
        print(function.__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["load", "load_model", "load_tokenizer"]
    assert all(line.endswith("needs torch: pip install 'aibit-format[hf]'") for line in lines)


def test_convert_stays_a_function_after_the_folder_of_its_name_was_imported():
    code = (
        "import aibit_format.convert.recipe, aibit_format as aibit; from aibit_format.convert.convert import convert; "
        "assert aibit.convert is convert"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
