"""Conversions of transformed models: what they compute, say of themselves and refuse."""

import json

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.calibrate.calibrate import calibrate
from aibit_format.calibrate.files import load
from aibit_format.convert.convert import prepare
from aibit_format.convert.recipe import Recipe
from aibit_format.errors import RecipeError
from tests.support import architectures, calibrated
from tests.support.gguf_models import plain

FEW = {"samples": 3, "length": 24}
BOTH = ["awq", "rotate,seed=5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory of a tied model, a file of its statistics, and a text."""
    folder, text = calibrated.save("llama-tied", tmp_path_factory.mktemp("fold") / "hf")
    statistics = folder.parent / "s.safetensors"
    calibrate(folder, [text], statistics, hessians="proj", **FEW)
    return folder, statistics, text


def logits_of(path):
    return architectures.output(aibit.load_model(path), "llama-tied")


@pytest.mark.parametrize("transform", ["rotate", ["smooth,alpha=0.8"], ["rotate", "smooth"]])
def test_without_quantization_the_model_says_the_same(model, transform, tmp_path):
    folder, statistics, _ = model
    given = {} if transform == "rotate" else {"calibration": statistics}
    if "rotate" in transform and given:
        given["calibration"] = list_of_text(tmp_path)
    report = aibit.convert(folder, tmp_path / "m.aibit", "keep", transform=transform, **given)
    expected = architectures.output(architectures.load("llama-tied", folder), "llama-tied")
    assert float((logits_of(tmp_path / "m.aibit") - expected).abs().max() / expected.abs().max()) < 1e-4
    assert len(report.notes) == ("rotate" in transform)
    aliases = [tensor.name for tensor in report.tensors if tensor.alias_of]
    assert aliases == ([] if "rotate" in transform else ["lm_head.weight"])


def list_of_text(folder):
    path = folder / "long.txt"
    path.write_text(calibrated.TEXT * 20)
    return [path]


def test_the_file_says_what_was_done(model, tmp_path):
    folder, statistics, _ = model
    report = aibit.convert(
        folder, tmp_path / "m.aibit", "int4-group,group=32", transform=BOTH, calibration=statistics
    )
    assert report.transformed == ("rotate,seed=5", "awq")
    with aibit.open(tmp_path / "m.aibit", verify="full") as file:
        said = file.metadata
        assert list(said["transform.applied"]) == ["rotate,seed=5", "awq"]
        readers, exponents = list(said["transform.awq.reader"]), list(said["transform.awq.exponent"])
        assert len(readers) == len(exponents) > 0 and set(readers) <= set(file)
        assert all(0 < exponent < 1 for exponent in exponents)
        assert said["calibration.statistics"] == report.statistics
        assert json.loads(bytes(file.documents["config.json"]))["tie_word_embeddings"] is False
    again = aibit.convert(tmp_path / "m.aibit", tmp_path / "n.aibit", "keep")
    assert again.transformed == ()
    with aibit.open(tmp_path / "n.aibit") as file:
        assert list(file.metadata["transform.applied"]) == ["rotate,seed=5", "awq"]


def test_the_same_bytes_for_any_number_of_threads_from_shards_and_from_a_recipe(model, tmp_path):
    folder, statistics, _ = model
    (tmp_path / "r.toml").write_text('scheme = "nf4"\ntransform = ["awq", "rotate,seed=5"]\n')
    found = []
    for jobs in (1, 3):
        path = tmp_path / f"{jobs}.aibit"
        aibit.convert(folder, path, "nf4", transform=BOTH, calibration=statistics, jobs=jobs)
        found.append(path.read_bytes())
    assert found[0] == found[1]
    aibit.convert(folder, tmp_path / "r.aibit", recipe_file=tmp_path / "r.toml", calibration=statistics)
    with aibit.open(tmp_path / "r.aibit") as one, aibit.open(tmp_path / "1.aibit") as other:
        assert all(
            np.array_equal(plane, other.planes(name)[role]) for name in one for role, plane in one.planes(name).items()
        )
        assert b"transform" in bytes(one.documents["recipe.toml"])
    assert Recipe.of(file=tmp_path / "r.toml", transform="smooth").transformations[0].name == "smooth"


def test_outputs_of_quantized_layers_come_closer(model, tmp_path):
    folder, statistics, _ = model
    expected = architectures.output(architectures.load("llama-tied", folder), "llama-tied")
    apart = []
    for transform in ([], ["awq"]):
        path = tmp_path / f"{len(transform)}.aibit"
        aibit.convert(folder, path, "int4-group,group=32", transform=transform, calibration=statistics)
        apart.append(float((logits_of(path) - expected).square().mean()))
    assert apart[1] < 0.8 * apart[0]


@pytest.mark.parametrize("transform", ["smooth", "rotate"])
def test_experts(transform, tmp_path):
    folder, text = calibrated.save("mixtral", tmp_path / "hf")
    statistics = calibrate(folder, [text], **FEW)
    expected = architectures.output(architectures.load("mixtral", folder), "mixtral")
    report = aibit.convert(folder, tmp_path / "m.aibit", "keep", transform=transform, calibration=statistics)
    found = architectures.output(aibit.load_model(report.path), "mixtral")
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.parametrize("transform", [["awq"], ["rotate,seed=5"], BOTH])
def test_gptq_rounds_a_transformed_model_by_the_statistics_of_the_model_before(model, transform, tmp_path):
    folder, statistics, _ = model
    expected = architectures.output(architectures.load("llama-tied", folder), "llama-tied")
    apart = []
    for method in (None, "gptq"):
        report = aibit.convert(
            folder, tmp_path / "m.aibit", "int4-group,group=32", transform=transform, method=method,
            calibration=statistics, overwrite=True,
        )  # fmt: skip
        apart.append(float((logits_of(report.path) - expected).square().mean()))
        assert report.statistics == load(str(statistics)).digest  # those that the file was made from
    assert sum(tensor.method is not None for tensor in report.tensors) == 14
    assert apart[1] < 0.9 * apart[0]
    again = aibit.convert(
        folder, tmp_path / "n.aibit", "int4-group,group=32", transform=list(report.transformed), method="gptq",
        calibration=statistics, jobs=3,
    )  # fmt: skip
    assert (tmp_path / "n.aibit").read_bytes() == (tmp_path / "m.aibit").read_bytes() and again.root == report.root


def test_gptq_after_a_transformation_takes_hessians_of_a_text_once(model, tmp_path):
    folder, *_ = model
    steps = []
    recipe = Recipe.of("int4-group,group=32", method="gptq", transform=["awq"])
    found = prepare(
        folder, recipe, calibration=list_of_text(tmp_path), on_progress=lambda done, total, name: steps.append(done)
    )
    assert sum(each.method is not None for each in found.tensors) == 14
    assert steps.count(1) == 2  # of the statistics, and of the search


def test_statistics_from_before_a_rotation_say_nothing_of_ranges_after_it(model, tmp_path):
    folder, statistics, _ = model
    with pytest.raises(RecipeError, match="inputs of a rotated model have to be seen"):
        aibit.convert(folder, tmp_path / "m.aibit", transform=["smooth", "rotate"], calibration=statistics)


@pytest.mark.parametrize(("name", "transform", "message"), [
    ("gpt2", "rotate", "GPT2LMHeadModel .model type 'gpt2'.* read what others"), ("bert", "rotate", "'bert'"),
    ("llama-tied", "awq", "awq goes by statistics of activations.*--calibrate"),
    ("llama-tied", "smooth", "smooth goes by statistics"), ("llama-tied", "turn", "unknown transformation 'turn'"),
])  # fmt: skip
def test_what_does_not_apply_is_refused(name, transform, message, tmp_path):
    architectures.save(name, tmp_path / "hf")
    with pytest.raises(RecipeError, match=message):
        aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", "nf4", transform=transform)
    assert not (tmp_path / "m.aibit").exists()


def test_nothing_is_transformed_without_a_model_or_with_an_importance_of_what_was(model, tmp_path):
    folder, statistics, _ = model
    with pytest.raises(RecipeError, match="awq: no weight is to be quantized"):
        aibit.convert(folder, tmp_path / "m.aibit", "keep", transform="awq", calibration=statistics)
    with pytest.raises(RecipeError, match="importance of columns is of those before a transformation"):
        aibit.convert(folder, tmp_path / "m.aibit", "nf4", transform="rotate", importance={})
    plain(tmp_path / "m.gguf")
    with pytest.raises(RecipeError, match="no model that could be transformed"):
        aibit.convert(tmp_path / "m.gguf", tmp_path / "m.aibit", transform="rotate")
