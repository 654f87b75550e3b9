"""Files with schemes, dtypes and roles that this reader does not know: handled like any other, but for their values."""

from __future__ import annotations

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.errors import FormatError
from aibit_format.file.reader import File
from aibit_format.schemes.opaque import Opaque
from tools.fixtures import file_builder
from tools.fixtures.file_builder import both, put

INT8 = File(file_builder.good()).tables.scheme_names.index("int8")
QUANT = File(file_builder.good()).tables.index["quant"]
NEWER = put("scheme", INT8, version=7)
# A later version of int8; a dtype to come; a role and a dtype to come of a plane.
CHANGES = {
    "version": (NEWER, "AIB-E406"),
    "dtype": (put("tensor", QUANT, dtype=200), "AIB-E404"),
    "parameters": (both(NEWER, put("tensor", QUANT, parameters=[7, (1 << 32) - 1])), "AIB-E406"),
    "plane": (both(NEWER, put("plane", file_builder.PLANE["quant", "row_absmax"], role=99, dtype=150)), "AIB-E406"),
}  # fmt: skip


@pytest.fixture(params=CHANGES)
def unknown(request, tmp_path):
    """A path, and the code that asking for values of the tensor ``quant`` gets."""
    change, code = CHANGES[request.param]
    path = tmp_path / "unknown.aibit"
    path.write_bytes(change(file_builder.good()))
    return path, code


def test_it_opens_and_is_listed_and_verified(unknown, capsys):
    path, _ = unknown
    with aibit.open(path, verify="full") as file:
        info = file.info("quant")
        assert sum(plane.length for plane in info.planes) == info.nbytes > 0
        assert [len(each) for each in file.planes("quant").values()] != []
        assert sum(file.verify().unknown.values()) >= 1
    assert main(["verify", str(path)]) == 0
    assert "not checked: the values of " in capsys.readouterr().out
    assert main(["verify", str(path), "--json"]) == 0
    assert '"unknown": {' in capsys.readouterr().out
    assert main(["inspect", str(path)]) == 0
    assert "quant" in capsys.readouterr().out


def test_only_decoding_is_refused(unknown):
    path, code = unknown
    with aibit.open(path) as file:
        for name in file:
            if isinstance(file.info(name).scheme, Opaque):
                with pytest.raises(FormatError, match="unknown here") as caught:
                    file.dequantize(name)
                assert caught.value.code == code and caught.value.problems[0].tensor == name
            else:
                assert np.isfinite(file.dequantize(name)).all()


def test_it_is_written_again_to_the_same_bytes(unknown, tmp_path):
    path, _ = unknown
    aibit.edit(path, tmp_path / "copy.aibit")
    with File(path) as a, File(tmp_path / "copy.aibit", "full") as b:
        assert a.tables.front_matter() == b.tables.front_matter() and a.root == b.root
    assert aibit.diff(path, tmp_path / "copy.aibit") == []


def test_it_is_cut_joined_signed_and_compared(unknown, tmp_path):
    path, _ = unknown
    first = aibit.split(path, tmp_path / "s.aibit", 1024)[0]
    aibit.merge(first, tmp_path / "whole.aibit")
    assert aibit.diff(path, tmp_path / "whole.aibit") == []
    aibit.new_key(tmp_path / "key")
    aibit.sign(path, tmp_path / "key.pem", tmp_path / "signed.aibit")
    with aibit.open(tmp_path / "signed.aibit", verify="full", signed_by=tmp_path / "key.pub") as file:
        assert "quant" in file
    with File(path) as file:
        offset = file.info("quant").planes[0].offset
    changed = tmp_path / "changed.aibit"
    changed.write_bytes(file_builder.flip(offset, leaves=True, seal=True)(path.read_bytes()))
    assert [found.kind for found in aibit.diff(path, changed) if found.name == "quant"] == ["planes"]


def test_a_damaged_plane_is_found(unknown, tmp_path):
    path, _ = unknown
    with File(path) as file:
        offset = file.info("quant").planes[0].offset
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    with pytest.raises(FormatError) as caught:
        File(bytes(data), "full")
    assert caught.value.code == "AIB-E602"


@pytest.mark.parametrize("verb", ["convert", "export", "run"])
def test_verbs_that_need_values_fail_and_name_the_scheme(verb, tmp_path, capsys, fixtures):
    aibit.convert(fixtures / "models" / "tiny-llama", tmp_path / "m.aibit", scheme="int8")
    data = (tmp_path / "m.aibit").read_bytes()
    path = tmp_path / "unknown.aibit"
    path.write_bytes(put("scheme", File(data).tables.scheme_names.index("int8"), version=3)(data))
    more = {
        "convert": ["-o", str(tmp_path / "other.aibit"), "--scheme", "nf4"],
        "export": ["--to", "huggingface", "-o", str(tmp_path / "hf")],
        "run": ["the", "--max-new-tokens", "1"],
    }[verb]
    assert main([verb, str(path), *more]) == 1  # and not 3: the file is valid
    assert "scheme 'int8' version 3 is unknown here" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.aibit", "unknown.aibit"]
