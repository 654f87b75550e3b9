"""A file's planes brought to one allocation: every byte, every way it can go wrong, without a GPU.

``Late`` stands for a GPU's link at its laziest: what is sent leaves its slot only when somebody waits for it. A thread
that fills a slot too early spoils what is still in there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time

import architectures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import aibit_format as aibit
from aibit_format import schemes
from aibit_format.container.layout import LEAF
from aibit_format.container.placement import Region
from aibit_format.container.tables import Plane
from aibit_format.errors import FormatError
from aibit_format.file import device_stream, writer
from aibit_format.file.reader import File
from aibit_format.io.mapped import Mapped
from aibit_format.torch.load import arena
from aibit_format.torch.load.arena import Arena, Memory

CPU = torch.device("cpu")
SMALL = device_stream.Ring(threads=3, slots=4, piece=LEAF)


class Late:
    """To memory of this machine, as late as a link may."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target, self.slots = target.numpy(), []

    def slot(self, size: int) -> LateSlot:
        self.slots.append(LateSlot(self, size))
        return self.slots[-1]

    def finish(self) -> None:
        for slot in self.slots:
            slot.wait()


class LateSlot:
    def __init__(self, link: Late, size: int) -> None:
        self.link, self.sent = link, None
        self.memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)

    def wait(self) -> None:
        if self.sent is not None:
            first, count, at = self.sent
            self.link.target[at : at + count] = self.memory[first : first + count]
            self.sent = None

    def send(self, first: int, count: int, at: int) -> None:
        assert self.sent is None
        self.sent = first, count, at


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """The arena for a CPU, too: models here are loaded as they are for a GPU."""
    monkeypatch.setitem(arena.LINKS, "cpu", Late)


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("aibit-stream")]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Some 9 MiB in tensors of many sizes and schemes, on a disk and not in memory, if the system forgets it."""
    rng = np.random.default_rng(0)
    tensors = {}
    for i, (scheme, shape) in enumerate([
        ("int8", (1024, 2048)), ("f32", (3,)), ("nf4", (640, 1024)), ("int8", (900, 1000)), ("nf4-cpu", (1024, 1024)),
        ("f16", (2000, 999)), ("f32", ()), ("nf4,nested=1", (64, 64)), ("int8-zp,group=64", (512, 512)), ("u8", (0, 3)),
        ("f16", (500, 333)),
    ]):  # fmt: skip
        made = schemes.parse(scheme)
        dtype = scheme if scheme in ("f32", "f16", "u8") else "f16"
        values = rng.standard_normal(shape).astype({"f32": np.float32, "f16": np.float16, "u8": np.uint8}[dtype])
        tensors[writer.Tensor(f"t{i}", shape, dtype, made)] = made.encode(values, dtype)
    target = tmp_path_factory.mktemp("arena") / "m.aibit"
    writer.write(target, tensors)
    return target


def forget(path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def every(file: File) -> list[Plane]:
    return [plane for name in file for plane in file.info(name).planes]


def assert_equal(filled: Arena, file: File, planes: list[Plane]) -> None:
    for plane in planes:
        found = filled.view(plane)
        assert found.shape == plane.shape
        assert found.cpu().flatten().view(torch.uint8).numpy().tobytes() == file.view(plane).tobytes()


@pytest.mark.parametrize("link", [Late, Memory])
@pytest.mark.parametrize("level", ["structure", "touched"])
def test_everything_is_one_stretch_and_every_byte_the_files(link, level, path, monkeypatch):
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


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_ring_and_any_choice_of_planes(path, data):
    threads = data.draw(st.integers(1, 9), "threads")
    slots = threads + data.draw(st.integers(0, 9), "slots")
    ring = device_stream.Ring(threads, slots, LEAF * data.draw(st.integers(1, 5), "leaves"))
    file = aibit.open(path, verify=data.draw(st.sampled_from(["structure", "touched"])))
    planes = data.draw(st.lists(st.sampled_from(every(file))))
    if data.draw(st.booleans(), "cold") and hasattr(os, "posix_fadvise"):
        forget(path)
    filled = Arena(file, planes, CPU, ring)
    assert_equal(filled, file, planes)
    wanted = sum(length for _, length in {(plane.offset, plane.length) for plane in planes})
    assert filled.layout.size <= wanted + len(planes) * (device_stream._GAP + 2 * device_stream.PAGE)
    assert not threads_left()


ROW = st.tuples(st.integers(0, 1 << 16), st.integers(1, 1 << 18))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(ROW, max_size=20), st.sampled_from([0, 64, 4096, 5 << 19]), st.integers(1, 3),
    st.sampled_from([LEAF, device_stream.PAGE]), st.integers(0, 1 << 20),
)  # fmt: skip
def test_pieces_cover_the_stretches_once_and_are_whole_units(rows, start, leaves, unit, more):
    planes, at = [], start
    for gap, length in rows:
        at += gap // 64 * 64
        planes.append(Plane("values", "u8", (length,), at, length))
        at += -(-length // 64) * 64
    region = Region(start, max([start, *(plane.offset + plane.length for plane in planes)]) + more, 0)
    layout, size = device_stream.ArenaLayout.of(planes, region), leaves * LEAF
    pieces = list(layout.pieces(region, size, unit))
    assert sum(piece.count for piece in pieces) == sum(s.end - s.start for s in layout.chunks)
    covered = np.zeros(layout.size, np.uint8)
    for piece in pieces:
        assert 0 < piece.length <= size and piece.first + piece.count <= piece.length
        assert (piece.offset - start) % unit == 0
        assert piece.length % unit == 0 or piece.offset + piece.length == region.end
        assert layout.place(piece.offset + piece.first, piece.count) == piece.at
        covered[piece.at : piece.at + piece.count] += 1
    assert covered.max(initial=0) <= 1
    for plane in planes:
        place = layout.place(plane.offset, plane.length)
        assert place is not None and (place - (plane.offset - start)) % device_stream.PAGE == 0
        assert covered[place : place + plane.length].all()
    for before, after in zip(layout.chunks, layout.chunks[1:], strict=False):
        assert after.start - before.end >= device_stream._GAP


def test_what_was_not_asked_for_is_not_there(path):
    file = aibit.open(path)
    codes, _ = file.info("t0").planes
    filled = Arena(file, [codes], CPU)
    elsewhere = file.info("t5").planes[0]
    assert codes in filled and elsewhere not in filled and file.info("t9").planes[0] in filled
    with pytest.raises(KeyError, match="not in the arena"):
        filled.view(elsewhere)
    assert Arena(file, [], CPU).memory.numel() == 0


@pytest.mark.parametrize("ring", [(0, 1, LEAF), (2, 1, LEAF), (1, 1, 4096), (1, 1, LEAF + 4096)])
def test_rings_that_cannot_work_are_refused(ring):
    with pytest.raises(ValueError, match="whole leaves"):
        device_stream.Ring(*ring)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="needs direct reads")
def test_what_is_not_in_memory_is_read_around_the_page_cache(path):
    file = aibit.open(path)
    bulk, expected = file.info("t0").planes[0].offset, path.read_bytes()
    source = device_stream.DirectReader(file.storage, bulk)
    memory = np.frombuffer(mmap.mmap(-1, LEAF), np.uint8)

    def read(offset: int, length: int) -> bool:
        direct = source.read(offset, length, memory)
        assert memory[:length].tobytes() == expected[offset : offset + length]
        return direct

    assert not read(bulk, LEAF)  # it is in memory
    forget(path)
    if source._direct is None or device_stream.is_resident(source._probe, bulk, LEAF):
        pytest.skip("this file system has no direct reads, or always keeps its files in memory")
    tail = len(expected) // device_stream.PAGE * device_stream.PAGE  # what begins there ends in the middle of a page
    for offset, length, direct in [
        (bulk, LEAF, True), (bulk + LEAF, 777, True), (tail, len(expected) - tail, True),
        (bulk - device_stream.PAGE, device_stream.PAGE, False),  # will be looked at on the host
        (bulk + 64, device_stream.PAGE, False),  # does not begin at a page
    ]:  # fmt: skip
        for _ in range(20):  # a page that is just being read, as one that was asked for may be, is not forgotten
            forget(path)
            if read(offset, length) == direct:
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"{length} bytes at {offset}: expected direct={direct}")
    source.close()


@pytest.mark.parametrize("step", [1, 1000, 70000])
def test_short_reads_are_continued(step, path, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, *rest: preadv(file, [memoryview(buffers[0])[:step]], *rest))
    file = aibit.open(path)
    planes = file.info("t7").planes if step == 1 else every(file)
    assert_equal(Arena(file, planes, CPU, SMALL), file, list(planes))


def test_a_direct_read_that_the_file_system_refuses_goes_the_other_way(path, monkeypatch):
    preadv = os.preadv
    monkeypatch.setattr(device_stream, "is_resident", lambda *_: False)
    file = aibit.open(path)
    source = device_stream.DirectReader(file.storage)

    def refuse(descriptor, buffers, *rest):
        if descriptor == source._direct:
            raise OSError(22, "Invalid argument")
        return preadv(descriptor, buffers, *rest)

    monkeypatch.setattr(os, "preadv", refuse)
    memory = np.zeros(LEAF, np.uint8)
    start = file.data.start
    assert not source.read(start, LEAF, memory)
    assert memory.tobytes() == path.read_bytes()[start : start + LEAF]
    source.close()


@pytest.mark.parametrize("where", [0, 1, -1])
def test_damage_is_found_on_the_way_and_named(where, path, tmp_path):
    data = bytearray(path.read_bytes())
    file = aibit.open(path)
    plane = [p for name in ("t0", "t4") for p in file.info(name).planes][where]
    name = "t4" if where == -1 else "t0"
    data[plane.offset + plane.length // 2] ^= 1
    (tmp_path / "bad.aibit").write_bytes(data)
    bad = aibit.open(tmp_path / "bad.aibit", verify="touched")
    with pytest.raises(FormatError) as found:
        Arena(bad, every(bad), CPU, SMALL)
    first = bad.data.start + (plane.offset + plane.length // 2 - bad.data.start) // LEAF * LEAF
    assert found.value.code == "AIB-E602" and found.value.offset == first
    assert found.value.path == str(tmp_path / "bad.aibit") and (found.value.tensor == name or where != 0)
    assert not threads_left()
    unchecked = aibit.open(tmp_path / "bad.aibit")
    assert_equal(Arena(unchecked, every(unchecked), CPU, SMALL), unchecked, every(unchecked))


def test_leaves_that_were_checked_on_the_way_are_not_hashed_again(path, monkeypatch):
    file = aibit.open(path, verify="touched")
    Arena(file, every(file), CPU, SMALL)
    monkeypatch.setattr("aibit_format.container.checksums.leaves", lambda *_, **__: pytest.fail("hashed again"))
    for name in file:
        file.planes(name)


def test_a_file_that_is_cut_meanwhile_ends_in_an_error_and_not_in_waiting(path, tmp_path, monkeypatch):
    copy = tmp_path / "m.aibit"
    copy.write_bytes(path.read_bytes())
    file = aibit.open(copy)
    read = device_stream.DirectReader.read

    def cut(self, offset, length, memory):
        os.truncate(copy, file.data.start + LEAF)
        return read(self, offset, length, memory)

    monkeypatch.setattr(device_stream.DirectReader, "read", cut)
    with pytest.raises(FormatError, match="ends earlier") as found:
        Arena(file, every(file), CPU, SMALL)
    assert found.value.code == "AIB-E802" and not threads_left()


def test_a_file_that_is_changed_meanwhile_is_refused(path, tmp_path, monkeypatch):
    copy = tmp_path / "m.aibit"
    copy.write_bytes(path.read_bytes())
    file = aibit.open(copy)
    read = device_stream.DirectReader.read

    def change(self, offset, length, memory):
        os.utime(copy, ns=(1, 1))
        return read(self, offset, length, memory)

    monkeypatch.setattr(device_stream.DirectReader, "read", change)
    with pytest.raises(FormatError) as found:
        Arena(file, every(file), CPU, SMALL)
    assert found.value.code == "AIB-E802"


def test_an_error_of_the_disk_names_the_file(path, monkeypatch):
    file = aibit.open(path)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(FormatError, match="Input/output error") as found:
        Arena(file, every(file), CPU, SMALL)
    assert found.value.code == "AIB-E803" and found.value.path == str(path) and not threads_left()


@pytest.mark.parametrize("method", ["slot", "wait", "send", "finish"])
def test_errors_of_the_link_come_out_and_threads_end(method, path, monkeypatch):
    class Broken(Late):
        pass

    def fail(*_):
        raise RuntimeError("the bus is gone")

    monkeypatch.setattr(LateSlot if method in ("wait", "send") else Broken, method, fail)
    monkeypatch.setitem(arena.LINKS, "cpu", Broken)
    file = aibit.open(path)
    with pytest.raises(RuntimeError, match="the bus is gone"):
        Arena(file, every(file), CPU, SMALL)
    assert not threads_left()


def test_what_is_under_way_arrives_before_an_error_comes_out(path, monkeypatch):
    """The device may still be reading a slot: it must not be let go before that."""
    finished = []
    monkeypatch.setattr(Late, "finish", lambda self: finished.append(True))
    monkeypatch.setattr(device_stream.DirectReader, "read", lambda *_: 1 / 0)
    file = aibit.open(path)
    with pytest.raises(ZeroDivisionError):
        Arena(file, every(file), CPU, SMALL)
    assert finished == [True]


def test_files_in_memory_and_of_other_systems_take_the_same_way(path, monkeypatch):
    data = path.read_bytes()
    file = aibit.open(data, verify="touched")
    assert_equal(Arena(file, every(file), CPU, SMALL), file, every(file))
    monkeypatch.delattr(os, "preadv")
    mapped = aibit.open(path)
    assert isinstance(mapped.storage, Mapped)
    assert_equal(Arena(mapped, every(mapped), CPU, SMALL), mapped, every(mapped))


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

    monkeypatch.setattr("aibit_format.torch.load.model.Arena", Kept)
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


def test_tiles_are_for_a_cpu_alone(tmp_path):
    from aibit_format.torch.load.modules import Target, planes_for

    architectures.save("llama-untied", tmp_path / "hf", torch.bfloat16)
    aibit.convert(tmp_path / "hf", tmp_path / "m.aibit", scheme="nf4-cpu")
    info = aibit.open(tmp_path / "m.aibit").info("model.layers.0.mlp.up_proj.weight")
    assert [plane.role for plane in planes_for(info, Target(torch.device("cuda")))] == ["codes", "absmax"]
    assert planes_for(info, Target(CPU)) == info.planes


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
