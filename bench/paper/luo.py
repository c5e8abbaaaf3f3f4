"""Luo, Li, Urtasun and Zemel, "Understanding the effective receptive field in deep convolutional
neural networks", NIPS 2016 (arXiv:1701.04128), section by section.

Theory is `fastrf.erf`; measured is autograd through a real PyTorch network (`fastrf.empirical`).
The paper prints no figures for its images; where it does print numbers, they stand in the column
"paper".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import nn

import fastrf as rf
from bench.paper.tables import Section, Table
from fastrf import metrics

SEEDS = 20
"""Draws of the weights, as in the paper."""

CHANNELS = 16
"""Of the measured networks. The paper does not say; more of them make one draw smoother."""

DEPTHS = (5, 10, 20, 40)


# --- networks that are measured -------------------------------------------------------------


def stack(depth: int, activation: Callable[[], nn.Module] | None, channels: int) -> nn.Module:
    """Convolutions of 3 × 3 that keep the map's size, each but the last before an activation."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        if activation is not None and i < depth - 1:
            layers.append(activation())
    return nn.Sequential(*layers)


def measured(
    depth: int,
    activation: Callable[[], nn.Module] | None,
    *,
    draws: int = SEEDS,
    seed: int = 0,
    scheme: str = "he",
) -> rf.ERF:
    """The field of the middle unit, over random weights and random images."""
    side = 2 * depth + 1
    module = stack(depth, activation, CHANNELS)
    return rf.empirical(
        module, (1, CHANNELS, side, side), draws=draws, initialise=scheme, seed=seed
    )


def ones(depth: int) -> rf.ERF:
    """The gradient of a network whose weights are all ones, which is no variance but a number;
    its square root is what one sees."""
    module = stack(depth, None, 1)
    for parameter in module.parameters():
        nn.init.constant_(parameter, 1 / 9)
    side = 2 * depth + 1
    return rf.empirical(module.double(), (1, 1, side, side), draws=1, channel=0)


# --- Figure 1 -------------------------------------------------------------------------------


def figure_1() -> Section:
    """Depth, random weights and ReLU."""
    rows, images = [], {}
    for depth in DEPTHS:
        theory = rf.erf(rf.zoo.plain(depth, 3))
        kinds = {"uniform": ones(depth), "random": measured(depth, None)}
        kinds["random + ReLU"] = measured(depth, nn.ReLU, seed=1)
        for kind, found in kinds.items():
            # The uniform network's gradient is measured; the others' variance is.
            image = np.sqrt(found.image) if kind == "uniform" else found.image
            image = image / image.sum()
            images[depth, kind] = image
            rows.append(
                (
                    f"{kind}, {depth}",
                    metrics.std(image)[0],
                    theory.std[0],
                    math.sqrt(depth * (3**2 - 1) / 12),
                    metrics.gaussian_distance(image),
                    theory.gaussian_distance,
                    theory.std[0] / theory.field.size[0],
                )
            )
    header = (
        "weights, layers", "σ measured", "σ theory", "√(n(k²−1)/12)",
        "distance to a Gaussian, measured", "theory", "σ / TRF",
    )  # fmt: skip
    return Section(
        "figure-1",
        "Figure 1: depth, random weights and ReLU",
        "3 × 3 convolutions, 5 to 40 of them. The paper shows images: Gaussian for uniform and for "
        "random weights, nearly so with ReLU, the smaller in proportion the deeper. With equal "
        "weights the gradient itself is the theory's image, pixel by pixel. With random weights "
        f"the mean over {SEEDS} draws scatters about it; ReLU's draws scatter more, since a draw "
        "in which few paths are open counts as much as any other. The distance is the "
        "total-variation distance to the Gaussian of the same covariance; of the measured images "
        "it is scatter more than shape.",
        {"Spread in pixels": Table(header, tuple(rows))},
        _grid(images, DEPTHS, ("uniform", "random", "random + ReLU")),
    )


