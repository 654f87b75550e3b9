"""A reader is judged by what it prints and how it ends, and the page about it says how many files it got right."""

import json
import math
import sys

import pytest

from tests.support import vectors
from tools.conformance import corpus, run

HELLO = next(case for case in corpus.good() if case.path.stem == "hello")


@pytest.fixture
def cases(tmp_path):
    """Two good files, and two bad ones with one code, in the place of the corpus."""
    bad = [case for case in corpus.bad(tmp_path) if case.code == "AIB-E104"][:2]
    return [HELLO, next(case for case in corpus.good() if case.path.stem == "shapes"), *bad]


@pytest.fixture
def reader(tmp_path, monkeypatch, cases):
    """Writes a reader whose body is some Python, and returns how it is judged over the small corpus."""
    monkeypatch.setattr(corpus, "good", lambda: cases[:2])
    monkeypatch.setattr(corpus, "bad", lambda folder: cases[2:])

    def judged(body, **options):
        script = tmp_path / "reader.py"
        script.write_text(f"import json, os, pathlib, sys\npath = pathlib.Path(sys.argv[-1])\n{body}")
        return [(j.outcome, j.reason) for j in run.run([sys.executable, "-S", str(script)], **options)]

    return judged


ANSWERS = """
if path.with_suffix(".json").exists():
    print(path.with_suffix(".json").read_text())
else:
    sys.exit("AIB-E104: another version")
"""
# A twin is what its reader prints but for two fields, which are about the fixture.
READS = ANSWERS.replace(
    'print(path.with_suffix(".json").read_text())',
    "content = json.loads(path.with_suffix('.json').read_text()); del content['file'], content['about']; "
    "print(json.dumps(content))",
)


def test_all_right(reader):
    assert reader(READS) == [("read", "")] * 2 + [("right", "")] * 2


def test_what_is_not_in_the_twin_is_a_difference(reader):
    assert reader(ANSWERS)[0] == ("differs", "the file: 'file' is not in the twin")


def test_whatever_else_a_reader_does_is_no_right_answer(reader):
    refuses = reader("print('AIB-E105: no'); sys.exit(1)")
    assert refuses == [("refused", "refused with AIB-E105")] * 2 + [("other", "AIB-E105, not AIB-E104")] * 2
    accepts = reader("print('{}')")
    assert [outcome for outcome, _ in accepts] == ["differs"] * 2 + ["accepted"] * 2
    for body, reason in (
        ("os.kill(os.getpid(), 11)", "signal 11"),
        ("sys.exit(5)", "exit status 5 without a code: nothing"),
        ("print('AIB-E104')", "exit status 0, and standard output is not JSON: "),
        ("import time; time.sleep(60)", "no answer within 1 s"),
    ):
        found = reader(body, timeout=1)
        assert [outcome for outcome, _ in found] == ["none"] * 4, body
        assert all(text.startswith(reason) for _, text in found), found


def test_verdicts_alone(reader):
    assert [outcome for outcome, _ in reader("", verdicts=True)] == ["read", "read", "accepted", "accepted"]


def test_many_files_at_once(reader):
    many = READS.replace("sys.exit(", "print(").replace("\n", "\n    ")
    assert reader(f"for path in map(pathlib.Path, sys.argv[1:]):{many}", lines=True) == (
        [("read", "")] * 2 + [("right", "")] * 2
    )
    with pytest.raises(SystemExit, match="1 lines for 4 files"):
        reader("print('{}')", lines=True)


@pytest.mark.parametrize(
    "found, wanted",
    [(1, 1.0), (1.0, 1), ("a", "a"), (None, None), (True, True), ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
     ("NaN", math.nan), (math.nan, math.nan), ("-Infinity", -math.inf), (-0.0, -0.0), ([], []), (2**63 - 1, 2**63 - 1)],
)  # fmt: skip
def test_the_same(found, wanted):
    assert corpus.difference(found, wanted) is None


@pytest.mark.parametrize(
    "found, wanted",
    [(0, -0.0), (-0.0, 0), (True, 1), (1, True), (False, 0), (None, 0), ("1", 1), (float(2**63), 2**63 - 1),
     ([1], [1, 2]), ({}, []), ({"a": 1}, {}), ({}, {"a": 1}), (math.nan, 1.0), (math.inf, -math.inf), ("b", "a"),
     (0.1, 0.100001), ({"a": [{"b": 1}]}, {"a": [{"b": 2}]})],
)  # fmt: skip
def test_not_the_same(found, wanted):
    assert corpus.difference(found, wanted)


def test_a_difference_says_where():
    found = HELLO.twin
    found["planes"][0]["length"] += 1
    assert corpus.difference(found, HELLO.twin) == "planes[0].length: 9, not 8"


def test_minus_zero_may_be_written_as_an_integer():
    assert corpus.difference(corpus.loads("[-0]"), [-0.0]) is None


def test_the_page_and_the_exit_status(monkeypatch, capsys, cases):
    judged = [run.Judgement(cases[0], "read"), run.Judgement(cases[1], "differs", "tensors[0].values[1]: 0, not -0.0"),
              run.Judgement(cases[2], "right"), run.Judgement(cases[3], "none", "signal 11")]  # fmt: skip
    monkeypatch.setattr(run, "run", lambda command, **options: judged)
    assert run.main(["--name", "Mine", "--", "true", "--all"]) == 1
    page = capsys.readouterr().out
    assert page.startswith("# Mine and `.aibit`\n\nCorpus: ")
    for line in ("| good files read | 1 of 2 |", "| bad files refused with the right code | 1 of 2 |",
                 "| bad files accepted | 0 |", "| files without a verdict | 1 |", "2 misses:",
                 "- `container/shapes.aibit`: tensors[0].values[1]: 0, not -0.0"):  # fmt: skip
        assert line in page.splitlines()
    del judged[1], judged[2]
    assert run.main(["true"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("# true and") and page.endswith("No misses.\n")
    assert run.main(["--json", "true"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {"file": "container/hello.aibit", "outcome": "read", "reason": ""}


def test_a_program_that_is_not_there_is_an_error_of_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(["--", "no-such-reader"])
    assert "there is no program no-such-reader" in capsys.readouterr().err


def test_the_version_tells_corpora_apart(monkeypatch):
    whole = corpus.version()
    assert whole.startswith(f"{len(vectors.GOOD)} good and {len(vectors.INDEX)} bad files, SHA-256 ")
    monkeypatch.setattr(corpus, "GOOD", corpus.GOOD[1:])
    assert corpus.version() != whole
