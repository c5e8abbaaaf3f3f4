"""Channels that part ways, against multi-channel networks in PyTorch's own layers.

Gradient variance obeys a linear network whose weights are the variances: a convolution of gain g
with tap variances v has the weights g·v[m]/(input channels per group), so that with g = 1 it keeps
the sum over channels. The unit starts with 1/C in each of its C channels; autograd carries that to
the input, where channels are summed up. Every weight is positive, so the gradient is nonzero
exactly where a path leads.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrf as rf
from fastrf.engine import covariance

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402 - only where torch is installed

Row = tuple[str, str, tuple[str, ...], dict[str, Any]]

# A pixel sums at most some 10^3 products of at most 20 factors each; each addition and product
# rounds once in fastrf and once in torch: 2·(10^3 + 20)·u is below this.
TOLERANCE = 5e-13


@dataclass(frozen=True)
class Spec:
    """A network: rows of (name, op, names read, options), the output last."""

    ndim: int
    size: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def output(self) -> str:
        return self.rows[-1][0]

    def network(self) -> rf.Network:
        nodes = {name: (_layer(op, options), *inputs) for name, op, inputs, options in self.rows}
        return rf.Network(nodes, self.output, ndim=self.ndim)

    def run(self, x: torch.Tensor, output: str) -> torch.Tensor:
        maps: dict[str, torch.Tensor] = {}
        for name, op, inputs, options in self.rows:
            maps[name] = x if op == "input" else _forward(op, [maps[i] for i in inputs], options)
            if name == output:
                break
        return maps[output]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On maps this small, waking torch's other threads takes most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _layer(op: str, options: dict[str, Any]) -> Any:
    if op == "input":
        return rf.Input(options["channels"])
    if op in ("conv", "deconv"):
        renamed = {"pad": "padding"}
        given_ = {renamed.get(k, k): v for k, v in options.items()}
        return (rf.Conv if op == "conv" else rf.ConvTranspose)(**given_)
    if op == "slice":
        return rf.ChannelSlice(**options)
    if op == "shuffle":
        return rf.ChannelShuffle(**options)
    simple = {
        "cat": rf.Concat,
        "add": rf.Add,
        "relu": lambda: rf.Activation("relu", gain=0.5),
    }
    if op in simple:
        return simple[op]()
    factor = options["factor"]
    if op == "pool":
        return rf.MaxPool(factor)
    if op == "nearest":
        return rf.Upsample(factor)
    return (rf.PixelShuffle if op == "together" else rf.PixelUnshuffle)(factor)


def _forward(op: str, xs: list[torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
    x = xs[0]
    ndim, channels = x.ndim - 2, x.shape[1]
    if op in ("conv", "deconv"):
        groups = options.get("groups", 1)
        groups = channels if groups == "depthwise" else groups
        kernel = options["kernel"]
        kernel = (kernel,) * ndim if isinstance(kernel, int) else kernel
        taps = torch.as_tensor(options.get("taps", np.ones(kernel)), dtype=torch.float64)
        taps = taps / taps.sum() * options.get("gain", 1.0) / (channels // groups)
        out = options["channels"]
        settings_ = {
            "stride": options.get("stride", 1),
            "padding": options.get("pad", 0),
            "groups": groups,
        }
        if op == "conv":
            weight = taps.expand(out, channels // groups, *kernel)
            return (F.conv1d, F.conv2d)[ndim - 1](x, weight, **settings_)
        weight = taps.expand(channels, out // groups, *kernel)
        return (F.conv_transpose1d, F.conv_transpose2d)[ndim - 1](x, weight, **settings_)
    if op == "cat":
        return torch.cat(xs, 1)
    if op == "add":
        return sum(xs[1:], x)
    if op == "relu":
        return 0.5 * x
    if op == "slice":
        return x[:, options.get("start", 0) : options.get("stop") : options.get("step", 1)]
    if op == "shuffle":
        groups = options["groups"]
        split = x.reshape(1, groups, channels // groups, *x.shape[2:])
        return split.transpose(1, 2).reshape(x.shape)
    factor = options["factor"]
    if op == "pool":
        return (F.avg_pool1d, F.avg_pool2d)[ndim - 1](x, factor)
    if op == "nearest":
        return F.interpolate(x, scale_factor=float(factor))
    if ndim == 2:
        return F.pixel_shuffle(x, factor) if op == "together" else F.pixel_unshuffle(x, factor)
    # In one dimension an image of one row, whose phases along the other axis are left out.
    if op == "together":
        split = x.reshape(1, channels // factor, factor, x.shape[2])
        return split.transpose(2, 3).reshape(1, channels // factor, -1)
    split = x.reshape(1, channels, x.shape[2] // factor, factor)
    return split.transpose(2, 3).reshape(1, channels * factor, -1)


def gradient(spec: Spec, output: str, unit: tuple[int, ...]) -> np.ndarray:
    """Autograd's image at the input, summed over channels."""
    channels = spec.rows[0][3]["channels"]
    x = torch.ones((1, channels, *spec.size), dtype=torch.float64, requires_grad=True)
    y = spec.run(x, output)
    at_unit = y[(0, slice(None), *unit)]
    (grad,) = torch.autograd.grad(at_unit.sum() / len(at_unit), x, allow_unused=True)
    return grad[0].sum(0).numpy() if grad is not None else np.zeros(spec.size)


