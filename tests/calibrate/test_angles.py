"""The angle of a block is that between what goes in and what comes out."""

import numpy as np
import torch

from aibit_format.calibrate import files
from aibit_format.calibrate.angles import Angle
from aibit_format.calibrate.calibrate import calibrate
from aibit_format.calibrate.text import read, samples
from aibit_format.formats.sources import open_source
from tests.support import architectures, calibrated

FEW = {"samples": 3, "length": 24}


def test_known_angles():
    angle, x = Angle(), torch.tensor([[1.0, 0], [0, 2]])
    angle.add((x,), {}, (torch.tensor([[0.0, 3], [0, 1]]),))
    assert angle.mean == 0.25
    angle.add((), {"hidden_states": x}, -x)
    assert angle.mean == 0.625


def test_a_block_without_a_stream_has_none():
    angle = Angle()
    assert angle.mean is None
    angle.add((torch.ones(2, 3),), {}, torch.ones(2, 4))
    assert angle.mean is None
    angle.add((torch.ones(2, 3),), {}, torch.ones(2, 3))
    assert angle.mean is None  # as it once had none


def test_those_of_a_model_in_statistics_and_their_file(tmp_path):
    folder, path = calibrated.save("llama-tied", tmp_path / "hf")
    found = calibrate(folder, [path], tmp_path / "s.safetensors", **FEW)
    model = architectures.load("llama-tied", folder)
    ids = samples(open_source(folder), read([str(path)]), 3, 24, 0, 64).ids
    with torch.no_grad():
        states = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states
    cosine = torch.nn.functional.cosine_similarity(states[0].double(), states[1].double(), -1)
    assert np.isclose(found.angles["model.layers.0"], float(cosine.acos().mean()) / np.pi)
    assert list(found.angles) == ["model.layers.0", "model.layers.1"]
    again = files.load(str(tmp_path / "s.safetensors"))
    assert again.angles == found.angles and again.digest == found.digest


def test_weights_of_routers_are_summed(tmp_path):
    folder, path = calibrated.save("mixtral", tmp_path / "hf")
    found = calibrate(folder, [path], **FEW).inputs["model.layers.0.mlp.experts.down_proj"]
    assert np.isclose(found.routed.sum(), 72) and ((found.routed > 0) == (found.counts > 0)).all()
    assert (found.routed <= found.counts + 1e-9).all()
