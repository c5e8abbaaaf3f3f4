"""What a result is of: hashes of networks and options, by which a sweep knows what it has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from fastrf.errors import InputError
from fastrf.sweep.chain import Chain, ChainAxis

NUMERICS = 1
"""Version of what the figures mean and how they are computed. A result of another version counts
as not there."""


def text_of(value: Any) -> str:
    """A value as JSON, the same text for equal values.

    Raises:
        InputError: it is not made of JSON's values.
    """
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{value!r} is no JSON value ({error}); parameters and options are numbers, texts, "
            "truth values and lists of them"
        ) from None


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def plain_option(value: Any) -> Any:
    """An option that `fastrf.erf` takes as JSON has it: NumPy's numbers, arrays and dtypes as
    Python's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, np.dtype | type):
        try:
            return np.dtype(value).name
        except TypeError:
            return value
    return value


def chain_fingerprint(chain: Chain) -> str:
    """SHA-256 of a chain: equal for chains of equal layers, whichever networks they come from."""
    whole = sha256(b"chain")
    seen: dict[int, bytes] = {}
    for axis in chain.axes:
        if id(axis) not in seen:
            seen[id(axis)] = _axis_digest(axis)
        whole.update(seen[id(axis)])
    whole.update(np.asarray(chain.gain, "<f8").tobytes())
    whole.update(np.float64(chain.input_gain).tobytes())
    for text in chain.assumptions:
        whole.update(text.encode())
    return whole.hexdigest()


def _axis_digest(axis: ChainAxis) -> bytes:
    digest = sha256()
    for values in (axis.kernel, axis.stride, axis.dilation, axis.lo, axis.hi):
        digest.update(np.asarray(values, "<i8").tobytes())
    for layer, taps in enumerate(axis.taps or ()):
        if taps is not None:
            digest.update(b"taps%d" % layer + np.asarray(taps, "<f8").tobytes())
    return digest.digest()


_ENCODER = json.JSONEncoder(sort_keys=True, allow_nan=False, default=_plain)


def key_of(fingerprint: str, options: Mapping[str, Any]) -> str:
    """The key of a result: content hash of network, options and `NUMERICS`."""
    return _digest(f'[{NUMERICS}, "{fingerprint}", {_options_text(options)}]')


def point_of(
    parameters: Mapping[str, Any], options: Mapping[str, Any], fingerprint: str
) -> tuple[str, str | None]:
    """The identity of a row of the table, that of the same network with the same parameters and
    options; and the one that the row would have if the point were invalid, which is told apart by
    its parameters alone: None where there are none."""
    text = text_of(parameters)
    invalid = refused_point_of(text) if parameters else None
    return _digest(f'[{text}, {_options_text(options)}, "{fingerprint}"]'), invalid


def refused_point_of(parameters: str, error: str = "") -> str:
    """The identity of the row of an invalid point: of its parameters, as `text_of` has them, and of
    its error where there are none."""
    return _digest(f"[{parameters}, {{}}, {text_of(error)}]")


def _options_text(options: Mapping[str, Any]) -> str:
    return text_of(options) if options else "{}"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


DEFAULTS: Mapping[str, Any] = {
    "unit": "center",
    "dtype": "float64",
    "method": "auto",
    "accuracy": "auto",
    "tol": 1e-12,
    "ignore_global": False,
}
"""Options that say nothing, beside None."""


def spelled_out(options: Mapping[str, Any], ndim: int) -> dict[str, Any]:
    """Options without what is the default, and one number for all axes as one per axis."""
    if not options:
        return {}
    found = {
        name: value
        for name, value in options.items()
        if value is not None and not (name in DEFAULTS and value == DEFAULTS[name])
    }
    for name in ("unit", "input_size"):
        value = found.get(name)
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            found[name] = [int(value)] * ndim
        elif isinstance(value, Sequence) and not isinstance(value, str):
            found[name] = list(value)
    return found
