"""Models with tokenizers, and statistics of their layers taken with hooks on transformers' own model."""

from __future__ import annotations

import json

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.support import architectures

LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]
TEXT = "The quick brown fox jumps over the lazy dog; 42 of them, said she, (and it was so).\n" * 40


def add_tokenizer(folder) -> None:
    """A token for each printable character, into a model directory."""
    vocabulary = {"[UNK]": 0, "[BOS]": 1, "[EOS]": 2} | {letter: i + 3 for i, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save(name: str, folder, **arguments):
    """A small model with such a tokenizer, and a text."""
    folder.mkdir()
    architectures.save(name, folder, **arguments)
    add_tokenizer(folder)
    text = folder.parent / "text.txt"
    text.write_text(TEXT)
    return folder, text


def whole(model, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of each Linear, Conv1D and expert of a model, f64 [tokens, K] by name, from one forward of all of it.

    Names of experts end in the expert's number.
    """
    found: dict[str, list[torch.Tensor]] = {}

    def add(name: str, x: torch.Tensor) -> None:
        found.setdefault(name, []).append(x.detach().reshape(-1, x.shape[-1]).double())

    handles = []
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            hook = lambda module, args, name=name: add(f"{name}.weight", args[0])  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
        if type(module).__name__.endswith("Experts"):

            def experts(module, args, name=name):
                x, chosen, _ = args
                for expert in range(module.num_experts):
                    rows = x[(chosen == expert).any(-1)]
                    add(f"{name}.gate_up_proj.{expert}", rows)
                    gate, up = (rows @ module.gate_up_proj[expert].T).chunk(2, -1)
                    add(f"{name}.down_proj.{expert}", module.act_fn(gate) * up)

            handles.append(module.register_forward_pre_hook(experts))
    with torch.no_grad():
        for row in ids:
            given = {"input_ids": torch.from_numpy(row)[None]}
            if model.config.is_encoder_decoder:
                start = torch.full((1, 1), model.config.decoder_start_token_id)
                given["decoder_input_ids"] = torch.cat([start, given["input_ids"][:, :-1]], 1)
            model(**given)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows).numpy() for name, rows in found.items()}
