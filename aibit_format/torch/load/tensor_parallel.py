"""Loads a model on several ranks: each reads its rows of the weights that transformers' tensor-parallel plan names.

The plan cuts some weights by rows (outputs) and some by columns (inputs). Here all are cut by rows: a rank's rows are
one stretch of a file's bytes, in every scheme, and on a CPU still views of the mapping. What the plan cuts by columns
takes its input gathered from the ranks, and its output is gathered in turn, where otherwise one sum over the ranks
would do. So no sum is split: each output is computed by one rank as one process would compute it, LLM.int8's scales of
the inputs among the rest. Outputs are equal, but where a library takes another kernel for fewer rows: bitsandbytes
does for nf4 on a CPU with AVX512-BF16, if a rank's rows are no multiple of 32.

Fused experts are divided, where transformers has a plan for that: a rank has some of them whole, and computes those for
the tokens that are routed to them. What the ranks found is added up, in float32 and in another order than one process
would: outputs are equal within roundings.

Norms, routers and what the plan does not name are whole on every rank; so are embeddings, heads and what would be cut
by columns where their rows do not divide, and experts where their number does not. For inference: no gradient goes from
rank to rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from ...container.tables import TensorInfo
from ...errors import LoadError, told_by
from ...file.sharded_reader import Opened
from ...file.slice_rows import obstacle, slice_rows
from ...hf import compat


@dataclass(frozen=True)
class Style:
    """Says how a Linear takes part: whether its inputs come in parts, one a rank, and whether its outputs stay so."""

    parts_in: bool = False
    parts_out: bool = False


# transformers' names for how a Linear is cut.
LINEAR = {
    "colwise": Style(parts_out=True),
    "colwise_gather_output": Style(),
    "colwise_rep": Style(),
    "rowwise": Style(parts_in=True),
    "rowwise_split_input": Style(),
    "rowwise_rep": Style(),
}
EMBEDDING = frozenset({"embedding_rowwise", "embedding_colwise"})
EXPERTS = "moe_tp_experts"
# What changes nothing where the module is whole on every rank, and no gradient is wanted.
WHOLE = frozenset({
    "replicate", "replicated_with_grad_allreduce", "mla_kv_a_proj", "local_params", "moe_identity_expert", EXPERTS,
})  # fmt: skip
# Linears whose outputs are heads, if the module around them says how wide a head is: none may be cut in two.
HEADS = frozenset({"q_proj", "k_proj", "v_proj"})


@dataclass(frozen=True)
class RankGroup:
    """Names the processes that hold one model together, and which of them this is."""

    group: Any  # torch's process group; None: all processes
    rank: int
    count: int

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Gather [..., part] from each rank: [..., all parts], in the order of the ranks, on all."""
        _refuse_gradients(x)
        mine = x.contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(parts, mine, group=self.group)
        return torch.cat(parts, -1)

    def add(self, x: torch.Tensor) -> torch.Tensor:
        """Add up what the ranks have, on all of them, in the place of ``x``."""
        _refuse_gradients(x)
        dist.all_reduce(x, group=self.group)
        return x


def _refuse_gradients(x: torch.Tensor) -> None:
    if x.requires_grad:
        raise LoadError("tp: a model on several ranks is for inference, no gradient passes between them")


