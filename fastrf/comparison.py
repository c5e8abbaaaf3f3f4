"""Theory against experiment: a computed field and a measured one of the same unit.

Pixel by pixel, z = (measured − computed)/standard error, over the brightest pixels that carry
nearly all of the mass. The largest |z| is held against the two-sided quantile of Student's t at
`LEVEL` over the number of pixels (Bonferroni). Σz² sees what is wrong by little in many pixels.
These vary together (a draw's large weight lights up a whole neighbourhood), so that Σz² is no χ²:
with R the pixels' correlation matrix its cumulants are tr R = m, 2·tr R² and 8·tr R³, and its tail
that of the shifted χ² with the same three (Pearson 1959; Imhof 1961, eq. 2). The traces are
estimated without bias as U-statistics of the groups of draws, of which there are far less than
pixels.

Squared gradients are products of many squared weights and have heavy tails: of few draws, the mean
is most often below the truth and the standard error with it. Degrees of freedom count
`effective_draws` therefore, not draws. Where these are below some hundreds, the levels are rough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf import metrics
from fastrf.erf import ERF
from fastrf.errors import InputError, short
from fastrf.metrics.given import defined

LEVEL = 6.334248366623996e-05
"""Chance of a false alarm of each test: a normal variable's beyond 4 standard deviations."""

SHARE = 0.999
"""Share of the mass whose pixels are compared."""

LEAST_DRAWS = 32
"""Draws that a comparison needs: as many as there are groups."""

ROUNDING = 2.0**-20
"""Relative rounding of a pixel that was measured in float32."""

SPILLED = 1e-9
"""Share of the mass that rounding may leave where there is no path: convolutions by Winograd or FFT
mix whole tiles, of which 1e-7 squared remains."""


@dataclass(frozen=True)
class SizeRow:
    """One size, computed and measured.

    Attributes:
        name: the measure, with its axis.
        theory, experiment, error: its values, and the measured one's standard error.
        z: (experiment − theory)/error.
        ok: whether |z| is below the bound; None for measures that are shown and not judged: those
            that count pixels jump, and the gain depends on an initialisation that the theory may
            not have been told.
    """

    name: str
    theory: float
    experiment: float
    error: float
    z: float
    ok: bool | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """How a measured field agrees with a computed one; true when it does.

    Attributes:
        nodes: the maps, computed and measured.
        unit: the unit.
        draws, effective_draws: of the measured field; see `empirical.moments`.
        share: of the mass that the compared pixels carry.
        pixels: how many they are.
        largest: z of largest magnitude, at the input pixel `at`.
        bound: what its magnitude may be.
        chi_square: Σz² over the pixels; as large as their number where the theory is right.
        spread: its standard deviation.
        p_value: chance of a larger Σz² where the theory is right; it may be as small as `LEVEL`.
        spilled: measured mass where the theory knows no path; `SPILLED` at the most.
        rows: sizes side by side.
        scores: z of every pixel of the box that holds both images; `origin` is its first pixel.
    """

    nodes: tuple[str, str]
    unit: tuple[int, ...]
    draws: int
    effective_draws: float
    share: float
    pixels: int
    largest: float
    at: tuple[int, ...]
    bound: float
    chi_square: float
    spread: float
    p_value: float
    spilled: float
    rows: tuple[SizeRow, ...]
    scores: NDArray[np.float64] = field(repr=False)
    origin: tuple[int, ...] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether pixels, their sum, and sizes agree, and nothing lies where no path leads."""
        return (
            abs(self.largest) <= self.bound
            and self.p_value >= LEVEL
            and self.spilled <= SPILLED
            and all(row.ok is not False for row in self.rows)
        )

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the attributes' names, without `scores`."""
        return {
            "nodes": list(self.nodes),
            "unit": list(self.unit),
            "ok": self.ok,
            "draws": self.draws,
            "effective_draws": self.effective_draws,
            "share": self.share,
            "pixels": self.pixels,
            "largest": self.largest,
            "at": list(self.at),
            "bound": self.bound,
            "chi_square": self.chi_square,
            "spread": self.spread,
            "p_value": self.p_value,
            "spilled": self.spilled,
            "rows": [
                {
                    "name": row.name,
                    "theory": row.theory,
                    "experiment": row.experiment,
                    "error": row.error,
                    "z": row.z if math.isfinite(row.z) else None,
                    "ok": row.ok,
                }
                for row in self.rows
            ],
        }

    def __str__(self) -> str:
        def mark(ok: bool | None) -> str:
            return {True: "ok  ", False: "FAIL", None: "    "}[ok]

        at = ", ".join(map(str, self.at))
        ours, theirs = self.nodes
        name = repr(ours) if ours == theirs else f"{ours!r} against {theirs!r}"
        lines = [
            f"theory against experiment: {name}, unit {self.unit}, {self.draws} draws",
            f"  {mark(abs(self.largest) <= self.bound)} largest |z| of {self.pixels} pixels that "
            f"carry {self.share:.4g} of the mass: {abs(self.largest):.2f} at ({at}), bound "
            f"{self.bound:.2f}",
            f"  {mark(self.p_value >= LEVEL)} Σz² = {self.chi_square:.4g}, expected "
            f"{self.pixels} ± {self.spread:.2g}: p = {self.p_value:.3g}",
            f"  {mark(self.spilled <= SPILLED)} mass where no path leads: {self.spilled:.2g}",
        ]
        width = max(len(row.name) for row in self.rows)
        lines += [
            f"  {mark(row.ok)} {row.name:{width}}  theory {row.theory:.5g}, experiment "
            f"{row.experiment:.5g} ± {row.error:.2g}"
            for row in self.rows
        ]
        return "\n".join(lines)


