"""The cross-check: every engine at hand against the analytic module, which shares no code with it.

On the unbounded grid the images' mass and moments meet those of `analytic.moments`, their window
meets the theoretical field of `analytic.geometry`, and a chain of equal taps meets the exact
integer polynomial. With an input size, mass and moments meet those of `analytic.forward`, which
runs in the other direction, from the input to the unit. Engines are compared pixel by pixel.

Tolerances are bounds on rounding: each addition or product of nonnegative numbers adds at most one
unit roundoff u to a pixel's relative error, so an image of N such steps is right to ε = N·u, pixel
by pixel. A normalised image's mean is then right to 2εσ, its σ to 2ε, and so on. An engine that is
right to a share of the peak adds that share times the pixels, magnified by their distance from
the mean in σ for each order of a moment.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastrf.analytic.chain import Step
from fastrf.analytic.forward import forward_moments
from fastrf.analytic.geometry import receptive_field
from fastrf.analytic.moments import Moments, moments, unclipped_mass
from fastrf.analytic.polynomial import chain_polynomial, profile_float
from fastrf.engine import ENGINES
from fastrf.engine.plan import Plan
from fastrf.erf import ERF, erf
from fastrf.errors import EmptyFieldError, InputError, PlanError, UnboundedError
from fastrf.lowering import Operation, PlaneGraph, lower
from fastrf.maps import Everything, SpatialMap, Table, Window
from fastrf.network import Network, as_network

LONGEST_POLYNOMIAL = 4097
"""Longest profile compared with exact integers: its big-integer power takes a second or so."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        device, engine, dtype: what was checked.
        grid: "unbounded", or the input size.
        quantity: what was compared, and with which formula.
        value, expected: what the engine and what the formula gives (per axis where it has axes).
        error, tolerance: largest deviation, and its bound.
        ok: whether the error is within the bound.
    """

    device: str
    engine: str
    dtype: str
    grid: str
    quantity: str
    value: Any
    expected: Any
    error: float
    tolerance: float
    ok: bool


@dataclass(frozen=True)
class CheckReport:
    """The table of all comparisons; true when all agree.

    Attributes:
        network, node: what was checked.
        rows: the comparisons.
        skipped: what could not be compared, and why.
    """

    network: str
    node: str
    rows: tuple[Row, ...]
    skipped: tuple[str, ...]

    @cached_property
    def ok(self) -> bool:
        """Whether there is at least one comparison and all of them agree."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the attributes' names."""
        return {
            "network": self.network,
            "node": self.node,
            "ok": self.ok,
            "rows": [asdict(row) for row in self.rows],
            "skipped": list(self.skipped),
        }

    def __str__(self) -> str:
        lines = [f"check of {self.network}, {self.node!r}"]
        for r in self.rows:
            mark = "ok  " if r.ok else "FAIL"
            lines.append(
                f"  {mark} {r.device} {r.engine:8} {r.dtype} {r.grid:12} {r.quantity}: "
                f"error {r.error:.2g}, bound {r.tolerance:.2g}"
            )
        lines.extend(f"  not compared: {reason}" for reason in self.skipped)
        return "\n".join(lines)


def check(
    net: Any,
    output: str | None = None,
    unit: str | int | Sequence[int] = "center",
    input_size: int | Sequence[int] | None = None,
    *,
    input: str | None = None,
    ignore_global: bool = False,
    workers: int | None = None,
    memory_limit: int | None = None,
) -> CheckReport:
    """Runs every engine, device and dtype at hand and compares the results with formulas.

    The network is checked on the unbounded grid and with borders.

    Args:
        net, output, unit, input, ignore_global, workers, memory_limit: as in `erf`.
        input_size: the input size for the check with borders; default: 8 strides of the output,
            at least 32 pixels. A `unit` other than "center" is checked at this size alone.

    Raises:
        InputError: an argument or the network breaks a rule.
    """
    network = as_network(net)
    field = receptive_field(network, output, None, input=input, ignore_global=ignore_global)
    options: dict[str, Any] = {
        "unit": unit,
        "input": input,
        "ignore_global": ignore_global,
        "workers": workers,
        "memory_limit": memory_limit,
    }
    rows: list[Row] = []
    skipped: list[str] = []
    size = input_size if input_size is not None else _default_size(field.stride)
    for grid in (None, size):
        if grid is None and unit != "center":
            continue
        try:
            _check_grid(network, output, grid, options, rows, skipped)
        except UnboundedError as error:
            skipped.append(f"unbounded grid: {error}")
        except InputError as error:
            if grid is None or input_size is not None:
                raise
            skipped.append(f"input size {grid}: {error}")
    return CheckReport(network.name or repr(network), field.node, tuple(rows), tuple(skipped))


