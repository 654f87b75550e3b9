"""Make GPTQ and AWQ checkpoints, and decode them by their published arithmetic."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.support import architectures

RNG = np.random.default_rng(4)
SHIFTS = torch.arange(0, 32, 4, dtype=torch.int32)
AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # the nibble of a word that row i of eight is in


def nibbles(words: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(words)[..., None] >> SHIFTS) & 15


def reference(said: dict, parts: dict[str, np.ndarray]) -> np.ndarray:
    """The weight, f32 [N, K]."""
    zeros = nibbles(parts["qzeros"])
    if said["quant_method"] == "awq":
        codes = nibbles(parts["qweight"])[..., AWQ_PLACES].flatten(1)
        zeros = zeros[..., AWQ_PLACES].flatten(1)
        size = len(codes) // len(zeros)
        index = torch.arange(len(codes)) // size
    else:
        codes = nibbles(parts["qweight"]).transpose(1, 2).flatten(0, 1)
        zeros = zeros.flatten(1) + (said.get("checkpoint_format", "gptq") == "gptq")
        index = torch.from_numpy(parts["g_idx"]).long()
    scales = torch.from_numpy(parts["scales"]).float()
    return ((codes - zeros[index]) * scales[index]).T.numpy()


def words(*shape: int) -> np.ndarray:
    return RNG.integers(-(2**31), 2**31, shape).astype(np.int32)


def packed(said: dict, rows: int, columns: int) -> dict[str, np.ndarray]:
    """A module's tensors, of a weight [rows, columns]."""
    size = columns if said["group_size"] == -1 else said["group_size"]
    groups = -(-columns // size)
    scales = (RNG.normal(size=(groups, rows)) * 0.01).astype(np.float16)
    if said["quant_method"] == "awq":
        return {"qweight": words(columns, rows // 8), "qzeros": words(groups, rows // 8), "scales": scales}
    index = np.arange(columns, dtype=np.int32) // size
    parts = {"qweight": words(columns // 8, rows), "qzeros": words(groups, rows // 8), "scales": scales}
    if said.get("sym"):
        parts["qzeros"][:] = 0x77777777 if said.get("checkpoint_format", "gptq") == "gptq" else -0x77777778
    return parts | {"g_idx": RNG.permutation(index) if said.get("desc_act") else index}


GPTQ_SAID = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ_SAID = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
CHECKPOINTS = {
    "gptq": (GPTQ_SAID, "int4-group,group=32"),
    "gptq-sym": (GPTQ_SAID | {"sym": True, "checkpoint_format": "gptq"}, "int4-group,group=32,symmetric=1"),
    "gptq-v2": (GPTQ_SAID | {"checkpoint_format": "gptq_v2", "group_size": 64}, "int4-group,group=64"),
    "gptq-v2-sym-128": (GPTQ_SAID | {"sym": True, "checkpoint_format": "gptq_v2", "group_size": 128},
                        "int4-group,symmetric=1"),
    "gptq-row": (GPTQ_SAID | {"group_size": -1, "sym": True}, "int4-group,group=row,symmetric=1"),
    "gptq-act-order": (GPTQ_SAID | {"desc_act": True}, "int4-group,group=32,ordered=1"),
    "awq": (AWQ_SAID, "int4-group,group=32"),
    "awq-row": (AWQ_SAID | {"group_size": -1, "version": "GEMM", "modules_to_not_convert": ["lm_head"]},
                "int4-group,group=row"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Tensors and config of a Llama, and of a GPT-2, that are not quantized."""
    found = {}
    for name in ("llama-untied", "gpt2"):
        folder = tmp_path_factory.mktemp(name)
        architectures.save(name, folder, torch.float16)
        found[name] = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    return found


def checkpoint(plain, said: dict, folder):
    """Write the Llama as a quantized directory; the tensors of each module in it."""
    tensors, config = plain["llama-untied"]
    tensors, modules = dict(tensors), {}
    for key in [key for key in tensors if ".layers." in key and "norm" not in key]:
        module = key.removesuffix(".weight")
        modules[module] = packed(said, *tensors.pop(key).shape)
        tensors |= {f"{module}.{part}": value for part, value in modules[module].items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return modules
