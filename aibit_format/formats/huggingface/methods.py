"""Reads a Hugging Face directory by the method with which its weights are quantized: one line a method, here only."""

from __future__ import annotations

from importlib import import_module

from ...errors import SourceError
from ..source import Source
from .settings import settings
from .source import HuggingFace

# quant_method -> "module:class" of the source. None is for directories whose tensors are plain values.
METHODS: dict[str | None, str] = {
    None: "aibit_format.formats.huggingface.source:HuggingFace",
    "bitsandbytes": "aibit_format.formats.huggingface.bitsandbytes:BitsAndBytes",
    "gptq": "aibit_format.formats.huggingface.gptq:GPTQ",
    "awq": "aibit_format.formats.huggingface.awq:AWQ",
    **dict.fromkeys(("fp8", "fbgemm_fp8", "mxfp8"), "aibit_format.formats.fp8.source:Fp8"),
    "compressed-tensors": "aibit_format.formats.compressed_tensors.source:CompressedTensors",
    **dict.fromkeys(("modelopt", "modelopt_fp4"), "aibit_format.formats.modelopt.source:ModelOpt"),
    **dict.fromkeys(("mlx", "metal"), "aibit_format.formats.mlx.source:MLX"),
    "mxfp4": "aibit_format.formats.mxfp4.source:MXFP4",
    "torchao": "aibit_format.formats.torchao.source:TorchAO",
    "hqq": "aibit_format.formats.hqq.source:HQQ",
    "bitnet": "aibit_format.formats.bitnet.source:BitNet",
    "gemma": "aibit_format.formats.gemma.source:Gemma",
}

_CODES = "its codes mean nothing without its own decoder"
_GPU = "its weights are laid out for one kind of GPU"
# quant_method -> why no source reads it.
REFUSED: dict[str, str] = {
    "exl3": f"trellis codes between two Hadamard rotations: {_CODES}",
    "exl2": f"groups of several widths in the order of a GPU's threads: {_GPU}",
    "aqlm": f"sums of learned codebooks: {_CODES}",
    "vptq": f"vectors of learned codebooks: {_CODES}",
    "quip": f"lattice codes between two rotations: {_CODES}",
    "higgs": f"lattice codes after a Hadamard rotation: {_CODES}",
    "fp_quant": f"MXFP4 or NVFP4 after a Hadamard rotation of the inputs: {_CODES}",
    "quark": "several layouts that its own library packs: export it as compressed-tensors or with values in bf16",
    "quanto": "its checkpoints are read by optimum-quanto alone",
    "sinq": "scales of rows and columns at once, which no scheme here has",
    "fouroversix": "NVFP4 with scales that its own library chooses and packs",
    "nvfp4": "transformers quantizes plain values as it loads them, and saves none of this method",
    "spqr": f"two levels of scales and a sparse part: {_CODES}",
    "auto-round": "its packing_format is neither GPTQ's nor AWQ's; export it as auto_round:auto_gptq or llm_compressor",
    "marlin": _GPU,
    "eetq": _GPU,
}
_INSTEAD = "convert the model as it was before it was quantized, or export it with values in bf16 first"


class Directory:
    """Makes the source of a directory with ``config.json``: its class is that of the method that the config names."""

    @staticmethod
    def matches(path: str) -> bool:
        """Tell whether ``path`` is such a directory."""
        return HuggingFace.matches(path)

    def __new__(cls, path: str) -> Source:  # type: ignore[misc]
        """Open the directory.

        Raises:
            SourceError: no source reads the method, or the directory contradicts it.
        """
        found = settings(path)
        if found.method in METHODS:
            module, name = METHODS[found.method].split(":")
            return vars(import_module(module))[name](path)
        where = f"{path}/{found.file}: quantized with quant_method {found.method!r}"
        if why := REFUSED.get(found.method or ""):
            raise SourceError(f"{where}, which is not read: {why}; {_INSTEAD}")
        known = ", ".join(sorted(filter(None, METHODS)))
        raise SourceError(f"{where}, which no source here reads; known: {known}; {_INSTEAD}")
