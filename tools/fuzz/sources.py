"""What a converter reads: files that others made, in formats of others."""

from __future__ import annotations

import codecs
import os
import random
from collections.abc import Callable, Mapping
from importlib import import_module

from . import Mutate, archives, bundle, gguf_bytes, json_text, safetensors_bytes
from .mutation import OneOf
from .watch import Watch

_WHY = "only its tensors are wanted here"  # no model: building one of a config is transformers' business


class _Source(bundle.Written):
    """An input written to a folder, opened as a source, and converted.

    What is converted must verify in full and hold, plane by plane, what the source gives.
    """

    name = ""  # of the file that an input is; of a directory, none
    around: Mapping[str, bytes] = {}  # what lies beside it
    opened = ""  # what is opened, by its name in the folder

    def __init__(self) -> None:
        import torch  # noqa: F401 - which takes seconds and memory: not the first input's

        super().__init__()
        from aibit_format.convert import conversion, convert, recipe
        from aibit_format.file.reader import File
        from aibit_format.formats import sources
        from aibit_format.schemes import BUILTIN, make

        for name in BUILTIN:
            make(name)
        for target in sources.BUILTIN.values():
            sources._family(target)
        self._run, self._assign, self._keep = convert.run, conversion.assign_alone, recipe.Recipe.of("keep")
        self._open, self._file = sources.open_source, File
        self._output = os.path.join(self._folder.name, "m.aibit")

    def _come_to(self, files: Mapping[str, bytes]) -> str:
        from aibit_format.errors import AibitError

        try:
            source = self._read(os.path.join(self._inside, self.opened) if self.opened else self._inside)
            source.no_model = _WHY
            plan = self._assign(source, self._keep)
            self._run(plan, self._output, overwrite=True, jobs=1)
        except AibitError as error:
            return self._verdicts.coded(error)
        with self._file(self._output, "full") as file:
            for name in file:
                info, planes = file.info(name), source.planes(name)
                stored = file.planes(info.alias_of or name)
                if info.transposed != source.tensors[name].transposed:  # values, the other way round
                    planes = {"values": planes["values"].T}
                if planes.keys() != stored.keys() or any(
                    planes[role].tobytes() != plane.tobytes() for role, plane in stored.items()
                ):
                    raise ValueError(f"{name}: converted to something else")
            return self._verdicts.inside(file)

    def _read(self, path: str):
        """The source at a path, everything in it looked at once."""
        source = self._open(path)
        for name in source.tensors:
            source.planes(name)
        source.documents  # noqa: B018 - read when it is asked for
        return source

    def _files(self, data: bytes) -> dict[str, bytes]:
        return {**self.around, self.name: data} if self.name else bundle.unpack(data)


class Safetensors(_Source):
    """``model.safetensors``. What the reference implementation accepts too must be the same to it."""

    name = "model.safetensors"
    around = {"config.json": b"{}"}

    def __init__(self) -> None:
        super().__init__()
        import safetensors

        self._reference, self._refused = safetensors.deserialize, safetensors.SafetensorError

    def run(self, data: bytes) -> str:
        found = super().run(data)
        if not found.startswith("AIB-"):
            self._against_reference(data)
        return found

    def seeds(self) -> dict[str, bytes]:
        from . import seeds

        return seeds.safetensors()

    def mutator(self, mutate: Mutate) -> OneOf:
        return _of(safetensors_bytes.changed, mutate)

    def _against_reference(self, data: bytes) -> None:
        from aibit_format.dtypes import DTYPES
        from aibit_format.schemes.packing import pack_plane, unpack_plane

        try:
            theirs = dict(self._reference(data))
        except self._refused:  # such as -0 for 0
            return
        ours = self._open(self._inside)
        if ours.tensors.keys() != theirs.keys():
            raise ValueError("tensors of other names than the reference implementation reads")
        for name, entry in theirs.items():
            if ours.tensors[name].shape != tuple(entry["shape"]):
                raise ValueError(f"{name}: shape {ours.tensors[name].shape}, the reference has {entry['shape']}")
            values, dtype = ours.planes(name)["values"], ours.tensors[name].dtype
            if DTYPES[dtype].is_packed:  # it has no bits between rows
                values = pack_plane(unpack_plane(values, dtype, ours.tensors[name].shape).reshape(-1), dtype)
            if values.tobytes() != bytes(entry["data"]):
                raise ValueError(f"{name}: other bytes than the reference implementation reads")


