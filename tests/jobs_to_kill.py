"""What ``test_faults`` kills: name -> what makes, of a folder and a source, a job to run and a look at what is there.

``prepare`` imports what the job needs, and starts no thread: the job runs in processes forked afterwards. A job is a
function of no arguments; the look that belongs to it raises whatever is half there, puts everything back, and says in
a word what it found.
"""

import os
import shutil

import numpy as np

from aibit_format import partial, rewrite, shards
from aibit_format.conversion import make_plan, run
from aibit_format.errors import WriteError  # noqa: F401 - for those who run these jobs
from aibit_format.exports import export
from aibit_format.reader import File
from aibit_format.schemes import make
from aibit_format.writer import Tensor, write


def hidden(folder):
    """How many unfinished files or folders there are; each sweeps up those before it."""
    names = [name for name in os.listdir(folder) if name.startswith(".")]
    if len(names) > 1:
        raise RuntimeError(f"left: {names}")
    return ", left over" * len(names)


def apart(job):
    """Have a job done by another process: this one is to have no threads."""
    child = os.fork()
    if not child:
        job()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the job failed")


def new(folder, source):
    """A conversion to a new file."""
    target, plan = os.path.join(folder, "m.aibit"), make_plan(source, "int8")

    def look():
        if hidden(folder):
            raise RuntimeError("a file without a name has left one")
        if not os.path.lexists(target):
            return "absent"
        File(target, "full")
        os.unlink(target)
        return "whole"

    return lambda: run(plan, target), look


def overwrite(folder, source):
    """A conversion over an older file, by which another process has it mapped."""
    target, plan = os.path.join(folder, "m.aibit"), make_plan(source, "int8")
    older, older_plan = os.path.join(folder, "older.aibit"), make_plan(source, "bf16")
    apart(lambda: run(older_plan, older))
    os.link(older, target)
    root = File(older).root

    def look():
        found = File(target, "full").root
        what = "old" if found == root else "new"
        if what == "new":
            os.link(older, again := os.path.join(folder, "again"))
            os.replace(again, target)
        return what + hidden(folder)

    return lambda: run(plan, target, overwrite=True), look


def named(folder, source):
    """The same where every file has a name."""
    partial._nameless = lambda folder: None
    return overwrite(folder, source)


def directory(folder, source):
    """An export to a directory."""
    file, target = os.path.join(folder, "m.aibit"), os.path.join(folder, "out")
    plan, expected = make_plan(source, "int8"), []
    apart(lambda: run(plan, file))

    def job():
        with File(file) as opened:
            export(opened, "huggingface", target)

    def look():
        left = hidden(folder)
        if not os.path.lexists(target):
            return "absent" + left
        names = sorted(os.listdir(target))
        expected[:] = expected or names
        if names != expected:
            raise RuntimeError(f"half there: {names}")
        shutil.rmtree(target)
        return "whole" + left

    return job, look


def cut(folder):
    """A file to cut, and to change."""
    path = os.path.join(folder, "whole.aibit")
    names = [f"t{i}" for i in range(6)]
    tensors = {Tensor(name, (1 << 16,), "f32", make("f32")): {"values": np.ones(1 << 16, "<f4")} for name in names}
    write(path, tensors, {"a.b": 1}, {"a.txt": b"text"})
    return path


def splitting(folder, source):
    """Cutting a file into shards. Those that are there without the first are no model; each is whole."""
    path, target = cut(folder), os.path.join(folder, "m.aibit")
    before = File(path).root

    def look():
        left, shards_there = hidden(folder), sorted(name for name in os.listdir(folder) if name.startswith("m-"))
        for name in shards_there:
            File(os.path.join(folder, name), "full")
        found = "absent" if not shards_there else "without the first"
        if shards_there and "-00001-" in shards_there[0]:
            with shards.open(os.path.join(folder, shards_there[0]), "full") as file:
                if len(file) != 6:
                    raise RuntimeError(f"{len(file)} tensors")
            found = "whole"
        for name in shards_there:
            os.unlink(os.path.join(folder, name))
        if File(path, "full").root != before:
            raise RuntimeError("the source has changed")
        return found + left

    return lambda: rewrite.split(path, target, 1 << 19), look


def one_file(job, older):
    """A file made over an older one, of inputs that stay as they are."""

    def prepared(folder, source):
        path, target = cut(folder), os.path.join(folder, "m.aibit")
        shutil.copy(path, target)
        rewrite.split(path, os.path.join(folder, "s.aibit"), 1 << 19)
        first = next(name for name in sorted(os.listdir(folder)) if name.startswith("s-00001"))
        rewrite.edit(path, target, metadata={"a.b": older}, overwrite=True)
        root = File(target).root

        def look():
            what = "old" if File(target, "full").root == root else "new"
            if what == "new":
                rewrite.edit(path, target, metadata={"a.b": older}, overwrite=True)
            File(path, "full")
            shards.open(os.path.join(folder, first), "full").close()
            return what + hidden(folder)

        return lambda: job(path, os.path.join(folder, first), target), look

    return prepared


merging = one_file(lambda path, first, target: rewrite.merge(first, target, overwrite=True), 7)
editing = one_file(lambda path, first, target: rewrite.edit(path, target, metadata={"a.b": 2}, overwrite=True), 7)

JOBS = {
    "new": new, "overwrite": overwrite, "overwrite, named": named, "export": directory,
    "split": splitting, "merge": merging, "edit": editing,
}  # fmt: skip


def prepare(name, folder, source):
    """(job, look)"""
    return JOBS[name](folder, source)
