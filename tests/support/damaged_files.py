"""Damage files."""

import pytest

from tools.fixtures import file_builder

GOOD = file_builder.good()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.aibit"
    path.write_bytes(GOOD)
    return str(path)
