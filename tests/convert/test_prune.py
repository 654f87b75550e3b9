"""Models are pruned in one pass or step by step, to the same bytes, to a size, by statistics or without."""

import json

import numpy as np
import pytest
import torch
import transformers as tf

import aibit_format as aibit
from aibit_format.container import pruning
from aibit_format.errors import RecipeError, SourceError, WriteError
from aibit_format.numpy import save_file
from aibit_format.transform.prune.plan import Plan
from tests.support import architectures, calibrated

WANTED = "channels=64,heads=2,refit"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory and a text."""
    folder, text = calibrated.save("llama-tied", tmp_path_factory.mktemp("pruned") / "hf", dtype=torch.bfloat16)
    text.write_text(calibrated.TEXT * 2)
    return folder, text


@pytest.fixture(scope="module")
def statistics(model):
    return aibit.calibrate(model[0], [model[1]], samples=4, length=32, hessians="")


def planes(path):
    with aibit.open(path) as file:
        return {(name, role): plane.tobytes() for name in file for role, plane in file.planes(name).items()}


def documents(path):
    with aibit.open(path) as file:
        return {name: bytes(text) for name, text in file.documents.items()}


@pytest.mark.parametrize("scheme", ["int8", "int4-group,group=32"])
def test_one_pass_is_one_after_the_other(model, statistics, tmp_path, scheme):
    aibit.prune(model[0], tmp_path / "p.aibit", WANTED, calibration=statistics)
    aibit.convert(tmp_path / "p.aibit", tmp_path / "two.aibit", scheme)
    aibit.prune(model[0], tmp_path / "one.aibit", WANTED, calibration=statistics, scheme=scheme)
    assert planes(tmp_path / "one.aibit") == planes(tmp_path / "two.aibit")
    assert documents(tmp_path / "one.aibit") == documents(tmp_path / "two.aibit")
    with aibit.open(tmp_path / "two.aibit") as two, aibit.open(tmp_path / "one.aibit") as one:
        said = {key for key in one.metadata if key.startswith("pruning.")}
        assert said and all(np.array_equal(one.metadata[key], two.metadata[key]) for key in said)


def test_with_what_is_left_of_statistics_or_with_texts(model, statistics, tmp_path):
    made = aibit.convert(
        model[0], tmp_path / "a.aibit", "int4-group,group=32", prune=WANTED, calibration=statistics, method="gptq"
    )
    assert made.pruned == (WANTED,) and all(t.method for t in made.tensors if "mlp" in t.name)
    assert all(t.shape[-1] == 64 for t in made.tensors if "down" in t.name)
    aibit.prune(model[0], tmp_path / "p.aibit", "layers=1", calibration=model[1])
    two = aibit.convert(tmp_path / "p.aibit", tmp_path / "two.aibit", "gguf:q4_0", calibration=model[1])
    one = aibit.convert(model[0], tmp_path / "one.aibit", "gguf:q4_0", calibration=model[1], prune="layers=1")
    assert planes(one.path) == planes(two.path)


def test_the_number_of_threads_changes_nothing(model, statistics, tmp_path):
    for jobs in (1, 3):
        aibit.prune(model[0], tmp_path / f"{jobs}.aibit", WANTED, calibration=statistics, scheme="nf4", jobs=jobs)
    assert (tmp_path / "1.aibit").read_bytes() == (tmp_path / "3.aibit").read_bytes()


def test_a_plain_model_that_transformers_loads(model, statistics, tmp_path):
    aibit.prune(model[0], tmp_path / "p.aibit", WANTED, calibration=statistics)
    aibit.export(tmp_path / "p.aibit", "huggingface", tmp_path / "out")
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ours = aibit.load_model(tmp_path / "p.aibit")
    assert (theirs.config.intermediate_size, theirs.config.num_attention_heads) == (64, 2)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, ours(ids).logits)


@torch.no_grad()
def test_fitting_what_reads_less_makes_up_for_it(model, statistics, tmp_path):
    ids = torch.tensor([[ord(letter) - 29 for letter in calibrated.TEXT[:64]]])
    expected = architectures.load("llama-tied", model[0])(ids).logits.log_softmax(-1)
    apart = []
    for wanted in ("channels=96", "channels=96,refit"):
        aibit.prune(model[0], tmp_path / "m.aibit", wanted, calibration=statistics, overwrite=True)
        found = aibit.load_model(tmp_path / "m.aibit")(ids).logits.log_softmax(-1)
        apart.append(float((expected.exp() * (expected - found)).sum(-1).mean()))
    assert apart[1] < apart[0]


def test_a_size_is_met_with_as_much_as_fits(model, statistics, tmp_path):
    whole = aibit.convert(model[0], tmp_path / "w.aibit", "keep").file_bytes
    made = aibit.prune(model[0], tmp_path / "m.aibit", f"size={whole - 1}", calibration=statistics)
    assert made.file_bytes < whole and made.pruned == ("channels=64",)
    made = aibit.prune(model[0], tmp_path / "l.aibit", f"size={whole - 1},by=layers", calibration=statistics)
    assert made.pruned == ("layers=1",)
    with pytest.raises(
        RecipeError, match=r"a file of 1,000 bytes cannot be met with fewer heads: the least .* has \d+,"
    ):
        aibit.prune(model[0], tmp_path / "n.aibit", "size=1000,by=heads", calibration=statistics)
    assert not (tmp_path / "n.aibit").exists()


def test_weights_alone_are_said(model, tmp_path):
    made = aibit.prune(model[0], tmp_path / "m.aibit", "channels=64,layers=1")
    assert made.notes[0].startswith("chosen by weights alone")
    with aibit.open(made.path) as file:
        assert list(file.metadata["pruning.scores"]) == ["weights"]
    assert not aibit.prune(model[0], tmp_path / "d.aibit", "drop=1").notes


def test_a_plan_names_what_is_kept(model, tmp_path):
    kept = {0: np.arange(64), 1: np.arange(64, 128)}
    made = aibit.prune(model[0], tmp_path / "m.aibit", Plan(channels=kept, how="mine"))
    again = aibit.prune(made.path, tmp_path / "n.aibit", "layers=1")
    assert again.pruned == ("mine", "layers=1")
    with aibit.open(again.path) as file:
        rows = pruning.kept(file.metadata, file.documents)
        assert [(row.step, row.kind, row.layer) for row in rows] == [
            (0, "channels", 0), (0, "channels", 1), (1, "layers", -1)
        ]  # fmt: skip
        assert rows[0].numbers.tolist() == list(range(64)) and rows[1].numbers.tolist() == list(range(64, 128))
        assert len(rows[2].numbers) == 1
        assert json.loads(bytes(file.documents["config.json"]))["num_hidden_layers"] == 1


def test_layers_of_different_widths_are_loaded_pruned_again_and_not_exported(model, statistics, tmp_path):
    kept = {0: np.arange(32), 1: np.arange(128)[::2]}
    made = aibit.prune(model[0], tmp_path / "m.aibit", Plan(channels=kept, how="mine"))
    loaded = aibit.load_model(made.path)
    assert [layer.mlp.up_proj.out_features for layer in loaded.model.layers] == [32, 64]
    whole = architectures.load("llama-tied", model[0]).bfloat16()
    for number, index in kept.items():
        gone = np.setdiff1d(np.arange(128), index)
        whole.model.layers[number].mlp.down_proj.weight.data[:, gone] = 0
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits.float(), whole(ids).logits.float(), atol=0.5, rtol=0.05)
    for to in ("huggingface", "safetensors", "gguf"):
        with pytest.raises(WriteError, match=f"different channels .aibit_widths in config.json., .* {to} has no"):
            aibit.export(made.path, to, tmp_path / to)
    again = aibit.prune(made.path, tmp_path / "n.aibit", "channels=32", calibration=None)
    with aibit.open(again.path) as file:
        config = json.loads(bytes(file.documents["config.json"]))
    assert config["intermediate_size"] == 32 and "aibit_widths" not in config
    one = aibit.prune(made.path, tmp_path / "o.aibit", "drop=0")
    assert aibit.load_model(one.path).config.aibit_widths == {"channels": [64]}
    uneven = aibit.prune(model[0], tmp_path / "u.aibit", "channels=64,block=16,uneven", calibration=statistics)
    shapes = [t.shape[1] for t in uneven.tensors if "down_proj" in t.name]
    assert sum(shapes) == 128


@pytest.mark.parametrize(("wanted", "kind", "message"), [
    ("channels=64,refit", None, "fitting matrices .* needs Hessians"), ("heads=3", None, "2 share keys and values"),
    ("experts=2", None, "no experts"), ("channels=64", "other", "statistics of another model"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(model, statistics, tmp_path, wanted, kind, message):
    source = model[0]
    if kind:
        architectures.save("llama-tied", tmp_path / "hf", intermediate_size=160)
        source = tmp_path / "hf"
    given = statistics if kind else None
    with pytest.raises((RecipeError, SourceError), match=message):
        aibit.prune(source, tmp_path / "m.aibit", wanted, calibration=given)
    assert not (tmp_path / "m.aibit").exists()


def test_tensors_without_a_model(tmp_path):
    save_file({"a": np.ones((2, 2), np.float32)}, tmp_path / "x.aibit")
    with pytest.raises(RecipeError, match="no model that could be pruned"):
        aibit.prune(tmp_path / "x.aibit", tmp_path / "m.aibit", "layers=1")
