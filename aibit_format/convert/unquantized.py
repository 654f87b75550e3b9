"""Says how many bytes of a converted model stay unquantized, and why."""

from __future__ import annotations

from collections import Counter

from ..hf.meta_model import Role
from ..schemes.plain import Plain
from .conversion import Assignment, Conversion

VECTORS = "norms, biases and other vectors"
TABLES = "embeddings and whatever else no Linear layer multiplies with"
_BY_ROLE: dict[Role, str] = {
    "linear": "as the recipe says, or of a shape that its scheme cannot hold",
    "conv1d": "as the recipe says, or of a shape that its scheme cannot hold",
    "kept": "heads, as transformers keeps them, and layers whose weights the model's own code uses",
    "experts": "fused experts, as the recipe says, or because its scheme cannot hold stacks of matrices",
    "buffer": "buffers",
    "other": TABLES,
}


def unquantized(conversion: Conversion) -> dict[str, int]:
    """Return bytes by the reason why they stay as they were, most first; none where nothing is quantized at all."""
    found: Counter[str] = Counter()
    for each in conversion.tensors:
        if isinstance(each.tensor.scheme, Plain):
            found[_reason(each)] += each.stored_bytes
    is_quantized = any(not isinstance(each.tensor.scheme, Plain) for each in conversion.tensors)
    return {reason: count for reason, count in found.most_common() if count} if is_quantized else {}


def _reason(assignment: Assignment) -> str:
    if len(assignment.tensor.shape) < 2 and assignment.role != "buffer":
        return VECTORS
    return _BY_ROLE[assignment.role]
