"""Runs a stored graph: logits of ids, and texts, without transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from ...container.signatures import Keys
from ...errors import GraphError, LoadError
from ...file import sharded_reader
from ...file.reader import Level
from ...file.sharded_reader import Opened
from ...graph.check import check
from ...graph.program import DOCUMENT, INPUTS, Program, parse
from ...io.mapped import Path
from .cache import Cache
from .fuse import plan
from .sampling import Sampling
from .steps import Binding


def load_graph(path: Path | Opened, *, verify: Level = "structure", signed_by: Keys | None = None) -> GraphModel:
    """Load the stored graph of an ``.aibit`` file as a model that runs without transformers, on a CPU.

    Args:
        path: the file, or an open one.
        verify: how far to check the file first; see ``File``.
        signed_by: public keys of which one must have signed it; see ``File``.

    Raises:
        FormatError: the file is not valid.
        LoadError: the file has no graph.
        GraphError: its graph is not one.
    """
    file = path if isinstance(path, Opened) else sharded_reader.open_local(path, verify, signed_by)
    return GraphModel.of(sharded_reader.whole(file))


class Output(NamedTuple):
    """Holds what a call gives: logits [1, tokens, vocabulary]; of an encoder's body, states [1, tokens, hidden]."""

    logits: torch.Tensor

    @property
    def last_hidden_state(self) -> torch.Tensor:
        """Return the same by the name that encoders have for it."""
        return self.logits


class GraphModel:
    """Computes what the graph of a file says, over its mapped pages, on a CPU; one sequence at a time.

    A sequence's keys and values are kept: ``generate`` computes what follows the longest beginning that it shares with
    the last one; what is computed a token at a time may differ from a prompt in the last bit. Not for several threads
    at once.
    """

    def __init__(self, file: Opened, program: Program, ends: Iterable[int] = ()) -> None:
        """Bind a program that ``check`` has passed to a file; ``ends`` are the ids that end a text."""
        self.file, self.program, self.ends = file, program, frozenset(ends)
        layers = sum(node.operator == "attention" for node in program.nodes)
        self._binding = Binding(file, program, caches=[Cache(program.positions) for _ in range(layers)])
        self._steps = plan(self._binding)
        last = {each: i for i, step in enumerate(self._steps) for each in step.operands}
        self._forgotten = [[value for value in step.operands if last[value] == i] for i, step in enumerate(self._steps)]
        self._last = len(program.nodes) + INPUTS - 1
        self._kept: list[int] = []  # ids whose keys and values are in the caches

    @classmethod
    def of(cls, file: Opened) -> GraphModel:
        """Return the model of a file's graph.

        Raises:
            LoadError: the file has no graph.
            GraphError: the graph is not one of this file.
        """
        if DOCUMENT not in file.documents:
            raise LoadError(f"{file.path}: holds no graph; write one with: aibit graph {file.path} -o OUT")
        try:
            program = parse(file.documents[DOCUMENT])
            check(program, {name: file.info(name) for name in file})
        except GraphError as error:
            raise error.at(f"{file.path}: {DOCUMENT}") from error
        return cls(file, program, _ends(file))

    @property
    def context(self) -> int:
        """Return how many positions a sequence has at most."""
        return self.program.positions

    def can_generate(self) -> bool:
        """Return whether the model continues texts, as all do but encoders."""
        return not any(node.operator == "full_attention" for node in self.program.nodes)

    def __call__(self, input_ids: torch.Tensor) -> Output:
        """Compute logits of all of ids i64 [1, tokens], a sequence of its own."""
        self._kept = []
        logits = self._run(_sequence(input_ids), everything=True)
        self._kept = []
        return Output(logits)

    @torch.inference_mode()
    def _run(self, ids: list[int], everything: bool = False) -> torch.Tensor:
        """Compute logits of ids that follow those whose keys and values are kept."""
        call, first = self._binding.call, len(self._kept)
        if first + len(ids) > self.program.positions:
            raise LoadError(f"{first + len(ids)} tokens, of which the graph takes {self.program.positions}")
        call.tokens, call.first, call.everything = len(ids), first, everything
        values: dict[int, Any] = {0: torch.tensor([ids]), 1: torch.arange(first, first + len(ids))[None]}
        for step, forgotten in zip(self._steps, self._forgotten, strict=True):
            found = step.run(*[values[each] for each in step.operands])
            if len(step.results) == 1:
                values[step.results[0]] = found
            else:
                values.update(zip(step.results, found, strict=True))
            for each in forgotten:
                values.pop(each, None)
        self._kept += ids
        return values[self._last]

    def generate(
        self, input_ids: torch.Tensor, max_new_tokens: int = 128, do_sample: bool = False, temperature: float = 1.0,
        top_k: int = 0, top_p: float = 1.0, eos_token_id: int | Iterable[int] | None = None,
        on_token: Callable[[int], None] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Continue ids i64 [1, tokens]; return them with what follows, at most so many new ones.

        Args:
            do_sample: choose at random, by torch's generator; else the likeliest token.
            temperature, top_k, top_p: of sampling; 0 and 1.0 leave all tokens to choose from.
            eos_token_id: ids after which it ends; None: those of the file.
            on_token: called with each new id.
        """
        if not self.can_generate():
            raise LoadError(f"{self.file.path}: its graph is an encoder's, which does not continue texts; call it")
        ids = _sequence(input_ids)
        ends = self.ends if eos_token_id is None else frozenset(
            [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
        )  # fmt: skip
        sampling = Sampling(do_sample, temperature, top_k, top_p)
        shared = 0
        while shared < min(len(ids) - 1, len(self._kept)) and ids[shared] == self._kept[shared]:
            shared += 1
        self._kept, rest = self._kept[:shared], ids[shared:]
        for _ in range(max_new_tokens):
            ids.append(sampling.choose(self._run(rest)[0, -1]))
            rest = ids[-1:]
            if on_token is not None:
                on_token(ids[-1])
            if ids[-1] in ends:
                break
        return torch.tensor([ids])


def _sequence(input_ids: torch.Tensor) -> list[int]:
    if input_ids.dim() != 2 or len(input_ids) != 1 or not input_ids.numel():
        raise ValueError(f"ids of shape {list(input_ids.shape)}: a graph takes one sequence, [1, tokens]")
    return input_ids[0].tolist()


def _ends(file: Opened) -> set[int]:
    """Return the ids that end a text, of generation_config.json or config.json."""
    for name in ("generation_config.json", "config.json"):
        found = file.check_document(name) if name in file.documents else {}
        ends = found.get("eos_token_id") if isinstance(found, dict) else None
        if ends is not None:
            return {each for each in ([ends] if isinstance(ends, int) else ends) if isinstance(each, int)}
    return set()
