"""What maps an image onto itself: mirrors, and axes that are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastrf.engine.tilted.taps import Array, windows_of
from fastrf.engine.transfer import Jump
from fastrf.maps import SpatialMap


class Symmetry(NamedTuple):
    """What maps an image onto itself.

    Attributes:
        centre: twice the middle of the extent, per axis.
        mirrored: per axis, whether it is its own mirror image (proven).
        alike: per axis, whether it may be exchanged for the axis before it (proven).
    """

    centre: tuple[int, ...]
    mirrored: tuple[bool, ...]
    alike: tuple[bool, ...]


class Symmetries:
    """The algebra of symmetries: those that every layer and every merge keeps."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def one(self) -> Symmetry:
        return Symmetry((0,) * self.ndim, (True,) * self.ndim, (False, *(True,) * (self.ndim - 1)))

    def of(self, move: SpatialMap, jump: Jump) -> Symmetry:
        axes = windows_of(move)
        centre = tuple(j * (a.span - 2 * a.lo) for a, j in zip(axes, jump, strict=True))
        equal = [False, *(axes[a] == axes[a - 1] and jump[a] == jump[a - 1] for a in self._later)]
        taps = move.taps
        if isinstance(taps, np.ndarray):
            mirrored = tuple(np.array_equal(taps, np.flip(taps, a)) for a in range(self.ndim))
            same = [
                e and np.array_equal(taps, taps.swapaxes(a - 1, a)) for a, e in enumerate(equal)
            ]
        elif taps is None:
            mirrored, same = (True,) * self.ndim, equal
        else:
            mirrored = tuple(t is None or np.array_equal(t, t[::-1]) for t in taps)
            same = [e and _equal(taps[a - 1], taps[a]) for a, e in enumerate(equal)]
        return Symmetry(centre, mirrored, tuple(same))

    def mixed(self, terms: Sequence[tuple[float, Symmetry]]) -> Symmetry:
        first = terms[0][1]
        mirrored = tuple(
            all(s.mirrored[a] and s.centre[a] == first.centre[a] for _, s in terms)
            for a in range(self.ndim)
        )
        alike = tuple(all(s.alike[a] for _, s in terms) for a in range(self.ndim))
        return Symmetry(first.centre, mirrored, alike)

    def times(self, a: Symmetry, b: Symmetry) -> Symmetry:
        return Symmetry(
            tuple(p + q for p, q in zip(a.centre, b.centre, strict=True)),
            tuple(p and q for p, q in zip(a.mirrored, b.mirrored, strict=True)),
            tuple(p and q for p, q in zip(a.alike, b.alike, strict=True)),
        )

    def power(self, a: Symmetry, n: int) -> Symmetry:
        return a._replace(centre=tuple(n * c for c in a.centre))

    @property
    def _later(self) -> range:
        return range(1, self.ndim)


def _equal(a: Array | None, b: Array | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def groups(symmetry: Symmetry) -> list[int]:
    """Numbers of axes that are alike, one behind the other."""
    found: list[int] = []
    for alike in symmetry.alike:
        if alike:
            found[-1] += 1
        else:
            found.append(1)
    return found
