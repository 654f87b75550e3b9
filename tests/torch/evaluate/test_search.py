"""The search for schemes: by size, by quality, and from the recipe that it leaves."""

from __future__ import annotations

import json

import pytest

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.errors import RecipeError
from aibit_format.torch.evaluate.search import Target, search
from tests.support.paths import ROOT

MODEL = ROOT / "fixtures" / "models" / "tiny-llama"
HELD_OUT = ROOT / "fixtures" / "models" / "heldout.txt"
TEXT = HELD_OUT.read_text()
CANDIDATES = ("gguf:q4_0", "gguf:q8_0")


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Of 5.5 bits, by 48 tokens; and its folder."""
    folder, seen = tmp_path_factory.mktemp("search"), []
    found = search(
        str(MODEL), str(folder / "m.aibit"), Target(bits=5.5), TEXT, candidates=CANDIDATES, tokens=48,
        on_search=lambda *each: seen.append(each),
    )  # fmt: skip
    assert seen[0][:2] == (0, len(found.chosen)) and seen[-1] == (len(found.chosen), len(found.chosen), "")
    return found, folder


def test_bits_are_met_and_what_was_expected_is_measured(five):
    found, _ = five
    assert 5.4 < found.bits <= 5.5 and set(found.chosen) == set(CANDIDATES) == set(found.schemes)
    assert found.kl == pytest.approx(found.predicted_kl, rel=0.35)  # costs add up, nearly
    assert "model.embed_tokens.weight" in found.choices.names
    assert found.frontier[0][0] == pytest.approx(4.5) and found.frontier[-1][0] == pytest.approx(8.5)
    corners = found.corners()
    assert corners[0] == found.frontier[0] and corners[-1] == found.frontier[-1] and len(corners) <= 12


def test_it_is_better_than_any_other_choice_of_as_many_bytes(five):
    """Costs of all other choices are known, as they add up; a choice by the order of layers is one."""
    found, _ = five
    nbytes, cost = found.choices.total(found.choices.within(int(5.5 * sum(found.choices.nbytes[:, 0]) / 4.5)))
    assert cost == pytest.approx(found.predicted_kl)
    chosen = found.choices.smallest()
    for place in range(len(chosen)):  # the first layers get more bits
        chosen[place] = 1
        if found.choices.total(chosen)[0] > nbytes:
            chosen[place] = 0
    assert found.choices.total(chosen)[1] > 1.2 * cost


def test_the_file_says_how_it_was_made_and_can_be_made_again(five, tmp_path):
    found, folder = five
    with aibit.open(folder / "m.aibit") as file:
        about, recipe = dict(file.metadata), list(file.metadata["quantization.recipe"])
        planes = {name: {role: bytes(plane) for role, plane in file.planes(name).items()} for name in file}
    assert about["quantization.search.target"] == "bits=5.5" and about["quantization.search.tokens"] == 48
    assert about["quantization.search.candidates"] == list(CANDIDATES)
    assert about["quantization.search.kl"] == pytest.approx(found.kl, rel=1e-5)
    assert len(recipe) == 1 + len(found.chosen) and recipe[0] == "*=keep"
    aibit.convert(MODEL, tmp_path / "again.aibit", "keep", [tuple(line.rsplit("=", 1)) for line in recipe[1:]])
    with aibit.open(tmp_path / "again.aibit") as file:
        for name in file:
            assert {role: bytes(plane) for role, plane in file.planes(name).items()} == planes[name], name


def test_a_size_is_not_exceeded_and_a_divergence_neither(five, tmp_path):
    whole = five[0].report.file_bytes - 20_000
    found = search(str(MODEL), str(tmp_path / "s.aibit"), Target(nbytes=whole), TEXT, candidates=CANDIDATES, tokens=48)
    assert whole - 40_000 < found.report.file_bytes <= whole
    assert found.report.file_bytes == (tmp_path / "s.aibit").stat().st_size
    found = search(str(MODEL), str(tmp_path / "k.aibit"), Target(kl=0.02), TEXT, candidates=CANDIDATES, tokens=48)
    assert 0.01 < found.kl <= 0.02


def test_the_result_is_rounded_with_a_method_and_nothing_is_measured_twice(five, tmp_path):
    found, _ = five
    statistics = aibit.calibrate(MODEL, [HELD_OUT], samples=100, length=64, hessians="")
    seen, apart = [], []
    for method in (None, "gptq"):
        again = search(
            str(MODEL), str(tmp_path / f"{method}.aibit"), Target(bits=5.5), TEXT, candidates=CANDIDATES, tokens=48,
            calibration=statistics, method=method, choices=found.choices, on_search=lambda *each: seen.append(each),
        )  # fmt: skip
        assert again.chosen == found.chosen and not seen
        apart.append(again.kl)
    assert apart[1] < apart[0]
    with aibit.open(tmp_path / "gptq.aibit") as file:
        assert file.metadata["quantization.method"] == "gptq,damping=0.01,ordered=1"


@pytest.mark.parametrize(("target", "message"), [
    (Target(bits=4), r"bits=4 cannot be met: the smallest of .* 4\.50 bits"),
    (Target(kl=1e-9), "kl=1e-09 cannot be met"),
])  # fmt: skip
def test_what_cannot_be_met_is_said(target, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        search(str(MODEL), str(tmp_path / "m.aibit"), target, TEXT, candidates=CANDIDATES, tokens=8)
    assert not list(tmp_path.iterdir())


def test_one_target_is_wanted():
    for given in ({}, {"bits": 4, "kl": 1}, {"bits": 0}, {"kl": float("nan")}, {"nbytes": -1}):
        with pytest.raises(RecipeError, match="one target is wanted"):
            Target(**given)


def test_the_command_prints_the_frontier(tmp_path, capsys):
    out, short = str(tmp_path / "m.aibit"), tmp_path / "short.txt"
    short.write_text(TEXT[:200])
    arguments = ["convert", str(MODEL), "-o", out, "--candidates", " ".join(CANDIDATES), "--search-text", str(short)]
    assert main([*arguments, "--target-bits", "6"]) == 0
    printed = capsys.readouterr().out
    assert "expected divergence" in printed and "bits a weight, divergence" in printed and "gguf:q8_0" in printed
    assert main([*arguments, "--target-bits", "6"]) == 1
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert main([*arguments, "--target-size", "2MB", "--force", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"]["file_bytes"] <= 2_000_000 and set(said["schemes"].values()) <= set(CANDIDATES)
    for wrong in ("--target-bits 5 --scheme nf4", "--candidates nf4", "--target-bits 5 --target-kl 1",
                  "--target-bits 5 --transform awq"):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["convert", str(MODEL), "-o", out, *wrong.split()])
