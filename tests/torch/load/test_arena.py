"""A file's planes brought to one allocation: every byte, every way it can go wrong, without a GPU.

``Late`` stands for a GPU's link at its laziest: what is sent leaves its slot only when somebody waits for it. A thread
that fills a slot too early spoils what is still in there.
"""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from torch import nn

import aibit_format as aibit
from aibit_format.container.layout import LEAF
from aibit_format.errors import FormatError
from aibit_format.file import device_stream
from aibit_format.file.reader import File
from aibit_format.torch.load import arena
from aibit_format.torch.load.arena import Arena, Memory
from tests.support import architectures
from tests.support.arenas import CPU, SMALL, Late, assert_equal, every
from tests.support.arenas import on_a_cpu as on_a_cpu
from tests.support.arenas import path as path


@pytest.mark.parametrize("link", [Late, Memory])
@pytest.mark.parametrize("level", ["structure", "touched"])
def test_everything_is_one_chunk_and_every_byte_the_files(link, level, path, monkeypatch):
    monkeypatch.setitem(arena.LINKS, "cpu", link)
    file = aibit.open(path, verify=level)
    planes = every(file)
    filled = Arena(file, planes, CPU, SMALL)
    assert len(filled.layout.chunks) == 1
    assert filled.layout.size - (file.data.end - file.data.start) in range(device_stream.PAGE)
    assert_equal(filled, file, planes)
    # The layout in the file is the layout on the device.
    assert all(filled.layout.place(p.offset, p.length) == p.offset - file.data.start for p in planes if p.length)
    assert filled.streamed.read == file.data.end - file.data.start


def test_planes_are_views_of_the_arena(path):
    file = aibit.open(path)
    filled = Arena(file, every(file), CPU)
    start, end = filled.memory.data_ptr(), filled.memory.data_ptr() + filled.memory.numel()
    for plane in every(file):
        view = filled.view(plane)
        assert not plane.length or (start <= view.data_ptr() and view.data_ptr() + view.nbytes <= end)
        assert view.untyped_storage().data_ptr() == start
    filled.memory.fill_(1)
    assert filled.view(file.info("t0").planes[0]).eq(1).all()


def test_what_was_not_asked_for_is_not_there(path):
    file = aibit.open(path)
    codes, _ = file.info("t0").planes
    filled = Arena(file, [codes], CPU)
    elsewhere = file.info("t5").planes[0]
    assert codes in filled and elsewhere not in filled and file.info("t9").planes[0] in filled
    with pytest.raises(KeyError, match="not in the arena"):
        filled.view(elsewhere)
    assert Arena(file, [], CPU).memory.numel() == 0


def test_it_can_be_filled_in_inference_mode(path):
    file = aibit.open(path)
    with torch.inference_mode():
        filled = Arena(file, every(file), CPU, SMALL)
    assert not filled.memory.is_inference()
    assert_equal(filled, file, every(file))


# The link of a GPU, over a device that is simulated: work is queued, and done when somebody waits for it, in order.


class Simulated:
    """What ``arena`` uses of ``torch.cuda``."""

    def __init__(self) -> None:
        simulation, self.here, self.log = self, threading.local(), []

        class Stream:
            def __init__(self, device: torch.device) -> None:
                self.queue, self.done, self.lock, self.waits_for = [], 0, threading.Lock(), []

            def wait_stream(self, other) -> None:
                self.waits_for.append(other)

            def synchronize(self) -> None:
                self.work_off(len(self.queue))

            def work_off(self, count: int) -> None:
                with self.lock:
                    for work in self.queue[self.done : count]:
                        work()
                    self.done = max(self.done, count)

        class Event:
            def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
                self.recorded = None

            def record(self, stream) -> None:
                self.recorded = stream, len(stream.queue)

            def synchronize(self) -> None:
                if self.recorded is not None:
                    stream, count = self.recorded
                    stream.work_off(count)

        @contextlib.contextmanager
        def stream_of(stream):
            simulation.here.stream = stream
            yield
            del simulation.here.stream

        self.Stream, self.Event, self.stream = Stream, Event, stream_of
        self.default = Stream(CPU)
        self.current_stream = lambda device: self.default


class OnDevice:
    """A tensor of the simulated device: copies to it are queued on the stream that is current."""

    def __init__(self, tensor: torch.Tensor, cuda: Simulated) -> None:
        self.tensor, self.cuda, self.device = tensor, cuda, tensor.device

    def __getitem__(self, place: slice) -> OnDevice:
        return OnDevice(self.tensor[place], self.cuda)

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> None:
        assert non_blocking
        stream = self.cuda.here.stream  # the default one would be in the way of other work
        with stream.lock:
            stream.queue.append(lambda: self.tensor.copy_(source))


