"""What the functions are given: images, weights, whole numbers, results; and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import Array, library, namespace
from fastrf.device import HOST, Device
from fastrf.errors import InputError, PlanError, short
from fastrf.exchange import REFUSED, hosted, in_kind, numbers, taken
from fastrf.layers.checks import MAXIMUM, is_whole

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

_SMALL = 1 << 26  # bytes for which nobody asks how much memory is free


def place_of(array: Array) -> Device:
    """The device that an array of NumPy's or CuPy's lies on."""
    if isinstance(array, np.ndarray):
        return HOST
    return Device(f"cuda:{int(array.device.id)}", namespace(array), "the array is there")


def image(name: str, given: Any, ndim: int) -> Array:
    """An array of images, with batch axes in front of the last `ndim`."""
    array = taken(name, given)
    if array.dtype not in DTYPES:
        raise InputError(
            f"{name} has dtype {array.dtype}: images are float32 or float64; convert it, with "
            f"astype or .to"
        )
    if array.ndim < ndim or 0 in array.shape[array.ndim - ndim :]:
        raise InputError(
            f"{name} has shape {tuple(array.shape)}: it needs {ndim} axes of at least one pixel, "
            f"behind any batch axes; reshape it"
        )
    if not isinstance(array, np.ndarray) or not array.size:
        return array
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high < np.inf):
        raise InputError(
            f"{name} has values from {low} to {high}: variances are nonnegative and finite; give "
            f"squares of gradients"
        )
    # Compiled code is there for arrays that can be written to.
    return array.copy() if _fixed(array) else array


def taps(given: Any) -> Array:
    """The variances of taps, where they lie; on the host in double precision."""
    if on_gpu(given):
        return taken("taps", given)
    return variances("taps", given, DTYPES[1])


def weights(array: Array, beside: Array) -> Array:
    """Taps in the dtype of an image, on its device."""
    place, own = place_of(beside), place_of(array)
    if own.is_host:
        return place.xp.asarray(variances("taps", array, beside.dtype).astype(beside.dtype))
    if own.name != place.name:
        raise InputError(
            f"taps lie on {own.name} and y on {place.name}: both lie on one device, or taps on the "
            f"host; copy them"
        )
    if array.dtype.kind != "f":
        raise InputError(f"taps have dtype {array.dtype}: give real floating-point numbers")
    return array.astype(beside.dtype)


def variances(name: str, given: Any, dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """Nonnegative numbers that a dtype can hold, in the host's memory."""
    try:
        array = numbers(given)
    except REFUSED as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{name}={short(given)} are no numbers ({said}): give an array of variances, without "
            f"gradients"
        ) from None
    largest = float(np.finfo(dtype).max)
    if array.size and not (array.min() >= 0 and array.max() <= largest):
        raise InputError(
            f"{name} have values from {array.min()} to {array.max()}: they are nonnegative and at "
            f"most {largest:.3g} in {dtype}; of weights, give the squares"
        )
    return array


def on_gpu(array: Any) -> bool:
    if library(array) == "cupy":
        return True
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack_device__"):
        return False
    try:
        return int(array.__dlpack_device__()[0]) in (2, 13)
    except REFUSED:
        return False


def table(name: str, given: Any) -> NDArray[np.int64]:
    """Whole numbers in the host's memory."""
    try:
        array = hosted(given)
    except REFUSED:
        raise InputError(f"{name}={short(given)} must be an array of whole numbers") from None
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(
            f"{name} has dtype {array.dtype}: it must hold whole numbers; convert it to int64"
        )
    return np.asarray(array, np.int64, order="C")


def per_axis(name: str, given: Any, ndim: int, least: int | None) -> tuple[int, ...]:
    """One whole number for all axes, or one per axis."""
    values = tuple(given) if isinstance(given, Sequence | np.ndarray) else (given,) * ndim
    if len(values) != ndim or not all(
        is_whole(v) and abs(v) <= MAXIMUM and (least is None or v >= least) for v in values
    ):
        rule = "" if least is None else f" of at least {least}"
        raise InputError(
            f"{name}={short(given)} must be a whole number{rule}, up to {MAXIMUM}, or one for each "
            f"of {ndim} axes"
        )
    return tuple(int(v) for v in values)