def compare(spec: Spec, output: str | None = None, units: Any = None) -> None:
    """fastrf's image, window and TRF box of a few units against autograd's."""
    net, output = spec.network(), output or spec.output
    with torch.no_grad():
        zeros = torch.zeros((1, spec.rows[0][3]["channels"], *spec.size), dtype=torch.float64)
        shape = tuple(spec.run(zeros, output).shape[2:])
    field = rf.receptive_field(net, output, spec.size)
    middle = tuple(n // 2 for n in shape)
    for unit in units or {(0,) * spec.ndim, middle, tuple(n - 1 for n in shape)}:
        expected = gradient(spec, output, unit)
        seen = np.nonzero(expected)
        if not len(seen[0]):
            with pytest.raises(rf.errors.InputError, match="reads nothing"):
                rf.erf(net, output, unit, spec.size)
            continue
        result = rf.erf(net, output, unit, spec.size)
        image = np.zeros(spec.size)
        image[tuple(slice(lo, hi + 1) for lo, hi in result.box)] = result.image
        image *= math.exp(result.log_gain)
        np.testing.assert_array_equal(image > 0, expected > 0)
        np.testing.assert_allclose(image, expected, rtol=TOLERANCE, atol=0)
        box = tuple((int(i.min()), int(i.max())) for i in seen)
        assert result.box == box
        assert field.box(unit, clip=True) == box


def conv(name: str, read: str, channels: int, kernel: Any = 3, **options: Any) -> Row:
    if isinstance(kernel, int) and kernel % 2 and "pad" not in options:
        options["pad"] = kernel // 2
    return name, "conv", (read,), {"kernel": kernel, "channels": channels, **options}


def row(name: str, op: str, *read: str, **options: Any) -> Row:
    return name, op, read, options


def source(channels: int) -> Row:
    return "input", "input", (), {"channels": channels}


NETWORKS: dict[str, tuple[int, tuple[Row, ...]]] = {
    "concat of unequal widths": (
        12,
        (
            source(3),
            conv("a", "input", 5, 5),
            conv("b", "input", 2, 1),
            row("c", "cat", "a", "b"),
            conv("o", "c", 4),
        ),
    ),
    "concat with the input": (
        12,
        (
            source(3),
            conv("a", "input", 5, 5, gain=0.25),
            row("c", "cat", "input", "a"),
            conv("o", "c", 1),
        ),
    ),
    "dense block": (
        12,
        (
            source(4),
            conv("a", "input", 3),
            row("ca", "cat", "input", "a"),
            conv("b", "ca", 3),
            row("cb", "cat", "ca", "b"),
            conv("d", "cb", 3, gain=2.0),
            row("cd", "cat", "cb", "d"),
            row("relu", "relu", "cd"),
            conv("t", "relu", 5, 1),
            row("p", "pool", "t", factor=2),
        ),
    ),
    "split and rejoined": (
        12,
        (
            source(6),
            conv("x", "input", 6),
            row("s0", "slice", "x", stop=2),
            row("s1", "slice", "x", start=2, stop=3),
            row("s2", "slice", "x", start=3),
            conv("a", "s0", 2, 5),
            conv("b", "s1", 7, 1),
            row("c", "cat", "a", "b", "s2"),
            conv("o", "c", 2, 1),
        ),
    ),
    "a branch left out": (
        16,
        (
            source(2),
            conv("wide", "input", 4, 9),
            conv("thin", "input", 4, 1),
            row("c", "cat", "thin", "wide"),
            row("s", "slice", "c", stop=4),
            conv("o", "s", 2),
        ),
    ),
    "a branch left out one channel short": (
        16,
        (
            source(2),
            conv("wide", "input", 4, 9),
            conv("thin", "input", 4, 1),
            row("c", "cat", "thin", "wide"),
            row("s", "slice", "c", stop=5),
            conv("o", "s", 2),
        ),
    ),
    "every other channel": (
        16,
        (
            source(2),
            conv("a", "input", 2, 7),
            conv("b", "input", 2, 1),
            row("c", "cat", "a", "b"),
            row("sh", "shuffle", "c", groups=2),
            row("s", "slice", "sh", start=1, step=2),
            conv("o", "s", 2),
        ),
    ),
    "negative slice": (
        16,
        (
            source(2),
            conv("a", "input", 2, 7),
            conv("b", "input", 3, 1),
            row("c", "cat", "a", "b"),
            row("s", "slice", "c", start=-3),
            conv("o", "s", 2),
        ),
    ),
    "groups behind a concat": (
        12,
        (
            source(2),
            conv("a", "input", 4, 5),
            conv("b", "input", 2, 1),
            row("c", "cat", "a", "b"),
            conv("g", "c", 6, 3, groups=3),
            row("s", "slice", "g", start=3),
            conv("o", "s", 1, 1),
        ),
    ),
    "groups that straddle a concat": (
        12,
        (
            source(2),
            conv("a", "input", 3, 5),
            conv("b", "input", 3, 1),
            row("c", "cat", "a", "b"),
            conv("g", "c", 4, 3, groups=2),
            row("s", "slice", "g", stop=2),
            conv("h", "s", 2, 1, groups=2),
            row("t", "slice", "h", start=1),
        ),
    ),
    "groups of groups": (
        12,
        (
            source(4),
            conv("a", "input", 8, 3, groups=4),
            row("sh", "shuffle", "a", groups=4),
            conv("b", "sh", 8, 3, groups=2),
            row("s", "slice", "b", start=6),
            conv("o", "s", 3, 3),
        ),
    ),
    "depthwise with multiplier": (
        12,
        (
            source(2),
            conv("a", "input", 1, 5),
            conv("b", "input", 2, 1),
            row("c", "cat", "a", "b"),
            conv("dw", "c", 6, 3, groups="depthwise"),
            row("s", "slice", "dw", start=1, stop=4),
            conv("o", "s", 2, 1),
        ),
    ),
    "MobileNet unit": (
        12,
        (
            source(4),
            conv("e", "input", 8, 1),
            conv("dw", "e", 8, 3, groups="depthwise"),
            conv("p", "dw", 4, 1),
            row("add", "add", "input", "p"),
        ),
    ),
    "ShuffleNet v1 unit, stride 2": (
        12,
        (
            source(6),
            conv("g1", "input", 6, 1, groups=3),
            row("sh", "shuffle", "g1", groups=3),
            conv("dw", "sh", 6, 3, groups="depthwise", stride=2),
            conv("g2", "dw", 6, 1, groups=3),
            row("pool", "pool", "input", factor=2),
            row("c", "cat", "pool", "g2"),
            conv("g3", "c", 12, 1, groups=3),
            row("sh3", "shuffle", "g3", groups=3),
            conv("dw3", "sh3", 12, 3, groups="depthwise"),
            conv("g4", "dw3", 12, 1, groups=3),
            row("add", "add", "c", "g4"),
        ),
    ),
    "ShuffleNet v2 units": (
        12,
        (
            source(4),
            *(
                r
                for i, at in ((1, "input"), (2, "sh1"), (3, "sh2"))
                for r in (
                    row(f"l{i}", "slice", at, stop=2),
                    row(f"r{i}", "slice", at, start=2),
                    conv(f"a{i}", f"r{i}", 2, 1),
                    conv(f"d{i}", f"a{i}", 2, 3, groups="depthwise"),
                    conv(f"b{i}", f"d{i}", 2, 1),
                    row(f"c{i}", "cat", f"l{i}", f"b{i}"),
                    row(f"sh{i}", "shuffle", f"c{i}", groups=2),
                )
            ),
        ),
    ),
    "CSP": (
        12,
        (
            source(3),
            conv("x", "input", 8),
            row("s0", "slice", "x", stop=4),
            row("s1", "slice", "x", start=4),
            conv("a", "s1", 4, 1),
            conv("b", "a", 4, 3),
            row("add", "add", "s1", "b"),
            conv("t", "add", 4, 1),
            row("c", "cat", "s0", "t"),
            conv("o", "c", 8, 1),
        ),
    ),
    "ghost": (
        12,
        (
            source(3),
            conv("p", "input", 4, 1),
            conv("cheap", "p", 4, 3, groups="depthwise"),
            row("c", "cat", "p", "cheap"),
            conv("p2", "c", 2, 1),
            conv("cheap2", "p2", 2, 5, groups="depthwise"),
            row("c2", "cat", "p2", "cheap2"),
            row("s", "slice", "c2", start=1, stop=3),
        ),
    ),
    "unshuffled, grouped, shuffled": (
        12,
        (
            source(2),
            row("u", "apart", "input", factor=2),
            conv("g", "u", 8, 3, groups=2),
            row("t", "together", "g", factor=2),
            conv("o", "t", 3),
        ),
    ),
    "one phase alone": (
        12,
        (
            source(2),
            conv("x", "input", 1, 3),
            row("u", "apart", "x", factor=2),
            row("s", "slice", "u", start=1, stop=2),
            conv("o", "s", 3),
        ),
    ),
    "phases fed differently": (
        12,
        (
            source(2),
            conv("a", "input", 2, 5),
            conv("b", "input", 2, 1),
            row("c", "cat", "a", "b"),
            row("t", "together", "c", factor=2),
            conv("o", "t", 2, 3),
            row("u", "apart", "o", factor=2),
            row("s", "slice", "u", stop=3),
        ),
    ),
    "transposed groups": (
        8,
        (
            source(2),
            conv("a", "input", 2, 5),
            conv("b", "input", 2, 1),
            row("c", "cat", "a", "b"),
            ("d", "deconv", ("c",), {"kernel": 3, "channels": 6, "groups": 2, "stride": 2}),
            row("s", "slice", "d", start=2, stop=5),
            conv("o", "s", 2),
        ),
    ),
    "one channel over many": (
        12,
        (
            source(3),
            conv("gate", "input", 1, 5),
            conv("x", "input", 4, 1),
            row("add", "add", "x", "gate"),
            row("s", "slice", "add", start=1, stop=3),
            conv("o", "s", 2),
        ),
    ),
    "the same map twice": (
        12,
        (
            source(2),
            conv("a", "input", 2),
            row("c", "cat", "a", "a", "input"),
            conv("g", "c", 6, 3, groups=2),
            row("s", "slice", "g", stop=3),
        ),
    ),
    "read as slices and as a whole": (
        12,
        (
            source(4),
            conv("x", "input", 4, 5),
            row("s", "slice", "x", stop=1),
            conv("a", "s", 3, 3),
            conv("b", "x", 3, 1),
            row("add", "add", "a", "b"),
            row("up", "nearest", "add", factor=2),
            row("c", "cat", "up", "up"),
            conv("o", "c", 1, 2, stride=2),
        ),
    ),
}


def spec_of(name: str, ndim: int) -> Spec:
    size, rows = NETWORKS[name]
    return Spec(ndim, (size,) * ndim, rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_dimension(name: str) -> None:
    compare(spec_of(name, 1))


@pytest.mark.parametrize("name", [n for n in NETWORKS if "shuffled" not in n and "phase" not in n])
def test_two_dimensions(name: str) -> None:
    spec = spec_of(name, 2)
    shape = (spec.size[0], spec.size[0] - 4)
    compare(Spec(2, shape, spec.rows), units=[(0, 3), (2, 1)])


PHASES_2D = (
    source(1),
    row("u", "apart", "input", factor=2),
    conv("g", "u", 8, 3, groups=4),
    row("sh", "shuffle", "g", groups=4),
    conv("h", "sh", 8, (1, 3), groups=2, pad=(0, 1)),
    row("t", "together", "h", factor=2),
    conv("o", "t", 2, 3),
)


@pytest.mark.parametrize("output", ["u", "g", "h", "t", "o"])
def test_phases_in_two_dimensions(output: str) -> None:
    compare(Spec(2, (8, 12), PHASES_2D), output)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        (name, node)
        for name in ("groups behind a concat", "ShuffleNet v2 units", "CSP", "a branch left out")
        for node, *_ in NETWORKS[name][1][1:-1]
    ],
)
def test_maps_inside(name: str, output: str) -> None:
    """A map whose channels are read in different ways is asked for as a whole."""
    compare(spec_of(name, 1), output)