def _grid(
    images: dict[tuple[int, str], np.ndarray], depths: Sequence[int], kinds: Sequence[str]
) -> Figure:
    figure = Figure((1.7 * len(depths), 1.75 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), len(depths), squeeze=False)
    for panel_row, kind in zip(panels, kinds, strict=True):
        for panel, depth in zip(panel_row, depths, strict=True):
            image = np.sqrt(images[depth, kind])
            panel.imshow(image / image.max(), cmap="viridis", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            if kind == kinds[0]:
                panel.set_title(f"{depth} layers", fontsize=8)
        panel_row[0].set_ylabel(kind, fontsize=8)
    return figure


# --- other activations ----------------------------------------------------------------------


def activations() -> Section:
    """ReLU, tanh and sigmoid at 20 layers."""
    depth = 20
    theory = rf.erf(rf.zoo.plain(depth, 3))
    cases: dict[str, tuple[Callable[[], nn.Module], str]] = {
        "ReLU": (nn.ReLU, "he"),
        "tanh": (nn.Tanh, "lecun"),
        "sigmoid": (nn.Sigmoid, "lecun"),
    }
    rows, images = [("theory", theory.std[0], 0.0, theory.gaussian_distance, 0.0)], {}
    for seed, (name, (activation, scheme)) in enumerate(cases.items()):
        found = measured(depth, activation, draws=100, seed=seed, scheme=scheme)
        image = found.to_numpy()
        images[depth, name] = image
        error = _standard_error(found, lambda p: metrics.std(p)[0])
        z = (metrics.std(image)[0] - theory.std[0]) / error
        rows.append((name, metrics.std(image)[0], error, metrics.gaussian_distance(image), z))
    header = ("activation", "σ", "its standard error", "distance to a Gaussian", "z")
    return Section(
        "activations",
        "Activations at 20 layers",
        "100 draws of weights and images. In the paper's pictures all three are Gaussian. The "
        "theory's image does not depend on the activation, whose slopes count as independent "
        "factors.",
        {"20 layers of 3 × 3": Table(header, tuple(rows))},
        _grid(images, (depth,), tuple(cases)),
    )


def _standard_error(found: rf.ERF, measure: Callable[[np.ndarray], float]) -> float:
    """Of a measure, by leaving one group of draws out at a time (jackknife)."""
    groups = found.groups
    assert groups is not None
    whole, n = groups.sum(axis=0), len(groups)
    values = [measure(whole - group) for group in groups]
    return math.sqrt((n - 1) / n * float(np.sum((np.array(values) - np.mean(values)) ** 2)))


# --- Figure 2 -------------------------------------------------------------------------------


def figure_2() -> Section:
    """How sizes and ratios grow with the depth."""
    depths = list(range(5, 45, 5))
    chains = {n: rf.erf(rf.zoo.plain(n, 3)) for n in depths}
    sizes = {k: [chains[n].luo_size(k) for n in depths] for k in ("amplitude", "variance")}
    widths = {
        k: [
            metrics.width_at(
                chains[n].image, metrics.LUO_THRESHOLD ** (2 if k == "amplitude" else 1)
            )[0]
            for n in depths
        ]
        for k in sizes
    }
    trf = [2 * n + 1 for n in depths]
    rows = []
    for kind in sizes:
        for name, values in (("pixels counted", sizes[kind]), ("width, sub-pixel", widths[kind])):
            ratios = [s / t for s, t in zip(values, trf, strict=True)]
            slope = metrics.slope_fit(depths, values)
            rows.append((f"{kind}, {name}", 0.56, slope, -0.43, metrics.slope_fit(depths, ratios)))
    table = Table(("of", "paper", "size", "paper (ratio)", "ratio"), tuple(rows))
    figure = Figure((6.8, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, mark in (("amplitude", "o"), ("variance", "s")):
        slope = metrics.slope_fit(depths, sizes[kind])
        left.loglog(depths, sizes[kind], mark + "-", label=f"{kind}, slope {slope:.3f}")
        ratios = [s / t for s, t in zip(sizes[kind], trf, strict=True)]
        slope = metrics.slope_fit(depths, ratios)
        right.loglog(depths, ratios, mark + "-", label=f"{kind}, slope {slope:.3f}")
    left.set(xlabel="layers", ylabel="ERF size (pixels)")
    right.set(xlabel="layers", ylabel="ERF size / TRF size")
    for panel in (left, right):
        panel.legend(fontsize=7)
        panel.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
        panel.minorticks_off()
    left.set_yticks([10, 20, 40], ["10", "20", "40"])
    right.set_yticks([0.4, 0.6, 0.8, 1], ["0.4", "0.6", "0.8", "1"])
    return Section(
        "figure-2",
        "Figure 2: growth like √n, shrinking like 1/√n",
        "Pixels above 1 − 95.45% of the centre, √count, against the number of 3 × 3 layers, 5 to "
        "40 in steps of 5, fitted in logarithms. The paper prints 0.56 for the size and −0.43 for "
        "its ratio to the TRF. Their difference is the slope of the TRF against the abscissa, so "
        "0.99 where 2n + 1 against n has 0.96: the paper's pair does not come from one fit over "
        "these depths. Counted on the root of the variance, which is the size of a gradient, the "
        "slopes are nearest to the paper's; both tend to ±1/2 with depth.",
        {"Slopes in logarithms": table},
        figure,
    )


# --- subsampling and dilation ---------------------------------------------------------------

REPLACED = (4, 8, 12)
"""Which of 15 layers are replaced (counted from 0); the paper says how many, not which."""


def fifteen(kind: str) -> rf.Network:
    """15 convolutions of 3 × 3; three of them with stride 2, or dilated by 2, 4 and 8."""
    layers = [rf.Conv(3, padding=1) for _ in range(15)]
    for at, dilation in zip(REPLACED, (2, 4, 8), strict=True):
        if kind == "subsampled":
            layers[at] = rf.Conv(3, stride=2, padding=1)
        elif kind == "dilated":
            layers[at] = rf.Conv(3, dilation=dilation, padding=dilation)
    return rf.Sequential(*layers, name=kind)


def subsampling() -> Section:
    """Three of 15 layers replaced."""
    rows, fields = [], {}
    for kind in ("plain", "subsampled", "dilated"):
        found = fields[kind] = rf.erf(fifteen(kind))
        side = found.luo_size()
        rows.append(
            (kind, found.field.size[0], found.std[0], side, side / rows[0][3] if rows else 1.0,
             _diagonal(found))
        )  # fmt: skip
    header = ("15 layers", "TRF", "σ", "Luo's size", "against plain", "diagonal / side")
    figure = Figure((6.8, 2.5), layout="constrained")
    panels = figure.subplots(1, 3)
    reach = max(f.shape[0] for f in fields.values()) // 2
    for panel, (kind, found) in zip(panels, fields.items(), strict=True):
        low, high = -reach - 0.5, reach + 0.5
        image = np.sqrt(found.image)
        ends = [o - 0.5 for o in found.origin]
        extent = (ends[1], ends[1] + image.shape[1], ends[0] + image.shape[0], ends[0])
        panel.imshow(image / image.max(), cmap="viridis", extent=extent, vmin=0, vmax=1)
        panel.set(xlim=(low, high), ylim=(high, low), title=kind)
        panel.set_facecolor("#440154")  # viridis at 0
    return Section(
        "subsampling",
        "Subsampling and dilation",
        "Three of 15 layers of 3 × 3 are given stride 2, or are dilated by 2, 4 and 8. The paper "
        "shows that both widen the field much, and that dilation leaves it rectangular. The last "
        "column says so in a number: the half-width at Luo's threshold along the diagonal, over "
        "that along an axis (1 for a disc, √2 for a square).",
        {"Sizes in pixels": Table(header, tuple(rows))},
        figure,
    )


def _diagonal(found: rf.ERF) -> float:
    """Half-width at Luo's threshold along the diagonal of the amplitude, over that along an axis.

    Smoothed over the lattice that dilation leaves: where no path leads, neighbours stand in."""
    from scipy.ndimage import gaussian_filter

    image = gaussian_filter(np.sqrt(found.image), 2.0)
    middle = [round(c - o) for c, o in zip(found.center, found.origin, strict=True)]
    line = image[middle[0], middle[1] :]
    across = np.diagonal(image[middle[0] :, middle[1] :])
    limit = metrics.LUO_THRESHOLD * line[0]
    return math.sqrt(2) * float(np.sum(across > limit)) / float(np.sum(line > limit))


# --- residual networks ----------------------------------------------------------------------

STAGES = (1, 1, 3, 3, 4)
"""Blocks of the CamVid network before, between and behind those that subsample."""


def camvid() -> rf.Network:
    """A convolution and 16 residual blocks of two 3 × 3, of which 4 subsample.

    The paper does not say which; with these the TRF is the 505 pixels that it states.
    """
    block = rf.Residual(rf.Conv(3, padding=1), rf.Conv(3, padding=1))
    strided = rf.Residual(
        rf.Conv(3, stride=2, padding=1), rf.Conv(3, padding=1), shortcut=rf.Conv(1, stride=2)
    )
    blocks = [rf.Conv(3, padding=1), *[block] * STAGES[0]]
    for count in STAGES[1:]:
        blocks += [strided, *[block] * count]
    return rf.Sequential(*blocks, name="camvid")


def residual_networks() -> Section:
    """The networks of section 3.2, before training."""
    rows = []
    for name, net, trf, erf in (
        ("CIFAR, 17 blocks", rf.zoo.cifar_resnet(17), 74, None),
        ("CamVid, 16 blocks, 4 subsamplings", camvid(), 505, 100),
    ):
        found = rf.erf(net)
        sizes = (found.luo_size(), found.luo_size("variance"))
        rows.append((name, trf, found.field.size[0], erf, *sizes, found.std[0]))
    header = (
        "network", "TRF in the paper", "TRF", "ERF before training in the paper",
        "Luo's size (amplitude)", "(variance)", "σ",
    )  # fmt: skip
    return Section(
        "residual",
        "Residual networks before training",
        "The paper states the TRF of a residual network for CIFAR-10 (17 blocks, no subsampling) "
        "as 74 × 74 and of one for CamVid (16 blocks, 4 subsamplings) as 505 × 505, and the "
        "latter's ERF as about 100 pixels across before training and 150 after. It does not print "
        "the layers. Odd kernels without stride have odd fields, so that 74 is out by one at "
        "least; 17 blocks of two 3 × 3 behind one more have 71. The CamVid network is one of many "
        "whose TRF is 505. Equal gains of shortcut and branch are assumed; a narrower ERF comes "
        "from a weaker branch. Training is not reproduced.",
        {"Sizes in pixels": Table(header, tuple(rows))},
    )


def skips() -> Section:
    """What shortcuts and dropout do."""
    rows = []
    for n in (5, 20, 80):
        chain, skipped = rf.erf(rf.zoo.plain(2 * n, 3)), rf.erf(rf.zoo.residual(n))
        dropped = rf.erf(rf.Sequential(*[rf.Conv(3, padding=1), rf.Dropout(0.5)] * (2 * n)))
        change = float(np.abs(dropped.image - chain.image).max() / chain.image.max())
        rows.append(
            (2 * n, chain.std[0], skipped.std[0], skipped.std[0] / chain.std[0],
             skipped.luo_size() / chain.luo_size(), change)
        )  # fmt: skip
    header = (
        "layers", "σ, chain", "σ, residual", "ratio", "ratio of Luo's sizes",
        "change of the image by dropout, of the peak",
    )  # fmt: skip
    return Section(
        "skips",
        "Skip connections and dropout",
        "The paper says that skip connections make the ERF smaller, and that dropout leaves its "
        "shape. With shortcut and branch of equal gain, half of the gradient skips each block: σ² "
        "is half of the chain's, σ is 1/√2 of it. Dropout multiplies all paths by the same gain.",
        {"3 × 3": Table(header, tuple(rows))},
    )


# --- initialisation -------------------------------------------------------------------------


def initialisation() -> Section:
    """Section 4: weights that are large where they are far from the kernel's centre."""
    rows, fields = [], {}
    for kernel in (3, 5, 7):
        for taps in ("uniform", "centre-light", "corner"):
            layer = rf.Conv(kernel, padding=kernel // 2, taps=None if taps == "uniform" else taps)
            found = fields[kernel, taps] = rf.erf(rf.Sequential(*[layer] * 20))
            base = fields[kernel, "uniform"]
            rows.append(
                (f"{taps}, {kernel} × {kernel}", found.std[0], found.std[0] / base.std[0],
                 found.luo_size() / base.luo_size())
            )  # fmt: skip
    header = ("20 layers", "σ", "σ against uniform", "Luo's size against uniform")
    return Section(
        "initialisation",
        "Initialisation: away from the centre",
        "The paper asks for the weights of given Σ w² (here: variances of given sum) that make the "
        "ERF largest, and finds that only the corners of the kernel are then not zero: σ per layer "
        "is (k − 1)/2, which is √(3(k − 1)/(k + 1)) times that of equal weights (1.22 for 3 × 3, "
        "1.5 for 7 × 7). It goes on with weights that are small at the centre, which it says "
        "speeds training up by 30%; that is not reproduced. The corners leave a lattice with gaps: "
        "Luo's size counts pixels and is cut down by them.",
        {"Spread in pixels": Table(header, tuple(rows))},
        _taps(fields),
    )


def _taps(fields: dict[tuple[int, str], rf.ERF]) -> Figure:
    """Profiles as densities, so that a lattice with gaps lies beside ones without."""
    figure = Figure((6.8, 2.5), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, kernel in zip(panels, (3, 5, 7), strict=True):
        for (k, taps), found in fields.items():
            if k == kernel:
                profile = found.profile(1)
                (at,) = np.nonzero(profile)
                density = profile[at] / (at[1] - at[0])
                panel.plot(at + found.origin[1], density, ".-", ms=2, lw=0.8, label=taps)
        panel.set_title(f"{kernel} × {kernel}", fontsize=8)
        panel.set_xlabel("input pixel", fontsize=8)
        panel.tick_params(labelsize=7)
    panels[0].set_ylabel("share of the variance per pixel", fontsize=8)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7
    )
    return figure


def sections() -> Iterator[Section]:
    """All experiments, in the paper's order."""
    for experiment in (
        figure_1, activations, figure_2, subsampling, residual_networks, skips, initialisation
    ):  # fmt: skip
        yield experiment()
