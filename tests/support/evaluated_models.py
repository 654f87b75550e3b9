"""Convert a model to be evaluated."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def text(fixtures):
    return fixtures / "models" / "heldout.txt"
