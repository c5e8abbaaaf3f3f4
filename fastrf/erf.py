"""The effective receptive field: the verb `erf` and its result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from fastrf import metrics, netfile
from fastrf.analytic.geometry import ReceptiveField, receptive_field
from fastrf.archive import read_arrays
from fastrf.arrays import namespace, on_host
from fastrf.device import HOST, Device, resolve
from fastrf.engine.covariance import assumptions, inexact_reasons
from fastrf.engine.direct import Propagated
from fastrf.engine.layers import fields, followed
from fastrf.engine.plan import Plan, check_memory, limit_of, make_plan
from fastrf.engine.terms import FactoredImage
from fastrf.errors import InputError, short
from fastrf.faults import explained, usual_arithmetic
from fastrf.images import Image, image_of
from fastrf.layers.checks import is_whole
from fastrf.lowering import PlaneGraph, lower
from fastrf.metrics.given import defined
from fastrf.metrics.luo import FILLS
from fastrf.metrics.squares import SHARES
from fastrf.network import Network, as_network

if TYPE_CHECKING:
    from fastrf.empirical.measuring import Measurement
    from fastrf.engine.recompressed.tucker import TuckerImage

_FORMAT = "fastrf-erf-1"


@dataclass(frozen=True, eq=False)
class ERF:
    """The effective receptive field of one unit: the normalised gradient-variance image.

    `erf` computes one, `empirical` measures one.

    Attributes:
        values: the image as the engine left it: an array, or factors that `image` multiplies out.
        origin: input index of ``image[0, …, 0]``, per axis; may be negative on the unbounded grid.
        log_gain: natural logarithm of the gradient variance that arrives at the input per unit
            of variance put on the unit.
        lost_mass: share of the gradient that fell into padding on the way; NaN where measured.
        dropped_mass: share that was dropped because `tail` allowed it.
        network, node, unit, input: what was asked for.
        input_sizes: pixels of every input map, or None on the unbounded grid.
        exact: whether adding up variances is exact for this network; if not, `inexact` says why.
        assumptions: what was assumed where the network does not say.
        plan: how it was computed or measured; ``print(erf.plan)`` explains.
        standard_error: of every pixel of `image`, where it was measured; else None.
        draws: independent samples that it is the mean of, where it was measured; else None.
        groups: where it was measured, the shares that groups of draws have in it, an array
            (groups, *shape) that sums to `image` over its first axis; else None.
    """

    values: NDArray[Any] | FactoredImage | TuckerImage = field(repr=False)
    origin: tuple[int, ...]
    log_gain: float
    lost_mass: float
    dropped_mass: float
    network: Network
    node: str
    unit: tuple[int, ...]
    input: str
    input_sizes: dict[str, tuple[int, ...]] | None
    ignore_global: bool
    inexact: tuple[str, ...]
    assumptions: tuple[str, ...]
    plan: Plan | Measurement | str = field(repr=False)
    standard_error: NDArray[np.float64] | None = field(default=None, repr=False)
    draws: int | None = None
    groups: NDArray[np.float64] | None = field(default=None, repr=False)

    @cached_property
    def image(self) -> NDArray[Any]:
        """Nonnegative array of one axis per grid axis that sums to 1, on the device that computed
        it (`to_numpy` fetches it); its values are variances (Luo et al. 2016 plot their roots).
        Where the engine left factors, they are multiplied out here, once; measures and profiles do
        not need it.

        Raises:
            PlanError: the pixels would not fit into the `memory_limit` of the plan; measures,
                `profile` and `window` do without.
        """
        if self._measured.forming and self._limit is not None:
            self._check_room("image", self.shape, self._measured.forming + self.values.nbytes)
        place = self._place
        with explained(place.name), place.current():
            pixels: NDArray[Any] = self._measured.pixels(workers=getattr(self.plan, "workers", 1))
        return pixels

    @property
    def _place(self) -> Device:
        """Where the pixels are, or are formed."""
        on_gpu = self._xp is not np
        return resolve(self.plan.device if isinstance(self.plan, Plan) and on_gpu else "cpu")

    @property
    def _xp(self) -> Any:
        """Array namespace of the pixels."""
        return getattr(self.values, "xp", None) or namespace(self.values)

    @property
    def _limit(self) -> int | None:
        return self.plan.memory_limit if isinstance(self.plan, Plan) else None

    def _check_room(self, what: str, shape: Sequence[int], size: int, less: str = "") -> None:
        sides = "×".join(map(str, shape))
        check_memory(
            f"the {what} of {sides} pixels needs",
            size,
            self._limit,
            self._place,
            lambda: f"ask for profile(axis), measures (luo_size, std, …) or a {less}window(box)",
        )

    @cached_property
    def _measured(self) -> Image:
        """What the measures look at: never the pixels of an image that was left in factors."""
        return image_of(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels of the image per axis."""
        return self.values.shape

    @property
    def exact(self) -> bool:
        return not self.inexact

    @property
    def input_size(self) -> tuple[int, ...] | None:
        """Pixels of the input map that the image lies on, or None on the unbounded grid."""
        return None if self.input_sizes is None else self.input_sizes[self.input]

    @cached_property
    def field(self) -> ReceptiveField:
        """The theoretical receptive field of the same map."""
        return receptive_field(
            self.network,
            self.node,
            self.input_sizes,
            input=self.input,
            ignore_global=self.ignore_global,
        )

    @cached_property
    def box(self) -> tuple[tuple[int, int], ...]:
        """First and last input pixel that hold mass, per axis."""
        return tuple(
            (start, start + count - 1) for start, count in zip(self.origin, self.shape, strict=True)
        )

    @cached_property
    def center(self) -> tuple[float, ...]:
        """The middle of the unit's theoretical receptive field, in input pixel indices.

        Sizes are measured around it; where it lies outside the image (a unit at the border), the
        nearest pixel of the image stands in.
        """
        middle = [(low + high) / 2 for low, high in self._trf_box]
        return tuple(
            float(min(max(m, low), high)) for m, (low, high) in zip(middle, self.box, strict=True)
        )

    @property
    def _at(self) -> tuple[float, ...]:
        return tuple(c - o for c, o in zip(self.center, self.origin, strict=True))

    @cached_property
    def _trf_box(self) -> tuple[tuple[int, int], ...]:
        # Kept with the graph: it takes a walk over all layers, and the field with it.
        graph = lower(self.network, self.input_sizes, ignore_global=self.ignore_global)
        key = ("box", self.node, self.input, self.unit)
        box = graph.lately(key, lambda: self.field.box(self.unit))
        assert box is not None, "a unit that sees nothing has no image either"
        return box

    @property
    def _trf_size(self) -> tuple[int, ...]:
        return tuple(high - low + 1 for low, high in self._trf_box)

    def window(self, box: Sequence[Sequence[int]]) -> NDArray[Any]:
        """The pixels inside a box, on the scale of `image`, of which no others are formed: for
        fields whose pixels do not all fit into memory. Outside of the image they are 0.

        Args:
            box: first and last input pixel per axis, as of `box` and `field.box`.

        Returns:
            A fresh array of ``last − first + 1`` pixels per axis, on the device of the image.

        Raises:
            InputError: `box` is no box of the grid.
            PlanError: so many pixels would not fit into the `memory_limit` of the plan.
        """
        spans = _spans_of(box, len(self.shape))
        count = [stop - first for first, stop in spans]
        inside, beside = [], []
        for (first, stop), start, n in zip(spans, self.origin, self.shape, strict=True):
            low, high = max(first, start), min(stop, start + n)
            inside.append((low - start, high - start))
            beside.append(slice(low - first, high - first))
        seen = all(low < high for low, high in inside)
        size = math.prod(count) * self.values.dtype.itemsize
        if seen:
            size += self._measured.cropped(inside).forming
        self._check_room("window", count, size, "smaller ")
        with explained(self._place.name), self._place.current():
            found: NDArray[Any] = self._xp.zeros(count, self.values.dtype)
            if seen:
                workers = getattr(self.plan, "workers", 1)
                found[tuple(beside)] = self._measured.window(inside, workers)
        return found

    # --- moments ----------------------------------------------------------------------------

    @cached_property
    def mean(self) -> tuple[float, ...]:
        """Mean position per axis, in input pixel indices."""
        return metrics.mean(self._measured, self.origin)

    @cached_property
    def covariance(self) -> NDArray[np.float64]:
        """Covariance matrix of the position, in pixels²."""
        return metrics.covariance(self._measured)

    @cached_property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per axis, in pixels."""
        return metrics.std(self._measured)

    @cached_property
    def kurtosis(self) -> tuple[float, ...]:
        """Excess kurtosis per axis (0 for a Gaussian); NaN along an axis without spread."""
        return tuple(
            metrics.kurtosis(self.profile(axis))[0] if spread > 0 else math.nan
            for axis, spread in enumerate(self.std)
        )

    # --- sizes ------------------------------------------------------------------------------

    def profile(self, axis: int = 0) -> NDArray[Any]:
        """The mass along one axis, summed over the others; see `metrics.profile`."""
        return on_host(metrics.profile(self._measured, axis))

    def luo_size(
        self,
        kind: Literal["amplitude", "variance"] = "amplitude",
        threshold: float = metrics.LUO_THRESHOLD,
    ) -> float:
        """Luo et al.'s size in pixels; see `metrics.luo_size`."""
        return metrics.luo_size(self._measured, kind, threshold, self._at)

    def area_ratio(self, share: float) -> float:
        """RepLKNet's r(t): the smallest centred square that holds the share, over the area of the
        input (of the TRF on the unbounded grid); see `metrics.area_ratio`."""
        extent = self.input_size or self._trf_size
        return metrics.area_ratio(self._measured, share, self._at, extent)

    def radius_of_mass(self, share: float) -> float:
        """Radius in pixels of the ball around the centre that holds the share."""
        return metrics.radius_of_mass(self._measured, share, self._at)

    def smallest_set(self, share: float) -> int:
        """Number of pixels in the smallest set that holds the share."""
        return metrics.smallest_set(self._measured, share)

    @cached_property
    def fwhm(self) -> tuple[float, ...]:
        """Full width at half maximum per axis, in pixels; see `metrics.fwhm`."""
        return metrics.fwhm(self._measured, self._at)

    @cached_property
    def ratio(self) -> float:
        """Luo's size over the side of the TRF (geometric mean over the axes)."""
        return metrics.trf_ratio(self.luo_size(), self._trf_size)

    @cached_property
    def gaussian_distance(self) -> float:
        """Total-variation distance to the Gaussian of the same mean and covariance."""
        return metrics.gaussian_distance(self._measured)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What to know before using the sizes."""
        found, size = [], self.input_size
        if size is not None and metrics.fills(self._measured, self.origin, size):
            found.append(FILLS)
        found.extend(f"approximate: {reason}" for reason in self.inexact)
        return tuple(found)

    def uncertainty(self, measure: Callable[[ERF], Any]) -> Any:
        """Standard error of a measure of a measured field, by the jackknife over groups of draws.

        ``erf.uncertainty(lambda e: e.std)`` is one error per axis. Right for measures that vary
        smoothly with the image (mean, std, `profile`, `log10` of a pixel); those that count pixels
        (`luo_size`, `smallest_set`) jump, and their errors are rough.

        Raises:
            InputError: the field was computed and not measured, or of less than two draws.

        Source: Efron 1982, The jackknife, the bootstrap and other resampling plans, eq. 3.1.
        """
        if self.groups is None or len(self.groups) < 2:
            how = "was computed" if self.groups is None else "is of one draw"
            raise InputError(
                f"this field {how} and has no spread; measure it with fastrf.empirical, "
                f"by at least two draws"
            )
        found = []
        for group in self.groups:
            rest = self.image - group
            part = replace(self, values=rest / rest.sum(), standard_error=None, groups=None)
            found.append(np.asarray(measure(part), dtype=np.float64))
        values, count = np.stack(found), len(found)
        error = np.sqrt((count - 1) / count * ((values - values.mean(0)) ** 2).sum(0))
        return float(error) if error.ndim == 0 else error

    # --- out --------------------------------------------------------------------------------

    def to_numpy(self) -> NDArray[Any]:
        """The image as a NumPy array."""
        return on_host(self.image)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the image, as plain values under the attributes' names; None for figures
        that the field does not have (sizes that compare with the centre, where that is a hole)."""
        return {
            "network": self.network.name,
            "fingerprint": self.network.fingerprint,
            "node": self.node,
            "unit": list(self.unit),
            "input": self.input,
            "input_size": None if self.input_size is None else list(self.input_size),
            "shape": list(self.shape),
            "origin": list(self.origin),
            "dtype": str(self.values.dtype),
            "log_gain": self.log_gain,
            "lost_mass": None if math.isnan(self.lost_mass) else self.lost_mass,
            "dropped_mass": self.dropped_mass,
            "draws": self.draws,
            "mean": list(self.mean),
            "std": list(self.std),
            "covariance": self.covariance.tolist(),
            "kurtosis": [None if math.isnan(k) else k for k in self.kurtosis],
            "luo_size": {
                "amplitude": defined(self.luo_size),
                "variance": defined(lambda: self.luo_size("variance")),
            },
            "area_ratio": {f"{share:g}": self.area_ratio(share) for share in SHARES},
            "fwhm": defined(lambda: list(self.fwhm)),
            "ratio": defined(lambda: self.ratio),
            "trf_size": list(self._trf_size),
            "box": [list(ends) for ends in self.box],
            "exact": self.exact,
            "assumptions": list(self.assumptions),
            "warnings": list(self.warnings),
            "plan": self.plan if isinstance(self.plan, str) else asdict(self.plan),
        }

    def save(self, path: str | Path) -> None:
        """Writes image, network and everything else to an NPZ file; `ERF.load` reads it.

        Raises:
            InputError: the file cannot be written.
            PlanError: as of `image`.
        """
        meta = {
            "format": _FORMAT,
            "origin": list(self.origin),
            "log_gain": self.log_gain,
            "lost_mass": self.lost_mass,
            "dropped_mass": self.dropped_mass,
            "network": netfile.to_dict(self.network),
            "node": self.node,
            "unit": list(self.unit),
            "input": self.input,
            "input_sizes": self.input_sizes,
            "ignore_global": self.ignore_global,
            "inexact": list(self.inexact),
            "assumptions": list(self.assumptions),
            "plan": str(self.plan),
            "draws": self.draws,
        }
        arrays: dict[str, Any] = {"image": self.to_numpy()}
        if self.standard_error is not None and self.groups is not None:
            arrays |= {"standard_error": self.standard_error, "groups": self.groups}
        try:
            with open(path, "wb") as file:
                np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)
        except OSError as error:
            raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from None

    @staticmethod
    def load(path: str | Path, memory_limit: int | None = None) -> ERF:
        """Reads what `save` wrote. Nothing in a file is ever executed, and all of it is checked.

        Args:
            memory_limit: bytes that its arrays may take; default: half of what is free.

        Raises:
            InputError: the file is not there, or is not one of these.
            PlanError: its arrays would not fit into `memory_limit`.
        """
        limit = limit_of(memory_limit, HOST)
        arrays = read_arrays(path, ("image", "meta", "standard_error", "groups"), limit)
        try:
            meta = json.loads(str(arrays.pop("meta")))
            if meta.pop("format") != _FORMAT:
                raise KeyError("format")
            return _read_back(arrays.pop("image"), meta, arrays)
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{str(path)!r} is not a field that ERF.save wrote ({error}); save it again"
            ) from None

    def __repr__(self) -> str:
        spread = ", ".join(f"{s:.4g}" for s in self.std)
        shape = "×".join(map(str, self.shape))
        return f"ERF({self.node!r}, unit {self.unit}, {shape} pixels, σ = ({spread}))"


