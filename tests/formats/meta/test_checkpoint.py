"""Consolidated weights: parts put together by their shapes, shards, and what contradicts the settings."""

from __future__ import annotations

import pytest
import torch

from aibit_format.errors import AibitError, SourceError
from aibit_format.formats.meta.checkpoint import Consolidated, is_directory_of
from aibit_format.formats.meta.rows import Row
from tests.support import makers

PARAMS = {"dim": 4, "rows": 6}
TENSORS = {
    "tok_embeddings.weight": torch.arange(24.0).view(6, 4), "output.weight": torch.arange(24.0).view(6, 4) + 100,
    "layers.0.wq.weight": torch.arange(16.0).view(4, 4), "layers.0.wq.bias": torch.arange(4.0),
    "layers.0.wo.weight": torch.arange(16.0).view(4, 4) + 50, "norm.weight": torch.arange(4.0),
}  # fmt: skip
CUT = {"output": 0, "wq": 0, "wo": 1}  # along which dimension


class Small(Consolidated):
    """A model of four tensors and a bias."""

    kind = "small"

    def rows_of(self):
        return (
            Row("tok_embeddings", "embed", ("vocabulary", "hidden")), Row("output", "head", ("vocabulary", "hidden")),
            Row("norm", "norm", ("hidden",)), Row("layers.{}.wq", "l.{}.q", ("hidden", "hidden"), "heads"),
            Row("layers.{}.wo", "l.{}.o", ("hidden", 4)),
        )  # fmt: skip

    def sizes_of(self):
        return {"hidden": self.params.count("dim"), "vocabulary": self.params.count("rows"), "heads": 1}

    def described(self):
        return {"config.json": b"{}"}

    def is_left_out(self, name):
        return name.endswith(".inv_freq")


def parts(count, embeddings=0):
    """The tensors as for tensor parallelism; the bias of queries is cut with its rows."""
    found = [{} for _ in range(count)]
    for name, value in TENSORS.items():
        axis = embeddings if "embeddings" in name else next((axis for key, axis in CUT.items() if key in name), None)
        pieces = [value] * count if axis is None else value.chunk(count, axis)
        for part, piece in zip(found, pieces, strict=True):
            part[name] = piece.clone()
    return found


def opened(folder, tensors=None):
    return Small(str(makers.write_parts(folder, tensors or parts(2), PARAMS)))


@pytest.mark.parametrize(("count", "embeddings"), [(1, 0), (2, 0), (2, 1)])
def test_parts_are_put_together_along_the_dimension_that_their_shapes_say(count, embeddings, tmp_path):
    source = opened(tmp_path / "m", parts(count, embeddings))
    found = {name: torch.from_numpy(source.planes(name)["values"].copy()) for name in source.tensors}
    rows = [0, 2, 1, 3]  # of the one head, the even ones first
    wanted = {
        "embed.weight": TENSORS["tok_embeddings.weight"], "head.weight": TENSORS["output.weight"],
        "l.0.q.weight": TENSORS["layers.0.wq.weight"][rows], "l.0.q.bias": TENSORS["layers.0.wq.bias"][rows],
        "l.0.o.weight": TENSORS["layers.0.wo.weight"], "norm.weight": TENSORS["norm.weight"],
    }  # fmt: skip
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(source.tensors[name].shape == tuple(value.shape) for name, value in wanted.items())
    assert (source.vocabulary(), source.dtype, len(source.files)) == (6, "f32", count) and source.has("norm.weight")


def test_only_what_is_stored_as_it_is_has_a_place_in_a_file(tmp_path):
    offsets = {name: tensor.offset for name, tensor in opened(tmp_path / "a", parts(1)).tensors.items()}
    assert [name for name, offset in offsets.items() if offset is None] == ["l.0.q.weight", "l.0.q.bias"]
    joined = opened(tmp_path / "b").tensors
    assert [name for name, tensor in joined.items() if tensor.offset is not None] == ["norm.weight"]


def test_what_is_computed_or_not_needed_is_counted(tmp_path):
    more = {"rope.freqs": torch.ones(2), "layers.0.inv_freq": torch.ones(2), "layers.1.inv_freq": torch.ones(2)}
    source = opened(tmp_path / "m", [TENSORS | more])
    assert source.metadata == {"source.left_out": ["1 tensors freqs", "2 tensors inv_freq"]}


