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


def sparse() -> Any:
    """The matrix [[0, 2, 0], [1, 0, 0]], of which nobody has said that it is in order."""
    parts = ([2.0, 1.0], np.float64), ([1, 0], np.int32), ([0, 1, 2], np.int32)
    return cupy.csr_matrix(tuple(cupy.asarray(*part) for part in parts), (2, 3))


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
    "decompositions of the host's": lambda a: cupy.linalg.qr(A),
    "decompositions of whole numbers": lambda a: cupy.linalg.svd(a > 0, full_matrices=False),
    "NumPy's own decompositions": np.linalg.qr,
    "products of a matrix with the host's": lambda a: sparse() @ A.T,
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
    "orthogonal factors": (lambda xp, a: xp.linalg.qr(a.T)[1], 0),
    "singular values": (lambda xp, a: xp.linalg.svd(a, full_matrices=False)[1], 0),
    "lengths": (lambda xp, a: xp.linalg.norm(a, axis=1), 0),
    "shifts": (lambda xp, a: a.view(np.int64) >> 52, 0),
    "in place by NumPy's name": (lambda xp, a: np.maximum(a * 1, 2, out=a * 1), 0),
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


def test_sparse_matrices_that_are_said_to_be_in_order_are_not_looked_at() -> None:
    matrix, dense = sparse(), cupy.asarray(A.T)
    before = cupy.waits
    np.testing.assert_array_equal((matrix @ dense).held, [[2, 8], [0, 3]])
    assert cupy.waits == before + 1
    assert (matrix @ dense).flags.f_contiguous
    assert cupy.waits == before + 1
    turned = abs(sparse())
    turned.has_canonical_format = True
    np.testing.assert_array_equal((turned @ dense).held, [[2, 8], [0, 3]])
    assert cupy.waits == before + 1


def test_counting_nothing() -> None:
    with pytest.raises(ValueError, match="zero-size"):
        cupy.bincount(cupy.asarray(A, np.int64)[:0].ravel(), minlength=3)


def test_what_does_not_converge_is_no_error() -> None:
    _, s, _ = cupy.linalg.svd(cupy.asarray(A * np.nan), full_matrices=False)
    assert np.isnan(s.get()).all()
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.svd(A * np.nan)


def test_the_largest_array_that_is_taken() -> None:
    cupy.largest_taken = 0
    a = cupy.asarray(A)
    a.get()
    a[0].get()
    assert cupy.largest_taken == A.nbytes


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