class GGUF(_Source):
    """A GGUF file."""

    name = opened = "m.gguf"

    def seeds(self) -> dict[str, bytes]:
        from . import seeds

        return seeds.gguf(self._inside)

    def mutator(self, mutate: Mutate) -> OneOf:
        return _of(gguf_bytes.changed, mutate)


class _Pickled(_Source):
    """What holds a pickle: reading it must not get anything imported, run or written."""

    def __init__(self) -> None:
        super().__init__()
        self._watch = None
        codecs.lookup("cp437")  # of old names in ZIP archives, a module of its own
        from aibit_format.formats.huggingface.methods import METHODS

        for target in METHODS.values():  # a config names the method, and the table the module
            import_module(target.partition(":")[0])
        for data in self.seeds().values():  # torch imports much of itself when it is first used
            self.run(data)
        self._watch = Watch()

    def _read(self, path: str):
        if self._watch is None:
            return super()._read(path)
        with self._watch():
            return super()._read(path)

    def seeds(self) -> dict[str, bytes]:
        raise NotImplementedError


class Pickle(_Pickled):
    """``pytorch_model.bin``, as ``torch.save`` writes it today and as it did before 1.6."""

    name = "pytorch_model.bin"
    around = {"config.json": b"{}"}

    def seeds(self) -> dict[str, bytes]:
        from . import seeds

        return seeds.pickles()

    def mutator(self, mutate: Mutate) -> OneOf:
        return _of(archives.pickle_changed, mutate)


class Archive(_Pickled):
    """The ZIP archive of the proof of concept."""

    name = opened = "m.zip"

    def seeds(self) -> dict[str, bytes]:
        from . import seeds

        return seeds.archives()

    def mutator(self, mutate: Mutate) -> OneOf:
        return _of(archives.zip_changed, mutate)


class Checkpoint(_Pickled):
    """A directory: its config, an index of shards, and weights of all kinds, quantized ones too."""

    def seeds(self) -> dict[str, bytes]:
        from . import seeds

        return {name: bundle.pack(files) for name, files in seeds.checkpoints().items()}

    def mutator(self, mutate: Mutate) -> OneOf:
        def content(data: bytes, rng: random.Random) -> bytes:
            """Another content of a file."""
            files = bundle.unpack(data)
            name = rng.choice([*files])
            change = next((f for end, f in _CHANGES.items() if name.endswith(end)), None)
            old = files[name]
            files[name] = change(old, rng, mutate) if change else bytes(mutate(old or b"a", 2 * len(old) + 8))
            return bundle.pack(files)

        def names(data: bytes, rng: random.Random) -> bytes:
            """A file fewer, or under the name of another."""
            files = bundle.unpack(data)
            name = rng.choice([*files])
            moved = files.pop(name)
            if rng.random() < 0.6:
                files[rng.choice([*_NAMES, *files])] = moved
            return bundle.pack(files)

        return OneOf(mutate, [content] * 8 + [names])


class Quantized(Checkpoint):
    """A directory whose weights are quantized in one of the ways of today, by ``quant_method``."""

    def seeds(self) -> dict[str, bytes]:
        from . import quantized_seeds

        return {name: bundle.pack(files) for name, files in quantized_seeds.checkpoints().items()}


class Makers(Checkpoint):
    """A directory as Meta or Mistral publishes its models."""

    def seeds(self) -> dict[str, bytes]:
        from . import makers_seeds

        return {name: bundle.pack(files) for name, files in makers_seeds.checkpoints().items()}


_CHANGES = {
    ".json": json_text.changed, ".safetensors": safetensors_bytes.changed, ".bin": archives.pickle_changed,
    ".pth": archives.pickle_changed,
}  # fmt: skip
_NAMES = (
    "model.safetensors", "pytorch_model.bin", "pytorch_model.pt", "model.pt", "model.safetensors.index.json",
    "quantize_config.json", "generation_config.json", "tokenizer_config.json", "LICENSE", "params.json", "tekken.json",
    "consolidated.safetensors", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model",
)  # fmt: skip


def _of(change: Callable[[bytes, random.Random, Mutate], bytes], mutate: Mutate) -> OneOf:
    return OneOf(mutate, [lambda data, rng: change(data, rng, mutate)])
