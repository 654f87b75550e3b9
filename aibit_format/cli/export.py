"""Runs ``aibit export``: writes a model in another format."""

from __future__ import annotations

import argparse

from ..formats.export_tensors import DTYPE_OPTIONS
from ..formats.exports import BUILTIN, export, options_of
from . import arguments
from .output import ProgressBar, show_written

_OPTIONS = ("dtype", "type", "max_shard_size", "dequantize", "decoded", "in_place", "accuracy")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments to its parser."""
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--to", required=True, choices=BUILTIN, help="the format")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the directory or file to write")
    parser.add_argument(
        "--dtype", choices=DTYPE_OPTIONS,
        help="safetensors: dtype of the weights (default: each its own); huggingface: dtype that 4-bit layers use",
    )  # fmt: skip
    parser.add_argument(
        "--type", metavar="T",
        help="gguf: keep (default), f16, q8_0, ...; huggingface: form of the quantized weights, such as gptq (default: "
             "that of the source, or what holds most)",
    )  # fmt: skip
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", type=arguments.size, help="most bytes in one file of weights (default: 5GB)"
    )
    parser.add_argument(
        "--dequantize", action="store_true", default=None,
        help="huggingface: decode tensors that the form of the directory does not hold",
    )  # fmt: skip
    parser.add_argument(
        "--decoded", action="store_true", default=None,
        help="onnx: decode all weights, for programs other than onnxruntime, such as OpenVINO and TensorRT",
    )  # fmt: skip
    parser.add_argument(
        "--in-place", action="store_true", default=None,
        help="onnx: point into FILE where ONNX reads what is there as it lies; FILE has to be beside OUT, and to stay",
    )  # fmt: skip
    parser.add_argument(
        "--accuracy", type=int, choices=range(5), metavar="N",
        help="onnx: accuracy level of packed weights; 4 (default) rounds inputs to 8 bits, 0 does not, slowly",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace existing files")
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Export, and print the paths written."""
    options = {name: value for name in _OPTIONS if (value := vars(args)[name]) is not None}
    if wrong := sorted(options.keys() - options_of(args.to)):
        args.parser.error(f"--to {args.to} does not take --{wrong[0].replace('_', '-')}")
    from .silence import quiet_libraries

    quiet_libraries()
    with ProgressBar("exporting") as progress:
        paths = export(args.file, args.to, args.output, **options, overwrite=args.force, on_progress=progress.update)
    form = {}
    if args.to == "huggingface":
        from ..formats.huggingface.settings import described

        form = {"form": described(args.output)}
    show_written(paths, args.json, format=args.to, **form)
    if form and not args.json:
        print(form["form"])
    return 0
