"""Small faults, seeded into the readers one at a time: the fixtures tell wrong readers from the right one."""

import os
import shutil

import pytest

from tools.conformance import mutants

READERS = ["python", "c"]
HANDFUL = {
    "python": ["hash-of-9", "metadata-int-unsigned", "leaf-after-the-last", "int8-one-factor", "nibbles-low-first"],
    "c": ["hash-of-240", "sections-63", "device-com0"],
}


@pytest.fixture(params=READERS)
def reader(request):
    if request.param == "c" and not shutil.which(os.environ.get("CC", "cc")):
        pytest.skip("no C compiler found: the reader in C is not tried here")
    return request.param


@pytest.mark.parametrize("name", READERS)
def test_every_row_fits_its_source(name):
    rows = mutants.table(name)
    assert len(rows) >= 120
    for mutant in rows.values():
        source = (mutants.SOURCES / name / mutant.file).read_text("utf-8")
        assert mutants.patched(mutant, source) != source
        assert mutant.what


@pytest.mark.parametrize("name", READERS)
def test_no_name_is_there_twice(name):
    source = (mutants.SOURCES / f"mutants_{name}.py").read_text("utf-8")
    assert source.count('\n    "') == len(mutants.table(name))


def test_a_row_that_does_not_fit_is_an_error():
    row = mutants.Mutant("row", "reader.py", "once", "twice", "a word")
    assert mutants.patched(row, "once upon") == "twice upon"
    for source in ("never", "once and once"):
        with pytest.raises(mutants.StaleError, match="must once"):
            mutants.patched(row, source)


def test_a_reader_that_is_wrong_without_a_fault_is_an_error(tmp_path):
    with pytest.raises(mutants.StaleError, match="without any fault"):
        mutants.check_reader({tmp_path: "AIB-E101"}, {tmp_path: "AIB-E102"})


def test_a_handful_is_caught(reader, capsys):
    assert mutants.main(["--reader", reader, "--only", *HANDFUL[reader]]) == 0
    out = capsys.readouterr().out
    assert f"{len(HANDFUL[reader])} of {len(HANDFUL[reader])} faults caught" in out


def test_what_is_not_caught_fails(monkeypatch, capsys):
    """The reader with a fault that changes nothing."""
    rows = {"none": ("xxh3.py", "STRIPE, BLOCK = 64, 16", "STRIPE, BLOCK = 64, 8 + 8", "nothing")}
    monkeypatch.setattr(mutants.mutants_python, "MUTANTS", rows)
    assert mutants.main([]) == 1
    assert "not caught  none: nothing" in capsys.readouterr().out
    assert mutants.main(["--only", "another"]) == 2


@pytest.mark.slow
def test_nearly_all_are_caught(reader, capsys):
    """The tool says which are not, and whether any that is said to be equivalent is caught after all."""
    assert mutants.main(["--reader", reader]) == 0, capsys.readouterr().out
