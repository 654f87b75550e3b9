"""What ``test_faults`` kills: name -> what makes, of a folder and a source, a job to run and a look at what is there.

``prepare`` does all imports, and starts no thread: the job runs in processes forked afterwards. A job is a function of
no arguments; the look that belongs to it raises whatever is half there, puts everything back, and says in a word what
it found.
"""

import os
import shutil

import bitsandbytes  # noqa: F401 - not to be imported in each process
import torch  # noqa: F401

import aibit_format.engine
import aibit_format.measure
import aibit_format.torch.model  # noqa: F401
from aibit_format import partial
from aibit_format.conversion import make_plan, run
from aibit_format.errors import WriteError  # noqa: F401 - for those who run these jobs
from aibit_format.exports import export
from aibit_format.reader import File


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


JOBS = {"new": new, "overwrite": overwrite, "overwrite, named": named, "export": directory}


def prepare(name, folder, source):
    return JOBS[name](folder, source)
