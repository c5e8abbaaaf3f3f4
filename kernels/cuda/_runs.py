"""What both run kernels share: sweeps of several layers, and how far a block marches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastrf.kernels._checks import Floats
from fastrf.kernels.cpu._runs import Axes, _window_of

from ._geometry import blocks, empty, readable, writable

Sweep = Callable[[Floats, int, Axes, Floats], None]


def run(y: Floats, k: Axes, count: int, depth: int, lo: Axes, out: Floats, sweep: Sweep) -> None:
    """``count`` layers in sweeps of at most ``depth``, each over the window that the rest needs.

    ``sweep(source, layers, first, out)`` applies some layers. How many each sweep takes depends on
    ``count`` and ``depth`` alone.
    """
    if y.size == 0 or out.size == 0:
        out[...] = 0
        return
    sweeps = blocks(count, depth)
    begin, rest = (0, 0, 0), count  # the index of y's first element on the full result so far
    y = readable(y)
    with writable(out) as result:
        for s in range(sweeps):
            layers = count // sweeps + (s < count % sweeps)
            rest -= layers
            start, to = lo, result
            if rest:
                start, shape = _window_of(y.shape, begin, k, layers, rest, lo, out.shape)
                if min(shape) <= 0:
                    result[...] = 0
                    return
                to = empty(out, shape)
            ends = zip(start, begin, k, strict=True)
            a, b, c = (at - of - layers * (n - 1) for at, of, n in ends)
            sweep(y, layers, (a, b, c), to)
            y, begin = to, start


def marches(rows: int, lead: int, others: int, resident: int) -> tuple[int, int]:
    """Into how many marches to cut ``rows`` rows, and how many rows pass while all are made.

    Every march begins with ``lead`` rows that give no result, so few are better; there are
    ``others`` strips to march down, and ``resident`` blocks run at a time.
    """

    def passing(number: int) -> int:
        return blocks(others * number, resident) * (blocks(rows, number) + lead)

    best = min(_cuts(rows, others, resident), key=passing)
    return best, passing(best)


def _cuts(rows: int, others: int, resident: int) -> Iterable[int]:
    """One march, and the most that a few rounds of resident blocks take."""
    return sorted({1, *(max(1, min(rows, resident * n // others)) for n in range(1, 5))})
