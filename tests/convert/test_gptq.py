"""GPTQ against a plain one in float64, its parts against numpy, and conversions with it."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format import native, schemes
from aibit_format.calibrate import files
from aibit_format.calibrate.calibrate import calibrate
from aibit_format.convert import gptq
from aibit_format.convert.gptq import Encoder, Factor, Factors, Gptq, quantize, quantizer_of
from aibit_format.convert.recipe import Recipe
from aibit_format.dtypes import from_float32
from aibit_format.errors import RecipeError, SchemeError, SourceError
from tests.support import architectures, calibrated

SCHEMES = [
    "int4-group", "int4-group,group=32", "int4-group,group=row,symmetric=1", "int-group,bits=3,group=40,zero=code",
    "int-group,bits=2,group=200,zero=float", "int-group,bits=8,zero=bias,scale=bf16",
]  # fmt: skip
KINDS = ["gguf:q4_0", "gguf:q5_1", "gguf:q2_k", "gguf:q3_k", "gguf:q4_k", "gguf:q6_k", "gguf:iq4_nl", "gguf:iq4_xs"]


def inputs(columns, tokens=2000, seed=0):
    """Rows of inputs whose columns depend on one another, some of them large, f32."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((columns, columns)) * random.lognormal(0, 1, columns)
    return (random.standard_normal((tokens, columns)) @ mix).astype(np.float32)


def case(columns, rows=6, seed=0):
    """Weights and a Hessian."""
    x = inputs(columns, seed=seed)
    return np.random.default_rng(seed + 1).standard_normal((rows, columns)).astype(np.float32), x.T @ x


def shaped(scheme, planes, shape):
    return {spec.role: planes[spec.role].reshape(spec.stored) for spec in scheme.planes(shape, "f32")}


def decoded(scheme, planes, shape):
    return scheme.decode(shaped(scheme, planes, shape), shape, "f32")


def error(weights, found, hessian):
    rest = (weights - found).astype(np.float64)
    return float(((rest @ hessian.astype(np.float64)) * rest).sum())


@pytest.fixture(params=["native", "numpy"])
def code(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(native, "available", False)
    elif not native.available:
        pytest.skip("the compiled code is not here")


def textbook(weights, hessian, quantizer, damping=0.01, ordered=False):
    """Round as the paper says it, with dense float64 and one column at a time; only parameters come from outside."""
    rows, columns = weights.shape
    h = hessian.astype(np.float64) + damping * np.mean(np.diag(hessian).astype(np.float64)) * np.eye(columns)
    diagonal = np.diag(hessian).astype(np.float32)
    order = np.argsort(-np.diag(h), kind="stable") if ordered else np.arange(columns)
    w, h = weights.astype(np.float64)[:, order], h[np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    codes, result = np.empty((rows, columns), np.uint8), np.empty_like(w)
    parameters = {}

    def found(start, values):
        part = slice(start, start + quantizer.span)
        return quantizer.parameters(quantizer.find(values.astype(np.float32), diagonal[part]))

    for i in range(columns):
        column = int(order[i])
        start = column // quantizer.span * quantizer.span
        if start not in parameters:
            values = weights if ordered else w
            parameters[start] = found(start, values[:, start : start + quantizer.span])
        scale, zero, offset = parameters[start][:, (column - start) // quantizer.group].astype(np.float64)
        scaled = (w[:, i] - offset) / scale
        if quantizer.book is None:
            codes[:, column] = np.clip(np.rint(scaled + zero), 0, quantizer.high)
            level = codes[:, column] - zero
        else:
            codes[:, column] = np.searchsorted(quantizer.book[:15], scaled)
            level = quantizer.book[15:][codes[:, column]]
        result[:, column] = level * scale + offset
        w[:, i:] -= np.outer((w[:, i] - result[:, column]) / upper[i, i], upper[i, i:])
    return codes, result


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("text", "columns"), [*((text, 200) for text in SCHEMES), *((text, 512) for text in KINDS)])
def test_it_is_the_plain_one(text, columns, ordered, code):
    scheme = schemes.parse(text)
    weights, hessian = case(columns)
    quantizer = quantizer_of(scheme, columns)
    _, expected = textbook(weights, hessian, quantizer, ordered=ordered)
    found = decoded(scheme, quantize(quantizer, weights, Factor.of(hessian, ordered=ordered)), weights.shape)
    # A value at the middle of two codes may go to either, and then all that follow in its row are others.
    same = np.isclose(found, expected, rtol=1e-4, atol=1e-4).all(axis=1)
    assert same.mean() >= 0.5
    assert error(weights, found, hessian) == pytest.approx(error(weights, expected, hessian), rel=0.05)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("text", "columns"), [*((text, 300) for text in SCHEMES), *((text, 256) for text in KINDS)])
def test_the_error_of_outputs_is_smaller_than_that_of_rounding(text, columns, ordered):
    scheme = schemes.parse(text)
    weights, hessian = case(columns, 30, seed=3)
    quantizer = quantizer_of(scheme, columns)
    identity = Factor(np.eye(columns, dtype=np.float32), np.diag(hessian).astype(np.float32))
    usual = decoded(scheme, quantize(quantizer, weights, identity), weights.shape)
    found = decoded(scheme, quantize(quantizer, weights, Factor.of(hessian, ordered=ordered)), weights.shape)
    assert error(weights, found, hessian) < 0.85 * error(weights, usual, hessian)


@pytest.mark.skipif(not native.available, reason="the compiled code is not here")
@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (7, 3), (64, 16), (131, 17), (256, 300)])
@pytest.mark.parametrize("ordered", [False, True])
def test_compiled_code_gives_the_bits_of_numpy(columns, rows, ordered, monkeypatch):
    weights, hessian = case(columns, rows)
    texts = [*SCHEMES, *(KINDS if columns == 256 else [])]
    quantizers = [quantizer_of(schemes.parse(text), columns) for text in texts]
    found = []
    for available in (True, False):
        monkeypatch.setattr(native, "available", available)
        factor = Factor.of(hessian, ordered=ordered)
        found.append([factor.upper, *(quantize(each, weights, factor) for each in quantizers)])
    assert np.array_equal(found[0][0], found[1][0])
    for text, one, other in zip(texts, found[0][1:], found[1][1:], strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[role], other[role]) for role in one), text


