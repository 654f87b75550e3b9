"""Walks through a model with all samples, and collects the statistics of each block."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xxhash

from ..errors import LoadError, SourceError, told_by
from ..file.progress import Progress
from ..formats.bind import bind
from ..formats.sources import Source
from ..hf import compat
from ..hf.meta_model import MetaModel
from .angles import Angle, measuring
from .blocks import Block, Forward, NotByBlocksError, blocks_of
from .hessians import Hessians
from .hooks import listening, replaced_forward, sums_of
from .statistics import About, Inputs, Statistics
from .sums import Sums
from .unfinished import Outputs, Unfinished
from .weights import Weights


class _AtHead(BaseException):
    """Ends a forward where a model would compute logits, which nothing here looks at."""


class Walk:
    """Take the statistics of a model over samples.

    Args:
        source, model: the source, and the empty model that it describes.
        ids: i64 [samples, length].
        about: what statistics say of themselves.
        hessians: tells which weights, by name, get x^T x.
        device: where the model runs.
        key: of all this, under which an unfinished run is known.
    """

    def __init__(
        self, source: Source, model: MetaModel, ids: np.ndarray, about: About, hessians: Callable[[str], bool],
        device: torch.device, key: str,
    ) -> None:  # fmt: skip
        self._model, self._about, self._hessians, self._device, self._key = model, about, hessians, device, key
        self._ids = torch.from_numpy(ids)
        self._source = source
        bindings, _ = bind(model, source)
        self._weights = Weights(model, source, bindings, device)
        self._blocks = blocks_of(model.module)
        self.unfinished: Any = None
        self._angles: dict[str, float] = {}

    def run(self, folder: str, on_progress: Progress | None = None) -> Statistics:
        """Return the statistics; what is not finished yet is kept in ``folder``."""
        self.unfinished = Unfinished(folder, self._key, self._device)
        module = self._model.module.eval()
        compat.run_experts_by_themselves(module)
        # Not in inference mode, in which tensors count no writes.
        with torch.no_grad(), self._without_head():
            try:
                inputs, about = self._by_blocks(on_progress), self._about
            except (NotByBlocksError, LoadError):  # or its code uses weights of a block without running it
                inputs, about = self._whole(on_progress), replace(self._about, streamed=False)
        ordered = {name: inputs[name] for name in self._model.parameters if name in inputs}
        return Statistics(about, ordered, self._model.ties, self._angles)

    def _by_blocks(self, on_progress: Progress | None) -> dict[str, Inputs]:
        count, total = len(self._ids), len(self._ids) * (len(self._blocks) + 1)
        forward = Forward(
            self._model.module, self._call, self._blocks, self.unfinished.latest,
        )  # fmt: skip
        forward.done = self.unfinished.done
        if not self._blocks:
            raise NotByBlocksError("no list of blocks")
        inside = tuple(f"{name}." for name in self._blocks)
        outside = [name for name in self._model.parameters if not name.startswith(inside)]
        with self._weights.within(self._loaded(outside), copied=False):
            while (name := forward.following(0)) is not None:
                self._block(forward, self._blocks[name], count, total, on_progress)
            sums = sums_of(self._model.parameters, outside, self._hessians, self._device)
            with listening(self._model.module, self._model.parameters, sums):
                for sample in range(count):
                    forward.rest(sample)
                    if on_progress is not None:
                        on_progress(total - count + sample + 1, total, "outside")
        try:
            found = _finished(sums)
        except SourceError as error:  # a layer outside depends on all blocks, or the model computes NaN
            raise NotByBlocksError(str(error)) from error
        self._angles = self.unfinished.angles
        # Blocks that no text reaches, such as those of images.
        left = [key for key in self._model.parameters for name in self._blocks.keys() - set(forward.done)
                if key.startswith(f"{name}.")]  # fmt: skip
        return (
            self.unfinished.inputs() | found | _finished(sums_of(self._model.parameters, left, lambda _: False, "cpu"))
        )

    def _block(self, forward: Forward, block: Block, count: int, total: int, on_progress: Progress | None) -> None:
        names = [name for name in self._model.parameters if name.startswith(f"{block.name}.")]
        sums = sums_of(self._model.parameters, names, self._hessians, self._device)
        writer: Outputs | None = None
        done, angle = len(forward.done) * count, Angle()
        with ExitStack() as stack:
            stack.enter_context(self._weights.within(names))
            stack.enter_context(listening(self._model.module, self._model.parameters, sums))
            for sample in range(count):
                output = forward.output(block.name, sample, angle)
                if writer is None:
                    writer = stack.enter_context(self.unfinished.outputs(output, count))
                writer.write(sample, output)
                if on_progress is not None:
                    on_progress(done + sample + 1, total, block.name)
        self.unfinished.finish(block.name, block.list, _finished(sums), writer, angle.mean)
        forward.done.append(block.name)

    def _whole(self, on_progress: Progress | None) -> dict[str, Inputs]:
        """Run the whole model on one sample after another."""
        sums = sums_of(self._model.parameters, self._model.parameters, self._hessians, self._device)
        with (
            self._weights.within(self._loaded(self._model.parameters), copied=False),
            listening(self._model.module, self._model.parameters, sums),
            measuring(self._blocks) as angles,
        ):
            for sample in range(len(self._ids)):
                self._call(sample)
                if on_progress is not None:
                    on_progress(sample + 1, len(self._ids), f"sample {sample + 1}")
        self._angles = {name: mean for name, angle in angles.items() if (mean := angle.mean) is not None}
        return _finished(sums)

    def _loaded(self, names: Collection[str]) -> list[str]:
        """Return the names without those of the head, of which no product is computed."""
        head = self._head()
        return [name for name in names if name.rpartition(".")[0] != head]

    def _call(self, sample: int) -> None:
        """Run the model on a sample."""
        ids = self._ids[sample][None].to(self._device)
        module = self._model.module
        arguments: dict[str, Any] = {"input_ids": ids}
        takes = inspect.signature(module.forward).parameters
        if "use_cache" in takes:
            arguments["use_cache"] = False
        if getattr(module.config, "is_encoder_decoder", False):
            start = getattr(module.config, "decoder_start_token_id", None)
            first = torch.full_like(ids[:, :1], start if isinstance(start, int) else 0)
            arguments["decoder_input_ids"] = torch.cat([first, ids[:, :-1]], 1)
        try:
            module(**arguments)
        except _AtHead:
            pass
        except (NotByBlocksError, SourceError):
            raise
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            raise LoadError(
                f"{self._source.path}: {self._model.architecture} cannot be run on text: {told_by(error)}"
            ) from error

    def _head(self) -> str | None:
        """Return the name of the layer that computes logits; ``None`` if the model has none."""
        head = self._model.module.get_output_embeddings()
        return next((name for name, module in self._model.module.named_modules() if module is head), None)

    @contextmanager
    def _without_head(self) -> Iterator[None]:
        def end(*args: Any, **kwargs: Any) -> Any:
            raise _AtHead

        if (head := self._head()) is None:
            yield
            return
        with replaced_forward(self._model.module.get_submodule(head), end):
            yield


def _finished(sums: Mapping[str, Sums]) -> dict[str, Inputs]:
    """Return the statistics of weights; those with the same inputs, such as queries and keys, share one Hessian."""
    found = {name: each.finished() for name, each in sums.items()}
    first: dict[str, Hessians] = {}
    for name, inputs in found.items():
        if inputs.hessian is not None:
            digest = f"{inputs.hessian.shape}{xxhash.xxh3_128_hexdigest(np.asarray(inputs.hessian).data)}"
            found[name] = replace(inputs, hessian=first.setdefault(digest, inputs.hessian))
    return found
