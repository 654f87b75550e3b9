"""The models whose quality the frontier measures, and the measures: of decoders on tokens, of encoders on sentences.

Of a quantized source, a model is made whose matrices have noise of a fixed seed, as wide as its steps, so that no grid
of a format that it has been in is left; a source in floats stays as it is. Each row puts decoded values into one model
of transformers in float32, whichever encoder they come from: what kernels round besides is not measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import aibit_format as aibit
from aibit_format.torch.evaluate.perplexity import evaluate
from aibit_format.torch.evaluate.predictions import Text
from aibit_format.torch.evaluate.saved_logits import SavedLogits, save_logits

SEED = 7
CONTEXT = 512  # tokens of a window, which do not overlap
_STEPS = {False: 15, True: 255}  # into which the noise divides the range of 32 weights: of Linear weights, and others
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORDS = 6  # of a sentence, at least
_BATCH = 32

Values = Iterable[tuple[str, np.ndarray]]  # names of parameters and f32 arrays


def original(source: str, folder: Path) -> Path:
    """Return the directory of the model that all are compared with, made in ``folder`` if it is not there."""
    with aibit.open(_kept(source, folder)) as file:
        if not any(file.info(name).scheme.lossy for name in file):
            return Path(source)
    return noisy(source, folder)


def noisy(source: str, folder: Path) -> Path:
    """Write the model with noise, in bf16: uniform within half a step in each 32 weights of a matrix."""
    target = folder / "noisy"
    if (target / "config.json").exists():
        return target
    random = torch.Generator().manual_seed(SEED)
    model, tokenizer = aibit.load(_kept(source, folder))
    plain = dict(values_of(_kept(source, folder)))
    again = type(model)(model.config)
    linear, made = linear_names(again), {}
    for name, array in plain.items():
        value = torch.from_numpy(array)
        if value.ndim == 2 and not value.shape[1] % 32:
            blocks = value.reshape(-1, 32)
            step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / _STEPS[name not in linear]
            value = (blocks + (torch.rand(blocks.shape, generator=random) - 0.5) * step).view(value.shape)
        made[name] = value
    again.load_state_dict(made, strict=False)  # buffers are computed
    again.tie_weights()
    partial = folder / "noisy.partial"
    again.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(target)
    return target


def _kept(source: str, folder: Path) -> Path:
    """Return an ``.aibit`` file of the source with its tensors as they are."""
    made = folder / "source.aibit"
    if not made.exists():
        aibit.convert(source, made, scheme="keep")
    return made


def values_of(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the decoded tensors of a file."""
    with aibit.open(path) as file:
        for name in file:
            yield name, np.array(file.dequantize(name))


def linear_names(model: torch.nn.Module) -> frozenset[str]:
    """Return the names of the weights of Linear layers, of which the head is none here."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    return frozenset(
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )


class Measure(Protocol):
    """Measures how far a model is from the original."""

    unit: str
    size: int  # tokens that are predicted, or sentences

    def of(self, values: Values) -> tuple[float, float]:
        """Return the mean distance and its standard error, of a model with these values."""
        ...


class Tokens:
    """Measures the mean divergence of the predictions of held-out tokens, in nats a token."""

    unit = "mean KL to the original, nats a token"

    def __init__(self, model: Path, text: str, tokens: int, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        self._text = Text(torch.tensor(_windows(tokenizer, text, tokens)), CONTEXT, CONTEXT)
        self.size = self._text.predicted
        kept = folder / "logits.safetensors"
        self._reference = SavedLogits(kept) if kept.exists() else save_logits(self.model, self._text, kept)

    def of(self, values: Values) -> tuple[float, float]:
        _put(self.model, values)
        found: Any = evaluate(self.model, self._text, self._reference).divergence
        return found.mean, found.mean_error


def _windows(tokenizer: Any, text: str, tokens: int) -> list[int]:
    """Return the tokens of a text, so many and one more, of which each window begins as the tokenizer begins a text."""
    before = tokenizer("", add_special_tokens=True)["input_ids"]
    ids = tokenizer(text, verbose=False)["input_ids"][len(before) : tokens + 1]
    step = CONTEXT - len(before)
    return [each for i in range(0, len(ids), step) for each in (*before, *ids[i : i + step])]


class Sentences:
    """Measures 1 - cosine between the embeddings of held-out sentences: means over their tokens, as MiniLM pools."""

    unit = "1 - cosine to the original's embedding, mean over sentences"

    def __init__(self, model: Path, text: str, tokens: int, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.model = AutoModel.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        pieces = [" ".join(each.split()) for each in _SENTENCE.split(text)]
        self._batches, left = [], tokens
        pieces = [each for each in pieces if len(each.split()) >= _WORDS]
        for i in range(0, len(pieces), _BATCH):
            batch = tokenizer(
                pieces[i : i + _BATCH], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            self._batches.append(batch)
            left -= int(batch["attention_mask"].sum())
            if left <= 0:
                break
        self._reference = self._embeddings()
        self.size = len(self._reference)

    def of(self, values: Values) -> tuple[float, float]:
        _put(self.model, values)
        apart = 1 - (self._embeddings() * self._reference).sum(1)
        return float(apart.mean()), float(apart.std() / len(apart) ** 0.5)

    @torch.inference_mode()
    def _embeddings(self) -> torch.Tensor:
        found = []
        for batch in self._batches:
            hidden, mask = self.model(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(mean.double(), dim=1))
        return torch.cat(found)


@torch.no_grad()
def _put(model: torch.nn.Module, values: Values) -> None:
    parameters = dict(model.named_parameters())
    for name, value in values:
        if name in parameters:
            parameters[name].copy_(torch.from_numpy(value))


def measure_of(model: Path, text: str, tokens: int, folder: Path, encoder: bool) -> Tokens | Sentences:
    """Return the measure for a decoder, or an encoder."""
    return (Sentences if encoder else Tokens)(model, text, tokens, folder)
