"""Whole networks in one call: programs and the kernel that follows them.

Two oracles: loops on NumPy (`naive`), and the direct engine layer by layer (`TILES_IN_ONE_CALL` of
0), which is compared with the same loops, with autograd and with exact integers elsewhere.

Tolerances: a layer of T taps rounds each pixel at most T + 4 times in either way of doing it (T
products, their sum, and scales), so that two images differ by 2·Σ(T + 4)·u relative to each pixel.
Masses, losses and normalisation are float64 sums of at most N pixels each, in both images, of
which at most two are divided by each other: 4·N·2^−53 more.
"""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import graphs
import naive
import numpy as np
import pytest
from fastrf.kernels import KERNELS, load
from test_engines import CASES, expected, units

import fastrf as rf
from fastrf.analytic.polynomial import exact_profile, profile_float
from fastrf.engine import direct, program, threads
from fastrf.engine.scaled import ONE
from fastrf.errors import EmptyFieldError, InputError, UnboundedError
from fastrf.lowering import PlaneGraph, lower
from fastrf.maps import Everything, Spread, Table, Window

DTYPES = ("float64", "float32")


class Counted:
    """The kernels, with the number of programs that were followed."""

    def __init__(self) -> None:
        self.__dict__.update(vars(load()))
        self.walks = 0
        kernel = load().walk

        def walk(*arguments: Any) -> Any:
            self.walks += 1
            return kernel(*arguments)

        self.walk = walk


def one_call(graph: PlaneGraph, node: str, unit: tuple[int, ...], dtype: Any = "float64") -> Any:
    return direct.propagate_at_once(graph, node, unit, "input", load(), np.dtype(dtype))


def layer_by_layer(graph: PlaneGraph, node: str, unit: tuple[int, ...], **options: Any) -> Any:
    kernels = Counted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "TILES_IN_ONE_CALL", 0)
        found = direct.propagate(graph, node, unit, "input", kernels=kernels, **options)
    assert kernels.walks == 0
    return found


def bound(graph: PlaneGraph, pixels: int, dtype: str) -> float:
    count = 0
    for op in graph.operations:
        # A sum of images is two products and an addition for each source and target.
        count += 3 * (len(op.sources) + len(op.targets))
        for m in op.maps:
            taps = [_taps(axis, size) for axis, size in zip(m.axes, _sizes(m), strict=True)]
            count += math.prod(taps) + 4
    return float(count * np.finfo(dtype).eps + 4 * pixels * 2.0**-53)


def _taps(axis: Any, size: int) -> int:
    if isinstance(axis, Window | Spread):
        return axis.kernel
    assert isinstance(axis, Table | Everything)
    return axis.taps.size if isinstance(axis, Table) else size


def _sizes(move: Any) -> tuple[int, ...]:
    return move.size_out or (1,) * len(move.axes)


def assert_same(graph: PlaneGraph, node: str, unit: tuple[int, ...], dtype: str) -> None:
    """Image, window, mass and loss; or that there is nothing."""
    options = {"dtype": np.dtype(dtype)}
    try:
        b = layer_by_layer(graph, node, unit, **options)
    except EmptyFieldError as error:
        with pytest.raises(EmptyFieldError, match=re.escape(str(error))):
            one_call(graph, node, unit, **options)
        return
    a = one_call(graph, node, unit, **options)
    rel = bound(graph, b.image.size, dtype)
    assert (a.origin, a.image.shape, a.image.dtype) == (b.origin, b.image.shape, b.image.dtype)
    np.testing.assert_allclose(a.image, b.image, rtol=rel, atol=2 * float(np.finfo(dtype).tiny))
    assert a.mass.over(b.mass) == pytest.approx(1, abs=rel)
    assert a.lost == pytest.approx(b.lost, rel=2 * rel, abs=0)
    assert a.dropped == 0


# --- against loops --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", ["unbounded", "clipped"])
@pytest.mark.parametrize("name", CASES)
def test_against_loops(name: str, grid: str, dtype: str) -> None:
    graph = CASES[name]
    size = None if grid == "unbounded" else graph.size
    lowered = lower(graph.network(), size)
    node = lowered.output_node(None)
    for unit in units(graph, size):
        image, origin = expected(graph, unit, size)
        if not image.size:
            with pytest.raises(EmptyFieldError, match="reads nothing"):
                one_call(lowered, node, unit, dtype=dtype)
            continue
        found = one_call(lowered, node, unit, dtype=dtype)
        total = float(image.sum())
        rel = bound(lowered, image.size, dtype)
        assert found.origin == tuple(origin)
        np.testing.assert_array_equal(found.image > 0, image > 0)
        np.testing.assert_allclose(found.image, image / total, rtol=rel, atol=0)
        assert math.exp(found.mass.log()) == pytest.approx(total, rel=rel)


