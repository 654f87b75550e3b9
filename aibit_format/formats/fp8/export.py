"""Writes FP8 checkpoints: codes, and scales of blocks, rows or a tensor. See ``source`` for the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ...dtypes import DTYPES
from ...schemes import Scheme
from ...schemes.block_scaled import BlockScaled
from ...schemes.fp8_block import Fp8Block
from ...schemes.microscaling import MXFP4, MXFP8
from ..huggingface.forms import Form, NotHeldError, Part, Stored
from .scales import E4M3, E8M0, grid

_MX_BLOCK = (1, 32)
_SCALES = (".weight_scale_inv", ".weight_scale", ".qscale_weight", ".scale")
_OF_EXPERTS = "_scale_inv"


class Fp8Form(Form):
    """Write E4M3 codes with scales; of a source that had them, also E2M1 codes of experts."""

    name: ClassVar[str] = "fp8"
    METHODS = ("fp8", "fbgemm_fp8", "mxfp8")
    PLACES = frozenset({"linear", "experts"})
    LISTS = ("modules_to_not_convert", "ignored_layers")

    @property
    def fused(self) -> bool:
        return _OF_EXPERTS in self.origin.parts

    def settings(self, stored: Stored) -> str | None:
        if isinstance(stored.scheme, MXFP4) and self.said.get("expert_dtype") == "fp4":
            return None
        block = self._block(stored)
        rows, columns = (str(size) if size else "all" for size in block)
        scale = _scale(stored.scheme)
        return f"blocks of {rows} by {columns} with scales {E8M0 if scale == E8M0 else 'of floats'}"

    def parts(self, stored: Stored) -> dict[str, Part]:
        scheme, shape = stored.scheme, stored.shape
        if isinstance(scheme, MXFP4):
            end = self.ending(_SCALES, ".weight_scale_inv")
            code, _ = self.origin.part(".weight", ("i8", "u8")) or ("i8", 2)
            packed = (*shape[:-1], shape[-1] // 2)
            return {
                ".weight": Part(code, packed, lambda planes: planes["codes"].view(DTYPES[code].numpy)),
                end: self.floats(end, "scale", E8M0, grid(shape, _MX_BLOCK), (E8M0, "u8")),
            }  # fmt: skip
        block = self._block(stored)
        own = ".weight_scale_inv" if self._method == "fp8" else ".weight_scale"
        weight, end = (".weight", self.ending(_SCALES, own)) if stored.is_weight else ("", _OF_EXPERTS)
        dtype = _scale(scheme)
        same = (E8M0, "u8") if dtype == E8M0 else ()
        return {
            weight: Part(E4M3, shape, lambda planes: planes["codes"]),
            end: self.floats(end, "scale", dtype, grid(shape, block), same),
        }

    def config(self, kept: Sequence[Stored], skipped: Sequence[str]) -> dict[str, Any]:
        blocks = [each for each in kept if not isinstance(each.scheme, MXFP4)]
        block = self._block(blocks[0]) if blocks else (0, 0)
        defaults = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
        said: dict[str, Any] = {**(self.said or defaults), **self.lists(kept, skipped)}
        if all(block) and self._method == "fp8":
            said["weight_block_size"] = list(block)
        elif self._method == "fp8":
            said["weight_block_size"] = None
        if blocks and _scale(blocks[0].scheme) == E8M0 and self._method == "fp8":
            said["scale_fmt"] = "ue8m0"
        if said.get("activation_scheme") == "static" and self.origin.left_out:
            said["activation_scheme"] = "dynamic"  # scales of activations are not in the file
        return said

    @property
    def _method(self) -> str:
        return self.origin.method or "fp8"

    def _block(self, stored: Stored) -> tuple[int, int]:
        """Return the rows and columns of a block, 0 for all.

        Raises:
            NotHeldError: the form has no such blocks.
        """
        scheme = stored.scheme
        if isinstance(scheme, MXFP8) and scheme.codes == E4M3 and self._source_has(_MX_BLOCK):
            return _MX_BLOCK
        if not isinstance(scheme, Fp8Block) or not (self._source_has(scheme.block) or _by_itself(scheme.block)):
            raise NotHeldError("fp8 has codes f8_e4m3 with scales of blocks or one a tensor alone")
        sizes = [(size, each) for size, each in zip(stored.shape[-2:], scheme.block, strict=True) if each]
        if not self.said and any(size > each and size % each for size, each in sizes):
            raise NotHeldError(f"transformers takes blocks of {list(stored.shape)} for even parts, which they are not")
        return scheme.block

    def _source_has(self, block: tuple[int, int]) -> bool:
        """Tell whether the checkpoint that the file was made from had such blocks."""
        if not self.said:
            return False
        said = self.said.get("weight_block_size", {"fp8": [128, 128], "mxfp8": [1, 32]}.get(self._method))
        return tuple(said) == block if isinstance(said, list) else not all(block)


def _scale(scheme: Scheme) -> str:
    """Return the dtype of scales."""
    return scheme.steps["scale"] if isinstance(scheme, BlockScaled) else "f32"


def _by_itself(block: tuple[int, int]) -> bool:
    """Tell whether transformers has layers for such blocks: of several rows, or of a whole tensor."""
    return (block[0] > 1 and block[1] > 1) or block == (0, 0)