def test_the_factor_is_that_of_the_inverse(code):
    _, hessian = case(150)
    for ordered in (False, True):
        factor = Factor.of(hessian, 0.02, ordered)
        damped = hessian.astype(np.float64) + 0.02 * np.diag(hessian).astype(np.float64).mean() * np.eye(150)
        order = np.arange(150) if factor.order is None else factor.order
        assert (np.diff(np.diag(hessian)[order]) <= 0).all() == ordered
        upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
        np.testing.assert_allclose(factor.upper, upper, rtol=1e-4, atol=1e-6 * upper.max())
        assert not np.tril(factor.upper, -1).any() and np.array_equal(factor.weights, np.diag(hessian))


def test_what_is_not_positive_definite(code):
    wrong = np.eye(20, dtype=np.float32)
    wrong[3, 4] = wrong[4, 3] = 2
    with pytest.raises(SchemeError, match=r"not positive definite with a damping of 0\.01.*damping=0\.1"):
        Factor.of(wrong)
    wrong[3, 4] = wrong[4, 3] = np.nan
    with pytest.raises(SchemeError, match="not positive definite"):
        Factor.of(wrong)
    single = np.outer(np.arange(1, 21), np.arange(1, 21)).astype(np.float32)  # of one token
    assert np.isfinite(Factor.of(single).upper).all()


def test_a_column_without_inputs_is_rounded_and_changes_no_other(code):
    weights, hessian = case(96, 5)
    dead = [0, 40, 95]
    hessian[dead], hessian[:, dead] = 0, 0
    scheme = schemes.parse("int4-group,group=32")
    quantizer = quantizer_of(scheme, 96)
    found = decoded(scheme, quantize(quantizer, weights, Factor.of(hessian)), weights.shape)
    assert np.abs(found - weights)[:, dead].max() < 0.5
    other = weights.copy()
    other[:, dead] += np.float32(0.01)
    again = decoded(scheme, quantize(quantizer, other, Factor.of(hessian)), weights.shape)
    live = np.delete(np.arange(96), dead)
    assert error(weights[:, live], again[:, live], hessian[np.ix_(live, live)]) == pytest.approx(
        error(weights[:, live], found[:, live], hessian[np.ix_(live, live)]), rel=0.2
    )