def compare(theory: ERF, experiment: ERF, share: float = SHARE) -> Comparison:
    """Holds a computed field against a measured one.

    ``compare(erf(net, input_size=32), empirical(module, (1, 3, 32, 32), initialise="unit"))`` is
    true where they agree, and prints as a table.

    Args:
        theory: from `erf`, with the images' size as its `input_size`.
        experiment: from `empirical`, of at least `LEAST_DRAWS` draws.
        share: of the mass; its brightest pixels in theory are compared.

    Raises:
        InputError: the fields are not of one unit on one input, or not one of each kind.
    """
    _check(theory, experiment, share)
    pair = Pair.of(theory, experiment)
    chosen = _brightest(pair.theory, share)
    z = pair.scores
    worst = int(np.argmax(np.where(chosen, np.abs(z), -1.0)))
    at = tuple(int(i) for i in np.unravel_index(worst, z.shape))
    from scipy import stats

    pixels, effective = int(chosen.sum()), _effective_draws(experiment)
    chi_square = float((z[chosen] ** 2).sum())
    spread, freedom = _spread(pair, chosen)
    return Comparison(
        nodes=(theory.node, experiment.node),
        unit=theory.unit,
        draws=experiment.draws or 0,
        effective_draws=effective,
        share=share,
        pixels=pixels,
        largest=float(z[at]),
        at=tuple(i + o for i, o in zip(at, pair.origin, strict=True)),
        bound=float(stats.t.isf(LEVEL / pixels / 2, max(effective - 1, 1))),
        chi_square=chi_square,
        spread=spread,
        p_value=float(
            stats.chi2.sf(
                freedom + (chi_square - pixels) / spread * math.sqrt(2 * freedom), freedom
            )
        ),
        spilled=float(pair.experiment[pair.theory <= 0].sum()),
        rows=tuple(_rows(theory, experiment)),
        scores=z,
        origin=pair.origin,
    )


@dataclass(frozen=True, eq=False)
class Pair:
    """Both images on the box that holds them, with the experiment's error and groups."""

    origin: tuple[int, ...]
    theory: NDArray[np.float64]
    experiment: NDArray[np.float64]
    error: NDArray[np.float64]
    groups: NDArray[np.float64]

    @staticmethod
    def of(theory: ERF, experiment: ERF) -> Pair:
        assert experiment.standard_error is not None
        assert experiment.groups is not None
        ends = zip(theory.box, experiment.box, strict=True)
        box = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in ends]
        shape = tuple(high - low + 1 for low, high in box)

        def placed(array: Any, erf: ERF) -> NDArray[np.float64]:
            before = array.shape[: array.ndim - len(shape)]
            result = np.zeros((*before, *shape))
            window = zip(erf.origin, box, erf.shape, strict=True)
            spans = [slice(o - low, o - low + n) for o, (low, _), n in window]
            inside: tuple[Any, ...] = (..., *spans)
            result[inside] = array
            return result

        return Pair(
            tuple(low for low, _ in box),
            placed(theory.to_numpy().astype(np.float64), theory),
            placed(experiment.to_numpy(), experiment),
            placed(experiment.standard_error, experiment),
            placed(experiment.groups, experiment),
        )

    @property
    def scores(self) -> NDArray[np.float64]:
        """(measured − computed)/standard error; 0 where both are 0."""
        apart = self.experiment - self.theory
        error = np.hypot(self.error, ROUNDING * self.experiment)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(apart == 0, 0.0, apart / error)


