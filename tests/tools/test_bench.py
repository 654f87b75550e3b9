"""The benchmark suite, without measuring: what it makes of samples, its pictures, and that its rows are registered."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import sysconfig

import pytest

from aibit_format.io import extents
from tests.support.paths import ROOT
from tools.bench import charts, cold, rewriting
from tools.bench import models as made
from tools.bench.figures import Figure, number, of_runs, summary, table
from tools.bench.pairing import Bench

PNG = b"\x89PNG\r\n\x1a\n"


def figures() -> list[Figure]:
    """Two ways, the second in one round alone, and two things measured of each."""
    found = {
        "aibit": [{"seconds": s, "bytes": 1 << 20} for s in (2.0, 4.0, 3.0)],
        "other": [{"seconds": 8.0, "bytes": 1 << 22}],
    }
    commands = {"aibit": "python a", "other": "python b"}
    return [
        *of_runs(found, "seconds", "s", "", 1, commands),
        *of_runs(found, "bytes", "MiB", ", gained", 1 << 20, commands),
    ]


def results(model: str, row: str, figures: list[Figure]) -> dict:
    """What run.py writes."""
    rows = {row: {"about": "made up", "load_average": 0.0, "facts": {}, "figures": [f.as_json() for f in figures]}}
    return {"machine": {}, "model": model, "runs": 3, "rows": rows}


def test_ratios_are_taken_round_by_round_and_what_ran_once_has_one():
    aibit, other, gained, _ = figures()
    assert aibit.ratios == [] and other.ratios == [4.0]
    assert summary(aibit.samples) == {"median": 3.0, "min": 2.0, "max": 4.0, "samples": [2.0, 4.0, 3.0]}
    assert Figure("a", "s", [1.0, 9.0, 4.0], Figure("b", "s", [2.0, 3.0, 4.0])).as_json()["ratio"]["median"] == 1.0
    assert aibit.as_json()["group"] == "" and gained.as_json()["group"] == "gained"
    assert gained.label == "aibit, gained" and gained.samples == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (100, "100"), (12.345, "12.35"), (0.5, "0.500"), (0.01234, "0.0123"), (-2, "-2.00")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_the_table_is_markdown_with_facts_below():
    lines = table({"load": figures()}, {"load": {"same": True}}).splitlines()
    assert lines[0] == "| row | what | unit | median | min | max | ratio | of |"
    assert "| load | aibit | s | 3.00 | 2.00 | 4.00 |  |  |" in lines
    assert "| load | other | s | 8.00 | 8.00 | 8.00 | 4.00 | aibit |" in lines
    assert lines[-2:] == ["", "- load: same: True"]
    assert len({line.count("|") for line in lines[:-2]}) == 1


def test_panels_and_curves_of_results():
    small, large = results("tiny", "load", figures()), results("160m", "load", figures())
    found = charts.panels(small["rows"]["load"]["figures"])
    assert list(found) == [("", "s"), ("gained", "MiB")]
    assert [charts.name_of(figure) for figure in found["gained", "MiB"]] == ["aibit", "other"]
    lines = charts.loading([large, small])
    assert list(lines) == ["aibit", "other"]
    assert [size for size, _ in lines["aibit"]] == [made.SHAPES[name].bytes // 2 for name in ("tiny", "160m")]
    made_up = [Figure(f"{n:,} tensors, {2 * n:,} planes", "ms", [n / 1e3]) for n in (5000, 1000)]
    opened = results("tiny", "open", made_up)
    assert [(size, figure["median"]) for size, figure in charts.opening([opened])] == [(1000, 1.0), (5000, 5.0)]
    assert [charts.short(n) for n in (7, 5000, 162417408, 1100048384)] == ["7", "5k", "162M", "1.1G"]
    assert charts.spread(found["", "s"]) == ([3.0, 8.0], [[1.0, 0.0], [1.0, 0.0]])


def test_charts_draws_a_picture_a_row_and_both_curves(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="wants the extra plot")
    opened = [Figure(f"{n:,} tensors, {2 * n:,} planes", "ms", [n / 1e3]) for n in (1000, 5000)]
    paths = []
    for name, result in (
        ("tiny", results("tiny", "load", figures())),
        ("160m", results("160m", "load", figures())),
        ("open", results("160m", "open", opened)),
    ):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(result))
    monkeypatch.setattr(sys, "argv", ["charts.py", *map(str, paths), "--out", str(tmp_path / "charts")])
    charts.main()
    drawn = {path.name for path in (tmp_path / "charts").iterdir()}
    assert drawn == {
        "tiny-load.png", "160m-load.png", "open-open.png", "open-by-tensors.png", "load-by-parameters.png",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(PNG) for path in (tmp_path / "charts").iterdir())
    assert len(capsys.readouterr().out.splitlines()) == len(drawn)


def test_every_row_is_listed_and_an_unknown_one_refused():
    from tools.bench import rows

    command = [sys.executable, "-m", "tools.bench.run"]
    listed = subprocess.run([*command, "--list"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(rows.ABOUT)
    assert set(rows.ABOUT) == set(rows.ROWS) and {"load", "cold", "decode", "first"} <= set(rows.ROWS)
    refused = subprocess.run([*command, "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "no such row: nothing" in refused.stderr


def test_dropped_pages_are_gone_or_nobody_can_tell(tmp_path):
    for name, size in (("a", 1 << 20), ("b", 1 << 20), ("one page", 9), ("empty", 0)):
        (tmp_path / name).write_bytes(bytes(size))
    left = cold.drop(tmp_path)
    assert left is None or 0 <= left <= 1
    assert (tmp_path / "a").read_bytes() == bytes(1 << 20)


FAKE = """#!{python}
import json, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert given["-o"] == "json" and (given["-p"], given.get("-d")) in {{("128", None), ("0", "128")}}
rates = [64.0, 128.0] if "-d" not in given else [10.0, 20.0]
print(json.dumps([
    {{"build_commit": "abc", "n_prompt": int(given["-p"]), "n_gen": int(given["-n"]), "samples_ts": rates}},
]))
"""


def test_llama_bench_is_asked_where_it_is_and_missed_where_it_is_not(tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="wants the extra gguf")
    from tools.bench import generation

    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    bench = Bench("tiny", 2, tmp_path, tmp_path)
    assert generation._llama_bench(bench, 128) is None and "not measured" in bench.facts["llama.cpp"]
    program = tmp_path / "bin" / "llama-bench"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    runs, command = generation._llama_bench(bench, 128)
    assert runs == [{"first": 2.0, "token": 0.1}, {"first": 1.0, "token": 0.05}]
    assert command.startswith("llama-bench -m WORK/tiny-q8_0.gguf") and "abc" in bench.facts["llama.cpp"]


def test_the_conversion_in_c_alone_compiles(tmp_path):
    if platform.machine() != "x86_64" or not shutil.which("gcc"):
        pytest.skip("no compiler, or another kind of processor")
    options = ["-O1", "-no-pie", "-ffp-contract=off", "-pthread", "-Wall", "-Werror", "-Wno-unused-function"]
    options += ["-I" + sysconfig.get_paths()["include"], "-Wl,--unresolved-symbols=ignore-all"]
    sources = ["tools/bench/limit.c", *(f"aibit_format/native/{name}.c" for name in ("sizes", "shares", "floats"))]
    subprocess.run(["gcc", *options, *sources, "-o", tmp_path / "limit"], check=True, cwd=ROOT)


def test_verbs_are_measured_in_each_way(tmp_path, monkeypatch):
    monkeypatch.setattr(rewriting, "_ROWS", 32)
    found = rewriting.measure(tmp_path, 1 << 20, 1)
    assert found.keys() == {"edit", "split", "merge"}
    assert all(list(ways) == list(extents.WAYS) for ways in found.values())
    size = (tmp_path / "m.aibit").stat().st_size
    assert all(row["seconds"] > 0 and row["shared"] <= size for ways in found.values() for row in ways.values())
    assert all(ways["copy"]["shared"] == 0 for ways in found.values())


def test_checkpoints_of_random_codes_are_kept(tmp_path):
    import aibit_format as aibit
    from tools.bench import integers

    shape = made.Shape(128, 128, 256, 1, 2, 1)
    for write, scheme in ((integers.hqq, "int-group"), (integers.torchao, "int-group")):
        folder = write(shape, tmp_path / write.__name__)
        report = aibit.convert(folder, tmp_path / "m.aibit", overwrite=True)
        kept = {tensor.name: tensor.scheme for tensor in report.tensors if tensor.kept}
        assert len(kept) == 7 and {found.partition(",")[0] for found in kept.values()} == {scheme}
        with aibit.open(tmp_path / "m.aibit", verify="full") as file:
            values = file.dequantize("model.layers.0.mlp.up_proj.weight")
        assert 0.01 < values.std() < 0.03


@pytest.mark.parametrize("kind", ["q4_k", "q6_k"])
def test_random_blocks_take_the_place_of_those_of_a_template(kind, tmp_path):
    gguf = pytest.importorskip("gguf", reason="wants the extra gguf")
    import aibit_format as aibit
    from tools.bench import foreign, integers

    template = foreign.gguf_q8_0(made.Shape(64, 256, 256, 1, 2, 1), tmp_path / "q8_0.gguf")
    path = integers.gguf_blocks(kind, template, tmp_path / "m.gguf")
    before, after = (gguf.GGUFReader(each) for each in (template, path))
    assert before.fields.keys() == after.fields.keys()
    assert [tensor.name for tensor in before.tensors] == [tensor.name for tensor in after.tensors]
    assert {tensor.tensor_type.name for tensor in after.tensors} == {"F32", kind.upper()}
    aibit.convert(path, tmp_path / "m.aibit")
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        assert 0.005 < file.dequantize("model.layers.0.mlp.up_proj.weight").std() < 0.2


def test_logits_are_compared_for_the_tokens_that_both_have():
    from tools.bench.packed import beyond

    assert beyond([{"1": -1.0, "2": -2.0}, {"7": -3.0}], [{"1": -1.5, "9": 0.0}, {"7": -2.0}]) == 1.0


def test_the_frontier_compares_every_type_that_both_encode():
    from aibit_format.formats.gguf.export import ENCODED
    from tools.bench import frontier, frontier_rows

    assert set(frontier_rows.TYPES) == set(ENCODED) - {"f32", "f16", "bf16", "q8_0"} <= frontier.NUMBERS.keys()
    asked = list(frontier_rows.rows())
    assert len(asked) == len({row.key for row in asked}) and {row.scope for row in asked} == {"linear", "all"}
    for row in asked:
        if row.encoder == "llama.cpp":
            assert frontier_rows.Row(row.scope, row.scheme, row.how) in asked
    few = list(frontier_rows.rows(folded=False, searched=False))
    assert not any("awq" in row.how or row.scope == "all" for row in few) and set(few) < set(asked)
    assert [row.how for row in frontier_rows.rows(["int8", "gguf:q4_k"])] == ["plain", "plain", "importance"]


def _row(scheme, how, encoder, bits, distance, scope="linear"):
    return {"scheme": scheme, "how": how, "encoder": encoder, "bits": bits, "distance": distance, "scope": scope}


def test_the_picture_of_the_frontier_has_a_mark_for_each_row_and_a_line_along_the_best():
    from xml.etree import ElementTree

    from tools.bench import frontier_picture, frontier_tables

    rows = [
        _row("gguf:q4_k", "plain", "aibit", 4.5, 0.2), _row("gguf:q4_k", "plain", "llama.cpp", 4.5, 0.3),
        _row("gguf:q4_0", "plain", "aibit", 4.6, 0.4), _row("int8", "plain", "bitsandbytes", 8.0, 0.01),
        _row("bits=5.0", "gptq", "aibit", 5.0, 0.1, "all"), _row("q4_k_m", "gptq", "aibit", 5.1, 0.15, "all"),
    ]  # fmt: skip
    results = {"model": "<m>", "measure": "KL", "rows": rows}
    assert [row["bits"] for row in frontier_picture.best(rows[:4])] == [4.5, 8.0]
    drawn = frontier_picture.picture(results)
    paths = [each for each in ElementTree.fromstring(drawn).iter() if each.tag.endswith("path")]  # noqa: S314
    filled = [each for each in paths if each.get("style", "").startswith("fill:var")]
    kinds = [name for name, *_, belongs in frontier_picture.KINDS if any(map(belongs, rows))]
    assert len(filled) == len(rows) + len(kinds) and all(name in drawn for name in kinds)
    assert "&lt;m&gt;" in drawn and ">q4_k_m<" in drawn and ">bits=5.0<" not in drawn
    lines = list(frontier_tables.tables(results))
    assert lines[0] == "| Linear weights | bits | no data | llama.cpp |"
    assert "| `int8` | 8.00 | .0100 |  |" in lines and "| `q4_k` | 4.50 | .200 | .300 |" in lines
    assert "| `bits=5.0` | 5.00 | .100 |" in lines


def test_the_pages_show_what_was_measured_of_the_frontier():
    from tools.bench import frontier_picture, frontier_tables

    page, found = (ROOT / "docs" / "benchmarks.md").read_text("utf-8"), {}
    for path in sorted((ROOT / "tools" / "bench" / "results").glob("frontier-*.json")):
        results = found[path.stem] = json.loads(path.read_text("utf-8"))
        assert all(line in page for line in frontier_tables.tables(results)) and path.name in page
    drawn = (ROOT / "docs" / "frontier.svg").read_text("utf-8")
    assert drawn == frontier_picture.picture(found["frontier-smollm2"])


def test_each_window_of_the_frontier_begins_as_a_text_does():
    from tools.bench.frontier_models import CONTEXT, _windows

    def tokenizer(text, **_):
        return {"input_ids": [1, *map(ord, text)]}

    found = _windows(tokenizer, "a" * (CONTEXT + 100), CONTEXT + 50)
    assert found[0] == found[CONTEXT] == 1 and found.count(1) == 2 and len(found) == CONTEXT + 52


def test_a_frontier_goes_on_where_it_was_ended(tmp_path):
    out, text = tmp_path / "f.json", ROOT / "fixtures" / "models" / "heldout.txt"
    command = [
        sys.executable, "-m", "tools.bench.frontier", str(ROOT / "fixtures" / "models" / "tiny-llama"),
        "--calibration", str(text), "--text", str(text), "--tokens", "32", "--samples", "16", "--length", "64", "--out",
        str(out), "--folder", str(tmp_path / "made"), "--schemes", "int8", "int4-group,group=32",
    ]  # fmt: skip
    first = subprocess.run([*command, "--only", "int8"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "int8" in first and "int4" not in first
    before = json.loads(out.read_text())
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    after = json.loads(out.read_text())
    assert after["rows"][:1] == before["rows"] and [row["how"] for row in after["rows"]] == [
        "plain", "plain", "importance",
    ]  # fmt: skip
    assert after["rows"][0]["distance"] < after["rows"][1]["distance"]
    other = subprocess.run([*command, "--samples", "8"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert other.returncode == 1 and "results of another run: its samples differ" in other.stderr



def test_transformations_are_measured_alone_and_together():
    from aibit_format.schemes import parse
    from aibit_format.transform.method import METHODS
    from aibit_format.transform.method import parse as transformations
    from tools.bench import transformed

    assert all(parse(scheme).lossy for scheme in transformed.SCHEMES)
    assert {each.name for texts in transformed.TRANSFORMS for each in transformations(texts)} == set(METHODS)


def test_cuts_that_are_measured_can_be_wanted():
    from aibit_format.schemes import parse
    from aibit_format.transform.prune.plan import Wanted
    from tools.bench import pruned

    assert all(len(Wanted.parse(each).counts) == 1 for each in (*pruned.DENSE, *pruned.SPARSE))
    assert all(parse(pruned.scheme(bits)).bits == bits for bits in pruned.BITS)


def test_sparse_forms_leave_half_out_and_take_the_bits_that_are_said():
    import numpy as np

    from tools.bench import sparse

    random = np.random.default_rng(0)
    x, weight = random.normal(size=(300, 128)), random.normal(size=(8, 128)).astype(np.float32)
    factor = sparse.upper((x.T @ x).astype(np.float32))
    for form, (of, bits, _, share) in sparse.FORMS.items():
        found = sparse.rounded(weight, factor, of, bits)
        zeros = (found == 0).reshape(8, -1, of or 64).sum(-1)
        assert not of or (zeros >= of // 2).all()
        assert share == (0.5 if of else 1)
        assert np.square(found - weight).mean() < np.square(weight).mean(), form
    assert sparse.bits_of("2:4, 4 bits") == sparse.bits_of("dense, 3 bits") == 3.375
