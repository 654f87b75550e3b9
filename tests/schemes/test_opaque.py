"""Schemes that are not known here."""

from __future__ import annotations

import numpy as np
import pytest

from aibit_format.errors import SchemeError
from aibit_format.schemes.opaque import Opaque, StoredPlane

WHY = "scheme 'int9' is unknown here"
INT9 = Opaque(name="int9", version=2, stored=(7, 0, 0, 0, 0, 0), code="AIB-E406", reason=WHY)


def test_planes_are_those_that_the_file_has():
    planes = (StoredPlane("codes", "unknown_99", (5,), 5), StoredPlane("scale", "f32", (2,), 8))
    scheme = Opaque(name="int9", version=2, stored=(), code="AIB-E406", reason="", specs=planes)
    assert scheme.planes((3, 4), "bf16") == planes and [plane.nbytes for plane in planes] == [5, 8]


def test_it_is_named_with_version_and_parameters():
    assert INT9.text == "int9 v2 (7)" and INT9.parameters == (7, 0, 0, 0, 0, 0)
    assert Opaque(name="x-a", version=1, stored=(0,) * 6, code="", reason="").text == "x-a v1"


def test_nobody_encodes_or_decodes_it():
    for call in (lambda: INT9.encode(np.zeros(3), "f32"), lambda: INT9.decode({}, (3,), "f32")):
        with pytest.raises(SchemeError, match="scheme 'int9' is unknown here; a newer version") as caught:
            call()
        assert caught.value.code == "AIB-E406"