def ranks_of(tp: Any) -> RankGroup:
    """Return the ranks that ``tp`` stands for; see ``load_model``.

    Raises:
        LoadError: torch.distributed is not initialized, there are more or fewer processes, or this is none of them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise LoadError(
            f"tp={tp!r}: torch.distributed is not initialized: start the processes with torchrun and call "
            "torch.distributed.init_process_group() before loading"
        )
    group = None
    try:
        if isinstance(tp, dist.ProcessGroup):
            group = tp
        elif hasattr(tp, "get_group"):
            group = tp.get_group("tp") if tp.ndim > 1 else tp.get_group()
        elif tp != "auto" and type(tp) is not int:
            raise LoadError(f"tp={tp!r}: 'auto', the number of processes, a process group or a device mesh")
        rank, count = dist.get_rank(group), dist.get_world_size(group)
    except (KeyError, RuntimeError, ValueError) as error:
        raise LoadError(f"tp={tp!r}: {told_by(error)}") from error
    if type(tp) is int and tp != count:  # what torch gives to who is not in a new group is an int as well
        raise LoadError(f"tp={tp!r}: there are {count} processes")
    if rank < 0:
        raise LoadError(f"tp={tp!r}: this process is none of the group's")
    return RankGroup(group, rank, count)


class Slices:
    """Holds one rank's share of a model: which rows of which tensors, and what its modules send to other ranks.

    Args:
        file, model: the file, and the empty model that its tensors go to.
        ranks: the processes.

    Raises:
        LoadError: the model has no plan, or one that cannot be followed: an unknown style, rows that do not divide
            among the ranks, a scheme that is not cut there.
    """

    def __init__(self, file: Opened, model: PreTrainedModel, ranks: RankGroup) -> None:
        self.file, self.model, self.ranks = file, model, ranks
        self.plan = compat.TensorParallelPlan(model)
        if not self.plan:
            raise LoadError(f"{file.path}: transformers has no tensor-parallel plan for {type(model).__name__}")
        self.styles = {name: style for name, _ in model.named_modules() if (style := self.plan.style(name)) is not None}
        self.experts = {name: each for name, each in model.named_modules() if self.plan.divides_experts(name)}
        self.rows: dict[str, slice] = {}  # tensor -> its rows here; whole tensors are not listed
        for names, needed in self._wanted():
            problem = next((problem for name in names if (problem := self._problem(name, needed))), "")
            if problem and needed:
                raise self._error(names[0], problem)
            if not problem:
                self.rows |= {name: self._share(name) for name in names}
        for name in file:
            # Tied tensors are one: both are cut, or both whole, as heads and embeddings may be.
            tied = {name, file.info(name).alias_of or name}
            if len(tied & self.rows.keys()) < len(tied):
                owners = {lone.rpartition(".")[0] for lone in tied}
                self.rows = {key: rows for key, rows in self.rows.items() if key.rpartition(".")[0] not in owners}

    def _wanted(self) -> Iterator[tuple[list[str], bool]]:
        """Yield tensors that are to be cut together, and whether they must be because what follows expects parts."""
        for name, style in self.styles.items():
            module = self.model.get_submodule(name)
            names = [f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
            if isinstance(module, nn.Linear) and style in LINEAR:
                yield names, LINEAR[style].parts_out
            elif isinstance(module, nn.Embedding) and style in EMBEDDING:
                yield names, False
            elif style not in WHOLE:
                raise self._error(name, f"style {style!r} of a {type(module).__name__} is not known here")
        for name, module in self.experts.items():
            yield [f"{name}.{leaf}" for leaf, _ in module.named_parameters()], False
        for name, parameter in self.model.named_parameters():
            style, owner = self.plan.style(name), name.rpartition(".")[0]
            if style is None or style in WHOLE or owner in self.experts or self.styles.get(owner) == EXPERTS:
                continue
            if style != "colwise" or parameter.ndim != 1:  # such as a number for each head
                raise self._error(name, f"style {style!r} of a parameter is not known here")
            yield [name], True

    def _share(self, name: str) -> slice:
        rows = self.file.info(name).shape[0] // self.ranks.count
        return slice(self.ranks.rank * rows, (self.ranks.rank + 1) * rows)

    def _problem(self, name: str, needed: bool) -> str:
        """Return why a tensor cannot be cut; empty if it can."""
        if name not in self.file:
            raise self._error(name, "no such tensor in the file")
        info, count = self.file.info(name), self.ranks.count
        owner, _, leaf = name.rpartition(".")[0].rpartition(".")
        width = getattr(self.model.get_submodule(owner), "head_dim", 1) if needed and leaf in HEADS else 1
        if info.shape and info.shape[0] % (count * width) and info.shape[0] % width == 0 and width > 1:
            return f"{info.shape[0] // width} heads do not divide among {count} processes"
        return obstacle(info, count)

    def _error(self, name: str, why: str) -> LoadError:
        return LoadError(f"{self.file.path}: tp: {name}: {why}")

    def read(self, info: TensorInfo) -> tuple[TensorInfo, dict[str, np.ndarray]]:
        """Return the tensor as this rank has it, in the shape and scheme of its rows, and its planes, checked."""
        rows = self.rows.get(info.name)
        if rows is None:
            planes = self.file.planes(info.name)
            self.file.check_values(info, planes)
            return info, planes
        return slice_rows(self.file.part(info.name), info, rows)

    def connect(self) -> None:
        """Make the modules, with their weights placed, send each other what they need."""
        for name, style in self.styles.items():
            module, rows = self.model.get_submodule(name), self.rows.get(f"{name}.weight")
            if style in LINEAR:
                self._connect_linear(module, LINEAR[style], rows)
            elif style in EMBEDDING and rows is not None:
                self._connect_embedding(module, rows)
        for name, module in self.experts.items():
            mine = next((rows for key, rows in self.rows.items() if key.rpartition(".")[0] == name), None)
            if mine is not None:
                self._connect_experts(module, mine)
        compat.set_ranks(self.model, self.ranks.count)
        self.model.save_pretrained = _no_saving  # type: ignore[method-assign]

    def _connect_linear(self, module: Any, style: Style, rows: slice | None) -> None:
        gather = self.ranks.gather
        if style.parts_in:
            module.register_forward_pre_hook(lambda _, args: (gather(args[0]), *args[1:]))
        if rows is None:
            return
        module.out_features = rows.stop - rows.start
        if not style.parts_out:
            module.register_forward_hook(lambda _, args, output: gather(output))

    def _connect_experts(self, module: Any, mine: slice) -> None:
        """Compute the experts that are here for the tokens routed to them, and add up what the ranks found.

        Each pair of a token and an expert is a row of its own, with one expert: so code that knows of no experts
        elsewhere is right, and computes nothing for them.
        """
        compute, add = module.forward, self.ranks.add
        module.num_experts = mine.stop - mine.start

        def forward(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            tokens, places = ((ids >= mine.start) & (ids < mine.stop)).nonzero(as_tuple=True)
            flat = x.reshape(-1, x.shape[-1])
            total = torch.zeros_like(flat, dtype=torch.promote_types(x.dtype, torch.float32))
            if len(tokens):
                chosen = ids[tokens, places, None] - mine.start
                found = compute(flat[tokens], chosen, weights[tokens, places, None])
                total.index_add_(0, tokens, found.to(total.dtype))
            return add(total).to(x.dtype).view(x.shape)

        module.forward = forward

    def _connect_embedding(self, module: Any, rows: slice) -> None:
        """Look up the ids whose rows are here, and add up what the ranks found: one has it, the others zeros."""
        look_up, add, mine = module.forward, self.ranks.add, rows.stop - rows.start
        total = mine * self.ranks.count
        module.num_embeddings, module.padding_idx = mine, None

        def forward(ids: torch.Tensor) -> torch.Tensor:
            # Ids that are in no rank's rows stay as wrong as they are, and are refused below.
            elsewhere = (ids >= 0) & (ids < total) & ((ids < rows.start) | (ids >= rows.stop))
            values = look_up((ids - rows.start).masked_fill(elsewhere, 0))
            return add(values.masked_fill(elsewhere[..., None], 0))

        module.forward = forward


def _no_saving(*_: Any, **__: Any) -> None:
    """Refuse to save: takes the place of ``save_pretrained`` in a cut model."""
    raise LoadError("tp: this process has a part of the model, which cannot be saved; the file has all of it")