def _spans_of(box: Any, ndim: int) -> list[tuple[int, int]]:
    """First pixel and last + 1 per axis, of a box of first and last.

    Raises InputError for what is no such box.
    """
    try:
        ends = [tuple(pair) for pair in box]
    except TypeError:
        ends = []
    whole = all(len(e) == 2 and all(is_whole(n) and abs(n) < 2**62 for n in e) for e in ends)
    if len(ends) != ndim or not whole or any(low > high for low, high in ends):
        raise InputError(
            f"box={short(box)} must be the first and last input pixel of each of {ndim} axes, as "
            f"((0, 9), …); erf.box has those of the image"
        )
    return [(int(low), int(high) + 1) for low, high in ends]


def _read_back(image: NDArray[Any], meta: dict[str, Any], more: dict[str, Any]) -> ERF:
    """The field that a file describes.

    Raises:
        InputError, KeyError, ValueError, TypeError: something is missing, or fits nothing else.
    """
    network = netfile.from_dict(meta.pop("network"))
    ndim = network.bound.ndim
    sizes, ignore_global = meta.pop("input_sizes"), meta.pop("ignore_global")
    node, source, plan, draws = (meta.pop(n) for n in ("node", "input", "plan", "draws"))
    if not isinstance(plan, str) or not isinstance(ignore_global, bool):
        raise ValueError("plan and ignore_global are a text and a truth value")
    if sizes is not None:
        sizes = {name: tuple(size) for name, size in sizes.items()}
    graph = lower(network, sizes, ignore_global=ignore_global)
    if node not in network.nodes or source not in network.inputs:
        raise ValueError("node and input are of its network")
    unit, origin = graph.unit_index(node, meta.pop("unit")), tuple(meta.pop("origin"))
    if len(origin) != ndim or not all(is_whole(n) and abs(n) < 2**62 for n in origin):
        raise ValueError("its origin is a pixel")
    known = (np.dtype(np.float32), np.dtype(np.float64))
    if image.dtype not in known or image.ndim != ndim or not image.size:
        raise ValueError("its image is of float32 or float64, with the axes of its network")
    # A sum of float32 may be a little off.
    if not (np.isfinite(image).all() and image.min() >= 0 and abs(image.sum() - 1) < 1e-3):
        raise ValueError("its image has nonnegative pixels that sum to 1")
    if draws is not None and not is_whole(draws):
        raise ValueError("draws is a number")
    for name, array in more.items():
        if array.dtype.kind != "f" or array.shape[array.ndim - image.ndim :] != image.shape:
            raise ValueError(f"{name} has the shape of its image")
    for name in ("log_gain", "lost_mass", "dropped_mass"):
        more[name] = float(meta.pop(name))
    for name in ("inexact", "assumptions"):
        more[name] = tuple(map(str, meta.pop(name)))
    if meta:
        raise ValueError(f"{next(iter(meta))!r} is unknown")
    return ERF(
        values=image,
        origin=origin,
        network=network,
        node=node,
        unit=unit,
        input=source,
        input_sizes=sizes,
        ignore_global=ignore_global,
        plan=plan,
        draws=draws,
        **more,
    )


