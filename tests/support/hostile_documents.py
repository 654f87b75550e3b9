"""Make files with documents that a writer would refuse."""

from __future__ import annotations

import json

import pytest

import aibit_format as aibit
from tests.support.documents import rebuilt_with
from tests.support.paths import FIXTURES

MODEL = FIXTURES / "models" / "tiny-llama"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The fixture model as a file."""
    path = tmp_path_factory.mktemp("good") / "m.aibit"
    aibit.convert(MODEL, path)
    return path


def with_document(good, folder, name, change):
    """The good file with another document: ``change`` is bytes, or what is put into the JSON that is there."""
    if isinstance(change, dict):
        change = json.dumps(json.loads((MODEL / name).read_text()) | change).encode()
    rebuilt_with(good, folder / "evil.aibit", name, change)
    return folder / "evil.aibit"


MESSAGES = [{"role": "user", "content": "hello"}]