def test_without_any_inputs_it_is_the_search_alone(code):
    weights, _ = case(512, 3)
    scheme = schemes.parse("gguf:q4_k")
    factor = Factor.of(np.zeros((512, 512), np.float32))
    found = quantize(quantizer_of(scheme, 512), weights, factor)["blocks"]
    assert np.array_equal(found, scheme.encode_weighted(weights, "f32", np.ones(512, np.float32))["blocks"])


def test_values_that_cannot_be_rounded(code):
    scheme, (weights, hessian) = schemes.parse("int4-group,group=32"), case(64)
    encoder = Encoder(Factors(Gptq()), hessian[None], len(weights))
    for bad, match in ((np.nan, "not finite"), (np.inf, "not finite"), (1e30, "65504")):
        wrong = weights.copy()
        wrong[2, 50] = bad
        with pytest.raises(SchemeError, match=match):
            encoder.encode(scheme, wrong, "f32")
    with pytest.raises(SchemeError, match="cannot be rounded with gptq"):
        encoder.encode(schemes.parse("nf4"), weights, "f32")


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_rows_are_rounded_by_their_own_matrix_in_any_pieces(dtype):
    scheme = schemes.parse("int4-group,group=32,symmetric=1")
    hessians = np.stack([case(64, seed=seed)[1] for seed in range(3)])
    stack = from_float32(np.random.default_rng(0).standard_normal((3, 10, 64)).astype(np.float32), dtype)
    encoder = Encoder(Factors(Gptq(ordered=True)), hessians, 10)
    whole = encoder.encode(scheme, stack, dtype)
    rows = stack.reshape(30, 64)
    pieces = [encoder.encode(scheme, rows[a:b], dtype, a) for a, b in ((0, 4), (4, 17), (17, 30))]
    for role, plane in whole.items():
        joined = np.concatenate([piece[role] for piece in pieces])
        assert np.array_equal(plane.reshape(joined.shape), joined)
    for i in range(3):
        alone = Encoder(Factors(Gptq(ordered=True)), hessians[i : i + 1], 10).encode(scheme, stack[i], dtype)
        assert np.array_equal(alone["codes"], whole["codes"][i])
    assert encoder.encode(scheme, rows[:0], dtype)["codes"].shape == (0, 32)


