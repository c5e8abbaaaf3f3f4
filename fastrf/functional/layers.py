"""Single layers on arrays: the kernels behind checks, batch axes and broadcasting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrf.arrays import Array
from fastrf.engine.threads import Threads
from fastrf.errors import InputError
from fastrf.functional import doors
from fastrf.kernels import load

Axes = tuple[int, ...]


def transposed_conv(
    y: Any,
    taps: Any = None,
    *,
    kernel: Any = None,
    stride: Any = 1,
    dilation: Any = 1,
    padding: Any = 0,
    size: Any = None,
    ndim: int | None = None,
    out: Any = None,
    workers: int = 1,
) -> Any:
    """The backward pass of a convolution: ``out[i] = Σ taps[m]·y[o]`` over o·s + m·d − lo = i.

    It takes the variances of gradients on a convolution's output to those on its input (Luo et al.
    2016, eq. 8), per axis, for independent weights of variance taps[m].

    Args:
        y: float32 or float64 of shape (*batch, *image), with 1, 2 or 3 image axes.
        taps: variances of shape (*batch, *kernel), on the host or beside `y`, used as they are and
            rounded to the dtype of `y`. Their batch axes broadcast against those of `y` as NumPy's
            do: taps of (C, k, k) are one set for each channel of a `y` of (N, C, h, w).
        kernel: instead of taps, the number of taps per axis, all equal and of sum 1. One number
            for all axes needs `ndim`.
        stride, dilation: whole numbers of at least 1, or one per axis.
        padding: of the convolution: a number, or a number or a (lo, hi) pair per axis; of any
            sign, a negative one crops.
        size: pixels of the convolution's input, which is the result's image; default: the smallest
            input that gives `y`. What falls beyond it is lost.
        ndim: number of image axes; default: that of `taps` or of `kernel`.
        out: array for the result, of just its shape and dtype; it is returned.
        workers: threads of the CPU that share large images; the result does not depend on them.

    Returns:
        An array of shape (*batch, *size) of y's library, dtype and device.

    Cost per pixel of the result: K/Πs multiplications for K taps; of equal taps, per axis, a few
    additions for any number of them. One call of a kernel per set of taps, times the batch for 3-D
    images. Workspace: none on the CPU for arrays whose rows are contiguous, but for equal taps one
    image per axis but the last; copies of what the module says is copied.

    Raises:
        InputError: an argument breaks a rule; the message says which.
        PlanError: the result does not fit into what memory is free.
    """
    layer = _Layer(y, taps, kernel, stride, dilation, padding, ndim, workers, gather=False)
    return layer.run(size, out, y)


def strided_gather(
    y: Any,
    taps: Any = None,
    *,
    kernel: Any = None,
    stride: Any = 1,
    dilation: Any = 1,
    padding: Any = 0,
    size: Any = None,
    ndim: int | None = None,
    out: Any = None,
    workers: int = 1,
) -> Any:
    """The backward pass of a transposed convolution: ``out[o] = Σ_m taps[m]·y[o·s + m·d − lo]``.

    It is the adjoint of `transposed_conv`, whose arguments, results, cost and errors it shares,
    with one difference: `size` is that of the transposed convolution's input, by default as many
    windows as fit, ⌊(n + lo + hi − d(k−1) − 1)/s⌋ + 1. What lies outside of `y` is zero.
    Cost per pixel of the result: K multiplications; of equal taps, per axis, a few additions for
    each pixel of `y`.
    """
    layer = _Layer(y, taps, kernel, stride, dilation, padding, ndim, workers, gather=True)
    return layer.run(size, out, y)


class _Layer:
    """One layer with its checked arguments."""

    def __init__(
        self,
        y: Any,
        taps: Any,
        kernel: Any,
        stride: Any,
        dilation: Any,
        padding: Any,
        ndim: int | None,
        workers: int,
        *,
        gather: bool,
    ) -> None:
        self.gather, self.workers = gather, doors.check_workers(workers)
        if (taps is None) == (kernel is None):
            raise InputError("taps and kernel: give one of the two; kernel stands for equal taps")
        shape: tuple[int, ...] = tuple(kernel) if isinstance(kernel, tuple | list) else ()
        if kernel is None:
            taps = doors.taps(taps)
            shape = tuple(taps.shape)
        axes = len(shape) if ndim is None else ndim
        if axes not in (1, 2, 3) or (kernel is None and len(shape) < axes):
            raise InputError(
                f"ndim={ndim} with {'taps of shape ' + str(shape) if kernel is None else kernel}: "
                f"images have 1, 2 or 3 axes, the last of y and of taps; say how many with ndim"
            )
        self.ndim = axes
        self.y = doors.image("y", y, axes)
        self.place = doors.place_of(self.y)
        with self.place.current():
            self.taps = None if taps is None else doors.weights(taps, self.y)
        self.kernel: Axes = (
            doors.per_axis("kernel", kernel, axes, 1)
            if self.taps is None
            else tuple(self.taps.shape[self.taps.ndim - axes :])
        )
        if 0 in self.kernel:
            raise InputError(f"taps have shape {shape}: give at least one tap per axis")
        self.stride = doors.per_axis("stride", stride, axes, 1)
        self.dilation = doors.per_axis("dilation", dilation, axes, 1)
        self.padding = doors.sides(padding, axes)

    def run(self, size: Any, out: Any, like: Any) -> Any:
        n, y = self.ndim, self.y
        batch = tuple(y.shape[:-n])
        if self.taps is not None:
            own = tuple(self.taps.shape[:-n])
            try:
                batch = np.broadcast_shapes(batch, own)
            except ValueError:
                raise InputError(
                    f"taps have the batch axes {own} and y has {batch}: they must broadcast; give "
                    f"taps one axis of 1 for each that all share"
                ) from None
        image = self._size() if size is None else doors.per_axis("size", size, n, 1)
        with self.place.current(), Threads(self.workers if self.place.is_host else 1) as threads:
            result = doors.Result(out, (*batch, *image), y, like)
            if self.taps is None:
                self._equal(result.array, threads)
            else:
                self._each(result.array, batch, threads)
            return result.handed_back()

    def _size(self) -> Axes:
        """The default for `size`."""
        found = []
        shape = self.y.shape[-self.ndim :]
        for n, k, s, d, (lo, hi) in zip(
            shape, self.kernel, self.stride, self.dilation, self.padding, strict=True
        ):
            span = d * (k - 1) + 1
            if self.gather:
                found.append((n + lo + hi - span) // s + 1)
            else:
                found.append((n - 1) * s + span - lo - hi)
        if min(found) < 1:
            raise InputError(
                f"y of {tuple(shape)} pixels leaves a result of {tuple(found)}: it needs one pixel "
                f"per axis; give size, or another padding"
            )
        return tuple(found)

    # --- taps of their own ------------------------------------------------------------------

    def _each(self, out: Array, batch: Axes, threads: Threads) -> None:
        """One set of taps after the other, on the part of the batch that it is for."""
        assert self.taps is not None
        n = self.ndim
        taps = self.taps.reshape((1,) * (len(batch) + n - self.taps.ndim) + self.taps.shape)
        y = self.y.reshape((1,) * (len(batch) + n - self.y.ndim) + self.y.shape)
        shared = [count == 1 for count in taps.shape[:-n]]
        for at in np.ndindex(taps.shape[:-n]):
            own = [slice(None) if s else slice(i, i + 1) for i, s in zip(at, shared, strict=True)]
            read = tuple(
                slice(None) if count == 1 else part
                for count, part in zip(y.shape[:-n], own, strict=True)
            )
            self._one(y[read], taps[at], out[tuple(own)], threads)

    def _one(self, y: Array, taps: Array, out: Array, threads: Threads) -> None:
        n = self.ndim
        if 0 in out.shape:
            return
        source = doors.folded(y, n)
        fits = doors.folds(out, n)
        target = (
            doors.folded(out, n) if fits else self.place.xp.empty(_folded_shape(out, n), y.dtype)
        )
        lead = 3 - n
        lo = (*(0,) * lead, *(first for first, _ in self.padding))
        ones = (1,) * lead
        weights = taps.reshape(ones + taps.shape)
        stride, dilation = ones + self.stride, ones + self.dilation
        kernels = load(self.place.name)
        call = kernels.strided_gather if self.gather else kernels.transposed_conv
        # Images of one or two axes go in one call, the batch being an axis that no tap acts on.
        if n == 1:
            pieces = [(source[None], target[None])]
        elif n == 2:
            pieces = [(source, target)]
        else:
            pieces = list(zip(source, target, strict=True))
        for y3, out3 in pieces:
            axis = int(np.argmax(out3.shape))
            step = -stride[axis] if self.gather else 1

            def tile(
                a: int,
                b: int,
                y3: Array = y3,
                out3: Array = out3,
                axis: int = axis,
                step: int = step,
            ) -> None:
                # A tile that begins a pixels into the result: there y's index is `step` further on.
                shifted = tuple(v + step * a if i == axis else v for i, v in enumerate(lo))
                part = (slice(None),) * axis + (slice(a, b),)
                call(y3, weights, stride, dilation, shifted, out3[part])

            threads.cut(out3.shape[axis], out3.size, tile)
        if not fits:
            out[...] = target.reshape(out.shape)

    # --- equal taps -------------------------------------------------------------------------

    def _equal(self, out: Array, threads: Threads) -> None:
        """Axis by axis, at a cost that does not depend on the kernel."""
        if 0 in out.shape:
            return
        n, image = self.ndim, self.y
        batch = image.shape[:-n]
        kernels = load(self.place.name)
        call = kernels.gather_box if self.gather else kernels.transposed_box
        # From the last axis to the first, so that rows stay long.
        for axis in reversed(range(n)):
            length = out.shape[len(batch) + axis]
            after = image.shape[len(batch) + axis + 1 :]
            before = (*batch, *image.shape[len(batch) : len(batch) + axis])
            shape = (*before, length, *after)
            to = self.place.xp.empty(shape, out.dtype) if axis else out
            planes, width = math.prod(before), math.prod(after)
            y3 = image.reshape((planes, image.shape[len(batch) + axis], width))
            out3 = to.reshape((planes, length, width))

            def tile(a: int, b: int, axis: int = axis, y3: Array = y3, out3: Array = out3) -> None:
                k, s, d = self.kernel[axis], self.stride[axis], self.dilation[axis]
                lo = self.padding[axis][0] + (-s * a if self.gather else a)
                call(y3, k, s, d, lo, out3[:, a:b])

            threads.cut(length, out3.size, tile)
            image = to
        # Once, at the end: what is divided on the way sinks before it has been added up.
        out /= math.prod(self.kernel)
        out[out < np.finfo(out.dtype).smallest_normal] = 0


def _folded_shape(array: Array, ndim: int) -> Axes:
    """The shape of `doors.folded`."""
    batch = array.shape[: array.ndim - ndim]
    return (math.prod(batch), *array.shape[array.ndim - ndim :])
