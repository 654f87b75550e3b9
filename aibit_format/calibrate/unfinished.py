"""Keeps what a calibration has done so far in a folder, so that one that was stopped goes on after its last block.

The folder has a file of statistics for each block that is done, what the latest blocks returned for every sample, and
``state.json``, which is replaced last: what it does not name is not there for the next run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from .. import interop
from ..errors import SourceError, WriteError
from ..formats.safetensors.reader import SafetensorsFile
from ..formats.safetensors.writer import Entry
from ..formats.safetensors.writer import SafetensorsFile as SafetensorsWriter
from ..io.atomic import TEMPORARY, AtomicFile
from . import files
from .blocks import Output
from .statistics import Inputs

_STATE = "state.json"
_OURS = re.compile(r"state\.json|(inputs|outputs)-\d{5,}\.safetensors|" + TEMPORARY.pattern)


class Unfinished:
    """Hold the state of a calibration in ``folder``, which is made.

    Args:
        folder: where.
        key: of the model, the text and the options; a state of another key is removed.
        device: where outputs of blocks are wanted.
    """

    def __init__(self, folder: str, key: str, device: torch.device) -> None:
        self.folder, self._device = folder, device
        self._state: dict[str, Any] = {"key": key, "done": [], "latest": {}, "angles": {}}
        self._open: dict[str, SafetensorsFile] = {}
        state = _read(os.path.join(folder, _STATE))
        if state is not None and state.get("key") == key:
            self._state = {"angles": {}, **state}
            return
        try:
            os.makedirs(folder, exist_ok=True)
            others = [name for name in os.listdir(folder) if not _OURS.fullmatch(name)]
            if state is None and others:  # a run may be killed before it has a state, or while it removes its files
                raise WriteError(f"{folder}: is in the way, and no state of a calibration: it has {others[0]}")
            self.remove()
            os.makedirs(folder, exist_ok=True)
            self._keep()
        except OSError as error:
            raise WriteError(f"{folder}: {error.strerror}") from error

    @property
    def done(self) -> list[str]:
        """Return the names of the blocks that are done."""
        return list(self._state["done"])

    @property
    def angles(self) -> dict[str, float]:
        """Return the angles of the blocks that are done and have one."""
        return dict(self._state["angles"])

    def finish(
        self, block: str, of: str, inputs: Mapping[str, Inputs], writer: Outputs | None, angle: float | None = None
    ) -> None:
        """Keep the statistics of a block of a list, and what it returned; what its list returned before is dropped."""
        number = len(self._state["done"])
        entries, arrays = files.entries_of(inputs)
        experts = [name for name, found in inputs.items() if found.experts]
        metadata = {"experts": json.dumps(experts), "hessians": json.dumps(files.shared(inputs))}
        files.write(self._path("inputs", number), entries, arrays, metadata, overwrite=True)
        before = self._state["latest"].get(of)
        self._state["done"].append(block)
        if angle is not None:
            self._state["angles"][block] = angle
        if writer is not None:
            self._state["latest"][of] = {"number": writer.number, "form": writer.form}
        self._open.pop(of, None)
        self._keep()
        if before is not None:
            with suppress(OSError):
                os.unlink(self._path("outputs", before["number"]))

    def outputs(self, first: Output, samples: int) -> Outputs:
        """Return a writer for what the next block returns for each sample, of which ``first`` is the first."""
        number = len(self._state["done"])
        return Outputs(self._path("outputs", number), number, first, samples)

    def latest(self, of: str, sample: int) -> Output:
        """Return what the latest block of a list returned for a sample."""
        state = self._state["latest"][of]
        if of not in self._open:
            self._open[of] = SafetensorsFile(self._path("outputs", state["number"]))
        file, tensors = self._open[of], []
        while (name := f"{sample}.{len(tensors)}") in file.tensors:
            found = file.tensors[name]
            # A copy, as a model may write to it, and nothing may write to pages of a file.
            tensors.append(interop.to_torch(file.read(name), found.dtype).to(self._device, copy=True))
        return Output(state["form"], tensors)

    def inputs(self) -> dict[str, Inputs]:
        """Return the statistics of all blocks that are done; arrays are views of files."""
        found: dict[str, Inputs] = {}
        for number in range(len(self._state["done"])):
            file = SafetensorsFile(self._path("inputs", number))
            arrays: dict[str, dict[str, np.ndarray]] = {}
            for name in file.tensors:
                weight, _, key = name.rpartition(".in_")
                arrays.setdefault(weight, {})[key] = file.read(name)
            files.rejoin(arrays, json.loads(file.metadata.get("hessians", "{}")), file.path)
            experts = json.loads(file.metadata["experts"])
            found |= {name: Inputs(**each, experts=name in experts) for name, each in arrays.items()}
        return found

    def remove(self) -> None:
        """Remove what is kept, and the folder if there is nothing else in it."""
        self._open.clear()
        with suppress(OSError):
            for name in filter(_OURS.fullmatch, os.listdir(self.folder)):
                os.unlink(os.path.join(self.folder, name))
            os.rmdir(self.folder)

    def _keep(self) -> None:
        with AtomicFile(os.path.join(self.folder, _STATE), overwrite=True) as out:
            out.write(json.dumps(self._state).encode())
            out.publish()

    def _path(self, kind: str, number: int) -> str:
        return os.path.join(self.folder, f"{kind}-{number:05}.safetensors")


class Outputs:
    """Write what a block returns for each sample. Use it as a context.

    All samples are of one length, so that the tensors of the first say the shapes of all.

    Raises:
        SourceError: a block returns tensors of another shape for another sample.
    """

    def __init__(self, path: str, number: int, first: Output, samples: int) -> None:
        self.number, self.form, self._path = number, first.form, path
        each = [(interop.dtype_name(tensor.dtype), tuple(tensor.shape)) for tensor in first.tensors]
        entries = [Entry(f"{s}.{i}", *shape) for s in range(samples) for i, shape in enumerate(each)]
        with suppress(FileNotFoundError):  # of a run that was stopped
            os.unlink(path)
        self._file = SafetensorsWriter(path, entries, {})

    def __enter__(self) -> Outputs:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def write(self, sample: int, output: Output) -> None:
        """Write what the block returned for one sample."""
        if output.form != self.form:
            raise SourceError(f"{self._path}: a block returns other things for sample {sample} than for the first")
        for i, tensor in enumerate(output.tensors):
            self._file.write(f"{sample}.{i}", _array(tensor))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return interop.to_numpy(tensor.detach().cpu())[0]


def _read(path: str) -> dict[str, Any] | None:
    """Read a state; an empty one, which matches no key, if it is damaged, and ``None`` if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
