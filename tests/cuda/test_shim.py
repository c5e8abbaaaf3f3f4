"""The shim that kernels are tested with: what it runs, and what it catches."""

from __future__ import annotations

import ctypes
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from fastrf.kernels.cuda import _module
from shim import build
from shim import standin as shim
from shim.standin import ALIGNMENTS, ORDERS, KernelError

SOURCES = Path(__file__).parent / "sources"
REDUCE = SOURCES / "reduce.cu"
SUFFIX = {np.float32: "f32", np.float64: "f64"}


def whole(shape, dtype):
    """Small integers, whose sums are exact in any order."""
    return np.random.default_rng(0).integers(0, 9, shape).astype(dtype)


def on(xp, array):
    return xp.asarray(array)


# --- what it runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SUFFIX)
class TestRuns:
    def test_shared_memory_and_barriers(self, cuda, dtype):
        x = whole((7, 300), dtype)
        out = cuda.empty(7, dtype)
        name = f"sum_rows_{SUFFIX[dtype]}"
        _module.launch(REDUCE, name, (7,), (128,), [on(cuda, x), out, np.int32(300)])
        assert (out == on(cuda, x.sum(axis=1))).all()

    def test_shuffles_and_atomics(self, cuda, dtype):
        x = whole(1000, dtype)
        out = cuda.zeros(1, dtype)
        name = f"sum_all_{SUFFIX[dtype]}"
        _module.launch(REDUCE, name, (11,), (96,), [on(cuda, x), out, np.int64(1000)])
        assert out[0] == x.sum()

    def test_dynamic_shared_memory(self, cuda, dtype):
        x = whole((3, 65), dtype)
        out = cuda.empty((3, 65), dtype)
        name, size = f"reverse_{SUFFIX[dtype]}", 65 * x.itemsize
        arguments = [on(cuda, x), out, np.int32(65)]
        _module.launch(REDUCE, name, (3,), (32,), arguments, shared=size)
        assert (out == on(cuda, x[:, ::-1])).all()


def test_thread_and_block_indices(cuda):
    """Every thread once, with the indices that CUDA gives it."""
    grid, block = (3, 2, 2), (4, 3, 2)
    out = cuda.full((2, 2, 3, 2, 3, 4, 6), -1, np.int32)
    _module.launch(SOURCES / "builtins.cu", "indices", grid, block, [out])
    (bz, by, bx, tz, ty, tx) = np.indices((2, 2, 3, 2, 3, 4), np.int32)
    assert (out == on(cuda, np.stack([bx, by, bz, tx, ty, tz], axis=-1))).all()


def test_votes(cuda):
    """__syncthreads_count, _or, _and and the warp's ballot, any, all, in a block of 80 threads."""
    out = cuda.zeros((80, 6), np.int32)
    _module.launch(SOURCES / "builtins.cu", "votes", (1,), (80,), [out])
    thread = np.arange(80)
    yes = thread % 3 == 0
    warp = thread // 32
    expected = np.zeros((80, 6), np.int64)
    expected[:, 0] = yes.sum()
    expected[:, 1:3] = True, False
    for w in range(3):
        mine = warp == w
        expected[mine, 3] = sum(1 << (t % 32) for t in thread[mine & yes])
        expected[mine, 4:] = True, False
    assert (out == on(cuda, expected.astype(np.uint32).view(np.int32))).all()


def test_shuffles_in_segments(cuda):
    """Index, up, down and xor, in segments of 8 lanes."""
    out = cuda.zeros((32, 4), np.int32)
    _module.launch(SOURCES / "builtins.cu", "shuffles", (1,), (32,), [out])
    lane = np.arange(32)
    segment, within = lane // 8 * 8, lane % 8
    expected = np.stack(
        [
            segment + 3,
            np.where(within >= 2, lane - 2, lane),
            np.where(within < 5, lane + 3, lane),
            segment + (within ^ 5),
        ],
        axis=1,
    )
    assert (out == on(cuda, expected.astype(np.int32))).all()


