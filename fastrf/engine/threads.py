"""A few threads for the tiles of one large layer; kernels release the GIL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import Self

TILE_CELLS = 1 << 16
"""Fewest cells worth a thread: handing over a tile costs about 30 µs, in which a core updates
some 20,000 cells (bench/bench_kernels.py, a 2-core Xeon)."""


class Threads:
    """Up to `workers` threads, the calling one among them; none is started before it is needed."""

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
            self._pool.shutdown()

    def cut(self, length: int, cells: int, run: Callable[[int, int], None]) -> None:
        """Calls ``run(a, b)`` for parts a … b−1 that make up 0 … length−1, and waits for all."""
        parts = min(self.workers, cells // TILE_CELLS, length)
        if parts <= 1:
            run(0, length)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers - 1, thread_name_prefix="fastrf")
        edges = [length * i // parts for i in range(parts + 1)]
        rest = [self._pool.submit(run, a, b) for a, b in pairwise(edges[1:])]
        run(edges[0], edges[1])
        for future in rest:
            future.result()
