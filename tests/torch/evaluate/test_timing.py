"""How long loading and generating take."""

from __future__ import annotations

import types

import pytest


@pytest.mark.parametrize("prompt", [128, 1024])
def test_a_prompt_has_tokens_of_every_vocabulary(prompt):
    torch = pytest.importorskip("torch")
    from aibit_format.torch.evaluate import timing

    given = []

    def model(ids, past_key_values, use_cache, logits_to_keep):
        given.append((tuple(ids.shape), int(ids.min()), int(ids.max()), past_key_values))
        return types.SimpleNamespace(
            logits=torch.zeros(2, 1, 160).index_fill_(2, torch.tensor(7), 1), past_key_values=3
        )

    model.device = torch.device("cpu")
    first, others = timing.generate(model, 2, prompt, 2)
    assert first > 0 and len(others) == 2
    assert given == [((2, prompt), 1, 128, None), ((2, 1), 7, 7, 3), ((2, 1), 7, 7, 3)]
