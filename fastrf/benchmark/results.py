"""What a benchmark measures and returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the cases are, and how long they are measured.

    Attributes:
        plain, residual, stencil, volume: layers (or blocks) of the stacks.
        image: pixels along the clipped image.
        units: units of it along each axis.
        chains, depth: of the sweep.
        seconds: for which warm runs are repeated.
        patience: seconds after which another library is stopped.
    """

    plain: int = 1000
    residual: int = 1000
    stencil: int = 500
    volume: int = 60
    image: int = 224
    units: int = 7
    chains: int = 10_000
    depth: int = 100
    seconds: float = 0.3
    patience: float = 0.5


QUICK = Sizes(
    plain=200,
    residual=100,
    stencil=150,
    volume=24,
    units=2,
    chains=1000,
    seconds=0.1,
)
"""For a first look; the ratios to other libraries grow with the depth."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case, on one device, in one dtype, by fastrf or by another library.

    Attributes:
        case, device, dtype: what was measured; see `Benchmark.cases`.
        by: "fastrf", or another library and its function.
        engine: fastrf's.
        seconds: median of warm runs, results left on the device.
        seconds_with_transfer: the same with the results moved to the host; None on the CPU.
        first_call_seconds: of the first run in this process.
        updates: cell updates, one pixel of one layer each, that the plan counts at most: of
            factors, the pixels of their profiles and of the image that they form.
        updates_per_second: by `seconds`.
        copy_share: the time of a copy of the results on the device, over `seconds`.
        arithmetic_share: multiply-adds per second, over those that as many threads reach in
            registers; None where the engine's arithmetic is not known.
        relative_error, peak_error: largest difference to fastrf's float64 result on the CPU,
            relative to each pixel and to the peak. None for that result itself, and where it does
            not fit into memory.
        tolerance: bound of both errors, or of `peak_error` alone where the engine is right to a
            share of the peak. None for other libraries, and where there is no error.
        ok: whether it is kept; None where there is none.
        not_measured: why there are no figures.
        seconds_at_least: after which another library was stopped, if that is why.
    """

    case: str
    device: str
    dtype: str
    by: str
    engine: str | None = None
    seconds: float | None = None
    seconds_with_transfer: float | None = None
    first_call_seconds: float | None = None
    updates: int | None = None
    updates_per_second: float | None = None
    copy_share: float | None = None
    arithmetic_share: float | None = None
    relative_error: float | None = None
    peak_error: float | None = None
    tolerance: float | None = None
    ok: bool | None = None
    not_measured: str | None = None
    seconds_at_least: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """All measurements of one run; true when all results agree.

    Attributes:
        machine: what figures depend on besides the code.
        sizes: of the cases.
        cases: what each case is, by name.
        measurements: in the order in which they were made.
    """

    machine: Mapping[str, Any]
    sizes: Sizes
    cases: Mapping[str, str]
    measurements: tuple[Measurement, ...]

    @cached_property
    def ok(self) -> bool:
        """Whether no result of fastrf is outside of its tolerance."""
        return all(m.ok is not False for m in self.measurements)

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the attributes' names."""
        return {
            "machine": dict(self.machine),
            "sizes": asdict(self.sizes),
            "cases": dict(self.cases),
            "ok": self.ok,
            "measurements": [asdict(m) for m in self.measurements],
        }
