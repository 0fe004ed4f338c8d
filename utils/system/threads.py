"""Work done by threads: ahead of who asks for it, or behind who hands it over; in order, and never too much of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """`work(item)` of each item, in the order of the items.

    The caller's own thread takes the items, and waits. An error of the work comes where its result would; nothing more
    is then begun.

    Args:
        threads: that work at once.
        ahead: items at most that are begun before the result is asked for.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Behind:
    """Takes work and returns at once; an error of the work comes with a later call, or at the end.

    Args:
        threads: that work at once; with one the work is done in order.
        most: pieces of work at most that are not done yet.
    """

    def __init__(self, threads: int, most: int) -> None:
        self._pool, self._most = ThreadPoolExecutor(threads), most
        self._pending: deque[Future] = deque()

    def __call__(self, work: Callable[..., object], *args: object) -> None:
        while len(self._pending) >= self._most:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(work, *args))

    def wait(self) -> None:
        """Until all is done, or has failed: whoever closes a file after it closes it under nobody's hands."""
        done = list(self._pending)
        self._pending.clear()
        wait(done)
        for piece in done:
            piece.result()
