"""Worker processes: who answers, what becomes of errors and of a worker that ends, and that imports are paid once."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import wait
from functools import partial

import pytest

from components.core.errors import InputError, StepError
from components.core.processes import cores
from components.core.workers import WorkerProcesses

HERE = os.getpid()


def square(number: int) -> int:
    return number * number


def where(_: int) -> tuple[int, int, int]:
    time.sleep(0.05)  # so that no thread answers for another
    return os.getpid(), os.getppid(), threading.get_ident()


def complain(kind: str) -> None:
    if kind == "input":
        raise InputError("plate.png: bad")
    if kind == "step":
        raise StepError("no room")
    if kind == "odd":
        raise UnicodeDecodeError("ascii", b"\xff", 0, 1, "odd")
    if kind == "unpickled":
        raise _NeedsTwoError("a", "b")
    if kind == "abort":
        os.abort()
    if kind == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, kind))
    if kind == "SIGKILL":
        time.sleep(10)


def environment(name: str) -> str | None:
    return os.environ.get(name)


class _NeedsTwoError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


class Unopened:
    """Work that fails where it arrives."""

    def __reduce__(self) -> object:
        return refuse, ("no credentials",)


def refuse(message: str) -> None:
    raise InputError(message)


def start(work, processes=2, threads=2) -> WorkerProcesses:
    return WorkerProcesses(work, processes, threads, [__name__], "give it more")


def test_many_answers_come_in_their_own_order_from_every_thread_of_every_worker():
    with start(square) as workers:
        assert [each.result() for each in [workers.submit(n) for n in range(500)]] == [n * n for n in range(500)]
    with start(where) as workers:
        found = {each.result() for each in [workers.submit(0) for _ in range(40)]}
    assert len(found) == 4
    assert len({worker for worker, _, _ in found}) == 2
    (template,) = {parent for _, parent, _ in found}
    assert template != os.getpid(), "forked from a process without threads, not from this one"


def test_nothing_is_started_before_the_first_question_and_nothing_stays():
    before = os.times()
    with start(square) as workers:
        pass
    assert os.times().children_user == before.children_user
    with start(where) as workers:
        worker, template, _ = workers.submit(0).result()
    for pid in (worker, template):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert os.times().children_user > before.children_user, "their time is counted here when they have ended"


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("input", InputError, r"^plate\.png: bad$"),
        ("step", StepError, "^no room$"),
        ("odd", UnicodeDecodeError, "odd"),
        ("unpickled", RuntimeError, "_NeedsTwoError: ab"),
    ],
)
def test_errors_arrive_and_the_worker_goes_on(kind, error, message):
    with start(complain) as workers:
        for _ in range(5):
            with pytest.raises(error, match=message):
                workers.submit(kind).result()


def test_an_error_that_is_nobodys_fault_tells_where_it_was_raised():
    with start(complain) as workers, pytest.raises(UnicodeDecodeError) as raised:
        workers.submit("odd").result()
    assert "in complain" in "".join(raised.value.__notes__)


def test_work_that_cannot_be_made_there_is_the_error_of_whoever_asks():
    with start(Unopened()) as workers, pytest.raises(InputError, match=r"^no credentials$"):
        workers.submit(0).result()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "SIGKILL",
            r"killed \(SIGKILL\), most often because memory ran out; give it more and run again: what is finished",
        ),
        ("abort", r"^a worker process ended \(exit code 134\); what it said is above; run again: what is finished"),
        ("exit", r"ended \(exit code 7\)"),
    ],
)
def test_a_worker_that_ends_fails_the_question_and_all_later_ones(kind, message):
    with start(complain) as workers:
        with pytest.raises(StepError, match=message):
            workers.submit(kind).result()
        time.sleep(1.5)  # the others have seen it
        asked = [workers.submit("input") for _ in range(8)]
        wait(asked)
        assert all(isinstance(each.exception(), StepError) for each in asked)


def test_signals_of_the_terminal_are_left_to_whoever_asks():
    with start(complain) as workers:
        for name in ("SIGINT", "SIGTERM"):
            assert workers.submit(name).result() is None


def test_numeric_libraries_have_one_thread_and_this_process_keeps_its_environment():
    before = dict(os.environ)
    with start(environment) as workers:
        assert workers.submit("OPENBLAS_NUM_THREADS").result() == "1"
    assert dict(os.environ) == before


def test_what_is_local_cannot_be_work():
    for work in (lambda n: n, partial(square, threading.Lock())):
        with pytest.raises(TypeError):
            start(work)


def test_a_worker_imports_once_for_all():
    with start(square, processes=8, threads=1) as workers:
        for each in [workers.submit(n) for n in range(80)]:
            each.result()
        before = os.times()
    spent = os.times().children_user - before.children_user
    assert spent < 8 * 0.25, f"{spent:.2f} s on {cores()} cores"