def test_numbers(cuda):
    """min, max, fma, frexp, ldexp, exp2 and bit casts."""
    out = cuda.zeros(9, np.float64)
    _module.launch(SOURCES / "builtins.cu", "numbers", (1,), (1,), [np.float64(0.1), out])
    unfused = 0.1 * 0.1 - 0.01
    expected = [-2, 3, 0.1, 0, 0.8, -3, 0.4, 8, 1]
    result = out.tolist()
    # 0.1² − 0.01 with one rounding, worked out in exact fractions.
    from fractions import Fraction

    expected[3] = float(Fraction(0.1) ** 2 - Fraction(0.01))
    assert expected[3] != unfused
    assert result == expected


def test_atomics(cuda):
    """Of 100 threads: sum, maximum, minimum, and a slot each by compare-and-swap."""
    out = cuda.array([0, -1, 1000, 0, 0], np.int32)
    _module.launch(SOURCES / "builtins.cu", "atomics", (4,), (25,), [out])
    assert out.tolist() == [4950, 99, 0, 100, 0]


def test_an_empty_grid_launches_nothing(standin):
    standin()
    _module.launch("no such file", "f", (0, 3), (32,), [])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_tiles_and_arrays_of_one_memory(standin, alignment):
    """A kernel reads one half of an image and writes the other; the rest stays as it was."""
    standin(alignment=alignment)
    image = whole((6, 10), np.float64)
    before = image.copy()
    source, target = image[1:4, 1:5], image[2:5, 5:9]
    steps = np.int32(3), np.int32(4), np.int64(10)
    _module.launch(SOURCES / "builtins.cu", "copy_tile", (1,), (32,), [source, target, *steps])
    before[2:5, 5:9] = before[1:4, 1:5]
    assert (image == before).all()


# --- what it catches ----------------------------------------------------------------------------


@pytest.fixture
def changed(tmp_path):
    """A copy of a source in which a piece of text is replaced."""

    def change(source: Path, old: str, new: str, count: int = 1) -> Path:
        text = source.read_text("utf-8")
        assert old in text
        (tmp_path / "common.cuh").write_text((SOURCES / "common.cuh").read_text("utf-8"), "utf-8")
        (tmp_path / source.name).write_text(text.replace(old, new, count), "utf-8")
        return tmp_path / source.name

    return change


def sum_rows(source, n=300):
    x = whole((2, n), np.float64)
    out = np.empty(2)
    _module.launch(source, "sum_rows_f64", (2,), (64,), [x, out, np.int32(n)])
    return np.array_equal(out, x.sum(axis=1))


def reverse(source, n, shared, given=None):
    x, out = whole((2, n), np.float64), np.empty((2, n))
    x = x if given is None else x.ravel()[:given]
    _module.launch(source, "reverse_f64", (2,), (64,), [x, out, np.int32(n)], shared=shared)
    return np.array_equal(out, x[:, ::-1])


@pytest.mark.parametrize("which", ["before the loop", "in the loop"])
def test_a_missing_barrier(standin, changed, which):
    barrier = "__syncthreads();\n"
    if which == "before the loop":
        source = changed(REDUCE, barrier, "\n")
    else:
        source = changed(REDUCE, f"half];\n        {barrier}", "half];\n")
    right = []
    for order in ORDERS:
        standin(order=order, seed=1)
        assert sum_rows(REDUCE)
        right.append(sum_rows(source))
    assert not all(right)


def test_a_missing_barrier_before_a_warp_reads(standin, changed):
    source = changed(
        REDUCE, "piece[i] = x[base + i];\n    __syncthreads();", "piece[i] = x[base + i];"
    )
    right = []
    for order in ORDERS:
        standin(order=order, seed=1)
        right.append(reverse(source, 100, 800))
    assert not all(right)


@pytest.mark.parametrize(("alignment", "n"), [("end", 300), ("end", 257), ("start", 512)])
def test_reading_behind_an_array(standin, changed, alignment, n):
    standin(alignment=alignment)
    source = changed(REDUCE, "i < n; i += blockDim.x) sum", "i <= n; i += blockDim.x) sum")
    (line,) = (i for i, text in enumerate(source.read_text().splitlines(), 1) if "i <= n" in text)
    place = rf"block \(1, 0, 0\), thread \({n % 64}, 0, 0\)"
    said = rf"{place}: reads 0 bytes behind the end of argument 0 \(reduce\.cu:{line}\)"
    with pytest.raises(KernelError, match=said):
        sum_rows(source, n)


