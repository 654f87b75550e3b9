"""Convert a model to be evaluated."""

from __future__ import annotations

import pytest

import aibit_format as aibit


@pytest.fixture(scope="module")
def text(fixtures):
    return fixtures / "models" / "heldout.txt"


@pytest.fixture(scope="module")
def models(fixtures, tmp_path_factory):
    folder, original = tmp_path_factory.mktemp("judged"), fixtures / "models" / "tiny-llama"
    aibit.convert(original, folder / "int8.aibit", scheme="int8")
    aibit.convert(original, folder / "q4.aibit", scheme="gguf:q4_0")
    aibit.export(folder / "q4.aibit", "gguf", folder / "q4.gguf")
    aibit.export(folder / "int8.aibit", "huggingface", folder / "hf")
    return {"original": str(original)} | {path.name: str(path) for path in folder.iterdir()}
