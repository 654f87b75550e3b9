"""Exports to ONNX: the graph that a file holds, for onnxruntime, OpenVINO and TensorRT, with weights outside of it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..._version import __version__
from ...errors import MissingPackageError, WriteError
from ...file.progress import Progress
from ...file.sharded_reader import Opened
from ...graph.check import check
from ...graph.program import DOCUMENT, Program, parse
from ...io.atomic import AtomicFile
from .nodes import IDS, LOGITS, MICROSOFT, POSITIONS, STATES, Translation
from .weights import Initializer, Weights

DATA = ".data"  # ends the name of the file of weights
_OPSET, _OPSET_MICROSOFT = 20, 1
_IR = 10  # version of ONNX's own format that goes with the opset
_ALIGNMENT = 4096  # of a weight in the file beside, so that it can be mapped
_INSIDE = 1024  # bytes up to which an initializer is in the graph
_TOKENS, _PAST, _TOTAL = "sequence_length", "past_sequence_length", "total_sequence_length"


def export(
    file: Opened,
    path: str,
    *,
    decoded: bool = False,
    in_place: bool = False,
    accuracy: int = 4,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> list[str]:
    """Write ``path``, an ONNX graph, and ``path.data`` with the weights that do not stay in the file; return the paths.

    The graph takes ids and positions of one sequence, and keys and values of its past. It gives logits of these ids,
    and the keys and values with theirs, all in float32. Weights in ``int4-group`` and in the schemes of 8 bits stay
    packed, for onnxruntime's ``MatMulNBits``; others are decoded.

    Args:
        file: the model, with a graph: ``aibit graph`` writes it.
        path: the file to write.
        decoded: decode all weights: other programs than onnxruntime lack ``MatMulNBits``.
        in_place: let the graph point into the ``.aibit`` file where ONNX reads what is there as it lies: plain tensors,
            and codes of ``int8``, which are decoded at each call. onnxruntime wants that file in the graph's directory,
            or below it, where it has to stay.
        accuracy: of ``MatMulNBits``: 4 rounds inputs to 8 bits; 0 multiplies in float32, which takes much longer.
        overwrite: replace existing files.
        on_progress: called with bytes done, total bytes, and the weight's name.

    Raises:
        WriteError: the file has no graph, or is not where the graph can point to it; or a path exists.
        GraphError: its graph is none.
        MissingPackageError: onnx is not installed.
    """
    onnx = _library()
    if in_place and decoded:
        raise WriteError("decoded weights are not those of the file: in_place or decoded, not both")
    if accuracy not in (0, 1, 2, 3, 4):
        raise WriteError(f"accuracy {accuracy}: 0 to 4")
    if DOCUMENT not in file.documents:
        raise WriteError(f"{file.path}: holds no graph; write a copy that does: aibit graph {file.path} -o OUT.aibit")
    program = parse(file.documents[DOCUMENT])
    check(program, {name: file.info(name) for name in file})
    weights = Weights(file, decoded, in_place)
    made = Translation(program, weights, accuracy)
    made.run()
    initializers = list(weights.made.values())
    location = _location(file, path) if in_place else {}
    data = path + DATA
    places, total = _places(initializers)
    with AtomicFile(path, overwrite) as graph:
        if total:
            with AtomicFile(data, overwrite) as out:
                _write(out, initializers, places, total, on_progress)
                out.publish()
        model = _model(onnx, file, program, made, initializers, places, os.path.basename(data), location)
        graph.write(model.SerializeToString(deterministic=True))
        graph.publish()
    return [path, data] if total else [path]


def _library() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError("exporting to ONNX needs onnx: pip install 'aibit-format[onnx]'") from error
    return onnx


def _location(file: Opened, path: str) -> dict[str, str]:
    """Return how the graph names each file of the model.

    Raises:
        WriteError: one is neither in the graph's directory nor below it.
    """
    folder = os.path.realpath(os.path.dirname(path) or ".")
    found = {}
    for part in file.parts:
        if part.path is None or "://" in part.path:
            raise WriteError("weights stay in place in a file on disk")
        inside = os.path.relpath(os.path.realpath(part.path), folder)
        if inside.startswith(os.pardir) or os.path.isabs(inside):
            raise WriteError(
                f"{path}: {part.path} is neither in {folder} nor below it, where onnxruntime looks for weights alone: "
                "write the graph beside the file, or leave out in_place"
            )
        found[part.path] = inside.replace(os.sep, "/")
    return found


def _places(initializers: list[Initializer]) -> tuple[dict[str, int], int]:
    """Return where in the file beside each large initializer begins, and how long that file is."""
    places: dict[str, int] = {}
    end = 0
    for each in initializers:
        if each.plane is None and each.alias is None and each.nbytes > _INSIDE:
            places[each.name] = end
            end += -(-each.nbytes // _ALIGNMENT) * _ALIGNMENT
    for each in initializers:
        if each.alias is not None and each.alias in places:
            places[each.name] = places[each.alias]
    return places, end


def _write(
    out: AtomicFile, initializers: list[Initializer], places: dict[str, int], total: int, on_progress: Progress | None
) -> None:
    for each in initializers:
        if each.alias is not None or each.name not in places:
            continue
        values = np.ascontiguousarray(each.make())
        if values.nbytes != each.nbytes:
            raise WriteError(f"{out.path}: {each.name}: {values.nbytes} bytes, {each.nbytes} planned")
        out.write(values.reshape(-1).view(np.uint8).data)
        out.write(bytes(-each.nbytes % _ALIGNMENT))
        if on_progress is not None:
            on_progress(places[each.name] + each.nbytes, total, each.name)


def _model(
    onnx: Any, file: Opened, program: Program, made: Translation, initializers: list[Initializer],
    places: dict[str, int], data: str, location: dict[str, str],
) -> Any:  # fmt: skip
    helper, types = onnx.helper, onnx.TensorProto
    inputs = [helper.make_tensor_value_info(name, types.INT64, [1, _TOKENS]) for name in (IDS, POSITIONS)]
    vocabulary = program.nodes[-1].spec.shape[-1]
    headless = str(file.metadata.get("model.architecture")).endswith("Model")
    name = STATES if headless else LOGITS
    outputs = [helper.make_tensor_value_info(name, types.FLOAT, [1, _TOKENS, vocabulary])]
    for each in sorted(made.caches, key=_order):
        for key, length, values in ((each.past, _PAST, inputs), (each.present, _TOTAL, outputs)):
            values.append(helper.make_tensor_value_info(key, types.FLOAT, [1, each.heads, length, each.columns]))
    nodes = [
        helper.make_node(
            step.operator, step.inputs, [step.output], name=step.output, domain=step.domain, **step.attributes
        )
        for step in made.steps
    ]
    nodes.append(helper.make_node("Identity", [made.output], [name], name=name))
    tensors = [_tensor(onnx, each, initializers, places, data, file, location) for each in initializers]
    graph = helper.make_graph(nodes, str(file.metadata.get("model.type", "model")), inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, _OPSET_MICROSOFT)]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=_IR, producer_name="aibit-format", producer_version=__version__
    )
    helper.set_model_props(model, {"aibit.root": file.root, "positions": str(program.positions)})
    return model


def _order(cached: Any) -> tuple[int, str]:
    _, layer, kind = cached.past.rsplit(".", 2)
    return int(layer), kind


def _tensor(
    onnx: Any,
    each: Initializer,
    initializers: list[Initializer],
    places: dict[str, int],
    data: str,
    file: Opened,
    location: dict[str, str],
) -> Any:
    tensor = onnx.TensorProto()
    tensor.name = each.name
    tensor.dims.extend(each.shape)
    tensor.data_type = getattr(onnx.TensorProto, _NAMES[each.dtype])
    if each.plane is not None and each.tensor is not None:
        where, offset = location[str(file.part(each.tensor).path)], each.plane.offset
    elif each.name in places:
        where, offset = data, places[each.name]
    else:
        source = next((other for other in initializers if other.name == each.alias), each)
        tensor.raw_data = np.ascontiguousarray(source.make()).tobytes()
        return tensor
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", where), ("offset", offset), ("length", each.nbytes)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return tensor


_NAMES = {
    "float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "int8": "INT8", "uint8": "UINT8",
    "int64": "INT64", "bool": "BOOL",
}  # fmt: skip
