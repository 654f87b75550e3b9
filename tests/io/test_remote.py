"""Files read by ranges: over HTTP from a server of our own, and through fsspec."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.cli import main
from aibit_format.errors import SigningError
from aibit_format.file import reader, writer
from aibit_format.io import remote
from aibit_format.schemes import make
from tests.support.signed_files import whole


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Bytes of a file with two megabytes of data, in tensors of a quarter each, and a document."""
    rng, scheme = np.random.default_rng(0), make("int8")
    tensors = {}
    for i in range(8):
        values = rng.standard_normal((256, 1024)).astype(np.float32)
        tensors[writer.Tensor(f"layers.{i}.weight", values.shape, "f32", scheme)] = scheme.encode(values, "f32")
    path = tmp_path_factory.mktemp("remote") / "m.aibit"
    writer.write(path, tensors, {"a.b": 1}, {"config.json": b'{"x": 1}\n', "LICENSE": b"free"})
    return path.read_bytes()


class Handler(BaseHTTPRequestHandler):
    """Serves one content, with ranges; ``asked`` keeps them."""

    content = b""
    tag = '"1"'
    ranges = True
    asked: list[tuple[int, int]] = []

    def do_GET(self):
        cls = type(self)
        if self.path != "/m.aibit":
            self.send_error(404)
            return
        start, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        end = min(end, len(cls.content) - 1)
        cls.asked.append((start, end + 1))
        body = cls.content[start : end + 1] if cls.ranges else cls.content
        self.send_response(206 if cls.ranges else 200)
        if cls.ranges:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(cls.content)}")
        self.send_header("ETag", cls.tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(content):
    Handler.content, Handler.tag, Handler.ranges, Handler.asked = content, '"1"', True, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/m.aibit"
    server.shutdown()
    server.server_close()


def test_a_model_is_listed_with_one_read_and_a_tensor_read_with_one_a_plane(url, content):
    with aibit.open(url) as file, aibit.open(content) as here:
        assert len(Handler.asked) == 1 and file.keys() == here.keys() and file.metadata == here.metadata
        name = "layers.5.weight"
        for role, plane in file.planes(name).items():
            assert np.array_equal(plane, here.planes(name)[role])
        read = sum(end - start for start, end in Handler.asked[1:])
        assert len(Handler.asked) <= 3 and read == here.info(name).planes[0].length
        assert np.array_equal(file.dequantize(name), here.dequantize(name))
        assert bytes(file.documents["config.json"]) == b'{"x": 1}\n' and file.check_document("config.json") == {"x": 1}
        assert file.verify().leaves == here.verify().leaves


def test_a_long_front_matter_takes_two_reads(url, monkeypatch):
    monkeypatch.setattr(remote, "FIRST", 256)
    with aibit.open(url) as file:
        assert len(Handler.asked) == 2 and len(file) == 8 and file.storage.reads == 2


def test_verification_goes_in_chunks(url, content, monkeypatch):
    monkeypatch.setattr(remote.Ranged, "chunk_size", 1 << 20)
    with aibit.open(url, verify="full") as file:
        assert max(end - start for start, end in Handler.asked) <= 1 << 20
        assert file.verified("full").bytes == len(content)
    damaged = bytearray(content)
    damaged[-5] ^= 1
    Handler.content = bytes(damaged)
    with pytest.raises(aibit.FormatError) as caught:
        aibit.open(url, verify="full")
    assert caught.value.code == "AIB-E602"


def test_what_goes_wrong_is_said(url):
    file = aibit.open(url)
    Handler.tag = '"2"'
    with pytest.raises(aibit.FormatError) as caught:
        file.dequantize("layers.1.weight")
    assert caught.value.code == "AIB-E802" and url in str(caught.value)
    Handler.tag, Handler.ranges = '"1"', False
    for wrong, complaint in ((url, "does not give ranges"), (url + "x", "404"), ("http://127.0.0.1:9/m", "refused"),
                             ("nosuch://a/b", "nosuch")):  # fmt: skip
        with pytest.raises(aibit.FormatError, match=complaint) as caught:
            aibit.open(wrong)
        assert caught.value.code == "AIB-E803"


def test_truncated_and_foreign_files_are_refused_as_they_are_on_a_disk(url, content):
    for damaged in (content[:-1], content[:200], b"GGUF" + content, content + b"x"):
        Handler.content = damaged
        with pytest.raises(aibit.FormatError) as there:
            aibit.open(url)
        with pytest.raises(aibit.FormatError) as here:
            aibit.open(damaged)
        assert there.value.code == here.value.code


@pytest.fixture
def ranges(content, monkeypatch):
    """What fsspec was asked for of ``memory://m.aibit``: start and end of each read."""
    from fsspec.implementations.memory import MemoryFileSystem

    with fsspec.open("memory://m.aibit", "wb") as out:
        out.write(content)
    asked, read = [], MemoryFileSystem.cat_file

    def counted(self, path, start=None, end=None, **options):
        asked.append((start, end))
        return read(self, path, start, end, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    return asked


@pytest.mark.parametrize(("first", "reads"), [(remote.FIRST, 1), (256, 2)])
def test_fsspec_lists_with_at_most_two_reads_and_brings_one_layer_alone(first, reads, ranges, content, monkeypatch):
    monkeypatch.setattr(remote, "FIRST", first)
    with aibit.open("memory://m.aibit") as file, aibit.open(content) as here:
        assert file.keys() == here.keys() and dict(file.metadata) == dict(here.metadata)
        assert len(ranges) == reads and max(end for _, end in ranges) <= max(first, here.verified().bytes)
        del ranges[:]
        layer = [name for name in file if name.startswith("layers.6.")]
        for name in layer:
            assert np.array_equal(file.dequantize(name), here.dequantize(name))
        wanted = [(p.offset, p.offset + p.length) for name in layer for p in here.info(name).planes]
        assert ranges and all(any(a <= start and end <= b for a, b in wanted) for start, end in ranges)


def test_fsspec_reads_what_it_knows(content):
    with fsspec.open("memory://m.aibit", "wb") as out:
        out.write(content)
    with aibit.open("memory://m.aibit") as file, aibit.open(content) as here:
        assert file.storage.reads == 1
        assert np.array_equal(file.dequantize("layers.7.weight"), here.dequantize("layers.7.weight"))
        assert isinstance(file, reader.File) and file.verify().leaves == here.verify().leaves


def test_the_command_line_takes_urls(url, capsys):
    assert main(["inspect", url]) == 0 and "layers.7.weight" in capsys.readouterr().out
    assert len(Handler.asked) == 1
    assert main(["verify", url]) == 0


def test_the_reads_of_a_load_are_few_and_bring_little_twice(url, tmp_path):
    rng, scheme = np.random.default_rng(0), make("int8")
    tensors = {}
    for i in range(40):
        values = rng.standard_normal((64, 512)).astype(np.float32)
        tensors[writer.Tensor(f"layers.{i:02}.weight", values.shape, "f32", scheme)] = scheme.encode(values, "f32")
    writer.write(tmp_path / "m.aibit", tensors, {"a.b": 1}, {})
    Handler.content = (tmp_path / "m.aibit").read_bytes()
    with aibit.open(url) as file, aibit.open(Handler.content) as here:
        for name in file:
            for role, plane in file.planes(name).items():
                assert np.array_equal(plane, here.planes(name)[role])
        assert len(Handler.asked) <= 8  # 80 planes
        assert sum(end - start for start, end in Handler.asked) <= 1.1 * len(Handler.content)


def test_a_signature_over_the_whole_file_is_refused_over_a_network(url, content, tmp_path, capsys):
    """The server could send other bytes later than those that the signature was checked on."""
    aibit.new_key(tmp_path / "key")
    Handler.content = whole(content, tmp_path / "key.pem")
    with pytest.raises(SigningError, match="download the file"):
        aibit.open(url, signed_by=tmp_path / "key.pub")
    with aibit.open(url) as file, pytest.raises(SigningError, match="download the file"):
        file.check_signature(tmp_path / "key.pub")
    assert main(["verify", url, "--key", str(tmp_path / "key.pub")]) == 1 and "download" in capsys.readouterr().err


@pytest.fixture
def signed(content, tmp_path):
    """The content, signed over its front matter by ``key``."""
    aibit.new_key(tmp_path / "key")
    (tmp_path / "m.aibit").write_bytes(content)
    aibit.sign(tmp_path / "m.aibit", tmp_path / "key.pem", tmp_path / "signed.aibit")
    return (tmp_path / "signed.aibit").read_bytes()


def test_a_signed_file_is_read_by_ranges_and_what_is_used_is_what_was_checked(url, signed, content, tmp_path, capsys):
    Handler.content = signed
    with aibit.open(url, signed_by=tmp_path / "key.pub") as file, aibit.open(content) as here:
        assert len(Handler.asked) == 1 and file.signed_by
        for name in here:
            assert np.array_equal(file.dequantize(name), here.dequantize(name))
        assert bytes(file.documents["LICENSE"]) == b"free"
        assert len(Handler.asked) <= 5
        # The server gives other bytes, now that all of them were checked once.
        file.storage._kept = ()
        Handler.content = signed[:-1] + bytes([signed[-1] ^ 1])
        last = here.keys()[-1]
        for use in (file.planes, file.dequantize):
            with pytest.raises(aibit.FormatError) as caught:
                use(last)
            assert caught.value.code == "AIB-E602"
    assert main(["verify", url, "--key", str(tmp_path / "key.pub")]) == 3 and "E602" in capsys.readouterr().out
    Handler.content = signed
    assert main(["verify", url, "--key", str(tmp_path / "key.pub")]) == 0


def test_a_range_of_rows_is_checked_too(url, signed, tmp_path):
    Handler.content = signed
    with aibit.open(url, signed_by=tmp_path / "key.pub") as file:
        plane = file.info("layers.7.weight").planes[0]
        part = dataclasses.replace(plane, shape=(2, 1024), offset=plane.offset + 252 * 1024, length=2048)
        assert np.array_equal(file.view(part), file.planes("layers.7.weight")[plane.role][252:254])
        file.storage._kept = ()
        Handler.content = signed[:-1] + bytes([signed[-1] ^ 1])  # in the same leaf, outside of these rows
        with pytest.raises(aibit.FormatError, match="AIB-E602"):
            file.view(part)


@pytest.mark.parametrize(
    ("failure", "complaint"),
    [(lambda: time.sleep(5), "no answer"), (lambda: 1 / 0, "division"), (lambda: bytes(1 << 20), "more than")],
    ids=["hangs", "fails", "gives-more"],
)
def test_a_file_system_that_misbehaves_is_an_error(failure, complaint, ranges, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(remote.http_ranges, "PATIENCE", 0.2)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *_, **__: failure())
    with pytest.raises(aibit.FormatError, match=complaint) as caught:
        aibit.open("memory://m.aibit")
    assert caught.value.code == "AIB-E803"
