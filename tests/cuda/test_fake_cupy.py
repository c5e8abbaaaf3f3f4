"""The stand-in for CuPy refuses what CuPy refuses, and counts what makes the host wait."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import fake_cupy as cupy
import numpy as np
import pytest
from shim.standin import StandIn

A = np.arange(6.0).reshape(2, 3)

REFUSED: dict[str, Callable[[Any], Any]] = {
    "sum with the host's": lambda a: a + A,
    "the host's plus an array": lambda a: A + a,
    "in place": lambda a: operator.iadd(a, A),
    "index": lambda a: a[np.array([0])],
    "list as index": lambda a: a[[0]],
    "value": lambda a: operator.setitem(a, 0, A[0]),
    "argument": lambda a: cupy.where(a > 0, a, A),
    "list of arguments": lambda a: cupy.stack([a, A]),
    "implicit conversion": np.asarray,
    "conversion by a copy": np.ascontiguousarray,
    "a function that CuPy has not": np.trim_zeros,
    "an outer product of a ufunc": lambda a: np.multiply.outer(a, a),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(TypeError):
        REFUSED[name](cupy.asarray(A))


@pytest.mark.parametrize("name", ["tofile", "searchsorted", "held_by_nobody"])
def test_methods_that_are_not_there(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(cupy.asarray(A), name)


RESULTS: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
    # What is computed, and how often the host waits for it.
    "arithmetic": (lambda xp, a: 2 * a - a / 3 + a**2 // 2, 0),
    "matrices": (lambda xp, a: a @ a.T, 0),
    "comparison": (lambda xp, a: (a > 2) & (a <= np.float64(4)), 0),
    "a NumPy scalar first": (lambda xp, a: np.float64(2) * a, 0),
    "a function of NumPy": (lambda xp, a: np.sqrt(a), 0),
    "a reduction": (lambda xp, a: a.sum(axis=0), 0),
    "part": (lambda xp, a: a[:, ::-1][1], 0),
    "a full reduction": (lambda xp, a: float(a.sum()), 1),
    "a branch": (lambda xp, a: 1 if a.any() else 0, 1),
    "a mask": (lambda xp, a: a[a > 2], 1),
    "places": (lambda xp, a: xp.flatnonzero(a), 1),
    "places by NumPy's name": (lambda xp, a: np.flatnonzero(a), 1),
    "an array of shape and kind": (lambda xp, a: np.empty_like(a, shape=(0,)), 0),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_and_waits(name: str) -> None:
    compute, waits = RESULTS[name]
    a, before = cupy.asarray(A), cupy.waits
    found = compute(cupy, a)
    assert cupy.waits - before == waits
    held = found.get() if isinstance(found, cupy.ndarray) else found
    np.testing.assert_array_equal(held, compute(np, A))


def test_what_comes_in_is_a_copy_and_what_is_there_stays() -> None:
    own = A.copy()
    a = cupy.asarray(own)
    own[0] = -1
    np.testing.assert_array_equal(a.get(), A)
    before = cupy.brought
    assert cupy.asarray(a) is a
    assert cupy.brought == before
    cupy.asarray(own)
    assert cupy.brought == before + own.nbytes
    a.get()[0] = -1
    np.testing.assert_array_equal(a.get(), A)


def test_writing_through_views() -> None:
    a = cupy.asarray(np.zeros(4))
    a[1:].reshape(3)[a[1:] == 0] = 5
    a[::-1][3] += 2
    np.testing.assert_array_equal(a.get(), [2, 5, 5, 5])


def test_a_sum_is_an_array_without_axes() -> None:
    total = cupy.asarray(A).sum()
    assert isinstance(total, cupy.ndarray)
    assert total.shape == ()


def test_kernels_take_arrays_of_the_device_alone(
    standin: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastrf.kernels import load

    xp, backend = cupy.install(monkeypatch, standin())
    line, out = np.arange(3.0), xp.zeros((3, 3))
    with pytest.raises(TypeError, match="Unsupported"):
        load("cuda").outer_product(line, xp.asarray(line), out)
    backend.launches.clear()
    load("cuda").outer_product(xp.asarray(line), xp.asarray(line), out)
    assert backend.launches == ["outer_product_f64"]
    np.testing.assert_array_equal(out.get(), np.outer(line, line))