@pytest.mark.parametrize("output", ["left", "right", "o"])
def test_maps_that_nothing_reads(output: str) -> None:
    """Two dead ends read different channels of one map; each sees its own branch alone."""
    rows = (
        source(2),
        conv("a", "input", 4, 1),
        conv("b", "input", 4, 5),
        row("c", "cat", "a", "b"),
        row("left", "slice", "c", stop=4),
        row("right", "slice", "c", start=4),
        conv("o", "c", 2, 3),
    )
    compare(Spec(1, (16,), rows), output)


def test_channels_that_lead_nowhere() -> None:
    """Asked for itself, a map holds the unit in all its channels, also in those that nothing reads
    further on; what those read is not what nothing reads."""
    rows = (
        source(2),
        conv("a", "input", 2, 1),
        conv("b", "input", 2, 3),
        conv("d", "input", 2, 5),
        row("c", "cat", "a", "b", "d"),
        row("most", "slice", "c", stop=4),
        row("dead", "cat", "c", "c"),
        row("few", "slice", "most", stop=1),
    )
    for output in ("most", "dead", "c", "few"):
        compare(Spec(1, (12,), rows), output)


def test_taps_gains_and_groups_together() -> None:
    taps = np.arange(6.0).reshape(2, 3)
    rows = (
        source(3),
        conv("a", "input", 4, (2, 3), taps=taps, gain=3.0, stride=(1, 2)),
        conv("b", "input", 2, (2, 3), stride=(1, 2)),
        row("c", "cat", "a", "b"),
        conv("g", "c", 6, (3, 2), taps=[[1, 2], [0, 3], [5, 1]], groups=2, gain=0.1),
        row("s", "slice", "g", start=2, stop=4),
    )
    compare(Spec(2, (8, 11), rows))


