"""Figures of chains made on a device: profiles and measures, by its kernels alone.

On a machine without a GPU the device is `fake_cupy` over the shim (see test_engines_direct). The
tolerance is that of test_sweep_figures, where the CPU's are held to `fastrf.erf`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cupy
import numpy as np
import pytest
from sweeping import SPACE
from test_engines_direct import free
from test_engines_direct import gpu as machine
from test_engines_direct import xp as device_arrays
from test_sweep_figures import SIZES, UNIT, random_chain

import fastrf as rf
from fastrf.device import resolve
from fastrf.sweep import figures
from fastrf.sweep.packing import pack
from fastrf.sweep.space import Space

gpu, xp = machine, device_arrays


def measured(device: str, chains: list[Any], ndim: int, dtype: str, **options: Any) -> dict:
    found = {}
    for part in figures.measured(pack(chains, ndim), resolve(device), np.dtype(dtype), **options):
        for i, c in enumerate(part.chains.tolist()):
            found[c] = {name: values[i] for name, values in part.figures.items()}
            if part.profiles is not None:
                found[c]["profiles"] = part.profiles[i]
    return found


def chains_of(ndim: int, count: int) -> list[Any]:
    rng = np.random.default_rng(ndim)
    made = [random_chain(rng, ndim, i % 3 == 0) for i in range(count)]
    return [(chain, SIZES[ndim] if i % 2 else None, None) for i, chain in enumerate(made)]


def agree(found: dict, expected: dict, rounding: float) -> None:
    assert found.keys() == expected.keys()
    for c, row in expected.items():
        for name, value in row.items():
            own = found[c][name]
            if name == "profiles":
                for one, other in zip(own, value, strict=True):
                    np.testing.assert_allclose(one, other, rtol=rounding, atol=0)
            elif isinstance(value, float):
                assert own == pytest.approx(value, rel=rounding, abs=rounding, nan_ok=True), name
            else:
                assert own == value, name


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_figures(gpu: ModuleType, ndim: int, dtype: str) -> None:
    """All of them, of chains with and without borders, strides and taps of their own."""
    chains = chains_of(ndim, 8)
    found, expected = (measured(d, chains, ndim, dtype, keep=True) for d in ("cuda", "cpu"))
    # Depth, taps and pixels of the longest line: see test_sweep_figures.
    agree(found, expected, 1e4 * float(np.finfo(dtype).eps))


def test_batches_are_cut_to_the_memory(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found does not depend on it, bit for bit."""
    if gpu is not fake_cupy:
        pytest.skip("only the stand-in's memory can be made small")
    chains = chains_of(2, 12)
    whole = measured("cuda", chains, 2, "float64")
    free(monkeypatch, 50 * figures.PIXEL_BYTES)
    parts = list(figures.measured(pack(chains, 2), resolve("cuda"), np.dtype("float64")))
    assert len(parts) > 4
    assert str(measured("cuda", chains, 2, "float64")) == str(whole)


def test_profiles_stay_on_the_device(gpu: ModuleType) -> None:
    """A batch waits for a few small arrays, however many chains it has."""
    if gpu is not fake_cupy:
        pytest.skip("only the stand-in counts")
    waits = []
    for count in (3, 12):
        chains = [chain for chain in chains_of(1, 2 * count) if chain[1] is None]
        before, brought = fake_cupy.waits, fake_cupy.brought
        measured("cuda", chains, 1, "float64")
        waits.append(fake_cupy.waits - before)
        assert fake_cupy.brought - brought < 1000 * count
    assert waits == [4, 4]


def test_the_table_names_the_device(gpu: ModuleType, tmp_path: Path) -> None:
    space = Space(SPACE | {"parameters": {"depth": [2, 3], "kernel": [3, 5]}})
    tables = []
    for d in ("cuda", "cpu"):
        with rf.sweep(space, tmp_path / f"{d}.db", device=d, workers=0, progress=False) as table:
            tables.append(table.query())
    found, expected = tables
    assert [row["device"] for row in found] == ["cuda:0"] * 4
    assert [row["device"] for row in expected] == ["cpu"] * 4
    for own, other in zip(found, expected, strict=True):
        assert own["std_0"] == pytest.approx(other["std_0"], rel=100 * UNIT)
        assert own["luo_size_amplitude"] == other["luo_size_amplitude"]