@dataclass(frozen=True)
class _Question:
    """What `erf` was asked, but for the map and its unit."""

    network: Network
    graph: PlaneGraph
    input: str
    ignore_global: bool
    options: dict[str, Any]

    @staticmethod
    def of(
        net: Any,
        input_size: Any = None,
        device: str = "auto",
        *,
        input: str | None = None,
        ignore_global: bool = False,
        **options: Any,
    ) -> _Question:
        network = as_network(net)
        graph = lower(network, input_size, ignore_global=ignore_global)
        options["device"] = resolve(device)
        return _Question(network, graph, graph.input_node(input), ignore_global, options)

    def plan(self, node: str, unit: Any, channel: Any = None) -> Plan:
        index = self.graph.unit_index(node, unit)
        with usual_arithmetic():
            return make_plan(self.graph, node, index, self.input, channel=channel, **self.options)

    def answer(
        self, node: str, unit: Any, progress: Callable[[float], None] | None, channel: Any
    ) -> ERF:
        with explained(self._device_name):
            plan, result = followed(self.graph, self.plan(node, unit, channel), progress)
            return self._field(plan, result, inexact_reasons(self.graph, node))

    @property
    def _device_name(self) -> str:
        own = self.options["device"]
        return str(own.name if own.other is None else f"{own.name} or {own.other.name}")

    def answer_all(
        self, last: str, unit: Any, progress: Callable[[float], None] | None
    ) -> dict[str, ERF]:
        """The fields of all maps up to `last`."""
        done: dict[str, tuple[Plan, Propagated]] = {}
        with explained(self._device_name, lambda: self._fields(done)):
            fields_of = fields(
                self.graph, last, unit, self.input, progress=progress, done=done, **self.options
            )
            return self._fields(fields_of)

    def _fields(self, found: dict[str, tuple[Plan, Propagated]]) -> dict[str, ERF]:
        graph = self.graph
        # Every reason why a field is inexact is one for the fields of all maps above it.
        reasons: dict[str, list[str]] = {}
        for node in reversed(found):
            if node not in reasons:
                reasons[node] = inexact_reasons(graph, node)
                if not reasons[node]:
                    reasons |= {below: [] for below in graph.ancestors(node)}
        return {
            node: self._field(plan, result, reasons[node]) for node, (plan, result) in found.items()
        }

    def _field(self, plan: Plan, result: Propagated, inexact: Sequence[str]) -> ERF:
        inputs = self.network.inputs
        sizes = {n: size for n in inputs if (size := self.graph.sizes[n]) is not None}
        return ERF(
            values=result.image,
            origin=result.origin,
            log_gain=result.mass.log(),
            lost_mass=result.lost,
            dropped_mass=result.dropped,
            network=self.network,
            node=plan.node,
            unit=plan.unit,
            input=self.input,
            input_sizes=sizes or None,
            ignore_global=self.ignore_global,
            inexact=tuple(inexact),
            assumptions=(*self.graph.assumptions, *assumptions(self.graph, plan.node)),
            plan=plan,
        )