def sides(given: Any, ndim: int) -> tuple[tuple[int, int], ...]:
    """Padding: a whole number of any sign, or a number or a (lo, hi) pair per axis."""
    values = tuple(given) if isinstance(given, tuple | list) else (given,) * ndim
    if len(values) != ndim:
        raise InputError(
            f"padding={short(given)} has {len(values)} values for {ndim} axes; give one number, or "
            f"one number or (lo, hi) pair per axis"
        )
    pairs = [per_axis("padding", v, 2, None) for v in values]
    return tuple((lo, hi) for lo, hi in pairs)


def check_workers(workers: Any) -> int:
    if not is_whole(workers) or workers < 1:
        raise InputError(f"workers={short(workers)} must be a whole number of at least 1")
    return int(workers)


class Result:
    """An array to fill: a new one, or the caller's `out`.

    Attributes:
        array: where to write, contiguous, and no part of what is read.
    """

    def __init__(self, out: Any, shape: tuple[int, ...], beside: Array, like: Any) -> None:
        self._out, self._like = out, like
        self._given: Array = None
        place, dtype = place_of(beside), beside.dtype
        if out is not None:
            self._given = taken("out", out)
            at = place_of(self._given).name
            found = (tuple(self._given.shape), self._given.dtype, at)
            if found != (shape, dtype, place.name):
                raise InputError(
                    f"out has shape {found[0]}, dtype {found[1]} and lies on {at}; the result has "
                    f"shape {shape}, dtype {dtype} and lies on {place.name}: give an array like it"
                )
            if isinstance(out, np.ndarray) and _fixed(out):
                raise InputError("out is read-only: give an array that can be written to")
        self.array: Array
        if self._given is not None and self._fits(beside):
            self.array = self._given
        else:
            allowed(math.prod(shape) * dtype.itemsize, shape, place)
            self.array = place.xp.empty(shape, dtype)

    def _fits(self, beside: Array) -> bool:
        given = self._given
        shares = namespace(given).may_share_memory(given, beside)
        return bool(given.flags.c_contiguous) and not (shares or _fixed(given))

    def handed_back(self) -> Any:
        """The result in kind; `out` itself where one was given."""
        if self._out is None:
            return in_kind(self.array, self._like)
        if self.array is not self._given:
            if _fixed(self._given):
                self._out[...] = in_kind(self.array, self._out)
                return self._out
            self._given[...] = self.array
        # Through DLPack once more: the stream of out's library waits for the one that wrote to it.
        in_kind(self._given, self._out)
        return self._out


def _fixed(array: Array) -> bool:
    """Whether an array can only be read."""
    return isinstance(array, np.ndarray) and not array.flags.writeable


def allowed(size: int, shape: tuple[int, ...], place: Device) -> None:
    """PlanError where an array of so many bytes does not fit into what memory is free."""
    if size > _SMALL and size > place.free_memory():
        raise PlanError(
            f"a result of shape {shape} takes {size / 1e9:.3g} GB, more than is free on "
            f"{place.name}; give a smaller image, or ask for parts of it"
        )


def folded(array: Array, ndim: int) -> Array:
    """The batch axes as one: a view where strides allow it."""
    first = array.ndim - ndim
    return array.reshape((math.prod(array.shape[:first]), *array.shape[first:]))


def folds(array: Array, ndim: int) -> bool:
    """Whether `folded` is a view."""
    axes = [
        (n, step)
        for n, step in zip(array.shape[:-ndim], array.strides[:-ndim], strict=True)
        if n > 1
    ]
    return all(outer == n * inner for (_, outer), (n, inner) in pairwise(axes))