def random_spec(seed: int) -> Spec:
    """Eight random layers that keep the size, so that any two maps can be joined."""
    rng = random.Random(seed)
    rows: list[Row] = [source(rng.choice((1, 2, 4)))]
    channels = {"input": rows[0][3]["channels"]}
    while len(rows) < 9:
        name, read = f"n{len(rows)}", rng.choice(list(channels)[-3:])
        count = channels[read]
        op = rng.choice(("conv", "group", "slice", "cat", "add", "shuffle"))
        divisors = [g for g in range(2, count + 1) if count % g == 0]
        if op == "conv":
            channels[name] = rng.choice((2, 4, 6))
            rows.append(conv(name, read, channels[name], rng.choice((1, 3, 5))))
        elif op == "group" and divisors:
            groups = rng.choice(divisors)
            channels[name] = groups * rng.randint(1, 2)
            rows.append(conv(name, read, channels[name], 3, groups=groups))
        elif op == "slice" and count > 1:
            start = rng.randrange(count)
            step = rng.randint(1, 2)
            channels[name] = len(range(start, count, step))
            rows.append(row(name, "slice", read, start=start, step=step))
        elif op == "cat":
            other = rng.choice(list(channels))
            channels[name] = count + channels[other]
            rows.append(row(name, "cat", read, other))
        elif op == "shuffle" and divisors:
            channels[name] = count
            rows.append(row(name, "shuffle", read, groups=rng.choice(divisors)))
        elif op == "add":
            alike = [n for n, c in channels.items() if c == count]
            channels[name] = count
            rows.append(row(name, "add", read, rng.choice(alike)))
    return Spec(1, (9,), tuple(rows))


