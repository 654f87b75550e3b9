"""A model whose vocabulary was cut is compared with its original through the map."""

import pytest

import aibit_format as aibit
from aibit_format.errors import LoadError
from aibit_format.torch.evaluate.judge import Question, judge, reference_logits
from aibit_format.torch.evaluate.mapped import common, kept_of, mapped
from tests.support import vocabularies
from tests.support.vocabularies import TEXT

HELD = "\n".join(TEXT.splitlines()[20:30])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mapped")
    vocabularies.save("byte-level", folder / "hf")
    (folder / "text.txt").write_text("\n".join(TEXT.splitlines()[:6]), encoding="utf-8")
    (folder / "other.txt").write_text("\n".join(TEXT.splitlines()[:12]), encoding="utf-8")
    aibit.convert(folder / "hf", folder / "whole.aibit", "keep")
    for name, text, scheme in (("cut", "text", None), ("nf4", "text", "nf4"), ("other", "other", None)):
        aibit.trim(folder / "hf", folder / f"{name}.aibit", [folder / f"{text}.txt"], scheme=scheme)
    return {path.stem: str(path) for path in folder.glob("*.aibit")} | {"hf": str(folder / "hf")}


def judged(files, names, reference):
    paths = [files[name] for name in names]
    question = Question(HELD, 32, 16, 150, tokens_of=common(paths))
    with reference_logits(files[reference], question) as logits:
        return list(judge(paths, question, logits))


@pytest.mark.parametrize("reference", ["whole", "hf"])
def test_what_is_only_cut_predicts_the_same(files, reference):
    (found,) = judged(files, ["cut"], reference)
    assert found.quality.divergence.largest == 0 and found.quality.divergence.same_first == 1
    assert found.quality.loss == found.quality.reference_loss


def test_what_is_quantized_too_is_as_far_as_it_is(files):
    cut, nf4 = judged(files, ["cut", "nf4"], "whole")
    assert cut.quality.divergence.mean == 0 < nf4.quality.divergence.mean
    (direct,) = judged(files, ["nf4"], "cut")  # of the same vocabulary, so no map is needed
    assert direct.quality.divergence.mean == nf4.quality.divergence.mean


def test_others_are_judged_one_by_one(files):
    with pytest.raises(LoadError, match=r"has kept other tokens than .*judge them one by one"):
        common([files["cut"], files["other"]])
    with pytest.raises(LoadError, match="has kept other tokens"):
        common([files["whole"], files["cut"]])
    assert common([files["whole"], files["hf"]]) is None and kept_of(files["hf"]) is None


def test_a_reference_of_another_size(files):
    question = Question(HELD, 32, 16, 60)
    with (
        reference_logits(files["other"], question) as logits,
        pytest.raises(LoadError, match="was cut from a vocabulary"),
    ):
        mapped(logits, files["cut"])
    with reference_logits(files["whole"], question) as logits:
        assert mapped(logits, files["whole"]) is None and mapped(logits, files["cut"]).kept.size == 640
        with pytest.raises(LoadError, match="or with one that was cut from it"):
            list(judge([files["other"]], question, logits))
