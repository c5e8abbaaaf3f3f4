"""The cross-check: every engine at hand against the analytic module, which shares no code with it.

On the unbounded grid the images' mass and moments meet those of `analytic.moments`, their window
meets the theoretical field of `analytic.geometry`, and a chain of equal taps meets the exact
integer polynomial. With an input size, mass and moments meet those of `analytic.forward`, which
runs in the other direction, from the input to the unit. And all images, of every engine, device
and dtype, are compared with the first of them, the direct engine's in float64 on the CPU.

Tolerances are bounds on rounding: each addition or product of nonnegative numbers adds at most one
unit roundoff u to a pixel's relative error, so an image of N such steps is right to ε = N·u, pixel
by pixel. A normalised image's mean is then right to 2εσ, its σ to 2ε, and so on. An engine that
cuts errors off at a tolerance adds it: to ε, where it keeps it pixel by pixel; where it is a share
of the peak, that share times the pixels, magnified by their distance from the mean in σ for each
order of a moment.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from fastrf.analytic.chain import Step
from fastrf.analytic.composed import Composed, composed
from fastrf.analytic.forward import forward_moments
from fastrf.analytic.geometry import receptive_field
from fastrf.analytic.moments import Moments, has_one_gain, moments, unclipped_mass
from fastrf.analytic.paired import PairedMoments, paired_moments
from fastrf.analytic.polynomial import chain_polynomial, profile_float
from fastrf.arrays import on_host
from fastrf.device import Device, devices, resolve
from fastrf.engine import ENGINES, Engine, covariance
from fastrf.engine.plan import check_memory, check_options, costs_of
from fastrf.erf import ERF
from fastrf.errors import (
    EmptyFieldError,
    Fault,
    InputError,
    PlanError,
    ToleranceError,
    UnboundedError,
)
from fastrf.faults import explained, usual_arithmetic
from fastrf.kernels import load as load_kernels
from fastrf.layers.weights import weights_of
from fastrf.lowering import Operation, PlaneGraph, lower
from fastrf.maps import Everything, SpatialMap, Table, Window
from fastrf.network import Network, as_network

DTYPES = ("float64", "float32")
"""The first is what all others are compared with."""

TOL = 1e-12
"""The tolerance that engines with one are asked for, where they can keep it."""

PATIENCE = 20.0
"""Seconds; an engine that is expected to take longer for a field is left out, and the report says
so: the planner has quicker ones for it."""

LONGEST_POLYNOMIAL = 4097
"""Longest profile compared with exact integers: its big-integer power takes a second or so."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison.

    Attributes:
        device, engine, dtype: what was checked; the engine with the way it took, where it has
            several ("direct, at once").
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
        """Whether there is at least one comparison and all of them agree: where nothing could be
        compared, nothing is checked (`rows` is empty, and `skipped` says why)."""
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
                f"  {mark} {r.device} {r.engine} {r.dtype} {r.grid:12} {r.quantity}: "
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
    """Runs every engine in all its ways, on every device at hand and in every dtype, and compares
    the results with formulas and with each other.

    The network is checked on the unbounded grid and with borders.

    Args:
        net, output, unit, input, ignore_global, workers, memory_limit: as in `erf`.
        input_size: the input size for the check with borders; default: 8 strides of the output,
            at least 32 pixels. A `unit` other than "center" is checked at this size alone.

    Returns:
        The comparisons, true where there are any and all agree. What could not be compared is in
        `skipped`, with the reason.

    Raises:
        InputError: an argument or the network breaks a rule.
    """
    check_options("auto", "auto", TOL, None, workers, memory_limit)
    network = as_network(net)
    if any(weights_of(node.layer) is not None for node in network.bound.nodes.values()):
        raise InputError(
            "check compares engines and formulas that average weights over channels, and layers "
            "hold theirs one by one; read the model with channels='mean', or give layers gain= and "
            "taps= instead of weights="
        )
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
            with usual_arithmetic():
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
    operations = graph.between(node, source)
    steps = rounding_steps(operations)
    correlated = covariance.needed(graph, node, source)
    chain = composed(graph, node, unit, source) if correlated else None
    paired = paired_moments(graph, node, unit, source) if correlated else None
    if correlated and chain is None and paired is None:
        skipped.append(
            f"{grid}: moments, for which there is no formula with covariances but for windows far "
            f"from borders, through which no data choose what passes"
        )
    where = _Where(network, graph, node, unit, source, options["ignore_global"])
    first: tuple[_Run, ERF] | None = None
    for run in _runs(where, options["workers"]):
        label = (run.device.name, run.label, run.dtype, grid)
        if run.seconds > PATIENCE:
            skipped.append(f"{', '.join(label)}: expected to take {run.seconds:.0f} s")
            continue
        with run.device.current():
            try:
                check_memory("it needs", run.memory, options["memory_limit"], run.device)
                with explained(run.device.name):
                    result = run.field(where)
            except (PlanError, ToleranceError, Fault) as error:
                skipped.append(f"{', '.join(label)}: {error}")
                continue
            except EmptyFieldError as error:
                book = _Book(rows, label, 0.0, 0.0, 0.0)
                ends = [list(b) for b in box]
                book.add("the field is not empty", str(error), ends, math.inf, 0)
                continue
            book = _Book.of(rows, result, run, label, steps)
            _compare_box(book, result, box, operations)
            if chain is not None:
                _compare_composed(book, result, chain)
            if paired is not None:
                _compare_paired(book, result, paired)
            if not correlated:
                _compare_moments(book, result, analytic)
                if size is None:
                    _compare_polynomial(book, result, graph, node, source)
                else:
                    _compare_loss(book, result, graph, node, source, analytic)
            if first is None:
                first = run, result
            else:
                _compare_images(book, first, (run, result))