def test_factors_are_computed_once_and_kept_for_a_layer(monkeypatch):
    made, usual = [], Factor.of.__func__

    def of(cls, hessian, damping, ordered):
        made.append(len(hessian))
        return usual(cls, hessian, damping, ordered)

    monkeypatch.setattr(Factor, "of", classmethod(of))
    hessians = [np.eye(n, dtype=np.float32)[None] for n in range(1, 8)]
    factors = Factors(Gptq())
    threads = [threading.Thread(target=factors.of, args=(hessians[0], 0)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] and factors.of(hessians[0], 0) is factors.of(hessians[0], 0)
    for each in hessians:
        factors.of(each, 0)
    assert made == [1, 2, 3, 4, 5, 6, 7]
    factors.of(hessians[0], 0)
    assert made[-1] == 1 and len(made) == 8


def test_options():
    assert Gptq.parse("gptq") == Gptq(gptq.DAMPING, True)
    given = Gptq.parse("gptq,damping=0.05,ordered=0")
    assert given == Gptq(0.05, False) and Gptq.parse(given.text) == given
    for wrong in ("awq", "gptq,size=1", "gptq,damping=0", "gptq,damping=x", "gptq,damping=nan", "gptq,ordered=2"):
        with pytest.raises(RecipeError):
            Gptq.parse(wrong)


# Conversions of small models.

FEW = {"samples": 12, "length": 48}
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory, a text, and a file of statistics with Hessians."""
    folder, text = calibrated.save("llama-untied", tmp_path_factory.mktemp("gptq") / "hf")
    calibrate(folder, [text], folder.parent / "s.safetensors", hessians="", **FEW)
    return folder, text, str(folder.parent / "s.safetensors")


def values(path, name):
    with aibit.open(path, verify="full") as file:
        return file.dequantize(name)


def test_outputs_are_nearer_and_threads_make_no_difference(model, tmp_path):
    folder, _, statistics = model
    hessians = files.load(statistics).inputs
    aibit.convert(folder, tmp_path / "exact.aibit", "f32")
    aibit.convert(folder, tmp_path / "usual.aibit", "int4-group,group=32", calibration=statistics)
    for jobs in (1, 2):
        report = aibit.convert(
            folder, tmp_path / f"{jobs}.aibit", "int4-group,group=32", method="gptq", calibration=statistics, jobs=jobs
        )
    assert (tmp_path / "1.aibit").read_bytes() == (tmp_path / "2.aibit").read_bytes()
    rounded = [tensor for tensor in report.tensors if tensor.method]
    assert len(rounded) == 14 and {tensor.method for tensor in rounded} == {"gptq,damping=0.01,ordered=1"}
    for tensor in rounded:
        exact, usual, found = (values(tmp_path / f"{each}.aibit", tensor.name) for each in ("exact", "usual", "1"))
        hessian = hessians[tensor.name].hessian[0]
        assert error(exact, found, hessian) < 0.9 * error(exact, usual, hessian), tensor.name
    with aibit.open(tmp_path / "1.aibit") as file:
        names = list(file.keys())
        assert file.metadata["quantization.method"] == "gptq,damping=0.01,ordered=1"
        assert [names[i] for i in file.metadata["quantization.method.tensor"]] == [tensor.name for tensor in rounded]
        assert file.metadata["calibration.statistics"] == files.load(statistics).digest


def test_a_conversion_is_made_again_from_its_recipe_and_statistics(model, tmp_path):
    folder, _, statistics = model
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'scheme = "gguf:q4_0"\nmethod = "gptq,damping=0.02"\n[tensors]\n"down_proj" = "int4-group,group=32"\n'
    )
    aibit.convert(folder, tmp_path / "a.aibit", recipe_file=recipe, calibration=statistics)
    with aibit.open(tmp_path / "a.aibit") as file:
        default, *rules = file.metadata["quantization.recipe"]
        method, wanted = file.metadata["quantization.method"], file.metadata["calibration.statistics"]
        first = {name: {role: np.array(p) for role, p in file.planes(name).items()} for name in file.keys()}  # noqa: SIM118
    assert wanted == files.load(statistics).digest and method == "gptq,damping=0.02,ordered=1"
    aibit.convert(
        folder, tmp_path / "b.aibit", default.removeprefix("*="), [tuple(rule.split("=", 1)) for rule in rules],
        method=method, calibration=statistics,
    )  # fmt: skip
    with aibit.open(tmp_path / "b.aibit") as file:
        for name, planes in first.items():
            assert all(np.array_equal(plane, file.planes(name)[role]) for role, plane in planes.items())


def test_hessians_are_taken_from_texts(model, tmp_path):
    folder, text, _ = model
    text = text.parent / "long.txt"
    text.write_text(calibrated.TEXT * 40)
    report = aibit.convert(folder, tmp_path / "m.aibit", "int4-group", method="gptq", calibration=text)
    assert sum(tensor.method is not None for tensor in report.tensors) == 14


def test_what_has_no_hessian_or_cannot_be_rounded_so_is_named(model, tmp_path):
    folder, text, _ = model
    calibrate(folder, [text], tmp_path / "s.safetensors", hessians="down_proj|o_proj", **FEW)
    report = aibit.convert(
        folder, tmp_path / "m.aibit", "int4-group,group=32", {"o_proj": "nf4"}, method="gptq",
        calibration=tmp_path / "s.safetensors",
    )  # fmt: skip
    found = {tensor.name: (tensor.method, tensor.fallback) for tensor in report.tensors}
    assert found[DOWN] == ("gptq,damping=0.01,ordered=1", None)
    assert found[DOWN.replace("down", "up")] == (None, "the statistics have no Hessian of it")
    assert found["model.layers.0.self_attn.o_proj.weight"] == (None, "nf4 is always rounded to nearest")
    assert found["model.norm.weight"] == (None, None)


def test_experts_are_rounded_by_the_tokens_that_they_saw(tmp_path):
    folder, text = calibrated.save("mixtral", tmp_path / "hf")
    found = calibrate(folder, [text], tmp_path / "s.safetensors", hessians="", **FEW)
    aibit.convert(folder, tmp_path / "exact.aibit", "f32")
    for label, method in (("usual", None), ("gptq", "gptq")):
        aibit.convert(
            folder, tmp_path / f"{label}.aibit", "int4-group,group=32", method=method, calibration=found,
        )  # fmt: skip
    name = "model.layers.0.mlp.experts.down_proj"
    exact, usual, rounded = (values(tmp_path / f"{each}.aibit", name) for each in ("exact", "usual", "gptq"))
    for expert, hessian in enumerate(found.inputs[name].hessian):
        assert found.inputs[name].counts[expert] > 0
        assert error(exact[expert], rounded[expert], hessian) < 0.9 * error(exact[expert], usual[expert], hessian)


def test_weights_that_are_stored_transposed(tmp_path):
    folder, text = calibrated.save("gpt2", tmp_path / "hf")
    found = calibrate(folder, [text], tmp_path / "s.safetensors", hessians="", **FEW)
    report = aibit.convert(folder, tmp_path / "m.aibit", "int4-group,group=32", method="gptq", calibration=found)
    assert sum(tensor.method is not None for tensor in report.tensors) == 8


@pytest.mark.parametrize(("arguments", "match"), [
    ({"method": "gptq"}, "there are none: give a text"),
    ({"method": "hessian"}, "unknown method 'hessian'"),
    ({"method": "gptq", "scheme": "int8"}, "no tensor that it could be used for: int8 is always rounded to nearest"),
    ({"method": "gptq", "scheme": "keep"}, "no tensor that it could be used for: nothing is quantized"),
])  # fmt: skip
def test_recipes_that_cannot_be_followed(arguments, match, model, tmp_path):
    folder, _, statistics = model
    if "scheme" in arguments:
        arguments = arguments | {"calibration": statistics}
    with pytest.raises(RecipeError, match=match):
        aibit.convert(folder, tmp_path / "m.aibit", **({"scheme": "int4-group"} | arguments))


def test_statistics_that_do_not_fit(model, tmp_path):
    folder, text, statistics = model
    without = calibrate(folder, [text], **FEW)
    with pytest.raises(RecipeError, match="these statistics have none: take them with aibit calibrate --hessians"):
        aibit.convert(folder, tmp_path / "m.aibit", "int4-group", method="gptq", calibration=without)
    architectures.save("llama-untied", tmp_path / "other", intermediate_size=256)
    with pytest.raises(SourceError, match="statistics of another model"):
        aibit.convert(tmp_path / "other", tmp_path / "m.aibit", "int4-group", method="gptq", calibration=statistics)
    wrong = files.load(statistics)
    with pytest.raises(SourceError, match=r"Hessians of shape \[1, 5, 5\]"):
        damaged = dict(wrong.inputs)
        damaged[DOWN] = replace(damaged[DOWN], hessian=np.eye(5, dtype=np.float32)[None])
        aibit.convert(
            folder, tmp_path / "m.aibit", "int4-group", method="gptq",
            calibration=type(wrong)(wrong.about, damaged, wrong.ties),
        )  # fmt: skip


def test_a_hessian_that_is_not_positive_definite_names_its_tensor(model, tmp_path):
    folder, _, statistics = model
    found = files.load(statistics)
    wrong = np.eye(found.inputs[DOWN].sum2.shape[1], dtype=np.float32)
    wrong[0, 1] = wrong[1, 0] = 3
    damaged = dict(found.inputs)
    damaged[DOWN] = replace(damaged[DOWN], hessian=wrong[None])
    with pytest.raises(SchemeError, match=f"tensor '{DOWN}'.*not positive definite"):
        aibit.convert(
            folder, tmp_path / "m.aibit", "int4-group", method="gptq",
            calibration=type(found)(found.about, damaged, found.ties),
        )  # fmt: skip
    assert not (tmp_path / "m.aibit").exists()


def test_recipe_files_name_the_method(tmp_path):
    (tmp_path / "r.toml").write_text('method = "gptq,ordered=0"')
    assert Recipe.of(file=tmp_path / "r.toml").method == Gptq(ordered=False)
    assert Recipe.of(file=tmp_path / "r.toml", method="gptq").method == Gptq()
    (tmp_path / "r.toml").write_text("method = 3")
    with pytest.raises(RecipeError, match="a recipe is scheme"):
        Recipe.of(file=tmp_path / "r.toml")
