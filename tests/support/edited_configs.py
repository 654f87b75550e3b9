"""Edit configs of checkpoints."""

from __future__ import annotations

import pytest

import aibit_format as aibit
from aibit_format.errors import AibitError


def refused(folder, match) -> None:
    with pytest.raises(AibitError, match=match):
        aibit.convert(folder, folder.parent / "m.aibit")
    assert not list(folder.parent.glob("*.aibit")) and not list(folder.parent.glob(".*partial"))
