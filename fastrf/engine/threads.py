"""A few threads for the tiles of one large layer; kernels release the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from math import ceil
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

TILE_CELLS = 1 << 16
"""Fewest cells worth a thread: handing over a tile costs about 30 µs, in which a core updates
some 20,000 cells (bench/bench_kernels.py, a 2-core Xeon)."""

PIECE = 1 << 28
"""Most multiplications and additions of one call of a kernel, which nothing can interrupt: some
0.05 to 0.3 s, after which Ctrl-C is seen (bench/interrupt.py)."""

PATIENCE = 0.5
"""Seconds for which an error waits for the calls that are running: longer than a piece takes, but
not than a compilation."""


class Threads:
    """Up to `workers` threads, the calling one among them; none is started before it is needed.

    Args:
        workers: 0 stands for a GPU, which takes everything in one call, and returns at once.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            # A thread that compiles may take long; it has nothing to write to.
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def cut(
        self, length: int, cells: int, run: Callable[[int, int], None], work: float = 1.0
    ) -> None:
        """Calls ``run(a, b)`` for parts a … b−1 that make up 0 … length−1, and waits for all.

        How they are cut depends on the arguments and the number of workers alone. Where one call
        raises, or Ctrl-C interrupts this one, no further call begins, those that run are waited
        for, and the error is raised.

        Args:
            work: multiplications and additions per cell; calls are kept to about `PIECE` of them.
        """
        if not self.workers:
            run(0, length)
            return
        parts = max(1, min(self.workers, cells // TILE_CELLS, length))
        # The same number for each thread, where there are several.
        pieces = min(length, parts * max(1, ceil(cells * work / (PIECE * parts))))
        if pieces <= 1:
            run(0, length)
            return
        edges = (length * i // pieces for i in range(pieces + 1))
        self._share(deque(pairwise(edges)), parts, lambda part: run(*part))

    def each(self, count: int, cells: int, run: Callable[[int], None]) -> None:
        """Calls ``run(i)`` for all i of 0 … count−1, as `cut` does for its parts."""
        self._share(deque(range(count)), min(self.workers, cells // TILE_CELLS, count), run)

    def _share(self, left: deque[T], threads: int, run: Callable[[T], None]) -> None:
        def take() -> None:
            try:
                while True:
                    try:
                        part = left.popleft()
                    except IndexError:
                        return
                    run(part)
            except BaseException:
                left.clear()
                raise

        others = []
        try:
            for _ in range(threads - 1):
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self.workers - 1, thread_name_prefix="fastrf")
                others.append(self._pool.submit(take))
        except RuntimeError:
            pass  # no more threads can be had here: those that there are do it
        try:
            take()
        except BaseException:
            left.clear()
            wait(others, PATIENCE)
            raise
        for other in others:
            other.result()
