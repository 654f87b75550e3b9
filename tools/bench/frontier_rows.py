"""What the frontier measures: a row for each scheme, each way of finding its codes, and each encoder.

``linear`` rows quantize the Linear weights alone: embeddings and head stay in 16 bits, and bits are those of the Linear
weights. ``all`` rows quantize embeddings and head, too, and bits are those of all matrices of the file, which has the
same norms besides: a scheme for every matrix, llama.cpp's mixtures, and searches for a number of bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aibit_format.schemes import parse

TYPES = ("q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k", "q2_k")
PRESETS = ("q4_k_m", "q5_k_m", "iq4_xs")
EVERYWHERE = ("q5_0", "q4_1", "q4_0", "iq4_nl")  # types of every matrix
TARGETS = ("4.5", "5.0", "5.5")
PLAIN, IMPORTANCE, GPTQ, AWQ, BOTH = "plain", "importance", "gptq", "awq", "awq+gptq"
OURS, BNB, LLAMA = "aibit", "bitsandbytes", "llama.cpp"

# Ways in which each scheme is measured, if nothing else is asked for.
LINEAR: dict[str, tuple[str, ...]] = {
    "int8": (PLAIN,),
    "nf4": (PLAIN,),
    "nf4,search=1": (IMPORTANCE,),
    "gguf:q8_0": (PLAIN,),
    "fp8-e4m3": (PLAIN,),
    "mxfp4": (PLAIN, IMPORTANCE),
    "nvfp4": (PLAIN, IMPORTANCE),
    "cluster-group": (PLAIN, IMPORTANCE),
    "int-group,group=64,zero=float": (PLAIN, IMPORTANCE, GPTQ),
    "int4-group,group=32": (PLAIN, IMPORTANCE, GPTQ, BOTH),
    "int4-group": (PLAIN, IMPORTANCE, GPTQ, AWQ, BOTH),
    **{f"gguf:{kind}": (PLAIN, IMPORTANCE) for kind in TYPES},
    **{f"gguf:{kind}": (PLAIN, IMPORTANCE, GPTQ) for kind in ("q6_k", "q5_k", "iq4_xs", "q3_k", "q2_k")},
    "gguf:q4_k": (PLAIN, IMPORTANCE, GPTQ, AWQ, BOTH),
}
_BITSANDBYTES = ("int8", "nf4")  # whose bits these are
_WORDS = {PLAIN: "no", IMPORTANCE: "importance", GPTQ: "GPTQ", AWQ: "AWQ", BOTH: "AWQ, GPTQ"}


@dataclass(frozen=True)
class Row:
    """Say what is measured. ``scheme`` is one of ``convert``, a preset, or ``bits=B`` or ``bits of PRESET``."""

    scope: str
    scheme: str
    how: str
    encoder: str = OURS

    @property
    def key(self) -> tuple[str, ...]:
        """Return what tells it from others."""
        return self.scope, self.scheme, self.how, self.encoder

    @property
    def text(self) -> str:
        """Return it in a few words."""
        return f"{self.scope:7} {self.scheme:22} {_WORDS[self.how]:11} {self.encoder:12}"

    def about(self) -> dict[str, Any]:
        """Return it as the results have it."""
        return asdict(self)


def key_of(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the key of a row of results."""
    return found["scope"], found["scheme"], found["how"], found["encoder"]


def rows(schemes: Sequence[str] = (), folded: bool = True, searched: bool = True) -> Iterator[Row]:
    """Yield the rows: of these schemes, or else the usual ones.

    Args:
        schemes: measured without an importance and, if they take one, with it.
        folded: whether factors can be folded into the model.
        searched: whether schemes can be searched for the model.
    """
    if schemes:
        for scheme in schemes:
            for how in (PLAIN, IMPORTANCE)[: 1 + parse(scheme).takes_importance]:
                yield Row("linear", scheme, how)
        return
    for scheme, ways in LINEAR.items():
        for how in ways:
            if folded or "awq" not in how:
                yield Row("linear", scheme, how, BNB if scheme in _BITSANDBYTES else OURS)
            if scheme.startswith("gguf:") and how in (PLAIN, IMPORTANCE):
                yield Row("linear", scheme, how, LLAMA)
    if searched:
        yield from _of_all()


def _of_all() -> Iterator[Row]:
    for scheme in (*PRESETS, *(f"gguf:{kind}" for kind in EVERYWHERE)):
        for how in (PLAIN, IMPORTANCE) if scheme in PRESETS else (IMPORTANCE,):
            yield Row("all", scheme, how)
            yield Row("all", scheme, how, LLAMA)
        yield Row("all", scheme, GPTQ)
    for target in (*(f"bits={bits}" for bits in TARGETS), *(f"bits of {preset}" for preset in PRESETS)):
        yield Row("all", target, IMPORTANCE)
        yield Row("all", target, GPTQ)