@dataclass(frozen=True, slots=True)
class _Where:
    """The field that all engines compute."""

    network: Network
    graph: PlaneGraph
    node: str
    unit: tuple[int, ...]
    input: str
    ignore_global: bool


@dataclass(frozen=True, slots=True)
class _Run:
    """One way to compute the field.

    Attributes:
        label: the engine's name, and the way's.
        device, dtype, workers: what it runs on.
        seconds, memory: what it is expected to take, in seconds and bytes.
        tol: the tolerance it is asked for; None: it has none.
        options: arguments of the engine's `run` that make it take the way.
    """

    engine: Engine
    label: str
    device: Device
    dtype: str
    workers: int
    seconds: float
    memory: int
    tol: float | None
    options: dict[str, Any]

    @property
    def share(self) -> float:
        """Error of a pixel, relative to the peak, that the engine allows itself."""
        return self.tol if self.tol is not None and self.engine.accuracy == "absolute" else 0.0

    def field(self, where: _Where) -> ERF:
        found = self.engine.run(
            where.graph,
            where.node,
            where.unit,
            where.input,
            kernels=load_kernels(self.device.name),
            dtype=np.dtype(self.dtype),
            workers=self.workers,
            xp=self.device.xp,
            **({} if self.tol is None else {"tol": self.tol}),
            **self.options,
        )
        sizes = {n: size for n in where.network.inputs if (size := where.graph.sizes[n])}
        return ERF(
            values=found.image,
            origin=found.origin,
            log_gain=found.mass.log(),
            lost_mass=found.lost,
            dropped_mass=found.dropped,
            network=where.network,
            node=where.node,
            unit=where.unit,
            input=where.input,
            input_sizes=sizes or None,
            ignore_global=where.ignore_global,
            inexact=(),
            assumptions=(),
            plan=self.label,
        )


def _runs(where: _Where, workers: int | None) -> Iterator[_Run]:
    """All ways to compute the field on this machine."""
    place = (where.graph, where.node, where.unit, where.input)
    serving = {
        name: engine
        for name, engine in ENGINES.items()
        if engine.obstacle(where.graph, where.node, where.input) is None
    }
    for device, dtype in product(map(resolve, devices()), DTYPES):
        kernels, costs = load_kernels(device.name), costs_of(device)
        for name, engine in serving.items():
            tol = None if engine.finest is None else max(TOL, engine.finest(*place))
            forecast = engine.foretold(*place, np.dtype(dtype), None, tol or TOL, costs=costs)
            # A GPU needs but the thread that feeds it.
            pay = forecast.workers(os.cpu_count() or 1)
            threads = (workers or pay) if device.is_host else 1
            expected = (threads, forecast.seconds(threads), forecast.memory)
            for way, chosen in engine.ways(kernels, forecast.largest).items():
                label = f"{name}, {way}" if way else name
                yield _Run(engine, label, device, dtype, *expected, tol, dict(chosen))


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
    def of(
        rows: list[Row], result: ERF, run: _Run, label: tuple[str, str, str, str], steps: int
    ) -> _Book:
        eps, slack, reach = steps * float(np.finfo(run.dtype).eps) / 2, 0.0, 0.0
        if run.share:
            slack = run.share * float(result.image.max()) * result.image.size
            ends = zip(result.mean, result.std, result.box, strict=True)
            reach = max(max(mean - lo, hi - mean) / (std or 1.0) for mean, std, (lo, hi) in ends)
        else:
            eps += run.tol or 0.0
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
        got = on_host(result.profile(axis))
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


