"""Whether sparsity saves bytes: ``python -m tools.bench.sparse SRC --calibration FILE ... --text FILE [--out JSON]``.

The model and its noise are those of ``frontier``. All Linear weights are rounded in groups of 64 with the Hessians of
the calibration texts, a column after the other, each making up for errors of those before (GPTQ). In the sparse rows
half of the weights are left out on the way, those that cost least (Frantar and Alistarh, SparseGPT, 2023): two of each
four, which two indices of 2 bits tell, or any half of a group, which a bit for each weight tells. Bits are those that a
packed form takes: codes of what is left, indices, and 24 bits a group for scale and zero point.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import aibit_format as aibit
from aibit_format.calibrate.statistics import hessians
from aibit_format.torch.evaluate.judge import Question, reference_logits
from aibit_format.torch.evaluate.operands import operand
from aibit_format.torch.evaluate.perplexity import evaluate
from tools.bench.frontier import add_texts
from tools.bench.frontier_models import noisy
from tools.bench.machine import machine

GROUP, DAMPING = 64, 0.01
# What is left out of, bits of a code, bits of indices for a weight, share of weights that have a code.
FORMS: dict[str, tuple[int, int, float, float]] = {
    "dense, 4 bits": (0, 4, 0.0, 1.0), "dense, 3 bits": (0, 3, 0.0, 1.0), "dense, 2 bits": (0, 2, 0.0, 1.0),
    "2:4, 4 bits": (4, 4, 1.0, 0.5), "2:4, 3 bits": (4, 3, 1.0, 0.5), "2:4, 6 bits": (4, 6, 1.0, 0.5),
    "half of a group, 4 bits": (GROUP, 4, 1.0, 0.5), "half of a group, 6 bits": (GROUP, 6, 1.0, 0.5),
}  # fmt: skip


def bits_of(form: str) -> float:
    """Return the bits of a weight in a packed form, scales included."""
    _, bits, index, share = FORMS[form]
    return bits * share + index + 24 / GROUP


def upper(hessian: np.ndarray) -> np.ndarray:
    """Return the upper factor of the inverse of a damped Hessian."""
    damped = hessian.astype(np.float64)
    dead = damped.diagonal() == 0
    damped[dead, dead] = 1
    damped[np.diag_indices(len(damped))] += DAMPING * damped.diagonal().mean()
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)


def rounded(weight: np.ndarray, factor: np.ndarray, of: int, bits: int) -> np.ndarray:
    """Round a weight, f32 [rows, K], leaving out half of each ``of`` of its columns if that is not 0."""
    left, levels = weight.copy(), (1 << bits) - 1
    made = np.zeros_like(left)
    for start in range(0, left.shape[1], GROUP):
        group = slice(start, start + GROUP)
        kept = np.ones((len(left), GROUP), bool)
        if of == GROUP:
            kept = _half(left[:, group], factor.diagonal()[group], GROUP)
        there = np.where(_half(left[:, group], factor.diagonal()[group], of) if of else kept, left[:, group], 0)
        low, high = np.minimum(there.min(1), 0), np.maximum(there.max(1), 0)
        scale = np.maximum((high - low) / levels, 1e-12)
        zero = np.rint(-low / scale)
        errors = np.zeros((len(left), GROUP), np.float32)
        for k in range(GROUP):
            column = start + k
            if of and of != GROUP and not k % of:
                part = slice(column, column + of)
                kept[:, k : k + of] = _half(left[:, part], factor.diagonal()[part], of)
            code = np.clip(np.rint(left[:, column] / scale) + zero, 0, levels)
            made[:, column] = np.where(kept[:, k], (code - zero) * scale, 0)
            errors[:, k] = (left[:, column] - made[:, column]) / factor[column, column]
            left[:, column + 1 : group.stop] -= errors[:, k, None] * factor[column, column + 1 : group.stop]
        left[:, group.stop :] -= errors @ factor[group, group.stop :]
    return made


def _half(weight: np.ndarray, diagonal: np.ndarray, of: int) -> np.ndarray:
    """Tell which half of each ``of`` columns costs most if it is left out."""
    cost = np.square(weight / diagonal).reshape(len(weight), -1, of)
    return (cost.argsort(-1).argsort(-1) >= of // 2).reshape(weight.shape)


def measured(arguments: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each form."""
    model = noisy(arguments.source, folder)
    taken = {"samples": arguments.samples, "length": arguments.length}
    products = hessians(aibit.calibrate(model, arguments.calibration, hessians="_proj", **taken))
    factors = {name: upper(each[0]) for name, each in products.items()}
    question = Question(arguments.text.read_text("utf-8"), limit=arguments.tokens)
    with reference_logits(str(model), question) as reference:
        for form, (of, bits, _, _) in FORMS.items():
            with operand(str(model), "cpu", True) as (made, _), torch.no_grad():
                for name, parameter in made.named_parameters():
                    if name in factors:
                        found = rounded(parameter.float().numpy(), factors[name], of, bits)
                        parameter.copy_(torch.from_numpy(found))
                quality = evaluate(made, reference.text, reference)
            found = quality.divergence
            yield {"form": form, "bits": bits_of(form), "kl": found.mean if found else None,
                   "perplexity": quality.perplexity}  # fmt: skip


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_texts(parser, tokens=1024)
    parser.add_argument("--out", type=Path, default=Path("sparse.json"))
    arguments = parser.parse_args(given)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measured(arguments, Path(folder)):
            rows.append(row)
            print(f"{row['form']:28} {row['bits']:6.3f} bits {row['kl']:9.4f} {row['perplexity']:10.3f}", flush=True)
    about = {"machine": machine(), "source": str(arguments.source), "tokens": arguments.tokens}
    arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