def _default_size(stride: Iterable[Any]) -> tuple[int, ...]:
    return tuple(max(32, 8 * math.ceil(s)) if s is not None else 32 for s in stride)


def _check_grid(
    network: Network,
    output: str | None,
    size: Any,
    options: dict[str, Any],
    rows: list[Row],
    skipped: list[str],
) -> None:
    graph = lower(network, size, ignore_global=options["ignore_global"])
    node, source = graph.output_node(output), graph.input_node(options["input"])
    unit = graph.unit_index(node, options["unit"])
    engines = [e for e, engine in ENGINES.items() if engine.obstacle(graph, node, source) is None]
    analytic = (
        moments(graph, node, unit, source)
        if size is None
        else forward_moments(graph, node, unit, source)
    )
    box = receptive_field(
        network, output, size, input=options["input"], ignore_global=options["ignore_global"]
    ).box(unit, clip=size is not None)
    grid = "unbounded" if size is None else "×".join(map(str, graph.input_size or ()))
    if box is None:
        skipped.append(f"{grid}: unit {unit} of {node} sees nothing of {source}")
        return
    steps = _rounding_steps(graph.between(node, source))
    exact: list[ERF] = []
    for dtype in ("float64", "float32"):
        for engine in engines:
            choices = {k: v for k, v in options.items() if k != "unit"}
            try:
                result = erf(network, node, unit, size, method=engine, dtype=dtype, **choices)
            except PlanError as error:
                skipped.append(f"{engine}, {dtype}, {grid}: {error}")
                continue
            except EmptyFieldError as error:
                book = _Book(rows, ("cpu", engine, dtype, grid), 0.0, 0.0, 0.0)
                book.add("the field is not empty", str(error), [list(b) for b in box], math.inf, 0)
                continue
            if dtype == "float64":
                exact.append(result)
            book = _Book.of(rows, result, engine, dtype, grid, steps)
            _compare_moments(book, result, analytic)
            _compare_box(book, result, box, graph.between(node, source))
            if size is None:
                _compare_polynomial(book, result, graph, node, source)
            else:
                _compare_loss(book, result, graph, network, node, source, analytic)
    for other in exact[1:]:
        _compare_images(_Book.of(rows, other, "both", "float64", grid, steps), exact[0], other)


@dataclass(frozen=True, slots=True)
class _Book:
    """Writes rows for one engine's result.

    Attributes:
        label: device, engine, dtype and grid.
        eps: ε, bound of a pixel's error relative to itself.
        slack: bound of the sum of all pixels' errors beyond that, for an engine that is right to
            a share of the peak; 0 for one that is right pixel by pixel.
        reach: farthest pixel from the mean, in σ: a moment of order q magnifies the slack by
            reach^q.
    """

    rows: list[Row]
    label: tuple[str, str, str, str]
    eps: float
    slack: float
    reach: float

    @staticmethod
    def of(rows: list[Row], result: ERF, engine: str, dtype: str, grid: str, steps: int) -> _Book:
        eps = steps * float(np.finfo(dtype).eps) / 2
        plan, slack, reach = result.plan, 0.0, 0.0
        if isinstance(plan, Plan) and plan.accuracy == "absolute":
            slack = plan.tol * float(result.image.max()) * result.image.size + result.dropped_mass
            ends = zip(result.mean, result.std, result.box, strict=True)
            reach = max(max(mean - lo, hi - mean) / (std or 1.0) for mean, std, (lo, hi) in ends)
        label = (plan.device if isinstance(plan, Plan) else "cpu", engine, dtype, grid)
        return _Book(rows, label, eps, slack, reach)

    def add(
        self,
        quantity: str,
        value: Any,
        expected: Any,
        error: float,
        units: float,
        order: int = 0,
    ) -> None:
        bound = units * (self.eps + self.slack * max(self.reach, 1.0) ** order)
        ok = bool(error <= bound)
        self.rows.append(Row(*self.label, quantity, value, expected, float(error), bound, ok))


