"""Run exported graphs, and compare them with the model."""

from __future__ import annotations

import numpy as np
import torch

import aibit_format as aibit
from tests.support.graphs import IDS

CLOSE = 2e-4  # of the largest logit; all is computed in float32


class Session:
    """Runs a graph as programs do: keys and values go in and out."""

    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [each.name for each in self.session.get_outputs()]
        self.past = {
            each.name: np.zeros([1, each.shape[1], 0, each.shape[3]], np.float32)
            for each in self.session.get_inputs() if each.name.startswith("past_key_values.")
        }  # fmt: skip
        self.length = 0

    def __call__(self, ids):
        places = np.arange(self.length, self.length + ids.shape[1])[None]
        values = self.session.run(None, {"input_ids": ids, "position_ids": places, **self.past})
        found = dict(zip(self.outputs, values, strict=True))
        self.past = {name.replace("present", "past_key_values"): found[name] for name in self.outputs[1:]}
        self.length += ids.shape[1]
        return found["logits"]


def expected(path, **options):
    model = aibit.load_model(path, weight_only=True, dtype="float32", **options)
    with torch.no_grad():
        return model(IDS).logits.numpy(), model


def close(found, wanted, least=CLOSE):
    return found.shape == wanted.shape and np.abs(found - wanted).max() <= least * np.abs(wanted).max()
