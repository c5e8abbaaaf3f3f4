"""`fastrf bench`: what is measured, what is said of what is not, and results that disagree."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastrf.kernels.cuda import _module
from shim.build import why_not
from shim.standin import StandIn

from fastrf import benchmark as bench
from fastrf import cli, device, kernels
from fastrf.benchmark import Benchmark, Measurement, Sizes, benchmark, cases, machine, measuring
from fastrf.errors import DeviceError, InputError, PlanError

TINY = Sizes(
    plain=6,
    residual=3,
    stencil=5,
    volume=4,
    image=64,
    units=1,
    chains=20,
    depth=5,
    seconds=0.0,
    patience=60.0,
)
CASES = ("large image", "residual stack", "clipped image", "dense stencil", "volume", "sweep")
DTYPES = ("float64", "float32")
PEERS = {
    "large image": {"PyTorch conv2d", "SciPy uniform_filter"},
    "residual stack": {"PyTorch conv2d", "SciPy uniform_filter"},
    "clipped image": set(),
    "dense stencil": {"PyTorch conv2d", "SciPy correlate"},
    "volume": {"PyTorch conv3d", "SciPy uniform_filter"},
    "sweep": {"NumPy convolve"},
}

without_gpu = pytest.mark.skipif(device.gpu_at_hand() is None, reason="a GPU is at hand")


@pytest.fixture(scope="module")
def found() -> Benchmark:
    return benchmark(sizes=TINY, device="cpu")


def those(found: Benchmark, by: str = "fastrf") -> list[Measurement]:
    return [m for m in found.measurements if m.by == by]


# --- what is measured -----------------------------------------------------------------------


def test_every_case_in_every_dtype(found: Benchmark) -> None:
    pytest.importorskip("torch")
    assert tuple(found.cases) == CASES
    assert [(m.case, m.dtype) for m in those(found)] == list(product(CASES, DTYPES))
    for case, dtype in product(CASES, DTYPES):
        by = {m.by for m in found.measurements if (m.case, m.dtype) == (case, dtype)}
        assert by == {"fastrf"} | PEERS[case]
    assert all(m.not_measured is None for m in found.measurements)


def test_figures_belong_together(found: Benchmark) -> None:
    for m in those(found):
        assert m.seconds is not None
        assert m.updates is not None
        assert m.updates_per_second == m.updates / m.seconds
        assert m.first_call_seconds > 0
        assert m.copy_share > 0
        assert m.seconds_with_transfer is None
        assert (m.arithmetic_share is not None) is (m.case in ("dense stencil", "volume", "sweep"))
        assert m.arithmetic_share is None or m.arithmetic_share > 0
        assert m.engine


def test_updates_are_the_pixels_of_all_layers(found: Benchmark) -> None:
    updates = {m.case: m.updates for m in those(found) if m.dtype == "float64"}
    assert updates["dense stencil"] == sum((2 * i + 1) ** 2 for i in range(1, TINY.stencil + 1))
    assert updates["volume"] == sum((2 * i + 1) ** 3 for i in range(1, TINY.volume + 1))
    sweep = cases.Chains(TINY.chains, TINY.depth)
    pixels = 0
    for c in range(TINY.chains):
        length = 1
        for k, _, d, *_ in reversed(sweep.layers.T[sweep.offsets[c] : sweep.offsets[c + 1]]):
            length += (k - 1) * d
            pixels += length
    assert updates["sweep"] == pixels


def test_results_agree(found: Benchmark) -> None:
    assert found
    for m in those(found):
        if m.dtype == "float64":
            # It is what the others are compared with.
            assert (m.relative_error, m.peak_error, m.tolerance, m.ok) == (None,) * 4
        else:
            assert m.ok is True
            assert 0 < m.relative_error <= m.tolerance < 1e-2
            assert m.peak_error <= m.tolerance


def test_other_libraries_compute_the_same(found: Benchmark) -> None:
    """Two images of at most 2·6 layers of 27 taps, two roundings each, and normalised: 700
    roundings. SciPy's uniform_filter adds and takes away along lines of at most 19 pixels, three
    lines a layer, so that to the peak no more than 12·3·2·19 = 1400 come to that."""
    for m in found.measurements:
        if m.by != "fastrf":
            u = float(np.finfo(m.dtype).eps) / 2
            assert m.peak_error <= 2100 * u
            assert m.ok is None
            assert (m.updates, m.engine, m.tolerance) == (None, None, None)
            if "uniform_filter" not in m.by:
                assert m.relative_error <= 700 * u


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dtype(dtype: str) -> None:
    found = benchmark(sizes=TINY, device="cpu", dtype=dtype)
    assert {m.dtype for m in found.measurements} == {dtype}
    # With float32 alone, the float64 result that it is compared with is computed all the same.
    assert {m.ok for m in those(found)} == {None if dtype == "float64" else True}


def test_progress() -> None:
    shares: list[float] = []
    benchmark(sizes=TINY, device="cpu", dtype="float64", progress=shares.append)
    assert shares == [(i + 1) / len(CASES) for i in range(len(CASES))]


@pytest.mark.parametrize("sizes", [Sizes(), bench.QUICK], ids=["default", "quick"])
def test_the_sizes_that_are_offered_exist(sizes: Sizes) -> None:
    for case in cases.cases_of(sizes):
        assert case.name in CASES
        assert case.description
        if isinstance(case, cases.Fields) and "input_size" in (case.options or {}):
            output = sizes.image // 32
            assert all(0 <= i < output for unit in case.units for i in unit)
            assert len(case.units) == sizes.units**2


# --- what is not ----------------------------------------------------------------------------


@without_gpu
def test_without_a_gpu_the_reason_stands_for_its_figures() -> None:
    found = benchmark(sizes=TINY, dtype="float32")
    gpu = [m for m in found.measurements if m.device == "cuda"]
    assert [m.case for m in gpu] == list(CASES)
    reason = device.gpu_at_hand()
    assert all(m == Measurement(m.case, "cuda", "float32", "fastrf", not_measured=reason)
               for m in gpu)  # fmt: skip
    assert (found.machine["gpu"], found.machine["no_gpu"]) == (None, reason)
    assert found


@without_gpu
def test_asking_for_a_gpu_is_an_error() -> None:
    with pytest.raises(DeviceError):
        benchmark(sizes=TINY, device="cuda")


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"device": "tpu"}])
def test_unknown_values(options: Any) -> None:
    with pytest.raises(InputError):
        benchmark(sizes=TINY, **options)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = benchmark(sizes=TINY, device="cpu", dtype="float64")
    absent = [m for m in found.measurements if m.by.startswith("PyTorch")]
    assert len(absent) == 4
    assert {m.not_measured for m in absent} == {"not installed"}
    assert all(m.seconds is None for m in absent)


def test_a_library_that_takes_too_long() -> None:
    found = benchmark(sizes=replace(TINY, patience=0.0), device="cpu", dtype="float64")
    late = [m for m in found.measurements if m.by != "fastrf"]
    assert late
    assert {m.not_measured for m in late} == {"it takes longer than 0 s"}
    assert {(m.seconds, m.seconds_at_least) for m in late} == {(None, 0.0)}
    assert all(m.seconds is not None for m in those(found))


def test_a_case_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the result in float64, there is nothing to compare others with."""
    whole = cases.erf

    def half(*arguments: Any, dtype: str, **options: Any) -> Any:
        if dtype == "float64":
            raise PlanError("the plan needs about 9 MiB")
        return whole(*arguments, dtype=dtype, **options)

    monkeypatch.setattr(cases, "erf", half)
    found = benchmark(sizes=TINY, device="cpu")
    for m in found.measurements:
        if m.case == "sweep":
            assert m.seconds is not None
        elif (m.by, m.dtype) == ("fastrf", "float64"):
            assert m.not_measured == "the plan needs about 9 MiB"
        else:
            assert m.seconds is not None
            assert (m.relative_error, m.peak_error, m.tolerance, m.ok) == (None,) * 4


