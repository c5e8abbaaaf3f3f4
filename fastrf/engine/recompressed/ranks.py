"""How many terms reductions leave: ranks of a script's images, each seen at a few frequencies.

An image is a matrix, and so is its Fourier transform F(u, v) = Σ_t w_t·â_t(u)·b̂_t(v) at any
frequencies u along one axis and v along the other. That has the same rank as soon as there are more
of either, and where each weighs as much as it stands for nearly the same singular values. A
transposed map of stride s makes h(u)·h(v)·F(s·u, s·v) of it: what costs an engine a product of
matrices is one of some thousand numbers here. Values at v and −v say as much as the real numbers
Re F(u, −v) ± Im F(u, v) (Hartley's transform); where taps are symmetric, half of them do.

The columns of a volume along an axis are the rank of F(u, (v, w)), at pairs of frequencies of the
other two. Borders are left out: these are ranks on maps without an end, of which none has more than
it has pixels. So are the phases that a transposed convolution folds into one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.recompressed.lowrank import NOISE, Floats, kept_of
from fastrf.engine.recompressed.powers import Passage
from fastrf.engine.recompressed.script import HERE, Ahead, Apply, Script, Settle
from fastrf.engine.recompressed.words import Words
from fastrf.engine.scaled import Scaled
from fastrf.maps import AxisMap, Spread, Table, Window

Waves = NDArray[np.complex128]
Jumps = tuple[float, ...]
Columns = dict[int, tuple[int, ...]]
"""Columns that are left, per axis, by the number of the block."""

IMAGE = -1
"""Stands for the image on the input among the numbers of blocks."""

FREQUENCIES = (32, 64, 128)
"""Positive frequencies of an axis; more, where fewer do not tell a rank."""

NEAR = 2 / 3
"""Part of what the frequencies show up to which they tell it."""

DECOMPOSED = 16
"""Most sums whose singular values are found; the ranks of those in between lie in between."""

_ANY = 1 << 30
_FAINT = 2.0**-60
# Values of words below this part of the largest one do not show.

# Multiples that are evenly spread: those of the golden ratio along a line, in a plane those of
# powers of the root of x³ = x + 1.
_LINE, _PLANE = 0.6180339887498949, (0.7548776662466927, 0.5698402909980532)


class Spectrum(NamedTuple):
    """Singular values of a sum, in falling order, over 2^exponent."""

    values: Floats
    exponent: int

    def left(self, budget: float = 0.0) -> int:
        count = kept_of(self.values, budget, NOISE)
        return count if count <= NEAR * len(self.values) else _ANY


class _Sum(NamedTuple):
    """What may be reduced; but for the block's number, as of `Settle`."""

    number: int
    words: tuple[Words, ...]
    scale: Scaled
    ahead: Ahead


def spectra(script: Script) -> dict[int, tuple[Spectrum, ...]]:
    """Of some of the sums that may be reduced, by the number of the block: per axis, or, in a
    plane, of both. Empty where nothing is reduced."""
    sums = _sums(script)
    if not sums:
        return {}
    places = np.linspace(0, len(sums) - 1, min(DECOMPOSED, len(sums))).round().astype(int)
    chosen = [sums[n].number for n in places.tolist()]
    axes = [0] if len(script.seed.shape) == 2 or _alike(script) else range(3)
    found: dict[int, tuple[Spectrum, ...]] = {}
    for count in FREQUENCIES:
        own = [_Model(script, axis, count).spectra(chosen) for axis in axes]
        found = {n: tuple(of_axis[n] for of_axis in own) for n in chosen}
        if all(one.left() < _ANY for each in found.values() for one in each):
            break
    return found