def test_reading_before_an_array(standin, changed):
    standin(alignment="start")
    source = changed(REDUCE, "x[base + i]", "x[base + i - 1]")
    x = whole(66, np.float64)
    begin = -x.ctypes.data // 8 % 2  # a multiple of 16 bytes lies right behind the guard page
    with pytest.raises(
        KernelError, match=r"thread \(0, 0, 0\): reads 8 bytes before the beginning"
    ):
        _module.launch(
            source, "reverse_f64", (1,), (8,), [x[begin:40], np.empty(8), np.int32(8)], shared=64
        )


def test_writing_behind_an_array(standin):
    standin()
    x = whole((2, 300), np.float64)
    with pytest.raises(KernelError, match="writes 0 bytes behind the end of argument 1"):
        _module.launch(REDUCE, "sum_rows_f64", (2,), (64,), [x, np.empty(1), np.int32(300)])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_writing_between_the_rows_of_a_tile(standin, alignment):
    standin(alignment=alignment)
    source, tile = whole((3, 10), np.float64), np.zeros((6, 10))[:3, :4]
    steps = np.int32(2), np.int32(5), np.int64(10)  # one column too many, in two of three rows
    with pytest.raises(KernelError, match=r"copy_tile wrote between or beside .* argument \[1\]"):
        _module.launch(SOURCES / "builtins.cu", "copy_tile", (1,), (32,), [source, tile, *steps])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("n", [512, 511])
def test_too_little_shared_memory(standin, alignment, n):
    standin(alignment=alignment)
    assert reverse(REDUCE, n, 8 * n)
    # Ending at a multiple of 16 bytes, 511 numbers leave room for one more before the guard page.
    guarded = alignment == "end" and n == 511
    said = "behind the end of the block's" if guarded else "wrote beside its"
    with pytest.raises(KernelError, match=f"{said} dynamic shared memory"):
        reverse(REDUCE, n, 8 * (n - 1))


@pytest.mark.parametrize("name", ["static_left", "dynamic_left"])
def test_shared_memory_begins_undefined(standin, name):
    """The first block writes what the second one reads."""
    standin()
    out = np.zeros(2)
    _module.launch(SOURCES / "faults.cu", name, (2,), (1,), [out], shared=8)
    assert np.isnan(out).all()


FAULTS = {
    "two_barriers": r"divergent barrier: .* line \d+, thread \(0, 0, 0\) at the one of line \d+",
    "missing_lane": r"__shfl_sync of line \d+ waits for lane 0, which has returned",
    "deadlock": "deadlock: it waits in a warp's exchange",
    "parted_lanes": r"lanes of a warp part: .* __ballot_sync .* __shfl_sync",
    "left_out": r"mask 0x0000ffff leaves out lane 16",
    "index": r"faults\.cu:\d+: an index is outside of its array",
    "overflow": r"faults\.cu:\d+: an integer product overflows",
    "division": r"faults\.cu:\d+: an integer is divided by zero",
    "shift": r"faults\.cu:\d+: a shift by more bits",
    "misaligned": r"faults\.cu:\d+: a pointer is null or not aligned",
    "recursion": r"writes the end of its stack of 65536 bytes",
    "nowhere": "reads address 0x8, which is no array's",
    "endless": "endless loop",
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(standin, name):
    standin(seconds=0.2)
    for _ in range(2):  # the shim is whole afterwards
        with pytest.raises(KernelError, match=rf"^{name}, block \(0, 0, 0\), .*{FAULTS[name]}"):
            _module.launch(SOURCES / "faults.cu", name, (1,), (32,), [np.zeros(4), np.int32(0)])
    assert sum_rows(REDUCE)


def test_threads_that_have_returned_are_not_waited_for(standin):
    standin()
    out = np.zeros(4)
    _module.launch(SOURCES / "faults.cu", "returned", (1,), (32,), [out, np.int32(0)])
    assert out[0] == 16


def test_signals_are_as_before(standin):
    old = signal.getsignal(signal.SIGVTALRM)
    standin()
    assert sum_rows(REDUCE)
    assert signal.getsignal(signal.SIGVTALRM) is old
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([np.ones((2, 3)), np.ones(2), np.int64(3)], r"takes \(float64\*, float64\*, int32\)"),
        ([np.ones((2, 3)), np.ones(2, np.float32), np.int32(3)], r"not \(float64\*, float32\*"),
        ([np.ones((2, 3)), np.ones(2)], r"not \(float64\*, float64\*\)"),
        ([np.ones((2, 3))[::-1], np.ones(2), np.int32(3)], "strides"),
    ],
)
def test_arguments_of_other_types(standin, arguments, said):
    standin()
    with pytest.raises(KernelError, match=said):
        _module.launch(REDUCE, "sum_rows_f64", (2,), (32,), arguments)


