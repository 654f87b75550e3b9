"""Tests that a deadline ends Python code in its own thread, and touches nothing after it or beside it."""

import contextlib
import sys
import threading
import time

import pytest

from aibit_format.hf.deadline import deadline


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_loop_that_catches_every_exception_is_ended():
    with pytest.raises(TimeoutError, match="more than 1 s of a processor"), deadline(0.6):
        while True:
            with contextlib.suppress(Exception):  # as another library may
                spin(0.01)


def test_what_ends_in_time_is_left_alone_and_so_is_what_follows():
    with deadline(30):
        spin(0.01)
    spin(0.6)
    with pytest.raises(KeyError), deadline(30):
        raise KeyError


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no clock for each thread")
def test_waiting_does_not_count():
    with deadline(0.2):
        time.sleep(1)


def test_other_threads_are_not_ended():
    ended = []
    other = threading.Thread(target=lambda: ended.append(spin(1.5)))
    other.start()
    with pytest.raises(TimeoutError), deadline(0.2):
        spin(10)
    other.join()
    assert ended == [None]


def test_nothing_is_raised_after_the_end_whenever_that_is():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for i in range(30):
            with contextlib.suppress(TimeoutError), deadline(0.0):
                spin(0.24 + i / 1500)  # around the moment of the first look
            spin(0.002)
    finally:
        sys.setswitchinterval(interval)
    assert not [thread for thread in threading.enumerate() if thread.name == "aibit-deadline"]