def _check(theory: ERF, experiment: ERF, share: float) -> None:
    for name, value in (("theory", theory), ("experiment", experiment)):
        if not isinstance(value, ERF):
            raise InputError(
                f"{name}={short(value)} is no field; give what fastrf.erf and fastrf.empirical "
                f"return"
            )
    if theory.standard_error is not None or experiment.standard_error is None:
        raise InputError(
            "compare takes a computed field first and a measured one second; give it the results "
            "of fastrf.erf and fastrf.empirical in this order"
        )
    if (experiment.draws or 0) < LEAST_DRAWS:
        raise InputError(
            f"the measured field is of {experiment.draws} draws, too few for errors to be known; "
            f"take at least {LEAST_DRAWS}, better some hundreds"
        )
    if theory.input_size != experiment.input_size:
        raise InputError(
            f"the computed field is on {theory.input_size or 'the unbounded grid'} and the "
            f"measured one on {experiment.input_size}; compute it with "
            f"input_size={experiment.input_size}"
        )
    if theory.unit != experiment.unit:
        raise InputError(
            f"the fields are of different units, {theory.unit} of {theory.node!r} and "
            f"{experiment.unit} of {experiment.node!r}; give both the same output and unit"
        )
    if not 0 < share <= 1:
        raise InputError(f"share={short(share)} must be above 0 and at most 1, such as {SHARE}")


def _brightest(image: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """The smallest set of pixels that holds the share, as a mask."""
    order = np.argsort(image, axis=None)[::-1]
    held = np.cumsum(image.ravel()[order])
    count = int(np.searchsorted(held, share * held[-1])) + 1
    mask = np.zeros(image.size, dtype=bool)
    mask[order[: min(count, image.size)]] = True
    return (mask & (image.ravel() > 0)).reshape(image.shape)


def _spread(pair: Pair, chosen: NDArray[np.bool_]) -> tuple[float, float]:
    """Standard deviation of Σz² over the chosen pixels, and the degrees of freedom of the χ² that
    is as skew; see the module's docstring."""
    groups = pair.groups[:, chosen]
    n, pixels = groups.shape
    # What a group adds to the image beyond its share in the mass; then of variance 1.
    apart = groups - pair.experiment[chosen] * pair.groups.reshape(n, -1).sum(1)[:, None]
    apart -= apart.mean(0)
    deviation = np.sqrt((apart**2).sum(0) / (n - 1))
    apart = apart[:, deviation > 0] / deviation[deviation > 0]
    inner = apart @ apart.T
    np.fill_diagonal(inner, 0.0)
    # Between independent pixels and all alike.
    second = float(np.clip((inner**2).sum() / (n * (n - 1)), pixels, pixels**2))
    third = float(np.trace(inner @ inner @ inner)) / (n * (n - 1) * (n - 2))
    plain = pixels**2 / second
    freedom = second**3 / third**2 if third > 0 else plain
    return math.sqrt(2 * second), float(np.clip(freedom, 1.0, plain))


def _effective_draws(experiment: ERF) -> float:
    """As `Moments.effective_draws`, from the groups."""
    assert experiment.groups is not None
    totals = experiment.groups.reshape(len(experiment.groups), -1).sum(1)
    relative = totals / totals.mean()
    # The variance of a group's mean is that of a draw over the draws of a group.
    each = (experiment.draws or 0) / len(totals)
    return float((experiment.draws or 0) / (1 + relative.var(ddof=1) * each))


# --- sizes ----------------------------------------------------------------------------------

Measure = Callable[[ERF], float]


def _measures(ndim: int) -> Iterator[tuple[str, Measure, bool]]:
    """(name, measure, whether it is judged)."""

    def side(erf: ERF) -> float:
        center = [c - o for c, o in zip(erf.center, erf.origin, strict=True)]
        return metrics.square_side(erf.values, 0.5, center)

    def along(name: str, axis: int) -> Measure:
        def measure(erf: ERF) -> float:
            return float(getattr(erf, name)[axis])

        return measure

    for name, judged in (("mean", True), ("std", True), ("fwhm", False)):
        for axis in range(ndim):
            yield f"{name}, axis {axis}", along(name, axis), judged
    yield "side of the square that holds half", side, True
    yield "luo_size", ERF.luo_size, False


def _rows(theory: ERF, experiment: ERF) -> Iterator[SizeRow]:
    from scipy import stats

    assert experiment.groups is not None
    measures = list(_measures(len(theory.shape)))
    judged = sum(judge for _, _, judge in measures)
    bound = float(stats.t.isf(LEVEL / judged / 2, len(experiment.groups) - 1))
    for name, measure, judge in measures:
        expected, found = (defined(partial(measure, erf)) for erf in (theory, experiment))
        error = defined(partial(experiment.uncertainty, measure))
        if expected is not None and found is not None and error is not None:
            yield _row(name, expected, found, float(error), bound if judge else None)
    totals = experiment.groups.reshape(len(experiment.groups), -1).sum(1) * len(experiment.groups)
    error = float(totals.std(ddof=1) / math.sqrt(len(totals)))
    yield _row("log_gain", theory.log_gain, experiment.log_gain, error, None)


def _row(name: str, theory: float, experiment: float, error: float, bound: float | None) -> SizeRow:
    apart = experiment - theory
    scale = math.hypot(error, ROUNDING * abs(experiment))
    z = 0.0 if apart == 0 else apart / scale if scale else math.inf
    return SizeRow(name, theory, experiment, error, z, None if bound is None else abs(z) <= bound)
