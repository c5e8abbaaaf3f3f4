"""Every kernel compiled ahead: for a container image, or before the first measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastrf.device import Device, devices, resolve
from fastrf.engine.direct import propagate_at_once
from fastrf.faults import explained
from fastrf.kernels import KERNELS
from fastrf.kernels import load as load_kernels
from fastrf.layers import Conv
from fastrf.lowering import lower
from fastrf.network import Sequential


@dataclass(frozen=True, slots=True)
class Warmed:
    """One kernel on one device.

    Attributes:
        device, kernel, dtype: which.
        compiled: whether it had to be compiled; False: it was found in the cache.
        seconds: what that and a first call took.
    """

    device: str
    kernel: str
    dtype: str
    compiled: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Warmup:
    """What `warmup` has done.

    Attributes:
        kernels: one after the other.
        folders: device → where its kernels are kept; None where no folder can be written.
        seconds: what all took.
    """

    kernels: tuple[Warmed, ...]
    folders: dict[str, str | None]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the attributes' names."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"  {k.seconds:7.2f} s  {'compiled' if k.compiled else 'found   '}  "
            f"{k.device} {k.kernel} {k.dtype}"
            for k in self.kernels
        ]
        fresh = sum(k.compiled for k in self.kernels)
        lines.append(f"{fresh} of {len(lines)} kernels compiled in {self.seconds:.1f} s")
        for device, folder in self.folders.items():
            kept = (
                folder or "nowhere: no folder can be written; set NUMBA_CACHE_DIR to one that can"
            )
            lines.append(f"kept for {device}: {kept}")
        return "\n".join(lines)


def warmup(device: str = "auto", *, progress: Callable[[float], None] | None = None) -> Warmup:
    """Compiles every kernel in every dtype, so that no later process has to.

    Kernels are kept for the kind of processor that they were compiled on: a container image is
    best filled on the kind that it will run on. On another it works too, and compiles anew.

    Args:
        device: "auto", the CPU and every GPU that works; or one of "cpu", "cuda" and "cuda:N".
        progress: called with the share of the kernels that are done.

    Raises:
        InputError, DeviceError: as `erf`.
        KernelError: a kernel does not compile.
    """
    start = time.perf_counter()
    places = [resolve(name) for name in (devices() if device == "auto" else (device,))]
    work = [(place, *example) for place in places for example in _examples(place)]
    done: list[Warmed] = []
    for place, kernel, dtype, call in work:
        before, began = _compiled(place), time.perf_counter()
        with explained(place.name), place.current():
            call()
        seconds = time.perf_counter() - began
        done.append(Warmed(place.name, kernel, dtype.name, _compiled(place) > before, seconds))
        if progress is not None:
            progress(len(done) / len(work))
    folders = {place.name: _folder(place) for place in places}
    return Warmup(tuple(done), folders, time.perf_counter() - start)


def _compiled(place: Device) -> int:
    """A number that grows with every compilation."""
    if place.is_host:
        from fastrf.kernels.cpu import _compile

        return _compile.made
    from fastrf.kernels.cuda import _module

    return _module.made


def _folder(place: Device) -> str | None:
    if place.is_host:
        from fastrf.kernels.cpu import _cache

        found = _cache.writable()
    else:
        from fastrf.kernels.cuda import _module

        found = _module.writable()
    return None if found is None else str(found)


# --- a call of each -------------------------------------------------------------------------

Example = tuple[str, "np.dtype[Any]", Callable[[], Any]]


def _examples(place: Device) -> Iterator[Example]:
    """A small call of every kernel of a device in every dtype, and of each of its ways."""
    kernels = load_kernels(place.name)
    for name, kernel in KERNELS.items():
        for dtype in kernel.dtypes if hasattr(kernels, name) else ():

            def call(name: str = name, dtype: np.dtype[Any] = dtype) -> None:
                for arguments in _ARGUMENTS[name](place.xp, dtype):
                    getattr(kernels, name)(*arguments)

            yield name, dtype, call if name in _ARGUMENTS else _walk(dtype)


def _walk(dtype: np.dtype[Any]) -> Callable[[], Any]:
    graph = lower(Sequential(Conv(3)), None)
    where = (graph, graph.output_node(None), (0, 0), graph.input_node(None))
    return lambda: propagate_at_once(*where, load_kernels("cpu"), dtype)


def _general(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    y, taps = xp.ones((1, 6, 6), dtype), xp.ones((1, 3, 3), dtype)
    yield y, taps, (1, 1, 1), (1, 1, 1), (0, 1, 1), xp.empty((1, 6, 6), dtype)


def _box(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    """Few taps and many, side by side and apart."""
    for k, stride, width in ((3, 1, 4), (99, 1, 4), (99, 1, 1), (99, 2, 4)):
        y, out = xp.ones((1, 300, width), dtype), xp.empty((1, 300, width), dtype)
        yield y, k, stride, 1, k // 2, out


def _table(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    starts, taps = np.zeros(2, np.int64), np.ones((2, 3), dtype)
    yield xp.ones((1, 2, 1), dtype), starts, taps, xp.empty((1, 3, 1), dtype)


def _accumulate(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    yield xp.ones((1, 2, 2), dtype), dtype.type(2), xp.ones((1, 2, 2), dtype)


def _power(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    yield 4, 3, 0, xp.empty(9, dtype)


def _product(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    yield xp.ones(3, dtype), xp.ones(4, dtype), xp.empty((3, 4), dtype)


def _terms(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    y = xp.ones((2, 3), dtype)
    yield xp.ones(2, dtype), y, y, 0, xp.empty((3, 3), dtype)


def _boxes(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    for shape, k in (((1, 8, 8), (1, 3, 3)), ((4, 8, 8), (3, 3, 3)), ((1, 1, 400), (1, 1, 3))):
        yield xp.ones(shape, dtype), k, 2, (0, 0, 0), xp.empty(shape, dtype)


def _runs(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    for y, k, count, lo, out in _boxes(xp, dtype):
        yield y, xp.full(k, 1 / 27, dtype), count, lo, out


def _chains(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    layers = np.array([[3], [1], [1], [1], [-1], [-1]])
    lost, exponents = xp.empty(1, dtype), xp.empty(1, np.int64)
    where = (np.array([0, 1]), layers, np.empty(0, dtype), np.array([0]), np.array([-1]))
    yield *where, lost, exponents, xp.empty((1, 3), dtype)


def _grown(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    places, layers = np.array([0, 3]), np.array([[3], [1], [-1]])
    yield (
        np.array([0, 1]),
        layers,
        np.empty(0, dtype),
        places,
        xp.empty(1, np.int64),
        xp.empty(3, dtype),
    )


def _figures(xp: Any, dtype: Any) -> Iterator[tuple[Any, ...]]:
    one, places = np.zeros((1, 1), np.int64), np.zeros(1, np.int64)
    shares, at = np.array([0.5], dtype), np.ones((1, 1), dtype)
    moments, sizes = xp.empty((1, 7), dtype), xp.empty((1, 4), dtype)
    pixels, counts = xp.ones(3, dtype), np.array([3])
    yield pixels, places, counts, one, at, 0.05, shares, moments, sizes


_ARGUMENTS: dict[str, Callable[[Any, Any], Iterator[tuple[Any, ...]]]] = {
    "transposed_conv": _general,
    "strided_gather": _general,
    "transposed_box": _box,
    "gather_box": _box,
    "transposed_table": _table,
    "accumulate": _accumulate,
    "box_power": _power,
    "outer_product": _product,
    "sum_of_terms": _terms,
    "box_run": _boxes,
    "conv_run": _runs,
    "chain_profiles": _chains,
    "grown_profiles": _grown,
    "chain_figures": _figures,
}
"""Arguments of each kernel but `walk`, which takes a program."""