@pytest.mark.parametrize("name", list(CASES)[::3])
def test_every_map_of_a_network(name: str) -> None:
    """One program serves all maps: what later maps would have done must not be seen."""
    graph = CASES[name]
    for size in (None, graph.size):
        lowered = lower(graph.network(), size)
        for node in [n["name"] for n in graph.nodes if n["op"] != "input"]:
            for unit in {lowered.unit_index(node, "center"), (0,) * graph.ndim}:
                assert_same(lowered, node, unit, "float64")
        assert sum(key == ("program", "input") for key in lowered.derived) == 1


def test_the_input_itself() -> None:
    """It has a program's end for a program."""
    graph = lower(rf.Sequential(rf.Conv(3), ndim=2), 9)
    found = one_call(graph, "input", (4, 2))
    assert (found.origin, found.image.tolist()) == ((4, 2), [[1.0]])
    assert (found.mass.log(), found.lost) == (0, 0)


# --- against the walk -----------------------------------------------------------------------

RING = np.add.outer((np.arange(5) - 2) ** 2, (np.arange(5) - 2) ** 2) + 1
ZOO: dict[str, tuple[rf.Network, Any]] = {
    "resnet": (rf.zoo.resnet18(), 64),
    "densenet": (rf.zoo.densenet121(), 64),
    "inception": (rf.zoo.googlenet(), 96),
    "unet": (rf.zoo.unet(3, 2), 64),
    "wavenet": (rf.zoo.wavenet(1), None),
    "mobile": (rf.zoo.mobilenet_v2(), 64),
    "ring": (rf.Sequential(*[rf.Conv(5, padding=2, taps=RING)] * 6), 20),
    "linear": (rf.Sequential(rf.Upsample(2, "linear"), *[rf.Conv(3, padding=1)] * 2), 12),
    "squeeze": (rf.Sequential(rf.Conv(3, padding=1), rf.SqueezeExcite(), rf.Conv(3)), 15),
    "volume": (rf.Sequential(rf.Conv(3), rf.Conv(3, stride=2), rf.ConvTranspose(2, 2), ndim=3), 12),
}
"""Real networks, and what small cases have too little of."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ZOO)
def test_real_networks(name: str, dtype: str) -> None:
    network, size = ZOO[name]
    graph = lower(network, size)
    node = graph.output_node(None)
    shape = graph.sizes[node]
    corners = [(0,) * graph.ndim, (7,) * graph.ndim]
    if shape is not None:
        corners[1:] = [tuple(n - 1 for n in shape), tuple(n // 2 for n in shape)]
    for unit in corners:
        assert_same(graph, node, unit, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [6, 7, 8, 15, 16, 45])
@pytest.mark.parametrize("dilation", [1, 3])
def test_long_windows(kernel: int, dilation: int, dtype: str) -> None:
    """On both sides of the switch to doubled windows, along each axis alone and both."""
    for shape in ((1, kernel), (kernel, 1), (kernel, kernel)):
        pad = tuple(dilation * (k - 1) // 2 for k in shape)
        graph = lower(
            rf.Sequential(*[rf.Conv(shape, dilation=dilation, padding=pad)] * 2, ndim=2), (37, 41)
        )
        size = graph.sizes["conv2"] or ()
        for share in (0.0, 0.5, 0.99):
            unit = tuple(int(share * n) for n in size)
            assert_same(graph, "conv2", unit, dtype)


# --- scales ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 31])
def test_five_thousand_layers_between_borders(size: int) -> None:
    """Against the eigenvectors of the tridiagonal matrix of ones, in two dimensions.

    λ_j = 1 + 2 cos(jπ/(N+1)), v_j(i) = √(2/(N+1)) sin(jπ(i+1)/(N+1)): most of the mass is lost,
    the plain sums would grow by 9^5000.
    """
    n, unit = 5_000, (size // 2, 3)
    graph = lower(rf.zoo.plain(n, 3), size)
    j = np.arange(1, size + 1) * np.pi / (size + 1)
    modes = np.sqrt(2 / (size + 1)) * np.sin(np.outer(np.arange(1, size + 1), j))
    power = n * np.log(np.abs((1 + 2 * np.cos(j)) / 3))
    top = power.max()
    image = np.multiply.outer(*((modes * np.exp(power - top)) @ modes[u] for u in unit))
    found = one_call(graph, graph.output_node(None), unit)
    # exp(n·log λ) has n·u·|log λ| of error in the oracle; a layer of the engine rounds 4 + 3 times.
    rel = (7 * n + 2 * abs(top)) * 2.0**-53
    np.testing.assert_allclose(found.image, image / image.sum(), rtol=rel, atol=0)
    assert found.mass.log() == pytest.approx(2 * top + math.log(image.sum()), abs=rel)
    assert found.lost == pytest.approx(1 - math.exp(found.mass.log()), abs=rel)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_layers_pixel_by_pixel(dtype: str) -> None:
    """Every pixel down to the smallest normal number, against exact integers."""
    n = 1_000
    graph = lower(rf.zoo.plain(n, 3, ndim=1))
    found = one_call(graph, graph.output_node(None), (0,), dtype=dtype)
    integers = profile_float(*exact_profile(n, 3)).probability
    first = found.origin[0] + n
    part = integers[first : first + found.image.size]
    rel = (7 * n + 4) * float(np.finfo(dtype).eps) / 2
    tiny = float(np.finfo(dtype).tiny)
    clear = part > 2 * tiny
    np.testing.assert_allclose(found.image[clear], part[clear], rtol=rel, atol=0)
    assert (integers[:first] < 2 * tiny).all()
    assert (integers[first + found.image.size :] < 2 * tiny).all()
    assert found.mass.log() == pytest.approx(0, abs=rel)


@pytest.mark.parametrize("dtype", DTYPES)
def test_five_thousand_layers_unbounded(dtype: str) -> None:
    """Moments: σ² = n·(k² − 1)/12; plain sums would grow to 3^5000."""
    n = 5_000
    graph = lower(rf.zoo.plain(n, 3, ndim=1))
    found = one_call(graph, graph.output_node(None), (0,), dtype=dtype)
    image = found.image.astype(np.float64)
    x = np.arange(image.size) + found.origin[0]
    # Moments are sums of pixels of one sign; the mean is a difference of halves of E|x| ≤ σ.
    rel = 7 * n * float(np.finfo(dtype).eps)
    sigma = math.sqrt(n * 8 / 12)
    assert image.sum() == pytest.approx(1, rel=rel)
    assert image @ x**2 == pytest.approx(sigma**2, rel=3 * rel)
    assert image @ x == pytest.approx(0, abs=3 * rel * sigma)
    assert found.mass.log() == pytest.approx(0, abs=rel)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [31, 45])
def test_headroom_of_wide_sums(kernel: int, dtype: str) -> None:
    """A layer multiplies the largest pixel by k: depths at which it meets the headroom's end."""
    for n in (20, 23, 187, 189, 191):
        graph = lower(rf.Sequential(*[rf.Conv(kernel, padding=kernel // 2)] * n, ndim=1))
        assert_same(graph, graph.output_node(None), (0,), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [-900, -60, 60, 900])
def test_gains_far_from_one(exponent: int, dtype: str) -> None:
    """Branches of very different gains, down to where nothing of the weaker is left."""
    branch = rf.Residual(rf.Conv(3, padding=1, gain=2.0**exponent), rf.Conv(3, padding=1))
    graph = lower(rf.Sequential(branch, rf.Conv(3, padding=1), branch, ndim=1), 20)
    for unit in (0, 9):
        assert_same(graph, graph.output_node(None), (unit,), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_volumes_that_merge(dtype: str) -> None:
    """Windows of different places and sizes along all three axes."""
    branch = rf.Sequential(rf.Conv((3, 1, 2)), rf.Conv((1, 4, 3), padding=((2, 0), (1, 2), (1, 2))))
    net = rf.Sequential(rf.Parallel(branch, rf.Conv(3, padding=((2, 0), (0, 2), 1))), ndim=3)
    for size in (None, (6, 5, 7)):
        graph = lower(net, size)
        node = graph.output_node(None)
        for unit in {graph.unit_index(node, "center"), (0, 0, 0)}:
            assert_same(graph, node, unit, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("above", range(3, 9))
def test_gains_down_to_the_smallest_number(above: int, dtype: str) -> None:
    """A branch whose share of the image is about the smallest normal number, beside a pixel."""
    gain = float(np.finfo(dtype).tiny) * 2.0**above
    graph = lower(rf.Sequential(rf.Residual(rf.Conv(3, padding=1, gain=gain)), ndim=1), 9)
    found = one_call(graph, graph.output_node(None), (4,), dtype=dtype)
    rel = 8 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(found.image, [gain / 3, 1, gain / 3], rtol=rel, atol=0)


@pytest.mark.parametrize("exponent", [-900, 900])
def test_gains_beyond_the_largest_number(exponent: int) -> None:
    """Of a branch and an identity 2^1800 apart nothing is left of the weaker one."""
    conv = rf.Conv(3, padding=1, gain=2.0**exponent)
    graph = lower(rf.Sequential(rf.Residual(conv, conv), ndim=1), 9)
    found = one_call(graph, graph.output_node(None), (4,))
    image = [1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9] if exponent > 0 else [1.0]
    np.testing.assert_allclose(found.image, image, rtol=1e-15)
    assert found.mass.log() == pytest.approx(max(exponent, 0) * 2 * math.log(2), rel=1e-15)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40])
def test_only_the_weakest_taps_reach_the_map(n: int) -> None:
    """1e-60 a layer: what arrives is below the smallest number after six layers."""
    weak = 1e-60 / (1 + 1e-60)
    graph = lower(rf.Sequential(*[rf.Conv(2, taps=[1, 1e-60], padding=((1, 0),))] * n, ndim=1), 8)
    found = one_call(graph, graph.output_node(None), (0,))
    assert found.origin == (0,)
    assert found.image.tolist() == [1.0]
    assert found.mass.log() == pytest.approx(n * math.log(weak), rel=8 * 2.0**-53)


def test_what_lies_in_gaps() -> None:
    """Both pixels that a dilated kernel reads lie between those that a transposed one writes."""
    through = [rf.Conv(3, padding=1), rf.ConvTranspose(1, stride=2), rf.Conv(2, dilation=2)]
    graph = lower(rf.Sequential(*through, ndim=1), 9)
    with pytest.raises(EmptyFieldError, match="reads nothing"):
        one_call(graph, graph.output_node(None), (3,))
    assert one_call(graph, graph.output_node(None), (4,)).image.sum() == pytest.approx(1)


def test_a_mean_over_the_map() -> None:
    """Squeeze-and-excitation: the pixel itself, and 1/N² of each of the N."""
    graph = lower(rf.Sequential(rf.SqueezeExcite(), ndim=1), 5)
    found = one_call(graph, graph.output_node(None), (1,))
    image = np.full(5, 1 / 25) + np.eye(5)[1]
    np.testing.assert_allclose(found.image, image / image.sum(), rtol=1e-15)
    assert found.mass.log() == pytest.approx(math.log(1.2), rel=1e-15)


# --- one program, many units ----------------------------------------------------------------


def test_many_units_and_threads() -> None:
    """One program, followed by eight threads at a time from every unit of a map: each has the bits
    that it has alone, and they do not depend on the order."""
    net = rf.Sequential(
        *[rf.Residual(rf.Conv(3, padding=1, taps=np.arange(1, 10).reshape(3, 3)))] * 3,
        rf.ConvTranspose(4, stride=2, padding=1),
        rf.MaxPool(3, stride=2, padding=1),
    )
    graph = lower(net, 11)
    node = graph.output_node(None)
    jobs = [((i, j), dtype) for i in range(11) for j in (0, 5, 10) for dtype in DTYPES]

    def compute(job: tuple[tuple[int, int], str]) -> Any:
        return one_call(graph, node, job[0], dtype=job[1])

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(compute, jobs))
    for job, found in zip(jobs, together, strict=True):
        alone = compute(job)
        np.testing.assert_array_equal(found.image, alone.image)
        assert (found.origin, found.mass, found.lost) == (alone.origin, alone.mass, alone.lost)
        image = naive_image(net, job[0])
        window = tuple(
            slice(o, o + n) for o, n in zip(found.origin, found.image.shape, strict=True)
        )
        assert image.sum() == pytest.approx(image[window].sum(), rel=1e-12)
        rel = bound(graph, image.size, job[1])
        np.testing.assert_allclose(found.image, (image / image.sum())[window], rtol=rel, atol=0)


def naive_image(net: rf.Network, unit: tuple[int, int]) -> np.ndarray:
    taps = np.arange(1, 10).reshape(3, 3) / 45
    nodes: list[dict[str, Any]] = [{"name": "input", "op": "input"}]
    at = "input"
    for i in range(3):
        conv = {"op": "conv", "kernel": 3, "taps": taps, "lo": 1, "hi": 1}
        nodes.append({"name": f"c{i}", "inputs": [at], **conv})
        nodes.append({"name": f"s{i}", "op": "add", "inputs": [at, f"c{i}"]})
        at = f"s{i}"
    up = {"op": "conv_transpose", "kernel": 4, "stride": 2, "lo": 1, "hi": 1}
    nodes.append({"name": "up", "inputs": [at], **up})
    pool = {"op": "maxpool", "kernel": 3, "stride": 2, "lo": 1, "hi": 1}
    nodes.append({"name": "pool", "inputs": ["up"], **pool})
    return np.asarray(
        naive.variance(graphs.Graph(2, tuple(nodes), (11, 11)).naive(), "pool", unit, (11, 11))
    )


def test_a_call_that_returns_early_is_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After every instruction, where kernels run as Python; compiled ones are as they are."""
    net = rf.Sequential(rf.Residual(rf.Conv(3, padding=1)), rf.MaxPool(2), rf.Conv(3), ndim=1)
    graph = lower(net, 12)
    whole = one_call(graph, graph.output_node(None), (1,))
    monkeypatch.setattr(import_module("fastrf.kernels.cpu.walk"), "_CALL", 0)
    parts = one_call(graph, graph.output_node(None), (1,))
    np.testing.assert_array_equal(parts.image, whole.image)
    assert (parts.origin, parts.mass, parts.lost) == (whole.origin, whole.mass, whole.lost)


# --- what is refused ------------------------------------------------------------------------


def test_global_paths_are_refused_with_their_layer() -> None:
    net = rf.Sequential(rf.Conv(3), rf.SqueezeExcite(), rf.Conv(3))
    graph = lower(net)
    with pytest.raises(UnboundedError, match="give input_size") as caught:
        one_call(graph, graph.output_node(None), (0, 0))
    assert str(caught.value).startswith("squeezeexcite")
    # Maps before it are not concerned.
    assert one_call(graph, "conv1", (0, 0)).image.shape == (3, 3)


def test_padding_alone() -> None:
    graph = lower(rf.Sequential(rf.Pad(((4, 0),)), rf.Conv(3), ndim=1), 8)
    with pytest.raises(EmptyFieldError, match=r"unit=\(0,\) of 'conv1' reads nothing of 'input'"):
        one_call(graph, "conv1", (0,))


def test_no_path() -> None:
    nodes = {"a": (rf.Input(),), "b": (rf.Input(),), "c": (rf.Conv(3), "a"), "d": (rf.Conv(3), "b")}
    graph = lower(rf.Network(nodes, ("c", "d"), ndim=1), 9)
    with pytest.raises(InputError, match="no path leads from 'd' to the input 'a'"):
        direct.propagate(graph, "d", (0,), "a", kernels=load())


# --- which way ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "options", "small"),
    [
        (512, {}, True),
        (513, {}, False),
        (64, {"tail": 1e-9}, False),
        (64, {"workers": 2}, True),
    ],
)
def test_small_images_go_in_one_call(size: int, options: dict[str, Any], small: bool) -> None:
    assert program.TILES_IN_ONE_CALL * threads.TILE_CELLS == 512**2
    graph = lower(rf.Sequential(rf.SqueezeExcite()), size)
    kernels, shares = Counted(), []
    direct.propagate(
        graph,
        graph.output_node(None),
        (3, 3),
        "input",
        kernels=kernels,
        progress=shares.append,
        **options,
    )
    assert kernels.walks == small
    assert shares[-1] == 1


@pytest.mark.parametrize(
    "layers",
    [
        [rf.Upsample(2, "linear")],
        [rf.Upsample("3/2", "linear"), rf.Conv(2, gain=3)],
        [rf.Upsample(3, "cubic"), rf.Conv(3, stride=2)],
        [rf.ConvTranspose(5, 2, gain=2), rf.Conv(3, dilation=2)],
    ],
)
def test_mean_gains_are_those_of_all_phases(layers: Any) -> None:
    """The mass of a unit, averaged over units that meet every phase equally often."""
    graph = lower(rf.Sequential(*layers, ndim=1))
    node = graph.output_node(None)
    fields = (direct.propagate(graph, node, (unit,), "input", kernels=load()) for unit in range(12))
    mean = sum(field.mass.over(ONE) for field in fields) / 12
    (plane,) = graph.planes_of[node]
    found = program.mean_gains(graph, "input")[plane].over(ONE)
    assert found == pytest.approx(mean, rel=1e-13)


def test_slots_are_used_again() -> None:
    """A sum frees what it adds: three slots, however deep."""
    net = rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 20)
    assert program.program_of(lower(net, 9), "input").tables.slots == 3


def test_devices_without_the_kernel() -> None:
    assert KERNELS["walk"].devices == ("cpu",)
    kernels = Counted()
    del kernels.walk
    graph = lower(rf.Sequential(rf.Conv(3)), 9)
    found = direct.propagate(graph, "conv1", (3, 3), "input", kernels=kernels)
    assert found.image.shape == (3, 3)
