"""What the host decides before a CUDA kernel starts: copies that need not be made, counts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from fastrf.kernels.cuda import _geometry, _peak, _runs

ARRAY = np.arange(24.0).reshape(2, 3, 4)
FIELDS = np.zeros((2, 3, 4), [("byte", "u1"), ("value", "f8")])

TAKEN = {
    "as it is": ARRAY,
    "Fortran order": np.asfortranarray(ARRAY),
    "every other": ARRAY[:, ::2],
    "broadcast": np.broadcast_to(ARRAY[:1], (2, 3, 4)),
}
COPIED = {"backwards": ARRAY[:, ::-1], "steps of 9 bytes": FIELDS["value"]}


@pytest.mark.parametrize("name", TAKEN)
def test_layouts_that_kernels_take_are_not_copied(name):
    array = TAKEN[name]
    assert _geometry.readable(array) is array
    with _geometry.writable(array) as result:
        assert result is array


@pytest.mark.parametrize("name", COPIED)
def test_other_layouts_are_copied_and_copied_back(name):
    array = COPIED[name].copy() if name == "backwards" else COPIED[name]
    array = array[:, ::-1] if name == "backwards" else array
    copy = _geometry.readable(array)
    assert copy is not array
    np.testing.assert_array_equal(copy, array)
    with _geometry.writable(array) as result:
        assert result is not array
        result[...] = 5
    assert (array == 5).all()


def test_the_peak_counts_the_sums_of_its_source():
    source = Path(_peak.__file__).with_name("peak.cu").read_text(encoding="utf-8")
    assert re.findall(r"constexpr int SUMS = (\d+);", source) == [str(_peak._SUMS)]


@pytest.mark.parametrize("rows", [1, 7, 100, 3000])
@pytest.mark.parametrize("lead", [0, 2, 48])
@pytest.mark.parametrize(("others", "resident"), [(1, 1), (1, 132), (7, 132), (300, 132)])
def test_marches_pass_as_few_rows_as_can_be(rows, lead, others, resident):
    """Of all numbers of marches whose blocks run in four rounds or less; or one march."""

    def passing(number):
        return -(-others * number // resident) * (-(-rows // number) + lead)

    found, passed = _runs.marches(rows, lead, others, resident)
    most = max(1, min(rows, 4 * resident // others))
    assert 1 <= found <= rows
    assert passed == passing(found) == min(map(passing, range(1, most + 1)))