def columns(script: Script, found: dict[int, tuple[Spectrum, ...]], allowed: float) -> Columns:
    """Those that each sum is left with, which may be more than it has.

    Args:
        found: `spectra`.
        allowed: as of `Script.budget`.
    """
    sums, ndim = _sums(script), len(script.seed.shape)
    known = [n for n, one in enumerate(sums) if one.number in found]
    counts = []
    for n in known:
        number, _, scale, ahead = sums[n]
        each = []
        for one in found[number]:
            budget = script.budget(allowed, ahead, scale * Scaled.of(1.0, one.exponent))
            each.append(one.left(budget / math.sqrt(ndim) if ndim > 2 else budget))
        counts.append(each * (ndim // len(each)))
    lines = [np.interp(np.arange(len(sums)), known, own) for own in zip(*counts, strict=True)]
    return {one.number: tuple(math.ceil(line[n]) for line in lines) for n, one in enumerate(sums)}


def _sums(script: Script) -> list[_Sum]:
    """All from the first on that has too many terms."""
    found = [
        _Sum(step.block.number, step.words, step.scale, step.ahead)
        for step in script.steps
        if isinstance(step, Settle)
    ]
    if script.final is not None and len(script.seed.shape) > 2:
        found.append(_Sum(IMAGE, script.final.sum.words, script.final.scale, HERE))
    many = (n for n, one in enumerate(found) if sum(w.rank for w in one.words) > script.few)
    return found[next(many, len(found)) :]


def _alike(script: Script) -> bool:
    """Whether all maps do the same along each axis."""
    moves = [step.passage.move for step in script.steps if isinstance(step, Apply)]
    moves += [w.step.move for one in _sums(script) for w in one.words if w.step is not None]
    return all(m.taps is None and len(set(m.axes)) == 1 for m in moves)


class _Model:
    """A script at frequencies, of which those of one axis stand against those of all others."""

    def __init__(self, script: Script, axis: int, count: int) -> None:
        self.script, self.axis = script, axis
        ndim, steps = len(script.seed.shape), np.arange(count)
        # By the number of a block: how many pixels of the finest map one of its map is.
        self.jumps: dict[int, Jumps] = {script.seed.number: (1.0,) * ndim}
        for step in script.steps:
            if isinstance(step, Settle):
                self.jumps[step.block.number] = self.jumps[step.words[0].block.number]
            elif isinstance(step, Apply):
                before = zip(step.passage.move.axes, self.jumps[step.source.number], strict=True)
                self.jumps[step.block.number] = tuple(_below(a, jump) for a, jump in before)
        finest = tuple(map(min, zip(*self.jumps.values(), strict=True)))
        for number, own in self.jumps.items():
            self.jumps[number] = tuple(j / f for j, f in zip(own, finest, strict=True))
        line, a, b = ((0.5 + steps * step) % 1 for step in (_LINE, *_PLANE))
        others = [line] if ndim == 2 else [a, 2 * b - 1]
        places = [np.concatenate([x, -x]) for x in others]
        places.insert(axis, line)
        drawn = [_spread_out(x, n) for x, n in zip(places, self._extents(), strict=True)]
        self.nodes = [nodes for nodes, _ in drawn]
        shares = [share for _, share in drawn]
        rows = shares.pop(axis)
        self.shares = np.sqrt(np.multiply.outer(rows, np.prod(shares, axis=0)))
        shape = (count, 2 * count)
        self.seen: dict[int, tuple[Waves, int]] = {script.seed.number: (np.ones(shape, complex), 0)}
        self.responses: dict[tuple[int, Jumps], Waves] = {}

    def _extents(self) -> list[float]:
        """Most pixels of any map along each axis, those of the finest map."""
        blocks = [self.script.seed]
        blocks += [s.block for s in self.script.steps if isinstance(s, Settle | Apply)]
        each = ([n * j for n, j in zip(b.shape, self.jumps[b.number], strict=True)] for b in blocks)
        return list(map(max, zip(*each, strict=True)))

    def spectra(self, numbers: list[int]) -> dict[int, Spectrum]:
        """Those of blocks with these numbers."""
        found: dict[int, Spectrum] = {}
        last = self.script.last_uses()
        for done, step in enumerate(self.script.steps, 1):
            if isinstance(step, Settle):
                number = step.block.number
                self.seen[number] = self._sum(step.words)
                if number in numbers:
                    waves, exponent = self.seen[number]
                    found[number] = _spectrum(self.shares * waves, exponent)
            elif isinstance(step, Apply):
                waves, exponent = self.seen[step.source.number]
                response = self._response(step.passage, self.jumps[step.source.number])
                self.seen[step.block.number] = (step.value * waves * response, exponent)
            for number in [n for n in self.seen if last.get(n, -1) < done]:
                del self.seen[number]
        if IMAGE in numbers and self.script.final is not None:
            waves, exponent = self._sum(self.script.final.sum.words)
            found[IMAGE] = _spectrum(self.shares * waves, exponent)
        return found

    def _sum(self, words: tuple[Words, ...]) -> tuple[Waves, int]:
        parts = [self._polynomial(w) for w in words]
        top = max(exponent for _, exponent in parts)
        total = sum(np.ldexp(1.0, max(e - top, -1000)) * waves for waves, e in parts)
        shift = math.frexp(float(np.abs(total).max()))[1]
        return total * np.ldexp(1.0, -shift), top + shift

    def _polynomial(self, words: Words) -> tuple[Waves, int]:
        waves, exponent = self.seen[words.block.number]
        shift = math.frexp(float(words.values.max()))[1]
        values = np.ldexp(words.values, -shift)
        if words.step is None:
            return values[0] * waves, exponent + shift
        response = self._response(words.step, self.jumps[words.block.number])
        used = np.flatnonzero(values > _FAINT)
        first, stop = int(used[0]), int(used[-1])
        found = np.full_like(waves, values[stop])
        for value in values[first:stop][::-1]:
            found *= response
            found += value
        return found * response ** (words.first + first) * waves, exponent + shift

    def _response(self, passage: Passage, jumps: Jumps) -> Waves:
        """What a transposed map multiplies a block of these jumps by."""
        key = (id(passage), jumps)
        if key not in self.responses:
            axes = passage.move.axes
            lines = [
                np.stack([_line(axis, taps, nodes * jump) for taps in vectors], axis=1)
                for axis, vectors, nodes, jump in zip(
                    axes, passage.taps.vectors, self.nodes, jumps, strict=True
                )
            ]
            own, weights = lines.pop(self.axis), passage.taps.weights
            if weights.ndim == 1:
                self.responses[key] = (own * weights) @ np.prod(lines, axis=0).T
            else:
                core = np.moveaxis(weights, self.axis, 0)
                self.responses[key] = own @ np.einsum("tuv,nu,nv->tn", core, *lines)
        return self.responses[key]


def _spread_out(x: Floats, pixels: float) -> tuple[Floats, Floats]:
    """Frequencies for places that are evenly spread between −1 and 1, and for how many evenly
    spread ones each stands.

    An image of n pixels that is smooth has all of its waves within a few π/n of 0, and one of
    kernels with edges or gaps has them anywhere: half of the frequencies have one density in
    log(u + π/n), half in u itself. (With the latter alone, blocks of 31, 51 and 71 taps seemed to
    have rank 36 where they have 53.)
    """
    low, grid = np.pi / pixels, np.pi * np.geomspace(1e-3 / pixels, 1, 1 << 10)
    below = grid / np.pi / 2 + np.log1p(grid / low) / np.log1p(pixels) / 2
    u = np.interp(np.abs(x), [0.0, *below], [0.0, *grid])
    density = 0.5 / np.pi + 0.5 / ((u + low) * np.log1p(pixels))
    return np.copysign(u, x), 1 / (np.pi * density)


def _below(axis: AxisMap, jump: float) -> float:
    """The jump behind a transposed map."""
    if isinstance(axis, Window):
        return jump / axis.stride
    if isinstance(axis, Spread):
        return jump * axis.stride
    return jump * axis.period / axis.advance if isinstance(axis, Table) and axis.advance else jump


def _line(axis: AxisMap, taps: Floats | None, at: Floats) -> Waves:
    """What a transposed map along one axis multiplies waves by, at frequencies of what enters; 1
    for what is no window."""
    if not isinstance(axis, Window | Spread):
        return np.ones(len(at), complex)
    places = np.arange(axis.kernel) * axis.dilation - axis.lo
    own = np.full(axis.kernel, 1 / axis.kernel) if taps is None else np.asarray(taps)
    # x = y·stride + place, or y = x·stride + place.
    over = places / axis.stride if isinstance(axis, Window) else -places
    share = axis.stride if isinstance(axis, Spread) else 1
    found: Waves = np.exp(1j * np.multiply.outer(at, over)) @ own
    return found / share


def _spectrum(waves: Waves, exponent: int) -> Spectrum:
    count = len(waves)
    if np.abs(waves.imag).max() < 1e-14 * np.abs(waves.real).max():
        real = waves.real[:, :count]
    else:
        back = np.roll(waves, count, axis=1)
        real = np.concatenate([back.real + waves.imag, waves.real - back.imag])
    values = np.linalg.svd(real, compute_uv=False) / real.shape[1]
    return Spectrum(values, exponent)
