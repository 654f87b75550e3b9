"""Tells how many tokens a model was made for."""

from __future__ import annotations

from typing import Any

_STRETCHED = ("linear", "dynamic", "yarn")  # kinds of rotary embeddings whose factor says how far they reach


def context_of(config: Any) -> int | None:
    """Return how many tokens a model was made for, by its configuration; ``None`` if that says no number.

    An encoder-decoder has two texts, and no number for the sum of both. ``rope_parameters`` may stretch the number.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if config.is_encoder_decoder or not isinstance(positions, int) or positions < 1:
        return None
    rope = getattr(text, "rope_parameters", None)
    rope = rope if isinstance(rope, dict) else {}
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings") or positions
    if rope.get("rope_type") in _STRETCHED and isinstance(factor, (int, float)) and isinstance(original, int):
        return max(positions, int(factor * original))
    return positions