@pytest.fixture(scope="module")
def variances_only() -> Iterator[None]:
    """The loops know variances alone: two ways that no weights part then add up as any others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariance, "needed", lambda *where: False)
        yield


@pytest.mark.usefixtures("variances_only")
@settings(derandomize=True, max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_networks(seed: int) -> None:
    spec = random_spec(seed)
    compare(spec, units=[(4,)])
    compare(spec, spec.rows[-3][0], units=[(0,)])


def test_unknown_channels_are_assumed_equal_and_said() -> None:
    """Without numbers of channels, a concatenation weighs its inputs alike, and the result says
    so; with them, by width."""

    def network(**channels: Any) -> rf.Network:
        nodes = {
            "a": (rf.Conv(1, **channels), "input"),
            "b": (rf.Conv(3, padding=1, **channels), "input"),
            "c": (rf.Concat(), "a", "b"),
        }
        return rf.Network(nodes, "c", ndim=1)

    unknown = rf.erf(network())
    np.testing.assert_allclose(unknown.image, [1 / 6, 2 / 3, 1 / 6], rtol=1e-15)
    assert any("c: numbers of channels not known" in a for a in unknown.assumptions)
    assert not rf.erf(network(channels=4)).assumptions


@pytest.mark.parametrize(
    ("layers", "rule"),
    [
        ((rf.Input(3), rf.Conv(3, groups=2, channels=4)), "must divide the 3 channels"),
        ((rf.Input(3), rf.Conv(3, groups="depthwise", channels=4)), "multiple of the 3 channels"),
        ((rf.Input(3), rf.ChannelShuffle(2)), "must divide the 3 channels"),
        ((rf.Input(3), rf.PixelShuffle(2)), "divisible by 2"),
        ((rf.Input(3), rf.ChannelSlice(3)), "takes none of the 3 channels"),
        ((rf.Conv(3), rf.ChannelSlice(1)), "number of channels must be known"),
    ],
)
def test_channels_that_do_not_fit(layers: tuple[Any, ...], rule: str) -> None:
    with pytest.raises(rf.errors.InputError, match=rule) as caught:
        rf.erf(rf.Sequential(*layers, ndim=1))
    assert "\n" not in str(caught.value)
