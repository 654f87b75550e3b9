"""How many threads are worth starting: bound processes, control groups of both versions, nested ones."""

from __future__ import annotations

import os

import pytest

from aibit_format.native import cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that sets what a process is bound to, and what the files of control groups say."""

    def set_up(bound, groups, files):
        monkeypatch.delattr(os, "process_cpu_count", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound)), raising=False)
        (tmp_path / "cgroup").write_text(groups)
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(cores, "_GROUPS", str(tmp_path / "cgroup"))
        monkeypatch.setattr(cores, "_MOUNTED", str(tmp_path / "fs"))
        cores._granted.cache_clear()

    yield set_up
    cores._granted.cache_clear()


@pytest.mark.parametrize(
    ("bound", "groups", "files", "wanted"),
    [
        (8, "", {}, 8),
        (8, "0::/\n", {"cpu.max": "max 100000\n"}, 8),
        (8, "0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        (8, "0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        (8, "0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        (1, "0::/\n", {"cpu.max": "200000 100000\n"}, 1),
        (8, "0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        (8, "0::/../../a\n", {"cpu.max": "100000 100000\n"}, 1),
        (8, "0::/gone\n", {}, 8),
        (8, "4:cpu,cpuacct:/a\n1:name=systemd:/\n",
         {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 4),
        (8, "4:cpu,cpuacct:/\n",
         {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 8),
        (8, "4:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, 8),
        (8, "0::/\nnonsense\n::\n", {"cpu.max": "x y z"}, 8),
        (8, "0::/\n", {"cpu.max": "100000 0\n"}, 8),
    ],
)  # fmt: skip
def test_cores_that_may_be_used(bound, groups, files, wanted, machine):
    machine(bound, groups, files)
    assert cores.usable_cores() == wanted


def test_where_nothing_is_told(machine, monkeypatch):
    machine(8, "", {})
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.usable_cores() == 1
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert cores.usable_cores() == 5


def test_a_process_that_is_bound_starts_no_more_threads_than_that():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("processes cannot be bound here")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
