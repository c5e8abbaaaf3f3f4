"""The figures of one network that is no packed chain, from `fastrf.erf`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastrf.erf import ERF
from fastrf.errors import InputError
from fastrf.sweep.columns import COVARIANCES, FIGURES, SHARE_NAMES
from fastrf.sweep.content import text_of

COMPARED = 1 << 26
"""Most pixels of an image that is compared with its Gaussian: it takes 2 s and half a GB."""


def figures_of(erf: ERF) -> dict[str, Any]:
    """The figures of a field by the names of their columns; None where one is not defined, as
    Luo's size is where the unit's centre is in a gap."""
    found: dict[str, Any] = dict.fromkeys(FIGURES)
    field = erf.field
    per_axis = {
        "unit": erf.unit,
        "trf_size": erf._trf_size,
        "trf_stride": field.stride,
        "trf_padding": field.padding,
        "trf_start": field.start,
        "shape": erf.shape,
        "origin": erf.origin,
        "mean": erf.mean,
        "std": erf.std,
        "kurtosis": erf.kurtosis,
    }
    if erf.input_size is not None:
        per_axis["input_size"] = erf.input_size
    fwhm = _defined(lambda: erf.fwhm)
    if fwhm is not None:
        per_axis["fwhm"] = fwhm
    for name, values in per_axis.items():
        for axis, value in enumerate(values):
            found[f"{name}_{axis}"] = _plain(value)
    covariance = erf.covariance
    for name, (a, b) in COVARIANCES.items():
        if b < len(covariance):
            found[name] = float(covariance[a, b])
    for name, share in SHARE_NAMES.items():
        found[name] = erf.area_ratio(share)
    luo = _defined(erf.luo_size)
    found |= {
        "ndim": len(erf.shape),
        "node": erf.node,
        "log_gain": erf.log_gain,
        "lost_mass": erf.lost_mass,
        "dropped_mass": erf.dropped_mass,
        "luo_size_amplitude": luo,
        "luo_size_variance": _defined(lambda: erf.luo_size("variance")),
        "ratio": None if luo is None else erf.ratio,
        "exact": int(erf.exact),
        "assumptions": text_of(list(erf.assumptions)),
        "warnings": text_of(list(erf.warnings)),
        "method": getattr(erf.plan, "engine", None),
        "dtype": str(erf.values.dtype),
    }
    if math.prod(erf.shape) <= COMPARED:
        found["gaussian_distance"] = _defined(lambda: erf.gaussian_distance)
    return found


def _defined(measure: Callable[[], Any]) -> Any:
    """A figure, or None where it is not defined."""
    try:
        return measure()
    except InputError:
        return None


def _plain(value: Any) -> Any:
    """A number as SQLite stores it: fractions and NumPy's numbers as Python's, NaN as None."""
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    if math.isnan(number):
        return None
    return int(number) if type(value).__name__ == "Fraction" and number.is_integer() else number
