"""Settings of makers: what is a number, a truth value, an object, and what is refused."""

from __future__ import annotations

import pytest

from aibit_format.errors import SourceError
from aibit_format.formats.meta.params import Params


def params(**said):
    return Params("m/params.json", said)


def test_those_in_an_object_model_are_the_models(tmp_path):
    (tmp_path / "params.json").write_text('{"model": {"dim": 8}, "dim": 4}')
    found = Params.of(str(tmp_path))
    assert found.said == {"dim": 8} and found.where == str(tmp_path / "params.json")
    for text, message in (("[1]", "a JSON list, not an object"), ('{"model": 3}', "a JSON int"), ("{", r"params\.json"),
                          ('{"dim": 1, "dim": 2}', "dim")):  # fmt: skip
        (tmp_path / "params.json").write_text(text)
        with pytest.raises(SourceError, match=message):
            Params.of(str(tmp_path))


def test_a_count_is_a_number_or_one_as_text():
    assert params(dim=8).count("dim") == params(dim="8").count("dim") == 8
    assert params().count("dim", 3) == params(dim=None).count("dim", 3) == 3
    for wrong in (0, -1, 8.0, True, "x", "", "8.5", "-8", "9" * 20, "9" * 5000, 1 << 60, [8]):
        with pytest.raises(SourceError, match=r"m/params\.json: dim is .*expected a number from 1"):
            params(dim=wrong).count("dim", 3)
    with pytest.raises(SourceError, match="dim is None"):
        params().count("dim")


def test_a_number_is_above_zero_and_finite():
    assert params(eps=1).number("eps") == 1.0 and params().number("eps", 0.5) == 0.5
    for wrong in (0, -1.0, float("nan"), float("inf"), 10**400, True, "1"):
        with pytest.raises(SourceError, match=r"eps is .*expected a number above 0"):
            params(eps=wrong).number("eps")


def test_a_flag_is_false_without_one():
    assert params(tied=True).flag("tied") is True and params(tied=None).flag("tied") is params().flag("tied") is False
    for wrong in ("true", 2, [], 1, 0.0):
        with pytest.raises(SourceError, match=r"tied is .*expected true or false"):
            params(tied=wrong).flag("tied")


def test_an_object_inside_is_named_with_its_place():
    assert "moe" in params(moe={}) and "moe" not in params(moe=None) and "moe" not in params()
    with pytest.raises(SourceError, match=r"m/params\.json: moe: experts is 0"):
        params(moe={"experts": 0}).inner("moe").count("experts")
    with pytest.raises(SourceError, match=r"moe is \[\], expected an object"):
        params(moe=[]).inner("moe")


def test_an_unknown_key_is_refused_unless_it_is_null():
    params(dim=8, other=None).check_known({"dim"}, {})
    with pytest.raises(SourceError, match=r"key 'other' means something that is not read here; known: dim, eps"):
        params(dim=8, other=0).check_known(("eps", "dim"), {})
    with pytest.raises(SourceError, match=r"key 'lora' merge it"):
        params(lora={}).check_known((), {"lora": "merge it"})
