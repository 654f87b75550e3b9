"""What ``test_faults`` kills: name -> what makes, of a folder and a source, a job to run and a look at what is there.

``prepare`` imports what the job needs, and starts no thread: the job runs in processes forked afterwards. A job is a
function of no arguments; the look that belongs to it raises whatever is half there, puts everything back, and says in
a word what it found.
"""

import itertools
import os
import shutil

import numpy as np

from aibit_format.convert.convert import prepare as planned
from aibit_format.convert.convert import run
from aibit_format.convert.recipe import Recipe
from aibit_format.errors import WriteError  # noqa: F401 - for those who run these jobs
from aibit_format.file import rewrite, sharded_reader
from aibit_format.file.reader import File
from aibit_format.file.writer import Tensor, write
from aibit_format.formats.exports import export
from aibit_format.io import atomic
from aibit_format.schemes import make


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
    target, plan = os.path.join(folder, "m.aibit"), planned(source, Recipe.of("int8"))

    def look():
        left = hidden(folder)
        if any(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder) if name.startswith(".")):
            raise RuntimeError("a file without a name has left one")
        if not os.path.lexists(target):
            return "absent" + left
        File(target, "full")
        os.unlink(target)
        return "whole" + left

    return lambda: run(plan, target), look


def overwrite(folder, source):
    """A conversion over an older file, by which another process has it mapped."""
    target, plan = os.path.join(folder, "m.aibit"), planned(source, Recipe.of("int8"))
    older, older_plan = os.path.join(folder, "older.aibit"), planned(source, Recipe.of("bf16"))
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
    atomic._nameless = lambda folder, mode: None
    return overwrite(folder, source)


def directory(folder, source):
    """An export to a directory."""
    file, target = os.path.join(folder, "m.aibit"), os.path.join(folder, "out")
    plan, expected = planned(source, Recipe.of("int8")), []
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


def cut(folder, name="whole", value=1):
    """A file to cut, and to change."""
    path = os.path.join(folder, f"{name}.aibit")
    values = np.full(1 << 16, value, "<f4")
    tensors = {Tensor(f"t{i}", (1 << 16,), "f32", make("f32")): {"values": values} for i in range(6)}
    write(path, tensors, {"a.b": 1}, {"a.txt": b"text"})
    return path


def splitting(folder, source):
    """What cuts one of two files into shards ``m-...``, as many of the one as of the other."""
    paths = [cut(folder, "older", 2), cut(folder)]
    target = os.path.join(folder, "m.aibit")
    return lambda which, overwrite: rewrite.split(paths[which], target, 1 << 18, overwrite=overwrite)


def converting(folder, source):
    """What converts to such shards, in one of two ways."""
    plans = [planned(source, Recipe.of(scheme)) for scheme in ("int8-absmax", "int8")]
    target = os.path.join(folder, "m.aibit")
    return lambda which, overwrite: run(plans[which], target, overwrite, max_shard_size=1 << 18)


def shards_there(folder):
    """The shards and whatever is called after them."""
    return sorted(name for name in os.listdir(folder) if name.startswith("m-"))


def root_of(first):
    """The root of a model of several shards, all of it verified."""
    with sharded_reader.open(first, "full") as file:
        if len(file) < 6 or len(file.parts) < 4:
            raise RuntimeError(f"{len(file)} tensors in {len(file.parts)} shards")
        return file.root


def several(maker):
    """Shards where there are none. Those that are there without the first are no model; each is whole."""

    def prepared(folder, source):
        make_shards = maker(folder, source)

        def look():
            left, names = hidden(folder), shards_there(folder)
            for name in names:
                File(os.path.join(folder, name), "full")
            found = "absent" if not names else "without the first"
            if names and "-00001-" in names[0]:
                root_of(os.path.join(folder, names[0]))
                found = "whole"
            for name in names:
                os.unlink(os.path.join(folder, name))
            return found + left

        return lambda: make_shards(1, False), look

    return prepared


def several_over_others(maker):
    """Shards over those of another model. The first opens one of the two, whole, and to do it again ends it.

    Of every two times that some are left over, one is not ended: the next job writes the other model over that.
    """

    def prepared(folder, source):
        make_shards, roots, writing, turns = maker(folder, source), {}, [1], itertools.count()
        apart(lambda: make_shards(1, False))
        names, copies = shards_there(folder), os.path.join(folder, "copies")
        first = os.path.join(folder, names[0])
        roots[root_of(first)] = "new"
        apart(lambda: make_shards(0, True))
        if shards_there(folder) != names:
            raise RuntimeError("the two are cut differently")
        roots[root_of(first)] = "old"
        os.mkdir(copies)
        for name in names:
            os.link(os.path.join(folder, name), os.path.join(copies, name))

        def job():
            make_shards(writing[0], True)

        def look():
            found, left = roots[root_of(first)], hidden(folder)
            if shards_there(folder) != names:
                left += ", and others beside it"
            if left and next(turns) % 2:
                writing[0] = 1 - writing[0]
                return found + left
            if left:
                apart(job)
                ended = roots[root_of(first)]
                if ended != ("old", "new")[writing[0]] or shards_there(folder) != names or hidden(folder):
                    raise RuntimeError(f"done again, it leaves {ended}, {os.listdir(folder)}")
            for name in names:
                os.link(os.path.join(copies, name), again := os.path.join(folder, "again"))
                os.replace(again, os.path.join(folder, name))
                if os.path.lexists(again):  # between two names of one file that does nothing
                    os.unlink(again)
            writing[0] = 1
            return found + left

        return job, look

    return prepared


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
            sharded_reader.open(os.path.join(folder, first), "full").close()
            return what + hidden(folder)

        return lambda: job(path, os.path.join(folder, first), target), look

    return prepared


merging = one_file(lambda path, first, target: rewrite.merge(first, target, overwrite=True), 7)
editing = one_file(lambda path, first, target: rewrite.edit(path, target, metadata={"a.b": 2}, overwrite=True), 7)

JOBS = {
    "new": new, "overwrite": overwrite, "overwrite, named": named, "export": directory,
    "split": several(splitting), "convert to shards": several(converting),
    "split over shards": several_over_others(splitting), "convert over shards": several_over_others(converting),
    "merge": merging, "edit": editing,
}  # fmt: skip


def prepare(name, folder, source):
    """(job, look)"""
    return JOBS[name](folder, source)
