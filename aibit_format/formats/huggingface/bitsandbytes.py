"""Reads weights that bitsandbytes has quantized, unchanged, from a state dict that has several tensors per weight.

    8 bit   X.weight i8 [N, K]       X.SCB f32 [N]          X.weight_format u8, 0 for rows
    4 bit   X.weight u8 [n / 2, 1]   X.weight.absmax        X.weight.quant_map f32 [16]
            X.weight.quant_state.bitsandbytes__nf4, or __fp4: JSON in u8: shape, dtype, block size, offset
            and with double quantization X.weight.nested_absmax and X.weight.nested_quant_map f32 [256]

bitsandbytes checks none of this, so all of it is checked here. See ``QuantState.as_dict`` and
``Linear8bitLt._save_to_state_dict`` in bitsandbytes 0.50.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...container.documents import parse_json
from ...container.layout import MAX_RANK
from ...container.metadata import Value
from ...dtypes import DTYPES
from ...errors import FormatError, SchemeError, SourceError
from ...schemes import PlaneSpec, make
from ...schemes.fourbit import CODEBOOKS, NESTED_BLOCK, dynamic_map
from ..source import SourceTensor
from .source import HuggingFace, sub_configs

Read = Callable[[str], np.ndarray]

# Models of transformers with Conv1D, a Linear whose weight is [in, out]. bitsandbytes' modules are built from its
# transpose and saved like that; nothing in a checkpoint says so.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})
_CONV1D_WEIGHT = re.compile(r"(.*\.)?(c_attn|q_attn|c_proj|c_fc)\.weight")

_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_STATE = re.compile(r"(.+)\.quant_state\.bitsandbytes__(\w+)")
_ORPHAN = re.compile(r".+\.(weight_format|weight\.(nested_)?(absmax|quant_map))")
_STATE_KEYS = {"quant_type": str, "blocksize": int, "dtype": str, "shape": list}
_NESTED_KEYS = {"nested_blocksize": int, "nested_dtype": str, "nested_offset": float}
_MAX_STATE = 1 << 16  # bytes of JSON; bitsandbytes writes less than 300
_STORAGE = ("u8", "f16", "bf16", "f32")  # dtypes that ``bnb_4bit_quant_storage`` may give to the bytes of the codes


def conv1d_rule(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Return a predicate for the weights of Conv1D modules in a model with this config."""
    found = any(str(c.get("model_type")) in _CONV1D_MODELS for c in sub_configs(config))
    return lambda name: found and _CONV1D_WEIGHT.fullmatch(name) is not None


def weight_dtype(config: Mapping[str, Any], path: str) -> str:
    """Return the model's dtype, the logical dtype of 8-bit weights.

    Raises:
        SourceError: it is not a dtype of weights.
    """
    found = next((c.get("dtype") or c.get("torch_dtype") for c in sub_configs(config)
                  if c.get("dtype") or c.get("torch_dtype")), "float32")  # fmt: skip
    if not isinstance(found, str) or found.removeprefix("torch.") not in _DTYPES:
        raise SourceError(f"{path}: config.json: dtype {found!r} of quantized weights, expected {', '.join(_DTYPES)}")
    return _DTYPES[found.removeprefix("torch.")]


def computed_with(said: Mapping[str, Any]) -> dict[str, Value]:
    """Make metadata from a ``quantization_config``: how its layers compute, as far as it says so."""
    found: dict[str, Value] = {}
    dtype = str(said.get("bnb_4bit_compute_dtype")).removeprefix("torch.")
    if said.get("load_in_4bit") and dtype in _DTYPES:
        found["quantization.compute_dtype"] = _DTYPES[dtype]
    threshold = said.get("llm_int8_threshold")
    if said.get("load_in_8bit") and isinstance(threshold, (int, float)) and 0 <= threshold < math.inf:
        found["quantization.outlier_threshold"] = float(threshold)
    return found


@dataclass(frozen=True, slots=True)
class _Weight:
    """Describe a quantized weight: its tensor, the state dict's tensors that hold its planes, and its offset."""

    tensor: SourceTensor
    parts: Mapping[str, str]
    offset: float | None = None


