"""Threads that work off a queue: order, ending at once, and not outliving the program."""

import subprocess
import sys
import threading
import time

from components.core.learning.loader import Workers


def test_one_thread_takes_tasks_in_their_order_and_no_thread_starts_without_tasks():
    done: list[int] = []
    workers = Workers(done.append, 1, "test-worker")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-worker")]
    for number in range(50):
        workers.submit(number)
    while len(done) < 50:
        time.sleep(0.001)
    workers.close()
    assert done == list(range(50))


def test_closing_drops_what_is_queued_and_ends_the_threads():
    started, go = [], threading.Event()

    def work(number: int) -> None:
        started.append(number)
        go.wait(10)

    workers = Workers(work, 3, "test-worker")
    for number in range(50):
        workers.submit(number)
    while len(started) < 3:
        time.sleep(0.001)
    threading.Timer(0.05, go.set).start()
    workers.close()
    assert sorted(started) == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-worker")]
    workers.close()


def test_a_program_ends_although_nobody_closes():
    """As when an uncaught exception keeps the frame that holds an iterator of batches."""
    program = (
        "from components.core.learning.loader import Workers\n"
        "workers = Workers(print, 2, 'left')\n"
        "workers.submit('worked')\n"
        "raise RuntimeError('training failed')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "training failed" in ended.stderr
    assert ended.stdout == "worked\n"
