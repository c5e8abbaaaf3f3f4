"""The columns of a sweep's table: the names of `ERF.to_dict`, one column per axis where it has
values per axis (``std_0``, ``std_1`` …)."""

from __future__ import annotations

from fastrf.metrics.squares import SHARES

AXES = (0, 1, 2)

SHARE_NAMES = {f"area_ratio_{round(100 * share)}": share for share in SHARES}
"""Columns of RepLKNet's area ratios: ``area_ratio_20`` is `ERF.area_ratio(0.2)`."""


def per_axis(*names: str) -> dict[str, str]:
    """The columns of a value that each axis has, with their SQL types."""
    return {f"{name}_{axis}": "" for name in names for axis in AXES}


COVARIANCES = {"covariance_01": (0, 1), "covariance_02": (0, 2), "covariance_12": (1, 2)}
"""Entries beside the diagonal, which holds the squares of the deviations."""

FIGURES: dict[str, str] = {
    "ndim": "INTEGER",
    "node": "TEXT",
    **per_axis("unit", "input_size"),
    # The theoretical receptive field, in the names of `ReceptiveField`.
    **per_axis("trf_size", "trf_stride", "trf_padding", "trf_start"),
    **per_axis("shape", "origin"),
    "log_gain": "REAL",
    "lost_mass": "REAL",
    "dropped_mass": "REAL",
    **per_axis("mean", "std", "kurtosis", "fwhm"),
    **dict.fromkeys(COVARIANCES, "REAL"),
    "luo_size_amplitude": "REAL",
    "luo_size_variance": "REAL",
    **dict.fromkeys(SHARE_NAMES, "REAL"),
    "ratio": "REAL",
    "gaussian_distance": "REAL",
    "exact": "INTEGER",
    "assumptions": "TEXT",
    "warnings": "TEXT",
    "method": "TEXT",
    "dtype": "TEXT",
}
"""What is known of one field, with the SQL types; lists of texts are JSON."""

BLOBS = ("profiles", "image")

RESULTS: dict[str, str] = {
    "key": "TEXT",
    "fingerprint": "TEXT",
    **FIGURES,
    "device": "TEXT",
    "seconds": "REAL",
    "error": "TEXT",
    **dict.fromkeys(BLOBS, "BLOB"),
}
"""A row of the results: whose it is, its figures, where and how long it was computed."""

LAYERS: dict[str, str] = {"key": "TEXT", "position": "INTEGER", **FIGURES}
"""A row of the fields of all layers of a network; position 0 is the first above the input."""

MEASURED = ("seconds",)
"""Columns that differ from run to run."""