class QuantizedStateDict:
    """Join those tensors of a state dict that belong to one weight.

    Args:
        path: of the source, for messages.
        stored: every tensor of the state dict.
        read: reads a tensor's values.
        dtype: the logical dtype of 8-bit weights.
        transposed: tells whether a weight is stored as the transpose of the architecture's.

    Raises:
        SourceError: parts are missing, or contradict each other.
    """

    def __init__(
        self, path: str, stored: Mapping[str, SourceTensor], read: Read, dtype: str, transposed: Callable[[str], bool]
    ) -> None:
        self._path, self._stored, self._read = path, stored, read
        self._dtype, self._transposed = dtype, transposed
        self._weights: dict[str, _Weight] = {}
        taken: set[str] = set()
        for name in stored:
            if name.endswith(".SCB"):
                taken.update(self._eight_bit(name.removesuffix(".SCB")))
            elif match := _STATE.fullmatch(name):
                taken.update(self._four_bit(match[1], match[2]))
        self.tensors: dict[str, SourceTensor] = {}
        for name, tensor in stored.items():
            if name in self._weights:
                self.tensors[name] = self._weights[name].tensor
            elif name not in taken:
                self._check_plain(name, tensor)
                self.tensors[name] = tensor

    @property
    def quantized(self) -> list[SourceTensor]:
        """List the weights that bitsandbytes has quantized."""
        return [weight.tensor for weight in self._weights.values()]

    def planes(self, name: str) -> dict[str, np.ndarray]:
        """Read the tensor's planes, as they are stored.

        Raises:
            SourceError: a scale is not finite, or negative.
        """
        weight = self._weights.get(name)
        if weight is None:
            return {"values": self._read(name)}
        tensor, planes = weight.tensor, {}
        for spec in tensor.stored.planes(tensor.shape, tensor.dtype):
            if spec.role in weight.parts:
                flat = self._read(weight.parts[spec.role]).reshape(-1)
                planes[spec.role] = flat.view(DTYPES[spec.dtype].numpy).reshape(spec.shape)
            else:
                with np.errstate(over="ignore"):  # values beyond float32's range are refused below
                    planes[spec.role] = np.array([weight.offset], np.float32)
        for role, problem in tensor.stored.bad_values(planes):
            raise self._bad(name, f"{weight.parts.get(role, role)}: {problem}")
        return planes

    def _eight_bit(self, owner: str) -> list[str]:
        """Join the weight of the module ``owner``; returns the names of the tensors used."""
        name, scale, layout = (f"{owner}.{part}" for part in ("weight", "SCB", "weight_format"))
        codes = self._part(name, scale)
        if layout in self._stored and (found := self._small(layout, "u8", ())) != 0:
            raise self._bad(layout, f"weight format {found}, expected 0: rows")
        self._join(name, codes.shape, self._dtype, "int8", (), {"codes": name, "row_absmax": scale})
        return [name, scale, layout]

    def _four_bit(self, name: str, kind: str) -> list[str]:
        state_name = f"{name}.quant_state.bitsandbytes__{kind}"
        self._part(name, state_name)
        nested = f"{name}.nested_absmax" in self._stored
        state = self._state(state_name, nested)
        if kind not in CODEBOOKS or state["quant_type"] != kind:
            known = ", ".join(CODEBOOKS)
            raise self._bad(state_name, f"quant_type {state['quant_type']!r} under the name {kind!r}; known: {known}")
        self._check_codebook(f"{name}.quant_map", state_name, CODEBOOKS[kind].values)
        parts = {"codes": name, "absmax": f"{name}.absmax"}
        books = [f"{name}.quant_map"]
        if nested:
            parts["nested_absmax"] = f"{name}.nested_absmax"
            books.append(f"{name}.nested_quant_map")
            self._check_codebook(books[1], state_name, dynamic_map())
            found = state["nested_blocksize"], state["nested_dtype"]
            if found != (NESTED_BLOCK, "float32"):
                raise self._bad(state_name, f"nested blocks of {found[0]} {found[1]}, expected {NESTED_BLOCK} float32")
        shape, dtype = state["shape"], state["dtype"]
        if len(shape) > MAX_RANK or not all(type(n) is int and n >= 0 for n in shape):
            raise self._bad(state_name, f"shape {str(shape)[:80]}, expected up to {MAX_RANK} sizes")
        if dtype not in _DTYPES:
            raise self._bad(state_name, f"dtype {dtype[:80]!r}, expected one of {', '.join(_DTYPES)}")
        parameters = state["blocksize"], int(nested)
        self._join(name, tuple(shape), _DTYPES[dtype], kind, parameters, parts, state.get("nested_offset"))
        return [state_name, *parts.values(), *books]

    def _join(
        self, name: str, shape: tuple[int, ...], dtype: str, kind: str, parameters: tuple[int, ...],
        parts: Mapping[str, str], offset: float | None = None,
    ) -> None:  # fmt: skip
        if name in self._weights:
            raise self._bad(name, f"quantized twice, as {self._weights[name].tensor.stored.text} and as {kind}")
        try:
            scheme = make(kind, 1, parameters)
            specs = scheme.planes(shape, dtype)
        except SchemeError as error:
            raise self._bad(name, str(error)) from error
        for spec in specs:
            if spec.role in parts:
                self._check_part(parts[spec.role], name, spec, f"{scheme.text} of {dtype}{list(shape)}")
        file = self._stored[name].file
        tensor = SourceTensor(name, shape, dtype, file, scheme, self._transposed(name))
        self._weights[name] = _Weight(tensor, parts, offset)

    def _check_part(self, part: str, weight: str, spec: PlaneSpec, of: str) -> None:
        found = self._part(part, weight)
        dtypes = _STORAGE if spec.dtype == "u8" and part == weight else (spec.dtype,)
        # 4-bit codes come as a column; only their number matters.
        same = found.nbytes == spec.nbytes if part == weight else found.shape == spec.shape
        if found.dtype not in dtypes or not same:
            raise self._bad(
                part, f"{found.dtype}{list(found.shape)}, {found.nbytes} bytes; "
                f"{of} has {spec.role} {spec.dtype}{list(spec.shape)}, {spec.nbytes} bytes"
            )  # fmt: skip

    def _check_codebook(self, name: str, state: str, wanted: np.ndarray) -> None:
        self._part(name, state)
        found = self._small(name, "f32", wanted.shape)
        if found.tobytes() != wanted.tobytes():
            at = int(np.flatnonzero(found.view("u4") != wanted.view("u4"))[0])
            raise self._bad(name, f"entry {at} of the codebook is {found[at]!r}, bitsandbytes' own is {wanted[at]!r}")

    def _check_plain(self, name: str, tensor: SourceTensor) -> None:
        if _ORPHAN.fullmatch(name):
            raise self._bad(name, "belongs to no quantized weight: its .SCB or .quant_state is missing")
        if name.endswith(".weight") and tensor.dtype in ("i8", "u8"):
            raise self._bad(name, f"{tensor.dtype}{list(tensor.shape)} codes, but no .SCB and no .quant_state")

    def _state(self, name: str, nested: bool) -> dict[str, Any]:
        """Parse the JSON of a quant state, checking the type of each key."""
        stored = self._stored[name]
        if stored.dtype != "u8" or len(stored.shape) != 1 or stored.nbytes > _MAX_STATE:
            raise self._bad(name, f"{stored.dtype}{list(stored.shape)}, expected JSON in at most {_MAX_STATE} u8")
        try:
            state = parse_json(name, self._read(name).tobytes())
        except FormatError as error:
            raise self._bad(name, str(error)) from error
        wanted = _STATE_KEYS | (_NESTED_KEYS if nested else {})
        if not isinstance(state, dict) or state.keys() != wanted.keys():
            found = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise self._bad(name, f"keys {str(found)[:200]}, expected {sorted(wanted)}")
        for key, kind in wanted.items():
            if type(state[key]) is not kind:
                raise self._bad(name, f"{key} {str(state[key])[:80]!r}, expected a JSON {kind.__name__}")
        return state

    def _small(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read a tensor that must have this dtype and shape."""
        found = self._stored[name]
        if (found.dtype, found.shape) != (dtype, shape):
            raise self._bad(name, f"{found.dtype}{list(found.shape)}, expected {dtype}{list(shape)}")
        return self._read(name)

    def _part(self, name: str, asked_by: str) -> SourceTensor:
        if name not in self._stored:
            raise self._bad(asked_by, f"tensor {name!r} is missing")
        return self._stored[name]

    def _bad(self, name: str, what: str) -> SourceError:
        where = f"{self._path}: {self._stored[name].file}" if name in self._stored else self._path
        return SourceError(f"{where}: tensor {name!r}: {what}")


class BitsAndBytes(HuggingFace):
    """Provide the tensors of a directory that transformers saved from a model loaded in 8 or 4 bits."""

    kind: ClassVar[str] = "bitsandbytes"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        stored = self.tensors
        self._state_dict = QuantizedStateDict(
            path,
            stored,
            lambda name: self._shards[stored[name].file].read(name),
            weight_dtype(self.config, path),
            conv1d_rule(self.config),
        )
        self.tensors = self._state_dict.tensors
        self._check_bits()
        self.metadata = computed_with(self.config.get("quantization_config") or {})

    def planes(self, name: str) -> dict[str, np.ndarray]:
        return self._state_dict.planes(name)

    def _check_bits(self) -> None:
        """Check that the config states the number of bits, 8 or 4, that the planes have."""
        said = self.config.get("quantization_config") or {}
        flags = {"load_in_8bit": ("int8",), "load_in_4bit": tuple(CODEBOOKS)}
        allowed = [name for flag, names in flags.items() if said.get(flag) for name in names]
        for tensor in self._state_dict.quantized:
            if allowed and tensor.stored.name not in allowed:
                raise SourceError(
                    f"{self.path}: {tensor.file}: tensor {tensor.name!r} is {tensor.stored.name}, "
                    f"config.json says {' or '.join(allowed)}"
                )
        if not self._state_dict.quantized:
            raise SourceError(f"{self.path}: config.json says bitsandbytes, but of {len(self.tensors)} tensors none is")
