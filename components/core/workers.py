"""Processes that all do one piece of work, question by question; their start, their end and what becomes of their errors.

For work of small questions and answers that holds Python's lock: on many cores threads would wait for each other.

This process starts one clean Python, which imports what the work needs and forks the workers before it has any thread. So
imports are paid once however many workers there are, no process with threads is forked, and nothing imports this program's
main module again, as multiprocessing's ways of starting would. Each thread of each worker has a socket of its own and
answers what it is asked there; when this process ends, however it ends, the sockets close and the workers end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from components.core.errors import InputError, StepError
from components.core.processes import end_with_parent

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_ROOT = Path(__file__).resolve().parents[2]
_END_SECONDS = 10
_ENVIRONMENT = {
    # One worker a core: threads of a numeric library would only get into each other's way, and each takes memory.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc gives large blocks back to the system at once and takes them anew, a page fault every 4 KiB: a tenth of packing.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
    "MALLOC_ARENA_MAX": "1",
    # The working directory is not for modules; what this process finds is found there too.
    "PYTHONSAFEPATH": "1",
}


class WorkerProcesses(Generic[Question, Answer]):
    """Answers questions in other processes, `processes` x `threads` at a time; started with the first question.

    A context manager: it is left when every question that was begun is answered and the processes have ended.
    """

    def __init__(
        self, work: Callable[[Question], Answer], processes: int, threads: int, modules: Sequence[str], advice: str
    ) -> None:
        """Prepares, and starts nothing.

        Args:
            work: what every worker calls, from several threads; pickled. InputError and StepError arrive as they are.
            processes: workers.
            threads: of each, so that one computes while another waits for a file or an answer.
            modules: what pickled work and its calls need, imported once for all workers.
            advice: what to do about memory, for the message that tells of a killed worker.

        Raises:
            TypeError: the work cannot be pickled.
        """
        self._work = pickled(work)
        self._processes, self._threads = processes, threads
        self._modules, self._advice = list(modules), advice
        self._slots: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._connections: list[Connection] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._askers = ThreadPoolExecutor(processes * threads, thread_name_prefix="ask")

    def submit(self, question: Question) -> Future[Answer]:
        """Has a question answered. Raises, through the future, what the work raised, or StepError for a killed worker."""
        with self._starting:
            if self._process is None:
                self._process = self._start()
        return self._askers.submit(self._ask, question)

    def __enter__(self) -> WorkerProcesses[Question, Answer]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._askers.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()
        if self._process is not None:
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        pairs = [Pipe() for _ in range(self._processes * self._threads)]
        self._connections = [ours for ours, _ in pairs]
        theirs = [connection.fileno() for _, connection in pairs]
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "components.core.workers",
                str(os.getpid()),
                str(self._processes),
                *map(str, theirs),
            ],
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
            pass_fds=theirs,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for _, connection in pairs:
            connection.close()
        for connection in self._connections:
            self._slots.put(connection)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as start:  # the first question tells that it ended
            pickle.dump((self._modules, self._work), start)
        return process

    def _ask(self, question: Question) -> Answer:
        connection = self._slots.get()
        try:
            connection.send(question)
            failed, answer = connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        finally:
            self._slots.put(connection)
        if failed:
            raise answer
        return answer  # type: ignore[no-any-return]  # what the work returned

    def _ended(self) -> StepError:
        assert self._process is not None
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return StepError("a worker process closed its connection; run again: what is finished is not done again")
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return StepError(
                f"a worker process was killed (SIGKILL), most often because memory ran out; {self._advice} and run again: "
                "what is finished is not done again"
            )
        return StepError(
            f"a worker process ended (exit code {code}); what it said is above; run again: what is finished is not done again"
        )


def pickled(work: object) -> bytes:
    """The bytes by which another process gets the same thing.

    Raises:
        TypeError: it has no meaning there.
    """
    try:
        return pickle.dumps(work)
    except (AttributeError, pickle.PicklingError) as error:  # of what is local to a function
        raise TypeError(str(error)) from None


def _answer(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Answers the questions of one socket until it closes."""
    while True:
        try:
            question = connection.recv()
        except (EOFError, OSError):
            return
        answer: tuple[bool, Any]
        try:
            answer = False, work(question)
        except BaseException as error:
            answer = True, _for_other_process(error)
        try:
            connection.send(answer)
        except OSError:  # nobody is there to hear it
            return


def _for_other_process(error: BaseException) -> BaseException:
    if isinstance(error, InputError | StepError):
        return error
    try:
        error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # errors with arguments of their own may not survive the journey
        return RuntimeError("".join(traceback.format_exception(error)))


def _serve(pickled_work: bytes, files: Sequence[int], parent: int) -> None:
    """A worker: one thread a socket."""
    end_with_parent(parent)
    try:
        work = pickle.loads(pickled_work)
    except BaseException as error:  # no credentials for a bucket, say: whoever asks is told
        failure = error

        def work(_: object) -> object:
            raise failure

    threads = [threading.Thread(target=_answer, args=(Connection(file), work)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(parent: int, processes: int, files: Sequence[int]) -> int:
    """Imports, forks the workers and waits for them.

    Args:
        parent: process id of whoever asks.
        processes: workers.
        files: descriptors of the sockets; those of a worker are `processes` apart, so that the first questions go to all.

    Returns:
        0, or as a shell tells it how the first worker ended that did not end well.
    """
    for each in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all; whoever asks decides
        signal.signal(each, signal.SIG_IGN)
    modules, work = pickle.load(sys.stdin.buffer)
    for name in modules:
        import_module(name)
    gc.freeze()  # what the workers share stays shared
    here, workers = os.getpid(), set()
    for n in range(processes):
        if (worker := os.fork()) == 0:
            code = 1
            try:
                own = files[n::processes]
                for file in set(files) - set(own):
                    os.close(file)
                _serve(work, own, here)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        workers.add(worker)
    for file in files:
        os.close(file)
    end_with_parent(parent)
    while workers:
        ended, status = os.wait()
        workers.discard(ended)
        code = os.waitstatus_to_exitcode(status)
        if code:  # the other workers end when they see this process gone
            return code if code > 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), [int(file) for file in sys.argv[3:]]))
