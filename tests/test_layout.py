"""How kernels of the CPU see arrays of any layout: as one piece of memory, or as a copy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from fastrf.kernels.cpu._layout import has_planes, has_rows, memory, target, with_planes, with_rows

WHOLE = np.arange(2.0 * 5 * 7).reshape(2, 5, 7)

# Whether rows, and whether planes, are in one piece.
LAYOUTS = {
    "contiguous": (WHOLE, True, True),
    "every other plane": (np.arange(4.0 * 3 * 5).reshape(4, 3, 5)[::2], True, True),
    "a tile of rows": (WHOLE[:, 1:4], True, True),
    "a tile of columns": (WHOLE[:, :, 2:6], True, False),
    "every other row": (WHOLE[:, ::2], True, False),
    "one row of some columns": (WHOLE[:, 1:2, :4], True, True),
    "one column": (WHOLE[:, :, 3:4], True, False),
    "every other column": (WHOLE[:, :, ::2], False, False),
    "columns backwards": (WHOLE[:, :, ::-1], False, False),
    "rows backwards": (WHOLE[:, ::-1], False, False),
    "planes backwards": (WHOLE[::-1], False, False),
    "transposed": (WHOLE.transpose(0, 2, 1), False, False),
    "planes of another order": (WHOLE.transpose(1, 0, 2), True, False),
    "one plane for all": (np.broadcast_to(WHOLE[:1], (3, 5, 7)), True, True),
    "a field of records": (
        np.zeros((2, 3, 4), [("a", "f8"), ("b", "f4")], order="C")["a"],
        False,
        False,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_and_planes(name: str) -> None:
    array, rows, planes = LAYOUTS[name]
    assert (has_rows(array), has_planes(array)) == (rows, planes)
    for found, fits in ((with_rows(array), rows), (with_planes(array), planes)):
        np.testing.assert_array_equal(found, array)
        assert (found is array) == fits
        assert has_planes(found) or fits


@pytest.mark.parametrize("name", [n for n, (_, rows, _) in LAYOUTS.items() if rows])
def test_memory_holds_every_pixel(name: str) -> None:
    array, *_ = LAYOUTS[name]
    flat, plane, row = memory(array)
    assert np.shares_memory(flat, array)
    last = 0
    for i, j, k in product(*map(range, array.shape)):
        last = max(last, i * plane + j * row + k)
        assert flat[i * plane + j * row + k] == array[i, j, k]
    assert len(flat) == last + 1


@pytest.mark.parametrize("fits", [True, False])
def test_results_arrive(fits: bool) -> None:
    out = np.full((2, 3, 4), np.nan)
    with target(out, fits) as found:
        assert (found is out) == fits
        assert found.shape == out.shape
        found[...] = 7
    assert (out == 7).all()


def test_records_that_do_not_divide() -> None:
    """Steps of one and a half numbers."""
    array = np.zeros((2, 3, 1), [("a", "f8"), ("b", "f4")])["a"]
    assert not has_rows(array)
