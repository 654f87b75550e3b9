"""Several processes that convert one model: the bytes of one process, and what each of them reads.

Run as a program, this is one of the processes: ``python -m tests.file.test_ranks FOLDER``, with the environment
that torchrun makes.
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

import aibit_format as aibit
from aibit_format.errors import AibitError, SourceError, WriteError
from aibit_format.file import ranks, sharded_reader, sharded_writer
from aibit_format.file.reader import File
from aibit_format.file.writer import Writer
from aibit_format.formats.sources import open_source
from tests.support.paths import ROOT

COUNT = 2
SIZE = 200_000

MODEL = ROOT / "fixtures" / "models" / "tiny-llama"


class Watched:
    """A source that remembers which tensors were read, and may lack one."""

    def __init__(self, lacking=None):
        self._source, self.read, self._lacking = open_source(MODEL), [], lacking

    def __getattr__(self, name):
        return getattr(self._source, name)

    def planes(self, name):
        if name == self._lacking:
            raise SourceError(f"{name} cannot be read")
        self.read.append(name)
        return self._source.planes(name)


def message(call):
    """The kind of an error and what it says."""
    with pytest.raises(AibitError) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


def run_rank(folder):
    """One process of COUNT: the model whole, and what happens when one of them fails."""
    import torch.distributed as dist

    from aibit_format.io.hashed_reader import HashedReader

    dist.init_process_group("gloo")
    rank, digested = dist.get_rank(), []
    take = HashedReader.digest
    HashedReader.digest = lambda reader: digested.append(os.path.basename(reader.path)) or take(reader)
    source = Watched()

    def convert(name, source=MODEL, **options):
        return aibit.convert(source, folder / name, distributed=True, **{"max_shard_size": SIZE} | options)

    report = convert("ranks.aibit", source)
    errors = {t.name: t.error and t.error.relative_rms for t in report.tensors}
    found = {
        "read": sorted(set(source.read)), "digested": digested, "root": report.root, "errors": errors,
        "files": report.files,
    }  # fmt: skip
    convert("nf4.aibit", scheme="nf4,nested=1", max_shard_size=10**9)  # one shard: the second process has none
    lacking = next(iter(File(report.files[1])))
    found["lacking"] = message(lambda: convert("lacking.aibit", Watched(lacking)))
    found["one file"] = message(lambda: convert("single.aibit", max_shard_size=None))
    found["options"] = message(lambda: convert("options.aibit", scheme=("int8", "nf4")[rank]))
    found["sizes"] = message(lambda: convert("sizes.aibit", max_shard_size=(SIZE, 2 * SIZE)[rank]))
    found["exists"] = message(lambda: convert("ranks.aibit"))
    publish = Writer.publish

    def fail(writer):
        if "00003-of" in writer.path:  # of rank 0, after its first shard has been finished
            raise WriteError("the disk is gone")
        publish(writer)

    Writer.publish = fail
    found["publishing"] = message(lambda: convert("unpublished.aibit"))
    Writer.publish = publish
    convert("ranks.aibit", overwrite=True)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def start(command, folder):
    """COUNT processes as torchrun starts them; what they printed, and their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(COUNT), "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(COUNT)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return said, [process.returncode for process in processes]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The folder, and what each process found."""
    folder = tmp_path_factory.mktemp("convert")
    said, statuses = start(["-m", __name__, str(folder)], folder)
    assert not any(statuses), "\n".join(error[-3000:] for _, error in said)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(COUNT)]


def test_ranks_write_the_bytes_that_one_process_writes(processes, tmp_path):
    folder, found = processes
    nf4 = {"scheme": "nf4,nested=1", "max_shard_size": "1GB"}
    for name, options in (("ranks", {"max_shard_size": SIZE}), ("nf4", nf4)):
        report = aibit.convert(MODEL, tmp_path / f"{name}.aibit", **options)
        for path in report.files:
            assert (folder / os.path.basename(path)).read_bytes() == pathlib.Path(path).read_bytes()
        if name == "ranks":
            errors = {t.name: t.error and t.error.relative_rms for t in report.tensors}
            assert len(report.files) > 2 * COUNT and all(said["errors"] == errors for said in found)
            assert all(said["root"] == report.root for said in found)
    sharded_reader.open(folder / os.path.basename(found[0]["files"][0]), "full")


def test_each_reads_what_belongs_in_its_shards(processes):
    folder, found = processes
    files = [folder / os.path.basename(path) for path in found[0]["files"]]
    for rank, said in enumerate(found):
        wanted = [name for path in files[rank::COUNT] for name in File(path)]
        assert said["read"] == sorted(wanted)
    source = open_source(MODEL)
    nbytes = [sum(source.tensors[name].nbytes for name in said["read"]) for said in found]
    assert max(nbytes) < 0.7 * sum(nbytes)
    # A digest needs every byte of a file, so one process takes it.
    names = [file.name for file in source.files]
    assert len(names) == 2 and [said["digested"][0] for said in found] == names


def test_one_that_fails_stops_all_and_nothing_stays(processes):
    folder, found = processes
    assert "SourceError" in found[1]["lacking"] and "RankError: rank 1 of 2 has failed" in found[0]["lacking"]
    assert "the disk is gone" in found[0]["publishing"] and "rank 0 of 2 has failed" in found[1]["publishing"]
    for said in found:
        assert "say max_shard_size" in said["one file"] and "exists" in said["exists"]
        assert "are to write different models" in said["options"] and "are to write different models" in said["sizes"]
    kept = {"ranks", "nf4", "0", "1"}
    assert {path.name.split("-0")[0].removesuffix(".json") for path in folder.iterdir()} == kept


def test_the_command_under_torchrun(processes, tmp_path):
    command = ["-m", "aibit_format", "convert", str(MODEL), "-o", "m.aibit"]
    said, statuses = start([*command, "--max-shard-size", f"{SIZE}B"], tmp_path)
    assert statuses == [0, 0] and "in 7 shards" in said[0][0] and said[1][0] == "", said
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (processes[0] / path.name.replace("m-", "ranks-")).read_bytes()
    said, statuses = start(command, tmp_path)
    assert statuses == [2, 2] and all("2 ranks write shards" in err for _, err in said)


def test_a_plan_that_fails_in_one_process_stops_the_command_in_all(tmp_path):
    code = (
        "import os, sys; from aibit_format.cli import entry; "
        f"source = [{str(MODEL)!r}, 'nowhere'][int(os.environ['RANK'])]; "
        f"sys.argv = ['aibit', 'convert', source, '-o', 'm.aibit', '--max-shard-size', '{SIZE}B']; "
        "entry()"  # which ends as the command does: without the libraries' own cleanup
    )
    said, statuses = start(["-c", code], tmp_path)
    assert statuses == [1, 1], said
    assert "rank 1 of 2 has failed" in said[0][1] and "nowhere: no such file" in said[1][1]
    assert not list(tmp_path.iterdir())


def test_alone(tmp_path):
    with pytest.raises(WriteError, match="not initialized"):
        aibit.convert(MODEL, tmp_path / "m.aibit", distributed=True, max_shard_size=SIZE)
    rows = np.arange(6).reshape(3, 2)
    assert ranks.ALONE.share(rows) is rows and list(ranks.ALONE.mine(3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="is not a size"):
        aibit.convert(MODEL, tmp_path / "m.aibit", max_shard_size="much")
    assert sharded_writer.parse_size(SIZE) == SIZE and not list(tmp_path.iterdir())


if __name__ == "__main__":
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    run_rank(pathlib.Path(sys.argv[1]))
