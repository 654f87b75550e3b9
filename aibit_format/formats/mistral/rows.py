"""Lists the tensors of Mistral's models that Llama has not: experts, and the encoder of images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..meta.rows import Row

# transformers stacks experts when it loads a checkpoint; these are the names that it stacks.
EXPERTS = (
    Row("layers.{}.feed_forward.gate", "model.layers.{}.block_sparse_moe.gate", ("experts", "hidden")),
    *(
        Row(f"layers.{{}}.feed_forward.experts.{{}}.{each}", f"model.layers.{{}}.block_sparse_moe.experts.{{}}.{each}",
            shape)
        for each, shape in (("w1", ("intermediate", "hidden")), ("w2", ("hidden", "intermediate")),
                            ("w3", ("intermediate", "hidden")))
    ),
)  # fmt: skip
_LAYER, _TARGET = "vision_encoder.transformer.layers.{}", "model.vision_tower.transformer.layers.{}"
_WIDE, _NARROW = ("vision.intermediate", "vision"), ("vision", "vision.intermediate")
VISION = (
    Row("vision_encoder.patch_conv", "model.vision_tower.patch_conv",
        ("vision", "vision.channels", "vision.patch", "vision.patch")),
    Row("vision_encoder.ln_pre", "model.vision_tower.ln_pre", ("vision",)),
    Row(f"{_LAYER}.attention_norm", f"{_TARGET}.attention_norm", ("vision",)),
    Row(f"{_LAYER}.ffn_norm", f"{_TARGET}.ffn_norm", ("vision",)),
    Row(f"{_LAYER}.attention.wq", f"{_TARGET}.attention.q_proj", ("vision", "vision"), "vision.heads"),
    Row(f"{_LAYER}.attention.wk", f"{_TARGET}.attention.k_proj", ("vision", "vision"), "vision.heads"),
    Row(f"{_LAYER}.attention.wv", f"{_TARGET}.attention.v_proj", ("vision", "vision")),
    Row(f"{_LAYER}.attention.wo", f"{_TARGET}.attention.o_proj", ("vision", "vision")),
    Row(f"{_LAYER}.feed_forward.w1", f"{_TARGET}.feed_forward.gate_proj", _WIDE),
    Row(f"{_LAYER}.feed_forward.w2", f"{_TARGET}.feed_forward.down_proj", _NARROW),
    Row(f"{_LAYER}.feed_forward.w3", f"{_TARGET}.feed_forward.up_proj", _WIDE),
    Row("vision_language_adapter.w_in", "model.multi_modal_projector.linear_1", ("hidden", "vision")),
    Row("vision_language_adapter.w_out", "model.multi_modal_projector.linear_2", ("hidden", "hidden")),
)  # fmt: skip
MERGER = (
    Row("patch_merger.merging_layer", "model.multi_modal_projector.patch_merger.merging_layer",
        ("vision", "vision.merged")),
    Row("pre_mm_projector_norm", "model.multi_modal_projector.norm", ("vision",)),
)  # fmt: skip


def inside(rows: Iterable[Row]) -> Iterable[Row]:
    """Return the rows of a decoder that is part of a model with other parts."""
    return (replace(row, target=row.target.replace("model.", "model.language_model.", 1)) for row in rows)