def _compare_moments(book: _Book, result: ERF, analytic: Moments) -> None:
    sigma = np.where(analytic.std > 0, analytic.std, 1.0)
    log_mass = float(analytic.log_mass)
    book.add(
        "log_gain, sum over paths",
        result.log_gain,
        log_mass,
        abs(result.log_gain - log_mass),
        2 + abs(log_mass),
    )
    book.add(
        "mean / σ, cumulants add",
        list(result.mean),
        analytic.mean.tolist(),
        _largest((np.asarray(result.mean) - analytic.mean) / sigma),
        4 + _largest(analytic.mean / sigma),
        order=1,
    )
    covariance = result.covariance - analytic.covariance
    book.add(
        "covariance / σσ, cumulants add",
        result.covariance.tolist(),
        analytic.covariance.tolist(),
        _largest(covariance / np.outer(sigma, sigma)),
        8,
        order=2,
    )
    spread = analytic.std > 0
    if spread.any():
        expected = analytic.kurtosis[spread]
        book.add(
            "kurtosis, cumulants add",
            [float(k) for k in np.asarray(result.kurtosis)[spread]],
            expected.tolist(),
            _largest(np.asarray(result.kurtosis)[spread] - expected),
            16 * (3 + _largest(expected)),
            order=4,
        )


def _compare_box(
    book: _Book,
    result: ERF,
    box: Sequence[tuple[int, int]],
    operations: Sequence[Operation],
) -> None:
    """The image's window against the TRF: inside it, and equal where nothing can be trimmed."""
    smallest = sum(_bits(m) for op in operations for m in op.maps)
    room = -float(np.finfo(result.image.dtype).minexp) - 32
    whole = smallest < room and book.slack == 0
    outside = max(
        max(low - have[0], have[1] - high)
        for (low, high), have in zip(box, result.box, strict=True)
    )
    short = max(
        max(have[0] - low, high - have[1])
        for (low, high), have in zip(box, result.box, strict=True)
    )
    book.add(
        "window = TRF box" if whole else "window within TRF box (tails trimmed)",
        [list(b) for b in result.box],
        [list(b) for b in box],
        float(max(outside, short if whole else 0, 0)),
        0,
    )


def _bits(move: SpatialMap) -> float:
    """log2 of the number of equally likely taps: how much less a pixel can hold than its source."""
    if move.taps is not None:
        return math.inf
    bits = 0.0
    for axis in move.axes:
        if isinstance(axis, Everything):
            bits += math.log2(math.prod(move.size_in or (1,)))
        elif isinstance(axis, Table):
            positive = axis.taps[axis.taps > 0]
            bits += -math.log2(float(positive.min())) if positive.size else math.inf
        else:
            bits += math.log2(axis.kernel)
    return bits


def _compare_polynomial(
    book: _Book, result: ERF, graph: PlaneGraph, node: str, source: str
) -> None:
    """Each axis' profile of a chain of windows with equal taps against exact integers."""
    operations = graph.between(node, source)
    maps = [m for op in operations for m in op.maps]
    if book.slack:
        return  # right to a share of the peak, not pixel by pixel
    if not _is_chain(operations) or any(
        m.taps is not None or not all(isinstance(a, Window) for a in m.axes) for m in maps
    ):
        return
    errors = []
    for axis in range(graph.ndim):
        jump, steps = 1, []
        for m in maps:
            window = m.axes[axis]
            assert isinstance(window, Window)
            if window.kernel > 1:
                steps.append(Step(window.kernel, jump, window.dilation))
            jump *= window.stride
        length = 1 + sum((s.kernel - 1) * int(s.spacing) for s in steps)
        if length > LONGEST_POLYNOMIAL:
            return
        expected = profile_float(*chain_polynomial(steps)).probability
        got = result.profile(axis)
        first = (length - len(got)) // 2
        # Far out, other axes' tails fall below the smallest number and are missing from the sum.
        rows = expected[first : first + len(got)]
        seen = rows > np.finfo(result.image.dtype).tiny * 2.0**64
        errors.append(_largest(got[seen] / rows[seen] - 1))
    book.add("profiles, exact integers", len(maps), len(maps), max(errors), 4)