# --- planted faults -------------------------------------------------------------------------


def _one_pixel_off(out: Any) -> None:
    out[0, out[0].argmax()] *= 1.01


def _one_nan(out: Any) -> None:
    out[-1, -1] = math.nan


@pytest.fixture(params=[_one_pixel_off, _one_nan])
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of sweeps is wrong in float32."""
    loaded = kernels.load("cpu")
    right: Callable[..., None] = loaded.chain_profiles

    def faulty(*arguments: Any) -> None:
        right(*arguments)
        if arguments[-1].dtype == np.float32:
            request.param(arguments[-1])

    monkeypatch.setattr(loaded, "chain_profiles", faulty)


@pytest.mark.usefixtures("fault")
def test_a_disagreement_is_found() -> None:
    found = benchmark(sizes=TINY, device="cpu")
    assert not found
    assert [(m.case, m.dtype) for m in found.measurements if m.ok is False] == [
        ("sweep", "float32")
    ]
    assert found.to_dict()["ok"] is False


A = np.array([[4.0, 2.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("pictures", "relative", "of_peak"),
    [
        ([(A, (0, 0))], 0, 0),
        ([(A * [1, 1.5], (0, 0))], 0.5, 0.25),
        # Another window: what only one image holds counts to the peak alone.
        ([(A[:1], (0, 0))], 0, 0.25),
        ([(np.pad(A, 1), (-1, -1))], 0, 0),
        ([(np.pad(A, 1, constant_values=3.0), (-1, -1))], 0, 0.75),
        ([(A, (0, 1))], 1, 1),
        ([(A * [1, math.nan], (0, 0))], 0, math.nan),
    ],
)
def test_errors(pictures: Any, relative: float, of_peak: float) -> None:
    found = measuring.errors_of([(A, (0, 0))], pictures)
    assert found == pytest.approx((relative, of_peak), nan_ok=True, abs=0)


# --- the most that a device can do ----------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_processor_s_multiply_adds(dtype: str) -> None:
    from fastrf.kernels.cpu._peak import multiply_adds, vector

    out = vector(np.dtype(dtype))
    assert out.nbytes == 64
    # 16 sums begin with 1/2 and become x ← x/2 + 1/2 = 1 − 2^−(n + 1); then Σ x/2 of all.
    assert multiply_adds(out, 5) == 5 * 16 * len(out)
    np.testing.assert_array_equal(out, 16 * (1 - 2.0**-6) / 2)


@pytest.fixture
def gpu(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> device.Device:
    """A GPU that the shim plays, with NumPy's arrays."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    kept = getattr(request.config, "cache", None)
    folder = tmp_path if kept is None else kept.mkdir("fastrf-shim")
    monkeypatch.setattr(_module, "backend", StandIn(folder=folder))
    stream = SimpleNamespace(synchronize=lambda: None)
    cuda = SimpleNamespace(Device=lambda i: nullcontext(), get_current_stream=lambda: stream)
    return device.Device("cuda:0", SimpleNamespace(**vars(np), cuda=cuda), "asked for")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sweep_on_a_gpu(gpu: device.Device, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch, which would look for a GPU of its own."""
    monkeypatch.setattr(machine, "GPU_COUNT", 2)
    case = cases.Chains(6, 4)
    ours, numpy = measuring.Run(TINY, None).measure(case, gpu, dtype)
    assert (ours.device, ours.dtype, ours.engine) == ("cuda:0", dtype, "chain_profiles")
    assert ours.ok is True
    assert ours.seconds_with_transfer > 0
    assert ours.arithmetic_share > 0
    assert ours.copy_share > 0
    assert numpy.not_measured == "NumPy computes on the CPU alone"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_s_multiply_adds(gpu: device.Device, dtype: str) -> None:
    from fastrf.kernels.cuda._peak import multiply_adds, threads

    out = np.zeros(512, dtype)
    assert multiply_adds(out, 3) == 3 * 8 * 512
    # Sums begin with s/2 and three times become x/2 + 1/2: s/16 + 7/8, s < 8.
    np.testing.assert_array_equal(out, 28 / 16 + 8 * 7 / 8)
    assert threads() % 256 == 0


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUICK", TINY)
    monkeypatch.delenv("COLUMNS", raising=False)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["bench", "--quick", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.usefixtures("quick")
def test_json_has_the_attributes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--json", "--device", "cpu", "--workers", "1")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert set(document) == {f.name for f in fields(Benchmark)} | {"ok"}
    assert document["sizes"] == {f.name: getattr(TINY, f.name) for f in fields(Sizes)}
    assert list(document["cases"]) == list(CASES)
    assert document["ok"] is True
    for m in document["measurements"]:
        assert list(m) == [f.name for f in fields(Measurement)]
    assert {m["device"] for m in document["measurements"]} == {"cpu"}


@without_gpu
@pytest.mark.usefixtures("quick")
def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--dtype", "float32")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "all 6 results agree with the CPU's in float64"
    reason = f"not measured: {device.gpu_at_hand()}"
    assert f"cuda, fastrf: {reason} ({', '.join(CASES)})" in lines
    assert any(line.split(maxsplit=1) == ["GPU", reason] for line in lines)
    for case in CASES:
        assert [line for line in lines if line.startswith(case) and "not measured" in line]
        (ours,) = [line for line in lines if line.startswith(f"{case}  ") and ", " in line
                   and "fastrf" in line and "cuda" not in line]  # fmt: skip
        assert ours.endswith("yes")


@pytest.mark.usefixtures("quick")
def test_what_took_too_long_is_shown_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "QUICK", replace(TINY, patience=1e-3, plain=500))
    code, out, _ = run(capsys, "--device", "cpu", "--dtype", "float64")
    assert code == 0
    row = ["large", "image", "SciPy", "uniform_filter", "cpu", "float64", ">", "1", "ms"]
    assert [line for line in out.splitlines() if line.split()[: len(row)] == row]
    assert "cpu, SciPy uniform_filter: not measured: it takes longer than 0.001 s" in out


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_fit_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run(capsys, "--dtype", "float64")
    assert code == 0
    assert max(map(len, out.splitlines())) <= width


@pytest.mark.usefixtures("quick", "fault")
def test_a_disagreement_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--device", "cpu")
    assert code == 1
    lines = out.splitlines()
    assert lines[-1] == "1 of 6 results disagree with the CPU's in float64"
    assert lines[-2].startswith("sweep, cpu, float32: off by ")
    (shown,) = [line for line in lines if line.endswith("NO")]
    assert shown.startswith("sweep")
    code, out, _ = run(capsys, "--device", "cpu", "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False


@pytest.mark.parametrize("line", ["--dtype int8", "--device tpu", "--workers 0", "--nonsense"])
def test_bad_input(capsys: pytest.CaptureFixture[str], line: str) -> None:
    code, out, err = run(capsys, *line.split())
    assert (code, out) == (2, "")
    assert err.startswith("fastrf: error: ")
    assert err.count("\n") == 1