def test_tied_tensors_are_the_same_bytes(tmp_path):
    tied = TENSORS | {"output.weight": TENSORS["tok_embeddings.weight"]}
    source = opened(tmp_path / "a", [tied])
    assert source.same_place("output.weight", "tok_embeddings.weight")
    assert not source.same_place("output.weight", "norm.weight") and not source.same_place("x", "y")
    copied = opened(tmp_path / "b", [TENSORS | {"output.weight": TENSORS["tok_embeddings.weight"].clone()}])
    assert not copied.same_place("output.weight", "tok_embeddings.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.wk.weight": torch.ones(4, 4)}, r"'layers\.0\.wk\.weight' is not one of a small model"),
        ({"layers.0.wq.scale": torch.ones(4)}, r"'layers\.0\.wq\.scale' is not one of a small model"),
        ({"output.weight": torch.ones(6, 5)}, r"shapes \[6, 5\] in 1 files, which do not make the \[6, 4\]"),
        ({"output.weight": torch.ones(24)}, r"shapes \[24\] in 1 files"),
        ({"output.weight": torch.ones(())}, r"shapes \[\] in 1 files"),
        ({"x.qscale_weight": torch.ones(1)}, r"'x\.qscale_weight' is the scale of a weight that is not there"),
        ({"norm.weight": torch.ones(4).to(torch.float8_e4m3fn)}, r"is f8_e4m3, codes .* without its qscale_weight"),
    ],
)
def test_a_tensor_that_the_model_does_not_have_is_named(change, message, tmp_path):
    with pytest.raises(SourceError, match=rf"m/consolidated\.00\.pth: tensor .*{message}"):
        opened(tmp_path / "m", [TENSORS | change])


def test_a_directory_is_the_makers_by_its_names(tmp_path):
    folder = makers.write_parts(tmp_path / "m", parts(1), PARAMS)
    assert is_directory_of(str(folder))
    (folder / "config.json").write_text("{}")
    assert not is_directory_of(str(folder))
    (folder / "config.json").unlink()
    (folder / "params.json").rename(folder / "other.json")
    assert not is_directory_of(str(folder))


def test_a_part_that_is_missing_or_damaged_is_named(tmp_path):
    folder = makers.write_parts(tmp_path / "m", parts(2) + parts(1), PARAMS)
    (folder / "consolidated.01.pth").rename(tmp_path / "away.pth")
    with pytest.raises(AibitError, match=r"has consolidated\.02\.pth, and consolidated\.01\.pth is missing"):
        Small(str(folder))
    (folder / "consolidated.01.pth").write_bytes((tmp_path / "away.pth").read_bytes()[:-900])
    with pytest.raises(AibitError, match=r"consolidated\.01\.pth: not a torch file, or truncated"):
        Small(str(folder))
    (folder / "params.json").write_text("[")
    with pytest.raises(AibitError, match=r"params\.json"):
        Small(str(folder))


def test_shards_that_are_missing_truncated_or_repeat_a_tensor_are_named(tmp_path):
    folder = makers.write_whole(tmp_path / "m", TENSORS, PARAMS, 2)
    first, second = (folder / f"consolidated-0000{number}-of-00002.safetensors" for number in (1, 2))
    assert [file.name for file in Small(str(folder)).files] == [first.name, second.name]
    second.write_bytes(second.read_bytes()[:-64])
    with pytest.raises(AibitError, match=r"consolidated-00002-of-00002\.safetensors: .*truncated"):
        Small(str(folder))
    second.write_bytes(first.read_bytes())
    with pytest.raises(AibitError, match=r"is in consolidated-00001-of-00002\.safetensors and consolidated-00002"):
        Small(str(folder))
    second.unlink()
    with pytest.raises(AibitError, match=r"shard 'consolidated-00002-of-00002\.safetensors' of .* is missing"):
        Small(str(folder))
    (folder / "consolidated.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(AibitError, match=r"consolidated\.safetensors\.index\.json: lists no tensors"):
        Small(str(folder))
