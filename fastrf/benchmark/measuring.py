"""Times and errors of the cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np

from fastrf.benchmark.cases import Case, Facts
from fastrf.benchmark.machine import cpu_peak, gpu_peak, waiting
from fastrf.benchmark.peers import Layers, Missing, Peer, Picture
from fastrf.benchmark.results import Measurement, Sizes
from fastrf.device import Device, resolve
from fastrf.engine.threads import Threads
from fastrf.errors import PlanError


class Run:
    """Measures, and keeps what measurements are compared with: the CPU's results in float64, and
    what each device can do at most."""

    def __init__(self, sizes: Sizes, workers: int | None) -> None:
        self.sizes, self.workers = sizes, workers
        self._expected: dict[str, list[Picture] | None] = {}
        self._peaks: dict[tuple[str, np.dtype[Any], int], float] = {}

    def measure(self, case: Case, device: Device, name: str) -> Iterator[Measurement]:
        """A case by fastrf, and then by the other libraries."""
        dtype = np.dtype(name)
        yield self._ours(case, device, dtype)
        for library, peer in case.peers.items():
            yield self._theirs(case, library, peer, device, dtype)

    def _ours(self, case: Case, device: Device, dtype: np.dtype[Any]) -> Measurement:
        call, wait = case.call(device, dtype, self.workers), waiting(device)

        def computed() -> Any:
            result = call()
            wait()
            return result

        try:
            first, result = _timed(computed)
        except PlanError as error:
            what = (case.name, device.name, dtype.name, "fastrf")
            return Measurement(*what, not_measured=str(error))
        seconds, moved = self._median(computed), None
        if not device.is_host:
            moved = self._median(lambda: case.pictures(call()))
        facts, pictures = case.facts(result), case.pictures(result)
        kept: tuple[Any, ...] = (None, None, None, None)
        if device.is_host and dtype == np.float64:
            self._expected[case.name] = pictures
        elif (errors := self._errors(case, pictures)) is not None:
            # Written so that a NaN is not within any bound.
            counted = errors if facts.relative else errors[1:]
            ok = all(error <= facts.tolerance for error in counted)
            kept = (*errors, facts.tolerance, ok)
        arithmetic = None
        if facts.adds is not None:
            peak = self._peak(device, dtype, facts.threads)
            arithmetic = facts.updates * facts.adds / seconds / peak
        return Measurement(
            case.name,
            device.name,
            dtype.name,
            "fastrf",
            facts.engine,
            seconds,
            moved,
            first,
            facts.updates,
            facts.updates / seconds,
            self._copy_seconds(device, facts) / seconds,
            arithmetic,
            *kept,
        )

    def _theirs(
        self, case: Case, by: str, peer: Peer, device: Device, dtype: np.dtype[Any]
    ) -> Measurement:
        kind = device.name.partition(":")[0]
        what = (case.name, device.name, dtype.name, by)
        try:
            first, pictures = _timed(lambda: self._patiently(peer(dtype, kind)))
            seconds = self._median(lambda: self._patiently(peer(dtype, kind)))
        except Missing as missing:
            return Measurement(*what, not_measured=str(missing))
        except Stopped:
            patience = self.sizes.patience
            reason = f"it takes longer than {patience:g} s"
            return Measurement(*what, not_measured=reason, seconds_at_least=patience)
        relative, of_peak = self._errors(case, pictures) or (None, None)
        return Measurement(
            *what,
            # Their results are moved to the host in any case.
            seconds=seconds if kind == "cpu" else None,
            seconds_with_transfer=None if kind == "cpu" else seconds,
            first_call_seconds=first,
            relative_error=relative,
            peak_error=of_peak,
        )

    def _errors(self, case: Case, pictures: Sequence[Picture]) -> tuple[float, float] | None:
        """Against the CPU's result in float64, which is computed here if it was not measured; None
        where it does not fit into memory."""
        if case.name not in self._expected:
            call = case.call(resolve("cpu"), np.dtype(np.float64), self.workers)
            try:
                self._expected[case.name] = case.pictures(call())
            except PlanError:
                self._expected[case.name] = None
        expected = self._expected[case.name]
        return None if expected is None else errors_of(expected, pictures)

    def _patiently(self, layers: Layers) -> list[Picture]:
        """Another library's result, unless it takes too long."""
        end = None
        while True:
            try:
                next(layers)
            except StopIteration as finished:
                pictures: list[Picture] = finished.value
                return pictures
            if end is None:  # the first step may import the library
                end = time.perf_counter() + self.sizes.patience
            if time.perf_counter() > end:
                layers.close()
                raise Stopped

    def _median(self, call: Callable[[], Any]) -> float:
        """Of warm runs: as many as fit into the time for them, and at least one."""
        times = [_timed(call)[0]]
        rounds = min(100, int(self.sizes.seconds / max(times[0], 1e-6)))
        times.extend(_timed(call)[0] for _ in range(rounds - 1))
        return median(times)

    def _copy_seconds(self, device: Device, facts: Facts) -> float:
        """Copying as many bytes as the results have, by as many threads."""
        xp, wait = device.xp, waiting(device)
        with device.current():
            source, target = (
                xp.ones(facts.size // 4, np.float32),
                xp.ones(facts.size // 4, np.float32),
            )

        def copy(a: int, b: int) -> None:
            target[a:b] = source[a:b]

        def copied() -> None:
            with device.current():
                threads.cut(len(source), len(source), copy)
            wait()

        with Threads(facts.threads if device.is_host else 1) as threads:
            copied()
            return self._median(copied)

    def _peak(self, device: Device, dtype: np.dtype[Any], threads: int) -> float:
        """Multiply-adds a second that a device, or so many threads, do in registers at best."""
        key = (device.name, dtype, threads)
        if key not in self._peaks:
            measure = cpu_peak if device.is_host else gpu_peak
            self._peaks[key] = measure(device, dtype, threads)
        return self._peaks[key]


class Stopped(Exception):
    """Another library took too long."""


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds of a call, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def errors_of(expected: Sequence[Picture], found: Sequence[Picture]) -> tuple[float, float]:
    """Largest difference relative to each pixel that both hold, and of any to the peak."""
    relative, of_peak = [0.0], [0.0]
    for (a, a_origin), (b, b_origin) in zip(expected, found, strict=True):
        low = [min(x, y) for x, y in zip(a_origin, b_origin, strict=True)]
        ends = [
            max(x + n, y + m)
            for x, n, y, m in zip(a_origin, a.shape, b_origin, b.shape, strict=True)
        ]
        ours, theirs = np.zeros((2, *(e - s for e, s in zip(ends, low, strict=True))))
        for whole, part, origin in ((ours, a, a_origin), (theirs, b, b_origin)):
            place = zip(origin, low, part.shape, strict=True)
            whole[tuple(slice(o - s, o - s + n) for o, s, n in place)] = part
        both = (ours > 0) & (theirs > 0)
        difference = np.abs(theirs - ours)
        of_peak.append(float(difference.max()) / float(ours.max()))
        ratio = np.divide(difference, ours, out=np.zeros_like(ours), where=both)
        relative.append(float(ratio.max()))
    # NumPy's maximum of NaN and other numbers is NaN.
    return float(np.max(relative)), float(np.max(of_peak))
