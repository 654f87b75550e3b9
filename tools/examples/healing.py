"""Heals a pruned, quantized model: ``python -m tools.examples.healing [--steps N]``. It takes minutes, and needs peft.

The small Llama of the fixtures is pruned and quantized to groups of 4 bits. Over the quantized weights, which stay as
they are, PEFT trains adapters of low rank (LoRA) on documentation that comes with Python; these are merged with the
decoded weights, and written back in the same scheme. Perplexities are those of the fixture's held-out text.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import aibit_format as aibit
from aibit_format.formats.models import meta_model_of
from aibit_format.formats.sources import open_source
from aibit_format.torch.evaluate.perplexity import evaluate
from aibit_format.torch.evaluate.predictions import Text
from aibit_format.torch.layers.dequantized import QuantizedLinear
from aibit_format.transform.source import Transformed
from tools.fixtures.train_fixtures import as_text, read_documents, split_documents

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "models"
SCHEME = "int4-group,group=32"
WANTED = "channels=256,block=32,refit"
_BATCH, _LENGTH, _SEED = 8, 128, 7


@dataclass(frozen=True)
class Add:
    """Add a matrix, f64 [rows, columns], to a weight."""

    matrix: np.ndarray
    axis: int = -2  # all rows at once

    def apply(self, matrix: np.ndarray, which: int) -> np.ndarray:
        """Return the sum."""
        return matrix + self.matrix


def trained(path: Path, ids: torch.Tensor, steps: int) -> dict[str, np.ndarray]:
    """Train adapters over a quantized model; returns what they add to each weight, f64, by its name."""
    import peft

    torch.manual_seed(_SEED)
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules=r".*_proj", task_type="CAUSAL_LM")
    # PEFT's own layer for a Linear does for ours, too: it calls the layer that it is put around.
    config._register_custom_module({QuantizedLinear: peft.tuners.lora.Linear})
    model = peft.get_peft_model(aibit.load_model(path), config).train()
    learnt = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        starts = torch.randint(0, len(ids) - _LENGTH, (_BATCH,)).tolist()
        batch = torch.stack([ids[start : start + _LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if not (step + 1) % 50:
            print(f"step {step + 1:4}  loss {loss.item():.3f}", flush=True)
    return {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default").double().detach().numpy()
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }


def merge(path: Path, added: Mapping[str, np.ndarray], target: Path, calibration: Any) -> None:
    """Write a quantized model with matrices added to its weights, each in the scheme that it was in."""
    source = open_source(path)
    schemes = {name: tensor.scheme.text for name, tensor in source.tensors.items() if tensor.scheme is not None}
    healed = Transformed(source, meta_model_of(source)).transformed(
        "lora,rank=16", {name: [Add(matrix)] for name, matrix in added.items()}
    )
    rules = [(f"^{re.escape(name)}$", schemes[name]) for name in added]
    aibit.convert(healed, target, "keep", rules, overwrite=True, calibration=calibration, method="gptq")


def perplexity(path: Path, text: str) -> float:
    """Return the perplexity of a text."""
    tokenizer = aibit.load_tokenizer(path)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"][:4097])
    return evaluate(aibit.load_model(path), Text(ids, 256)).perplexity


def main(given: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prune", default=WANTED, help="what to keep (%(default)s)")
    arguments = parser.parse_args(given)
    started, model = time.perf_counter(), FIXTURES / "tiny-llama"
    heldout = (FIXTURES / "heldout.txt").read_text("utf-8")
    documents = [as_text(each) for each in split_documents(read_documents())[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "training.txt"
        text.write_text("\n\n".join(documents)[: 1 << 21], "utf-8")
        files = {each: folder / f"{each}.aibit" for each in ("whole", "pruned", "healed")}
        aibit.convert(model, files["whole"], SCHEME, calibration=[text])
        aibit.convert(model, files["pruned"], SCHEME, calibration=[text], prune=arguments.prune)
        tokenizer = aibit.load_tokenizer(files["pruned"])
        ids = torch.tensor(tokenizer(text.read_text("utf-8"), verbose=False)["input_ids"])
        merge(
            files["pruned"], trained(files["pruned"], ids, arguments.steps), files["healed"],
            [text],
        )  # fmt: skip
        found = {each: perplexity(path, heldout) for each, path in files.items()}
        for each, path in files.items():
            print(f"{each:8} {path.stat().st_size / 1e3:8.1f} KB  perplexity {found[each]:8.3f}")
    print(f"{time.perf_counter() - started:.0f} s")
    return found


if __name__ == "__main__":
    main()