def _is_chain(operations: Sequence[Operation]) -> bool:
    """Whether one path leads from the unit to the input, through one plane of every map."""
    reads = Counter(q for op in operations for q, _ in op.sources)
    writes = Counter(p for op in operations for p, _ in op.targets)
    return set(reads.values()) | set(writes.values()) <= {1} and all(
        len(op.sources) == len(op.targets) == 1 for op in operations
    )


def _compare_loss(
    book: _Book,
    result: ERF,
    graph: PlaneGraph,
    network: Network,
    node: str,
    source: str,
    analytic: Moments,
) -> None:
    """What fell into padding, against the masses with and without borders."""
    maps = [m for op in graph.between(node, source) for m in op.maps]
    even = all(
        isinstance(axis, Window) or (isinstance(axis, Table) and m.kind == "routing")
        for m in maps
        for axis in m.axes
    )
    if not even:
        return  # resizing gains and loses at borders by itself; the mass alone is compared
    unbounded = lower(network, ignore_global=result.ignore_global)
    free = unclipped_mass(unbounded, node, source)
    expected = 1 - float(analytic.mass.ratio(free))
    units = 4 + abs(float(free.log))
    book.add(
        "lost_mass, adjoint",
        result.lost_mass,
        expected,
        abs(result.lost_mass - expected),
        units,
    )


def _compare_images(book: _Book, a: ERF, b: ERF) -> None:
    """Two engines' images, over the pixels that both hold: each relative to itself, or to the
    peak where one engine is right to a share of it."""
    low = [max(x[0], y[0]) for x, y in zip(a.box, b.box, strict=True)]
    high = [min(x[1], y[1]) for x, y in zip(a.box, b.box, strict=True)]
    ours, theirs = (
        e.image[
            tuple(slice(lo - o, hi - o + 1) for lo, hi, o in zip(low, high, e.origin, strict=True))
        ]
        for e in (a, b)
    )
    engines = f"{_method(a)} against {_method(b)}"
    peak = float(a.image.max())
    value, expected = float(b.image.max()), peak
    if book.slack:
        share = b.plan.tol if isinstance(b.plan, Plan) else 0.0
        error = _largest(ours - theirs) / peak
        bound = _Book(book.rows, book.label, book.eps + share, 0.0, 0.0)
        bound.add(f"image to a share of the peak, {engines}", value, expected, error, 4)
        return
    seen = (ours > 0) & (theirs > 0)
    error = _largest(ours[seen] / theirs[seen] - 1)
    book.add(f"image pixel by pixel, {engines}", value, expected, error, 4)


def _method(result: ERF) -> str:
    return result.plan.method if isinstance(result.plan, Plan) else "unknown"


def _rounding_steps(operations: Sequence[Operation]) -> int:
    """Bound on the roundings that any pixel's value passes through, with a few for normalising."""
    steps = 64
    for op in operations:
        steps += 4
        for m in op.maps:
            count = m.taps.size if isinstance(m.taps, np.ndarray) else sum(map(_terms, m.axes))
            steps += count + 2
    return steps


def _terms(axis: Any) -> int:
    if isinstance(axis, Table):
        return int(axis.taps.shape[1]) + 2
    return 64 if isinstance(axis, Everything) else int(axis.kernel)


def _largest(values: Any) -> float:
    array = np.abs(np.asarray(values, dtype=np.float64))
    return float(array.max()) if array.size else 0.0