@overload
def erf(
    net: Any,
    output: str | None = ...,
    unit: Any = ...,
    input_size: Any = ...,
    device: str = ...,
    dtype: Any = ...,
    method: str = ...,
    accuracy: str = ...,
    tol: float = ...,
    tail: float | None = ...,
    layers: Literal["last"] = ...,
    workers: int | None = ...,
    memory_limit: int | None = ...,
    *,
    channel: int | None = ...,
    input: str | None = ...,
    ignore_global: bool = ...,
    progress: Callable[[float], None] | None = ...,
) -> ERF: ...
@overload
def erf(
    net: Any,
    output: str | None = ...,
    unit: Any = ...,
    input_size: Any = ...,
    device: str = ...,
    dtype: Any = ...,
    method: str = ...,
    accuracy: str = ...,
    tol: float = ...,
    tail: float | None = ...,
    *,
    layers: Literal["all"],
    workers: int | None = ...,
    memory_limit: int | None = ...,
    channel: None = ...,
    input: str | None = ...,
    ignore_global: bool = ...,
    progress: Callable[[float], None] | None = ...,
) -> dict[str, ERF]: ...
def erf(
    net: Any,
    output: str | None = None,
    unit: str | int | Sequence[int] = "center",
    input_size: int | Sequence[int] | Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: Any = "float64",
    method: str = "auto",
    accuracy: str = "auto",
    tol: float = 1e-12,
    tail: float | None = None,
    layers: Literal["last", "all"] = "last",
    workers: int | None = None,
    memory_limit: int | None = None,
    *,
    channel: int | None = None,
    input: str | None = None,
    ignore_global: bool = False,
    progress: Callable[[float], None] | None = None,
) -> ERF | dict[str, ERF]:
    """The effective receptive field of a unit (Luo et al. 2016).

    Gradient variance 1 on the unit is propagated back to the input through independent
    zero-mean random weights.

    Args:
        net: a `Network`, a layer or a sequence of layers and blocks.
        output: the map that the unit is on: a node or an end point. Default: the network's
            output, or the last map before it lost its spatial extent.
        unit: "center" (index ⌊n/2⌋; 0 on the unbounded grid) or one index per axis.
        input_size: pixels of the input, a number, one per axis, or a mapping input name → size;
            gradient that falls into padding is then lost. None: the unbounded grid.
        device: "cpu", "cuda" or "cuda:N"; or "auto": a GPU where one works and is expected to be
            clearly quicker than the CPU, transfer included, else the CPU. The plan says why. The
            image stays on its device.
        dtype: "float64" or "float32".
        method: "auto", "direct" (any graph), "factored" (sums of separable terms) or "spectral"
            (one FFT, unbounded graphs without upsampling).
        accuracy: "relative" (right pixel by pixel), "absolute" (right to `tol` of the peak), or
            "auto": relative unless that takes ten times as long and more than 0.1 s.
        tol: see `accuracy`.
        tail: share of the mass that may be dropped from the outside; `ERF.dropped_mass` says how
            much it was. None: nothing.
        layers: "last", or "all" for the field of every layer's `unit`, by node name. Without
            `input_size` one pass up from the input computes them all (covariances included), but
            for those behind transposed convolutions or resizing; with one, each layer that moves
            pixels costs a field of its own. Layers that move none share the array of the layer
            below. Layers below `output` whose unit reads nothing (a gap of a transposed
            convolution, padding alone) are left out.
        workers: threads for large images; default: as many as pay.
        memory_limit: bytes; a plan above it is refused before it starts. Default: half of what
            is free. An engine that leaves factors needs little before `ERF.image` is asked for:
            where only the pixels do not fit, it is `ERF.image` that is refused, and measures,
            profiles and `ERF.window` work.
        channel: of the unit, where the network holds its weights channel by channel
            (``from_torch(…, weights="trained", channels="full")``). None: all channels alike.
        input: the input map, where the network has several.
        ignore_global: leave out paths on which a unit reads the whole map at once.
        progress: called with the share of the work that is done.

    Raises:
        InputError: an argument or the network breaks a rule.
        UnboundedError: a global operator is on the way and there is no `input_size`.
        PlanError: the computation does not fit into `memory_limit`.
        DeviceError: the device cannot be used.
    """
    question = _Question.of(
        net,
        input_size,
        device,
        input=input,
        ignore_global=ignore_global,
        dtype=dtype,
        method=method,
        accuracy=accuracy,
        tol=tol,
        tail=tail,
        workers=workers,
        memory_limit=memory_limit,
    )
    graph = question.graph
    last = graph.output_node(output)
    if layers == "last":
        return question.answer(last, unit, progress, channel)
    if channel is not None:
        raise InputError(f"channel={short(channel)} is one map's; leave it out of layers='all'")
    if layers != "all":
        raise InputError(f"layers={short(layers)} is unknown; give 'last' or 'all'")
    return question.answer_all(last, unit, progress)


def plan(
    net: Any,
    output: str | None = None,
    unit: str | int | Sequence[int] = "center",
    input_size: int | Sequence[int] | Mapping[str, Any] | None = None,
    *,
    channel: int | None = None,
    **options: Any,
) -> Plan:
    """What `erf` would do with the same arguments, without doing it.

    Of ``layers="all"`` there is no one plan: every layer's field has one, as its `plan`.

    Raises:
        InputError, PlanError, DeviceError: as `erf`.
    """
    options.pop("progress", None)
    if (layers := options.pop("layers", "last")) != "last":
        raise InputError(f"layers={short(layers)}: a plan is of one field; choose it by output=")
    question = _Question.of(net, input_size, **options)
    return question.plan(question.graph.output_node(output), unit, channel)