def _compare_paired(book: _Book, result: ERF, paired: PairedMoments) -> None:
    """Fixed layers on any graph, by pairs of pixels. A variance is the difference of the second
    moment and the square of the mean, both about a pixel near the unit."""
    log_mass, spread = math.log(paired.mass), np.sqrt(np.diag(paired.covariance).clip(0))
    sigma = np.where(spread > 0, spread, 1.0)
    away = _largest(paired.mean / sigma)
    book.add(
        "log_gain, pairs of pixels",
        result.log_gain,
        log_mass,
        abs(result.log_gain - log_mass),
        2 + abs(log_mass),
    )
    book.add(
        "mean / σ, pairs of pixels",
        list(result.mean),
        paired.mean.tolist(),
        _largest((np.asarray(result.mean) - paired.mean) / sigma),
        4 + away,
        order=1,
    )
    book.add(
        "covariance / σσ, pairs of pixels",
        result.covariance.tolist(),
        paired.covariance.tolist(),
        _largest((result.covariance - paired.covariance) / np.outer(sigma, sigma)),
        8 + away**2,
        order=2,
    )


def _compare_composed(book: _Book, result: ERF, chain: Composed) -> None:
    """A chain with fixed layers, by generating functions."""
    book.add(
        "log_gain, generating functions",
        result.log_gain,
        chain.log_gain,
        abs(result.log_gain - chain.log_gain),
        2 + abs(chain.log_gain),
    )
    for axis, profile in enumerate(chain.profiles):
        found = np.zeros(len(profile))
        first = result.origin[axis] - chain.origin[axis]
        own = result.profile(axis)
        found[first : first + len(own)] = own
        error = _largest((found - profile) / profile.max())
        book.add(f"profile {axis}, generating functions", None, None, error, 4)


def _compare_loss(
    book: _Book,
    result: ERF,
    graph: PlaneGraph,
    node: str,
    source: str,
    analytic: Moments,
) -> None:
    """What fell into padding, against the masses with and without borders."""
    maps = [m for op in graph.between(node, source) for m in op.maps]
    even = all(
        isinstance(axis, Window) or (m.kind == "routing" and has_one_gain(axis))
        for m in maps
        for axis in m.axes
    )
    if not even:
        return  # resizing gains and loses at borders by itself; the mass alone is compared
    free = unclipped_mass(graph, node, source)
    expected = 1 - float(analytic.mass.ratio(free))
    units = 4 + abs(float(free.log))
    book.add(
        "lost_mass, adjoint",
        result.lost_mass,
        expected,
        abs(result.lost_mass - expected),
        units,
    )


def _compare_images(book: _Book, first: tuple[_Run, ERF], second: tuple[_Run, ERF]) -> None:
    """Two images, over the pixels that both hold: each relative to itself, or to the peak where
    one engine is right to a share of it."""
    (run, a), (other, b) = first, second
    low = [max(x[0], y[0]) for x, y in zip(a.box, b.box, strict=True)]
    high = [min(x[1], y[1]) for x, y in zip(a.box, b.box, strict=True)]
    ours, theirs = (
        on_host(e.image)[
            tuple(slice(lo - o, hi - o + 1) for lo, hi, o in zip(low, high, e.origin, strict=True))
        ].astype(np.float64)
        for e in (a, b)
    )
    peak, value = float(a.image.max()), float(b.image.max())
    against = f"{run.label}, {run.dtype}"
    if other.share:
        error = _largest(theirs - ours) / peak
        bound = _Book(book.rows, book.label, book.eps + other.share, 0.0, 0.0)
        bound.add(f"pixels to a share of the peak, against {against}", value, peak, error, 4)
        return
    seen = (ours > 0) & (theirs > 0)
    error = _largest(theirs[seen] / ours[seen] - 1)
    book.add(f"pixel by pixel, against {against}", value, peak, error, 4)


def rounding_steps(operations: Sequence[Operation]) -> int:
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
