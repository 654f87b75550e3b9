"""The command ``aibit prune``, and ``aibit convert --prune``."""

import json

import pytest

import aibit_format as aibit
from tests.support import calibrated
from tests.support.command import run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, text = calibrated.save("mixtral", tmp_path_factory.mktemp("pruned") / "hf")
    aibit.calibrate(folder, [text], folder.parent / "s.safetensors", samples=3, length=24, hessians="")
    return folder, folder.parent / "s.safetensors"


def test_what_is_left_is_told(model, tmp_path, capsys):
    target = tmp_path / "m.aibit"
    asked = ("prune", model[0], "--calibrate", model[1], "--keep-experts", "3", "--keep-channels", "64", "--refit")
    status, out, err = run(*asked, "-o", target, capsys=capsys)
    assert (status, err) == (0, "") and out.splitlines()[0] == "kept: channels=64,experts=3,refit"
    assert str(target) in out.splitlines()[-1]
    config = aibit.load_model(target).config
    assert (config.num_local_experts, config.intermediate_size) == (3, 64)
    status, out, err = run("prune", target, "--drop-layers", "0", "-o", tmp_path / "n.aibit", "--json", capsys=capsys)
    assert status == 0 and json.loads(out)["pruned"] == ["channels=64,experts=3,refit", "drop=0"]


def test_weights_alone_and_what_is_rounded_again_are_said(model, tmp_path, capsys):
    aibit.convert(model[0], tmp_path / "q.aibit", "nf4")
    asked = ("prune", tmp_path / "q.aibit", "--keep-channels", "96", "-o", tmp_path / "m.aibit")
    status, _, err = run(*asked, capsys=capsys)
    assert status == 0 and "aibit: chosen by weights alone" in err and "aibit: decoded and rounded again" in err
    assert run(*asked, capsys=capsys)[0] == 1 and run(*asked, "--force", "--block", "32", capsys=capsys)[0] == 0


@pytest.mark.parametrize(("arguments", "status", "message"), [
    ([], 2, "nothing to prune"), (["--keep-layers", "0"], 2, "not a positive number"),
    (["--keep-layers", "1", "--drop-layers", "1"], 2, "not allowed"), (["--drop-layers", "x"], 2, "numbers of layers"),
    (["--keep-layers", "5"], 2, "5 layers to keep, and there are 2"), (["--keep-experts", "1"], 2, "goes to 2"),
    (["--target-size", "10KB"], 2, "cannot be met with fewer experts"), (["--by", "heads"], 2, "for a size"),
    (["--keep-channels", "64", "--refit"], 2, "needs Hessians"),
])  # fmt: skip
def test_wrong_use_gets_a_message_and_a_status(arguments, status, message, model, tmp_path, capsys):
    found, out, err = run("prune", model[0], *arguments, "-o", tmp_path / "m.aibit", capsys=capsys)
    assert (found, out) == (status, "") and message in err and not (tmp_path / "m.aibit").exists()


def test_convert_prunes_first(model, tmp_path, capsys):
    asked = ("convert", model[0], "--scheme", "int8", "--prune", "layers=1,experts=2", "--calibrate", model[1])
    status, out, _ = run(*asked, "-o", tmp_path / "m.aibit", "--json", capsys=capsys)
    told = json.loads(out)
    assert status == 0 and told["pruned"] == ["layers=1,experts=2"]
    assert not [tensor for tensor in told["tensors"] if ".layers.1." in tensor["name"]]
    assert run(*asked[:-4], "--prune", "rows=1", "-o", tmp_path / "n.aibit", capsys=capsys)[0] == 2