@pytest.mark.parametrize("ring", [SMALL, device_stream.Ring(1, 1, LEAF), device_stream.Ring(8, 16, LEAF)], ids=str)
def test_the_link_of_a_gpu_waits_for_what_it_must(ring, path, monkeypatch):
    cuda, links, pinned, empty = Simulated(), [], [], torch.empty

    def of_memory(*arguments, pin_memory=False, **options):
        pinned.extend(arguments if pin_memory else [])
        return empty(*arguments, **options)

    def linked(target: torch.Tensor) -> arena.Cuda:
        links.append(arena.Cuda(OnDevice(target, cuda)))
        return links[-1]

    file = aibit.open(path)
    with monkeypatch.context() as patch:
        for name in ("Stream", "Event", "stream", "current_stream"):
            patch.setattr(torch.cuda, name, getattr(cuda, name))
        patch.setattr(torch, "empty", of_memory)
        patch.setitem(arena.LINKS, "cpu", linked)
        filled = Arena(file, every(file), CPU, ring)
    assert_equal(filled, file, every(file))
    (link,) = links
    assert link.stream.waits_for == [cuda.default] and not cuda.default.queue
    pieces = -(-filled.layout.size // LEAF)
    assert len(link.stream.queue) == link.stream.done == pieces
    assert set(pinned) == {LEAF} and len(pinned) <= ring.slots


# Models


def inside(model: nn.Module, memory: torch.Tensor) -> list[str]:
    """Names of parameters, and of what bitsandbytes keeps beside them, that are not views of the arena."""
    start, end = memory.data_ptr(), memory.data_ptr() + memory.numel()
    held = dict(model.named_parameters())
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        held |= {f"{name}.{key}": value for key, value in (
            ("SCB", getattr(weight, "SCB", None)), ("CB", getattr(weight, "CB", None)),
            ("absmax", getattr(state, "absmax", None)), ("offset", getattr(state, "offset", None)),
            ("nested", getattr(getattr(state, "state2", None), "absmax", None)),
        ) if value is not None}  # fmt: skip
    return [name for name, t in held.items() if not (start <= t.data_ptr() and t.data_ptr() + t.nbytes <= end)]


@pytest.fixture
def arenas(monkeypatch):
    """The arenas that loading makes."""
    made = []

    class Kept(Arena):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("aibit_format.torch.load.build.Arena", Kept)
    return made


@pytest.mark.parametrize("scheme", ["int8", "nf4", "nf4,nested=1", "fp4", "int8-absmax", "int4-group,group=32", "bf16"])
@pytest.mark.parametrize("name", ["llama-untied", "llama-tied", "gpt2"])
def test_a_model_over_the_arena_equals_one_over_the_mapping(name, scheme, tmp_path, arenas, monkeypatch):
    architectures.save(name, tmp_path / "hf", torch.bfloat16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=scheme)
    model = aibit.load_model(tmp_path / "m.aibit")
    (filled,) = arenas
    assert inside(model, filled.memory) == []
    assert len(filled.layout.chunks) == 1
    found = architectures.output(model, name)
    monkeypatch.delitem(arena.LINKS, "cpu")
    mapped = aibit.load_model(tmp_path / "m.aibit")
    assert len(arenas) == 1 and inside(mapped, filled.memory) != []
    assert torch.equal(found, architectures.output(mapped, name)) and found.isfinite().all()
    if name == "llama-untied" and scheme == "int8":
        model.save_pretrained(tmp_path / "again")  # tensors of one allocation are not taken for tied ones
        again = type(model).from_pretrained(tmp_path / "again", device_map={"": "cpu"}).eval()
        assert torch.equal(architectures.output(again, name), found)


def test_what_is_cast_or_decoded_is_not_brought(tmp_path, arenas):
    architectures.save("llama-untied", tmp_path / "hf")  # computes in float32
    tensors = {r"embed": "cluster,bits=4", r"lm_head": "bf16", r"layers\.0\.mlp": "gguf:q8_0"}
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", tensors=tensors)
    file = aibit.open(tmp_path / "m.aibit")
    model = aibit.load_model(file)
    (filled,) = arenas
    (head,) = file.info("lm_head.weight").planes
    assert filled.layout.place(head.offset, head.length) is None or head.length < device_stream._GAP
    assert model.lm_head.weight.dtype == torch.float32
    assert architectures.output(model, "llama-untied").isfinite().all()


@pytest.mark.parametrize("through", ["path", "file", "both"])
def test_full_verification_hashes_what_passes_and_then_the_rest(through, tmp_path, arenas, monkeypatch):
    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    path = tmp_path / "m.aibit"
    aibit.convert(tmp_path / "hf", path, scheme="nf4")
    file = aibit.open(path)
    assert aibit.load_model(path, verify="full") is not None
    assert arenas[0].streamed.read == file.data.end - file.data.start
    places = {
        "data": next(p for p in file.info("model.layers.1.mlp.up_proj.weight").planes).offset + 5,
        "document": next(iter(file.tables.documents.values())).offset + 1,
    }
    for at in places.values():
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        (tmp_path / "bad.aibit").write_bytes(data)
        with pytest.raises(FormatError) as found:
            load = aibit.load if through == "both" else aibit.load_model
            load(File(tmp_path / "bad.aibit", "full") if through == "file" else tmp_path / "bad.aibit", verify="full")
        assert found.value.code == "AIB-E602"
    # Whatever the level, scales are looked at before anything computes with them.
    assert aibit.load_model(path, verify="touched") is not None


@pytest.mark.gpu
@pytest.mark.parametrize("verify", ["structure", "touched", "full"])
@pytest.mark.parametrize("scheme", ["int8", "nf4", "nf4,nested=1", "nf4-cpu", "int8-absmax", "bf16"])
def test_on_a_gpu_parameters_are_views_of_one_allocation(scheme, verify, tmp_path, arenas):
    architectures.save("llama-untied", tmp_path / "hf", torch.float16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme=scheme)
    file = aibit.open(tmp_path / "m.aibit")
    model = aibit.load_model(tmp_path / "m.aibit", device="cuda", verify=verify)
    (filled,) = arenas
    assert inside(model, filled.memory) == []
    assert_equal(filled, file, [plane for plane in every(file) if plane in filled])
    batch = {key: value.cuda() for key, value in architectures.inputs("llama-untied").items()}
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()


@pytest.mark.gpu
def test_on_a_gpu_bytes_arrive_whatever_the_ring(path):
    file = aibit.open(path, verify="touched")
    for ring in (SMALL, *(device_stream.Ring(*each) for each in ((1, 1, LEAF), (8, 8, LEAF), (2, 9, 3 * LEAF)))):
        assert_equal(Arena(file, every(file), torch.device("cuda", 0), ring), file, every(file))
