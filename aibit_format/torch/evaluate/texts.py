"""Has models continue the same prompts, greedily, and finds where their texts part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import LoadError
from ...hf.context import context_of


@dataclass(frozen=True)
class Continuation:
    """Holds what a model adds to a prompt: the ids of tokens, and their text."""

    ids: tuple[int, ...]
    text: str

    def shared_with(self, other: Continuation) -> int:
        """Return how many tokens both begin with."""
        pairs = zip(self.ids, other.ids, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.ids), len(other.ids)))


def continued(model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int, chat: bool) -> list[Continuation]:
    """Return what a model adds to each prompt, taking the likeliest token each time.

    ``chat`` says that prompts are messages of a user, put into the tokenizer's chat template.

    Raises:
        LoadError: there is no such template, a prompt has no tokens, or it fills the model's context.
    """
    if chat and not tokenizer.chat_template:
        raise LoadError("there is no chat template; compare without --chat")
    found = []
    for prompt in prompts:
        ids = _ids(tokenizer, prompt, chat).to(model.device)
        context = context_of(model.config)
        room = new_tokens if context is None else min(new_tokens, context - ids.shape[1])
        if not ids.shape[1] or room < 1:
            raise LoadError(f"a prompt of {ids.shape[1]} tokens; the model takes 1 to {(context or 2) - 1}")
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False, pad_token_id=pad
            )
        new = out[0, ids.shape[1] :].tolist()
        found.append(Continuation(tuple(new), tokenizer.decode(new, skip_special_tokens=True)))
    return found


def _ids(tokenizer: Any, prompt: str, chat: bool) -> torch.Tensor:
    if not chat:
        return tokenizer(prompt, return_tensors="pt")["input_ids"]
    messages = [{"role": "user", "content": prompt}]
    batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return batch["input_ids"]