@pytest.mark.parametrize("number", [3, 3.0, True])
def test_python_numbers(standin, number):
    standin()
    with pytest.raises(TypeError, match=r"argument 2 of sum_rows_f64 is (3|True).*np\.int32"):
        _module.launch(REDUCE, "sum_rows_f64", (2,), (32,), [np.ones((2, 3)), np.ones(2), number])


@pytest.mark.parametrize(
    ("grid", "block", "shared", "said"),
    [
        ((1,), (2048,), 0, "no device takes"),
        ((1, 65536), (32,), 0, "no device takes"),
        ((1,), (32, 1, 65), 0, "no device takes"),
        ((1,), (0,), 0, "no device takes"),
        ((1,), (64, 32), 0, "more than 1024 threads"),
        ((1,), (32,), 1 << 20, "1048576 bytes of shared memory"),
    ],
)
def test_launches_that_no_device_takes(standin, grid, block, shared, said):
    standin()
    with pytest.raises(KernelError, match=said):
        _module.launch(
            REDUCE, "sum_rows_f64", grid, block, [np.ones(1), np.ones(1), np.int32(1)], shared
        )


def test_a_name_that_is_not_there(standin):
    standin()
    with pytest.raises(
        KernelError, match=r"reduce\.cu has no kernel sum_rows_f16, but sum_rows_f32, "
    ):
        _module.launch(REDUCE, "sum_rows_f16", (1,), (32,), [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('extern "C" __global__ void f(float* x) { y = 0; }', "was not declared"),
        ("__global__ void f(float* x) {}", 'has no extern "C" __global__ function'),
    ],
)
def test_sources_that_do_not_compile(libraries, tmp_path, text, said):
    (tmp_path / "f.cu").write_text(text)
    with pytest.raises(build.BuildError, match=said):
        build.build(tmp_path / "f.cu", tmp_path)


# --- libraries ----------------------------------------------------------------------------------


def test_a_library_is_built_once(libraries, tmp_path, monkeypatch):
    first = build.build(REDUCE, tmp_path)
    monkeypatch.setattr(build, "_compile", None)
    assert build.build(REDUCE, tmp_path) == first


def test_a_changed_header_is_another_library(libraries, tmp_path):
    for name in ("reduce.cu", "common.cuh"):
        (tmp_path / name).write_text((SOURCES / name).read_text())
    first = build.build(tmp_path / "reduce.cu", tmp_path)
    with (tmp_path / "common.cuh").open("a") as header:
        header.write("// changed\n")
    assert build.build(tmp_path / "reduce.cu", tmp_path) != first


def test_launches_from_several_threads(standin):
    """One after the other, on whichever thread they come."""
    standin()
    right: list[bool] = []
    threads = [threading.Thread(target=lambda: right.append(sum_rows(REDUCE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert build.why_not() == "g++ is not installed"


def test_reports_have_one_layout_in_both_languages():
    """Offsets as g++ lays out the structures of runtime.h on a 64-bit machine."""
    assert (ctypes.sizeof(shim._Launch), shim._Launch.shared.offset) == (56, 24)
    assert (ctypes.sizeof(shim._Report), shim._Report.text.offset) == (448, 48)
