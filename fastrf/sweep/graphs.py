"""The figures of one network that is no packed chain, from `fastrf.erf`.

It is imported where there is such a network: a sweep of chains does without the engines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fastrf.erf import ERF, erf
from fastrf.metrics.given import defined
from fastrf.sweep.columns import COVARIANCES, FIGURES, LAYERS, RESULTS, SHARE_NAMES
from fastrf.sweep.content import text_of
from fastrf.sweep.points import options_of
from fastrf.sweep.rows import Item, Row, Wanted, error_row, packed_profiles, said
from fastrf.sweep.store import packed_image

COMPARED = 1 << 26
"""Most pixels of an image that is compared with its Gaussian: it takes 2 s and half a GB."""


def row(item: Item, wanted: Wanted, common: Mapping[str, Any], layers: list[Row]) -> Row:
    """The row of a network, whatever becomes of it; those of its layers, where they are asked for,
    are added to `layers`."""
    start = time.perf_counter()
    try:
        ((_, point),) = item.point
        network = point.network()
        own = options_of(point, common, network.bound.ndim or 0)
        options = {"dtype": wanted.dtype, "device": wanted.device, **own, "workers": 1}
        found = []
        if wanted.layers:
            every = erf(network, layers="all", **options)
            for position, field in enumerate(every.values()):
                figures = figures_of(field) | {"key": item.key, "position": position}
                found.append(tuple(figures[name] for name in LAYERS))
        result = erf(network, **options)
        figures = figures_of(result) | {
            "key": item.key,
            "fingerprint": item.fingerprint,
            "device": getattr(result.plan, "device", None),
            "error": None,
            "profiles": packed_profiles(_profiles(result)) if wanted.profiles else None,
            "image": packed_image(result.to_numpy()) if wanted.images else None,
            "seconds": time.perf_counter() - start,
        }
    except Exception as error:  # a row of the table, whatever it is
        return error_row(item.key, item.fingerprint, said(error), time.perf_counter() - start)
    layers.extend(found)
    return tuple(figures[name] for name in RESULTS)


def _profiles(result: ERF) -> list[NDArray[Any]]:
    """The profiles in the image's own precision."""
    dtype = result.values.dtype
    return [result.profile(axis).astype(dtype, copy=False) for axis in range(len(result.shape))]


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
    fwhm = defined(lambda: erf.fwhm)
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
    luo = defined(erf.luo_size)
    found |= {
        "ndim": len(erf.shape),
        "node": erf.node,
        "log_gain": erf.log_gain,
        "lost_mass": erf.lost_mass,
        "dropped_mass": erf.dropped_mass,
        "luo_size_amplitude": luo,
        "luo_size_variance": defined(lambda: erf.luo_size("variance")),
        "ratio": None if luo is None else erf.ratio,
        "exact": int(erf.exact),
        "assumptions": text_of(list(erf.assumptions)),
        "warnings": text_of(list(erf.warnings)),
        "method": getattr(erf.plan, "engine", None),
        "dtype": str(erf.values.dtype),
    }
    if math.prod(erf.shape) <= COMPARED:
        found["gaussian_distance"] = defined(lambda: erf.gaussian_distance)
    return found


def _plain(value: Any) -> Any:
    """A number as SQLite stores it: fractions and NumPy's numbers as Python's, NaN as None."""
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    if math.isnan(number):
        return None
    return int(number) if type(value).__name__ == "Fraction" and number.is_integer() else number
