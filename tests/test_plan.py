"""The planner: foretells without computing, and what it foretells holds."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import graphs
import numpy as np
import pytest
from fastrf.kernels import load
from fastrf.kernels.cpu import _runs, box_run

import fastrf as rf
from fastrf import device
from fastrf.device import resolve
from fastrf.engine import ENGINES, METHODS, choice, cost, rehearsal, scratch
from fastrf.engine.plan import Plan, make_plan
from fastrf.errors import InputError, PlanError
from fastrf.lowering import lower
from fastrf.maps import SpatialMap, Window

CASES = dict(graphs.cases())


def plan_of(
    net: Any, size: Any = None, unit: Any = "center", output: Any = None, **options: Any
) -> Plan:
    graph = lower(rf.network.as_network(net) if not isinstance(net, rf.Network) else net, size)
    node = graph.output_node(output)
    source = graph.input_node(None)
    return make_plan(
        graph, node, graph.unit_index(node, unit), source, device=resolve("cpu"), **options
    )


def contains(plan: Plan, result: rf.ERF) -> bool:
    return all(
        first <= low and high < first + count
        for (first, count), (low, high) in zip(plan.support, result.box, strict=True)
    )


# --- pure -----------------------------------------------------------------------------------


def test_planning_loads_no_kernels() -> None:
    """In a process of its own: this one has loaded them long ago."""
    script = (
        "import sys; import fastrf as rf\n"
        "from fastrf.engine.plan import make_plan\n"
        "from fastrf.device import resolve\n"
        "from fastrf.lowering import lower\n"
        "for net, size in ((rf.zoo.resnet50(), 224), (rf.zoo.plain(30, 3), None)):\n"
        "    graph = lower(net, size)\n"
        "    node = graph.output_node(None)\n"
        "    unit = graph.unit_index(node, 'center')\n"
        "    print(make_plan(graph, node, unit, 'input', device=resolve()))\n"
        "assert 'numba' not in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Plan: unit") == 2


def test_planning_touches_no_image() -> None:
    """A plan of ten terabytes takes no memory to speak of, and is refused."""
    net = rf.Sequential(rf.Conv(3, padding=1), rf.Residual(rf.Conv(1001, padding=500)))
    plan_of(net, 8)
    tracemalloc.start()
    with pytest.raises(PlanError) as caught:
        plan_of([rf.Conv(3, stride=1000), *[rf.Conv(999)] * 3, rf.Conv(3)], method="direct")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    message = str(caught.value)
    assert "\n" not in message
    assert "memory_limit" in message
    assert "dtype='float32' or an input_size" in message
    assert "tail=" not in message  # three even windows have no tails to drop


def test_same_question_same_plan() -> None:
    first, second = (plan_of(rf.zoo.unet(3, 2), 64) for _ in range(2))
    assert first == second


# --- words ----------------------------------------------------------------------------------


def test_text() -> None:
    options = {"tail": 1e-9, "workers": 2, "dtype": "float32", "method": "factored"}
    plan = plan_of(rf.zoo.plain(10, 3), 64, **options)
    text = str(plan)
    for word in (
        repr(plan.node),
        "'input'",
        "(32, 32)",
        "factored",
        "relative",
        "cpu, float32, workers 2",
        "21 × 21",
        "(22, 22)",
        "MiB",
        "1e-09",
    ):
        assert word in text
    assert plan.reason in text
    assert max(map(len, text.splitlines())) <= 100
    assert "float64" not in text
    assert "tail" not in str(plan_of(rf.zoo.plain(10, 3), 64))


def test_the_device_that_auto_took_is_said() -> None:
    result = rf.erf(rf.Sequential(rf.Conv(3), ndim=1))
    assert result.plan.device == "cpu"
    assert any(note.startswith("auto:") for note in result.plan.notes)
    assert rf.erf(rf.Sequential(rf.Conv(3), ndim=1), device="cpu").plan.notes == ()


# --- which engine ---------------------------------------------------------------------------


def test_methods_are_the_engines() -> None:
    assert METHODS == ("direct", "factored", "spectral", "channelwise")
    assert all(ENGINES[name].method == name for name in METHODS)
    assert {engine.method for engine in ENGINES.values()} == set(METHODS)


@pytest.mark.parametrize(
    ("net", "method"),
    [
        (rf.zoo.plain(100, 3), "factored"),
        (rf.zoo.plain(3, 3), "direct"),  # calls count there
        (rf.Sequential(rf.Conv((2, 2), taps=[[1, 2], [3, 5]])), "direct"),
        (rf.Sequential(*[rf.Conv((2, 2), taps=[[1, 2], [2, 4]])] * 150), "factored"),
        (rf.zoo.unet(2, 1), "direct"),
    ],
)
def test_auto(net: rf.Network, method: str) -> None:
    plan = plan_of(net)
    assert plan.method == method
    assert plan.reason
    assert plan.accuracy == "relative"
    asked = plan_of(net, method="direct")
    assert (asked.method, asked.reason) == ("direct", "asked for")


def test_factored_is_refused_with_the_layer() -> None:
    net = rf.Sequential(rf.Conv(3), ("odd", rf.Conv((2, 2), taps=[[1, 2], [3, 5]])))
    with pytest.raises(InputError, match="odd") as caught:
        plan_of(net, method="factored", accuracy="relative")
    assert "direct" in str(caught.value)
    assert plan_of(net, method="factored").engine == "recompressed"


# --- the window -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("clip", [False, True])
def test_window(name: str, clip: bool) -> None:
    graph = CASES[name]
    net, size = graph.network(), graph.size if clip else None
    shape = graph.map_size()
    units: list[tuple[int, ...]] = [(0,) * graph.ndim, (1,) * graph.ndim, (-5,) * graph.ndim]
    if clip:
        middle = tuple(n // 2 for n in shape)
        units = [(0,) * graph.ndim, middle, tuple(n - 1 for n in shape)]
    for unit in units:
        for dtype in ("float64", "float32"):
            plan = plan_of(net, size, unit, dtype=dtype)
            try:
                result = rf.erf(net, None, unit, size, dtype=dtype)
            except InputError as refused:
                if "reads nothing" not in str(refused):
                    raise
                continue
            assert contains(plan, result)
            assert result.plan == plan or result.plan.notes != plan.notes


# Layers from which on the bound on the tails, not the taps' span, ends the window of k = 3:
# √(2·n·708) < n in float64, where the smallest number is e^−708, and e^−87 in float32.
DEEP_ENOUGH = {"float64": 1600, "float32": 400}

DEEP = {
    "plain": [rf.Conv(3, padding=1)],
    "to one side": [rf.Conv(3, padding=((2, 0),))],
    "skewed taps": [rf.Conv(3, taps=[1, 1e-3, 0])],
    "skewed and dilated": [rf.Conv(2, taps=[1e-2, 1], dilation=3)],
    "up and down": [rf.ConvTranspose(4, stride=2, padding=1), rf.Conv(4, stride=2)],
    "uneven phases": [rf.ConvTranspose(3, stride=2, padding=1), rf.Conv(4, stride=2)],
    "residual": [rf.Residual(rf.Conv(3, padding=1, gain=3))],
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_window_of_deep_networks(name: str, dtype: str) -> None:
    """Where only a bound on the tails keeps the window below the theoretical field."""
    block = DEEP[name]
    net = rf.Sequential(*block * (DEEP_ENOUGH[dtype] // len(block)), ndim=1)
    result = rf.erf(net, dtype=dtype, method="direct")
    assert contains(plan_of(net, dtype=dtype), result)
    assert contains(plan_of(net, dtype=dtype, method="direct"), result)


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("unit", [-900, 900])
def test_window_of_units_far_from_the_middle(name: str, unit: int) -> None:
    """Farther than the window is wide, so that it cannot hold both the unit and pixel 0."""
    block = DEEP[name]
    net = rf.Sequential(*block * (400 // len(block)), ndim=1)
    result = rf.erf(net, unit=unit, dtype="float32", method="direct")
    plan = plan_of(net, None, unit, dtype="float32", method="direct")
    assert contains(plan, result)
    ((_, predicted),) = plan.support
    assert predicted < 900


@pytest.mark.parametrize(
    "padding", [((2, 0),), ((0, 2),), ((1, 1),)], ids=["to the left", "to the right", "centred"]
)
def test_window_where_most_falls_into_padding(padding: Any) -> None:
    net = rf.Sequential(*[rf.Conv(3, padding=padding)] * 1600, ndim=1)
    result = rf.erf(net, unit=20, input_size=40)
    assert contains(plan_of(net, 40, 20), result)


def test_window_of_correlated_gradients() -> None:
    """What may be dropped narrows it."""
    net = rf.Sequential(*[rf.Conv(3, padding=1), rf.AvgPool(3, 1, padding=1)] * 40, ndim=1)
    plan = plan_of(net, tail=1e-3)
    assert plan.engine == "correlated"
    assert contains(plan, rf.erf(net, tail=1e-3))
    ((_, whole),), ((_, part),) = plan_of(net).support, plan.support
    assert part < 0.7 * whole


def test_window_is_not_much_too_wide() -> None:
    """Hoeffding's bound knows of a layer's taps but their span, which costs √(3/2) at k = 3."""
    net = rf.Sequential(*[rf.Conv(3, padding=1)] * 2_000, ndim=1)
    ((_, predicted),) = plan_of(net).support
    have = rf.erf(net).image.size
    assert have <= predicted < 1.5 * have
    assert predicted < 4_001 / 1.15


# --- memory ---------------------------------------------------------------------------------


def test_a_limit_that_is_just_met_changes_nothing() -> None:
    net = rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 20)
    plan = plan_of(net)
    limited = plan_of(net, memory_limit=plan.working)
    assert limited == replace(plan, memory_limit=plan.working)


def test_pixels_that_layers_write_are_counted() -> None:
    """Fields of 3, 7 and 15 pixels along each axis, with taps that go in one pass."""
    ring = np.arange(1, 10).reshape(3, 3)
    for n, cells in ((1, 3**2), (2, 3**2 + 7**2), (3, 3**2 + 7**2 + 15**2)):
        net = rf.Sequential(*[rf.Conv(3, stride=2, taps=ring)] * n)
        assert plan_of(net, method="direct").cells == cells


def test_an_outer_product_of_lines_writes_its_pixels() -> None:
    """Of one line, there is none."""
    line, *others = (
        plan_of(rf.Sequential(*[rf.Conv(3, padding=1)] * 6, ndim=n), 8, method="factored")
        for n in (1, 2, 3)
    )
    walked = plan_of(rf.Sequential(*[rf.Conv(3, padding=1)] * 6, ndim=1), 8, method="direct")
    assert line.cells == walked.cells
    assert [plan.cells - line.cells for plan in others] == [8**2, 8**3]


MEMORY: dict[str, tuple[rf.Network, Any]] = {
    "plain": (rf.zoo.plain(60, 3), None),
    "large kernels": (rf.Sequential(*[rf.Conv(9, padding=4)] * 40), None),
    "clipped": (rf.zoo.plain(120, 3), 300),
    "residual": (rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 60), 200),
    "dense taps": (
        rf.Sequential(*[rf.Conv(3, padding=1, taps=np.arange(1, 10).reshape(3, 3))] * 80),
        None,
    ),
    "3-D": (rf.Sequential(*[rf.Conv(3, padding=1)] * 20, ndim=3), None),
    "strided": (rf.Sequential(*[rf.Conv(5, stride=2, padding=2)] * 7), None),
    "strided, dense taps": (
        rf.Sequential(*[rf.Conv(3, stride=2, taps=np.arange(1, 10).reshape(3, 3))] * 9),
        None,
    ),
    "linear": (rf.Sequential(rf.Upsample(2, "linear"), *[rf.Conv(9, padding=4)] * 40), 200),
    "global": (rf.Sequential(rf.Conv(3, padding=1), rf.SqueezeExcite(), rf.Conv(3)), 300),
    "unet": (rf.zoo.unet(4, 2), 256),
    "densenet": (rf.zoo.densenet121(), 224),
    "inception": (rf.zoo.inception_v3(), 299),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MEMORY)
def test_memory(name: str, dtype: str) -> None:
    """What the direct engine takes is no more than foretold, and not many times less."""
    net, size = MEMORY[name]
    graph = lower(net, size)
    node = graph.output_node(None)
    unit = graph.unit_index(node, "center")
    plan = make_plan(
        graph, node, unit, "input", device=resolve("cpu"), dtype=dtype, method="direct", workers=1
    )
    kernels = load("cpu")
    arguments = (graph, node, unit, "input")
    run = ENGINES[plan.engine].run
    run(*arguments, kernels=kernels, dtype=dtype)  # compiles
    tracemalloc.start()
    run(*arguments, kernels=kernels, dtype=dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Besides images there are windows, numbers and Python's own objects: half a mebibyte at most.
    assert peak <= plan.memory + 2**19
    if plan.engine == "direct":  # the lags of covariances are counted as if all layers had them
        assert plan.memory <= 4 * peak


def test_limit() -> None:
    net = rf.zoo.plain(40, 3)
    needed = plan_of(net, method="direct").memory
    assert plan_of(net, method="direct", memory_limit=needed).memory == needed
    with pytest.raises(PlanError, match="memory_limit, or use dtype='float32' or an input_size"):
        plan_of(net, method="direct", memory_limit=needed - 1)
    deep = rf.zoo.plain(400, 3)
    with pytest.raises(PlanError, match="memory_limit, or use tail=, dtype='float32' or an input_"):
        plan_of(deep, method="direct", memory_limit=needed)
    with pytest.raises(PlanError, match=r"raise memory_limit, or use dtype='float32'$"):
        plan_of(deep, 800, method="direct", memory_limit=needed, tail=1e-9)
    assert plan_of(net, method="direct", dtype="float32").memory < needed


def test_cost_grows_with_the_work() -> None:
    thin, thick = plan_of(rf.zoo.plain(10, 3)), plan_of(rf.zoo.plain(100, 3))
    assert 0 < thin.seconds < thick.seconds
    assert thin.cells < thick.cells
    assert (thin.operations, thick.operations) == (10, 100)


@pytest.mark.parametrize("method", ["direct", "factored"])
def test_a_tail_that_may_be_dropped_makes_the_plan_smaller(method: str) -> None:
    net = rf.zoo.plain(400, 3)
    whole, part = (plan_of(net, method=method, tail=tail) for tail in (None, 1e-9))
    assert part.memory < whole.memory / 4
    assert part.seconds < whole.seconds
    for tail in (1e-3, 1e-9, 1e-30):
        result = rf.erf(net, method=method, tail=tail)
        assert contains(result.plan, result)
        assert result.dropped_mass <= tail


# --- devices --------------------------------------------------------------------------------


def test_costs_of_a_gpu_are_a_gpus() -> None:
    """Pixels at memory's speed, operations no cheaper than the CPU's, nothing claimed measured."""
    slow, fast, unknown = (cost.of_gpu(b) for b in (1e12, 4e12, None))
    assert slow.shared == pytest.approx(4 * fast.shared)
    assert fast.shared < slow.shared < unknown.shared < cost.CPU.shared
    assert min(slow.fixed, fast.fixed) >= cost.CPU.fixed
    assert cost.CPU.measured
    assert not any(c.measured for c in (slow, fast, unknown))


def test_a_forecast_on_the_cpu_is_itself() -> None:
    graph = lower(rf.zoo.plain(10, 3))
    node = graph.output_node(None)
    field = (graph, node, (0, 0), "input", np.dtype(float), None, 1e-12)
    for name in ("direct", "factored", "spectral"):
        engine = ENGINES[name]
        assert engine.foretold(*field, costs=cost.CPU) == engine.forecast(*field)


def test_whole_windows_are_foretold_for_a_gpu() -> None:
    """On the CPU Gaussian tails bound what a thousand layers leave; a GPU computes it all."""
    net = rf.Sequential(*[rf.Conv(3, padding=1)] * 8_000, ndim=1)
    graph = lower(net)
    field = (graph, graph.output_node(None), (0,), "input", np.dtype(float), None, 1e-12)
    seen = ENGINES["direct"].forecast(*field)
    whole = ENGINES["direct"].foretold(*field, costs=cost.of_gpu(1e12))
    assert whole.largest == 16_001 > seen.largest
    assert whole.cells > seen.cells
    assert whole.support == seen.support


def test_a_host_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_on_host", lambda: 1 << 20)
    with pytest.raises(PlanError, match=r"limit of 0\.5 MiB"):
        plan_of(rf.zoo.plain(300, 3), method="direct")
    assert plan_of(rf.zoo.plain(3, 3), method="direct").device == "cpu"


@pytest.mark.parametrize(
    ("direct", "factored", "spectral", "engine"),
    [
        # (bytes, seconds) of each way, where 100 bytes are allowed.
        ((90, 9.0), (90, 8.0), (90, 8.0), "factored"),
        ((90, 9.0), (90, 9.0), (90, 8.0), "direct"),
        ((101, 1.0), (90, 9.0), (90, 8.9), "factored"),
        ((90, 9.0), (90, 9.5), (100, 1.0), "spectral"),
        ((90, 9.0), (90, 9.5), (101, 1.0), "direct"),
        ((101, 9.0), (102, 9.5), (102, 1.0), "spectral"),
    ],
)
def test_one_pass_goes_the_quickest_way_that_fits(
    direct: Any, factored: Any, spectral: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {"direct": direct, "factored": factored, "spectral": spectral}
    monkeypatch.setattr(choice, "forecasts_of", lambda method, *_: ways[method])
    monkeypatch.setattr(choice, "_working", lambda way: way[0])
    monkeypatch.setattr(choice, "_seconds", lambda way: way[1])
    monkeypatch.setattr(choice, "CLEARLY_SLOWER", 2.0)
    outlook: Any = SimpleNamespace(nodes=["a", "b"], rank=3)
    found, _, forecasts = choice.chosen_pass(outlook, "auto", 1e-12, 100, cost.CPU)
    assert (found, forecasts) == (engine, ways[engine])


@pytest.mark.parametrize(("accuracy", "engine"), [("auto", "direct"), ("absolute", "spectral")])
def test_one_pass_that_may_be_right_to_the_peak_need_not_be_clearly_quicker(
    accuracy: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: dict[str, Any] = {"direct": 3.0, "spectral": 2.0}
    monkeypatch.setattr(choice, "forecasts_of", lambda method, *_: ways[method])
    monkeypatch.setattr(choice, "_working", lambda way: 1)
    monkeypatch.setattr(choice, "_seconds", lambda way: way)
    monkeypatch.setattr(choice, "CLEARLY_SLOWER", 2.0)
    outlook: Any = SimpleNamespace(nodes=["a", "b"], rank=None)
    assert choice.chosen_pass(outlook, accuracy, 1e-12, 100, cost.CPU)[0] == engine


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("shape", "taps"),
    [
        ((90, 90, 90), (3, 3, 3)),
        ((20, 70, 9), (5, 1, 3)),
        ((9, 50, 200), (3, 7, 9)),
        ((40, 300), (3, 7)),
        ((2000, 30), (9, 1)),
    ],
)
def test_tiles_of_sums_of_equal_taps(
    shape: Any, taps: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against what the kernel asks for, run as Python, where there is nothing to sum."""
    asked: list[int] = []

    def allocated(count: int, like: Any) -> Any:
        asked.append(count * like.itemsize)
        return np.empty(0, like.dtype)

    monkeypatch.setattr(_runs, "_scratch", allocated)
    monkeypatch.setattr(_runs, "_elements", lambda like, size: size // like.itemsize)
    monkeypatch.setattr(_runs, "_rounded", _runs._rounded.function)
    y, nothing = np.empty((1, 1, 1), dtype), (0, 0, 0)
    flat = (1,) * (3 - len(shape))
    planes, rows = (1, box_run._ROWS) if flat else box_run._VOLUME_TILE
    tile = (min(planes, (*flat, *shape)[0]), min(rows, shape[-2]))
    lines = map(np.ones, (*flat, *taps))
    place = (y, nothing, nothing, *lines, nothing, y, nothing, nothing, tile, 0.0)
    _runs.box_sweep.function(*place)
    edge = 8 * 64  # a block of vectors, which no forecast needs to count
    assert scratch._box_tile(shape, taps, y.itemsize) == sum(asked) - edge


@pytest.mark.parametrize(("taps", "planes"), [((None, [1.0] * 9), 1), (([1.0] * 9, None), 0)])
def test_planes_of_lines_are_held_where_rows_are_doubled(taps: Any, planes: int) -> None:
    """Along the axis before the last, where its taps are equal and many."""
    own = tuple(None if t is None else np.asarray(t) / 9 for t in taps)
    move = SpatialMap((Window(9), Window(9)), "mixing", 1.0, own)
    y, x = (30, 20), (38, 28)
    # A line of y with room at both ends, three where its taps are equal; rows and taps that meet.
    found = (20 + 2 * (8 + 1 + 1)) * (3 if own[1] is None else 1)
    found += planes * 3 * (30 + 2 * 8) * 20
    assert rehearsal._beside(move, y, x, 8) == 8 * found + (38 + 1) * 9 * (3 * 8 + 8)


@pytest.mark.parametrize("layers", [1, 2, 7])
@pytest.mark.parametrize("first", [(5,), (4, 9), (3, 1, 8)])
def test_pixels_of_a_run_are_those_of_its_layers(first: tuple[int, ...], layers: int) -> None:
    """Of an image that grows by 2, 0 and 3 pixels a layer along its axes."""
    grown = (2, 0, 3)
    after = [
        [n + layer * more for n, more in zip(first, grown, strict=False)]
        for layer in range(1, layers + 1)
    ]
    assert rehearsal._updates(first, after[-1], layers) == sum(map(math.prod, after))
