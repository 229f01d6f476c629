"""Many small writes at a time, from a generator that is drawn no faster than they end. Standard library only."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future


def side_by_side(
    work: Callable[[str, bytes], None], items: Iterable[tuple[str, bytes]], pool: Executor, most: int
) -> None:
    """Calls `work` for every item in the pool's threads, and returns when all calls have.

    The first error, of a call or of the generator, stops the rest; it is raised when nothing is under way any more, so
    that nothing lands after the caller cleans up.

    Args:
        work: writes one item.
        items: keys and bytes.
        pool: threads.
        most: items drawn and not written yet.
    """
    window: deque[Future[None]] = deque()
    try:
        for key, data in items:
            if len(window) >= most:
                window.popleft().result()
            window.append(pool.submit(work, key, data))
        while window:
            window.popleft().result()
    finally:
        for future in window:
            future.cancel()
        for future in window:
            with contextlib.suppress(BaseException):
                future.result()
