"""Loads a file as a transformers model, or as the graph that it holds.

Libraries are imported when a function is called: a graph runs without transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ...container.signatures import Keys
from ...errors import LoadError
from ...file.reader import Level
from ...file.sharded_reader import Opened
from ...io.mapped import Path

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .arguments import Device


def load(
    path: Path | Opened,
    device: Device = "cpu",
    *,
    verify: Level = "structure",
    signed_by: Keys | None = None,
    device_map: Any = None,
    weight_only: bool = False,
    activations: str | None = None,
    tp: Any = None,
    trainable: bool = False,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and the tokenizer of an ``.aibit`` file; see ``load_model`` and ``load_tokenizer``."""
    from ..tokenizer import load_tokenizer
    from .build import Options, build

    options = Options.of(device, device_map, weight_only, activations, tp, trainable, dtype, attn_implementation)
    file, model = build(path, verify, signed_by, options)
    return model, load_tokenizer(file)


def load_model(
    path: Path | Opened,
    device: Device = "cpu",
    *,
    verify: Level = "structure",
    signed_by: Keys | None = None,
    device_map: Any = None,
    weight_only: bool = False,
    activations: str | None = None,
    tp: Any = None,
    trainable: bool = False,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    graph: bool = False,
) -> PreTrainedModel:
    """Load a transformers model in eval mode: int8 weights in ``bnb.nn.Linear8bitLt``, nf4 and fp4 in ``Linear4bit``.

    On the CPU no weight is copied: parameters are views of the mapping, shared with every process that maps the file
    (``requires_grad`` is off). A page that is written to is copied first: the file stays as it is, and so does every
    other model of it. On a GPU parameters are views of one allocation, filled in one pass (``load.arena``); with
    ``tp``, and on other devices, each plane is copied once. Linear weights and embeddings in other schemes stay in
    their planes too, decoded a piece at a time as they are needed (``layers.dequantized``); what else is quantized is
    decoded to the model's dtype here.

    Args:
        path: the file, or an open one.
        device: one device.
        verify: how far to check the file first; see ``File``. On a GPU digests are checked while the bytes pass.
        signed_by: public keys of which one must have signed it; see ``File``.
        device_map: accepted when it comes down to one device: ``{"": device}``, or ``"auto"``.
        weight_only: multiply int8 weights with inputs as they are, where bitsandbytes quantizes these too. That
            is closer to the true product, and so not equal to what bitsandbytes gives. On a CPU without AVX512-BF16
            4-bit weights are multiplied, and models of 16 bits attend, in float32 then: closer and faster.
        activations: to what inputs of packed weights are rounded on a CPU with compiled code: "float32" (not at all),
            "int16", multiples of the largest magnitude of 256 columns divided by 32767, or "int8", of 32 columns
            divided by 127. "int8" is what llama.cpp does, and the fastest. None: "int16" for inputs of 16 bits, whose
            results show nothing of it, and "float32" for others. More than 16 rows at once, as in prompts, are not
            rounded.
        tp: several processes hold the model together, each with its rows of the weights that transformers'
            tensor-parallel plan names, on its ``device``; all call it with the same inputs and get the same outputs.
            ``"auto"``: all processes of torch.distributed; their number; a process group; or a device mesh, of one
            dimension or with one named ``"tp"``. See ``load.tensor_parallel``.
        trainable: give the parameters that are not quantized memory of their own, and set their ``requires_grad``.
        dtype: the dtype in which the model computes, as ``from_pretrained`` has it: "float32", "bfloat16", "float16",
            or torch's own. Parameters that are not quantized and stored in another one are cast, each to a copy in
            memory; planes of quantized weights stay the mapped ones, and their values and products follow, those of
            bitsandbytes' 4-bit layers too. What transformers keeps in float32 stays so. None: as the file says.
        attn_implementation: which attention of those in transformers: "eager", "sdpa", "flex_attention", or
            "flash_attention_2" where its package is installed. No kernel is ever fetched. None: transformers' choice.
        graph: return the graph that the file holds, as ``load_graph`` does: transformers is neither imported nor
            needed. It runs on a CPU, multiplies as ``weight_only`` does, and has nothing else of what a transformers
            model has.

    Raises:
        FormatError: the file is not valid.
        LoadError: no model can be built from it: unknown architecture, shapes that contradict the config, tensors
            missing or too many, several devices, a dtype or an attention that the model cannot have; with ``tp``,
            torch.distributed is not initialized, the model has no plan or cannot be cut as it says, or is to be
            trained.
    """
    if graph:
        asked = (device_map, activations, tp, dtype, attn_implementation)
        if str(device) != "cpu" or trainable or any(each is not None for each in asked):
            raise LoadError("graph=True: a graph runs on a CPU as it was recorded; it takes verify and signed_by alone")
        from ..graph.model import load_graph

        return cast(Any, load_graph(path, verify=verify, signed_by=signed_by))
    from .build import Options, build

    options = Options.of(device, device_map, weight_only, activations, tp, trainable, dtype, attn_implementation)
    return build(path, verify, signed_by, options)[1]
