"""What a conversion says of the weights that it leaves as they are."""

from __future__ import annotations

import pytest

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.convert.unquantized import TABLES, VECTORS


@pytest.fixture(scope="module")
def source(fixtures):
    return fixtures / "models" / "tiny-llama"


def plain_bytes(path, *names):
    with aibit.open(path) as file:
        return sum(file.info(name).nbytes for name in file if any(part in name for part in names))


def test_every_byte_that_is_not_quantized_has_a_reason(source, tmp_path):
    report = aibit.convert(source, tmp_path / "m.aibit", scheme="nf4")
    assert report.unquantized[TABLES] == plain_bytes(report.path, "embed_tokens")
    assert report.unquantized[VECTORS] == plain_bytes(report.path, "norm")
    (heads,) = [count for reason, count in report.unquantized.items() if reason.startswith("heads")]
    assert heads == plain_bytes(report.path, "lm_head")
    exact = sum(t.quantized_bytes for t in report.tensors if t.error is None)
    assert sum(report.unquantized.values()) == exact
    assert list(report.unquantized.values()) == sorted(report.unquantized.values(), reverse=True)


def test_a_rule_that_keeps_a_tensor_is_a_reason_and_one_that_quantizes_a_table_leaves_none(source, tmp_path):
    report = aibit.convert(source, tmp_path / "m.aibit", tensors={"embed_tokens": "int8", "q_proj": "f32"})
    assert TABLES not in report.unquantized
    (asked,) = [count for reason, count in report.unquantized.items() if reason.startswith("as the recipe says")]
    assert asked == plain_bytes(report.path, "q_proj")


def test_where_nothing_is_quantized_nothing_is_said(source, tmp_path):
    assert aibit.convert(source, tmp_path / "m.aibit", scheme="bf16").unquantized == {}


def test_the_command_says_so_in_words_and_warns_of_a_file_that_grows(source, tmp_path, capsys):
    assert main(["convert", str(source), "-o", str(tmp_path / "a.aibit"), "--scheme", "nf4"]) == 0
    out, err = capsys.readouterr()
    assert "not quantized: 526.59 kB, 54.3% of what is stored:" in out and TABLES in out and "larger" not in err
    assert main(["convert", str(source), "-o", str(tmp_path / "c.aibit"), "--scheme", "f32"]) == 0
    out, err = capsys.readouterr()
    assert "c.aibit: larger than its source: the weights take 3.67 MB here, and 2.10 MB in the source" in err
    assert "not quantized" not in out
