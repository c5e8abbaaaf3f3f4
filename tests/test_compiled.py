"""How compiled code is called: what arguments become, what comes back, what is raised."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fastrf.kernels.cpu._arguments import described, layout
from fastrf.kernels.cpu._compile import as_python, kernel

pytestmark = pytest.mark.skipif(as_python(), reason="kernels run as Python")


@kernel
def _gathered(a, b, c, flag, number, single, numbers, out):  # type: ignore[no-untyped-def]
    """Every argument, its shape and its strides, in one array."""
    out[0], out[1], out[2] = a[-1], b[-1, 0], c[-1, -1, 0]
    out[3], out[4], out[5] = len(a), b.shape[0] * 10 + b.shape[1], c.shape[1] * 10 + c.shape[2]
    out[6], out[7], out[8] = flag, number, single
    out[9] = numbers[0] * 100 + numbers[1] * 10 + numbers[2]
    return number


def test_every_kind_of_argument_arrives():
    a, b = np.arange(3, dtype=np.int64) - 5, np.arange(6.0).reshape(2, 3)
    c = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    out = np.zeros(10)
    found = _gathered(a, b, c, True, -7, np.float32(0.1), (1, -2, 3), out)
    assert found == -7
    assert type(found) is int
    expected = [-3, 3, 20, 3, 23, 34, 1, -7, float(np.float32(0.1)), 83]
    np.testing.assert_array_equal(out, expected)


def test_arrays_that_must_not_be_written_share_the_code():
    once = np.arange(3.0)
    once.flags.writeable = False
    assert described((once,))[0] == described((np.arange(3.0),))[0] == ("d1",)


def test_arrays_of_any_layout_arrive():
    @kernel
    def copied(source, to):  # type: ignore[no-untyped-def]
        for i in range(source.shape[0]):
            for j in range(source.shape[1]):
                to[i, j] = source[i, j]

    whole = np.arange(40, dtype=np.int32).reshape(5, 8)
    for source in (whole, whole.T, whole[::-2, 1::3], whole[:0], whole[1:2, ::-1]):
        to = np.zeros((source.shape[1], 2 * source.shape[0]), np.int64).T[::2]
        copied(source, to)
        np.testing.assert_array_equal(to, source)


def test_what_a_kernel_returns():
    @kernel
    def nothing(x):  # type: ignore[no-untyped-def]
        x[0] = 1.0

    @kernel
    def half(x):  # type: ignore[no-untyped-def]
        return x / 2

    @kernel
    def both(x):  # type: ignore[no-untyped-def]
        return x + 1, -x

    @kernel
    def mixed(x):  # type: ignore[no-untyped-def]
        return x, 0.5

    assert both(5) == (6, -5)
    with pytest.raises(TypeError, match="returns nothing, integers or a float64, not Tuple"):
        mixed(5)
    x = np.zeros(1)
    assert nothing(x) is None
    assert x[0] == 1
    assert half(5) == 2.5
    assert half(np.float64(np.inf)) == np.inf
    assert half(np.int64(-(2**62))) == -(2.0**61)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros(4, ">f8"), "array of >f8"),
        (np.zeros(4, np.float16), "array of float16"),
        (np.frombuffer(bytes(17), np.uint8)[1:].view(np.float64), "aligned"),
        (np.zeros((1, 1, 1, 1)), "of 1 to 3 axes"),
        (np.zeros(()), "of 1 to 3 axes"),
        ("text", "not 'text'"),
        (None, "not None"),
        ([1, 2], r"not \[1, 2\]"),
    ],
)
def test_what_compiled_code_does_not_take_is_refused(value, said):
    with pytest.raises(TypeError, match=said):
        described((value,))


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, (1, 1 << 64)])
def test_numbers_beyond_64_bits_are_refused(value):
    kinds, words = described((value,))
    with pytest.raises(Exception, match=r"int too large|argument out of range|format requires"):
        layout(kinds).pack(*words)


def test_out_of_memory_is_raised_and_the_next_call_works():
    @kernel
    def last(count):  # type: ignore[no-untyped-def]
        held = np.zeros(count)
        return held[count - 1]

    for _ in range(2):
        with pytest.raises(MemoryError):
            last(1 << 50)
        assert last(10) == 0


def resident() -> int:
    """Bytes of memory that the process has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_memory_is_aligned_and_given_back():
    @kernel
    def misplaced(count, times):  # type: ignore[no-untyped-def]
        wrong = 0
        for _ in range(times):
            held = np.empty(count, np.float32)
            held[:] = 1.0
            wrong += held.ctypes.data % 32 != 0
        return wrong

    before = resident()
    assert misplaced(1 << 20, 1000) == 0
    assert resident() - before < 1 << 27  # of 4 GiB in all
    assert [misplaced(count, 3) for count in (0, 1, 7)] == [0, 0, 0]


def test_what_a_kernel_raises_comes_out():
    @kernel
    def root(x):  # type: ignore[no-untyped-def]
        if x < 0:
            raise ValueError("x is negative", 7)
        return x**0.5

    assert root(4.0) == 2
    with pytest.raises(ValueError, match="x is negative") as raised:
        root(-1.0)
    assert raised.value.args == ("x is negative", 7)


def test_shapes_that_differ_are_raised_too():
    """Numba puts the message of this one together when it raises it."""

    @kernel
    def copied(x, y):  # type: ignore[no-untyped-def]
        x[:2] = y

    copied(np.zeros(3), np.ones(2))
    with pytest.raises(ValueError, match=r"raised by compiled code|cannot assign"):
        copied(np.zeros(3), np.ones(3))


def test_lists_that_grow_are_refused():
    """Their memory would be given back by other rules."""

    @kernel
    def listed(x):  # type: ignore[no-untyped-def]
        held = [x]
        held.append(2 * x)
        return held[1]

    with pytest.raises(TypeError, match=r"listed calls NRT_\w+, which is Numba's alone"):
        listed(7.0)


def test_what_lists_hold_is_given_back():
    """Those that do not grow; sorting holds one."""

    @kernel
    def held(count, times):  # type: ignore[no-untyped-def]
        total = 0.0
        for i in range(times):
            arrays = [np.full(count, float(i)), np.ones(count)]
            total += arrays[i % 2][count - 1]
            total += np.sort(arrays[0])[0]
        return total

    before = resident()
    assert held(1 << 16, 400) == sum(i if i % 2 == 0 else 1 for i in range(400)) + sum(range(400))
    assert resident() - before < 1 << 27  # of 600 MiB in all


def test_other_threads_run_while_a_kernel_does():
    @kernel
    def spun(count):  # type: ignore[no-untyped-def]
        x = 1.0
        for _ in range(count):
            x = 1.0 + 1.0 / x
        return x

    count = 1000
    spun(count)
    while True:  # some tenths of a second of it
        start = time.perf_counter()
        spun(count)
        if time.perf_counter() - start > 0.2:
            break
        count *= 2
    thread, ticks = threading.Thread(target=spun, args=(count,)), 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 10


def test_only_contraction_is_left_to_the_compiler():
    """Of the flags of fast math none but contract keeps NaN and infinity what they are."""
    from fastrf.kernels.cpu import _translate

    def all_four(x, y):  # type: ignore[no-untyped-def]
        return (x * y + x) / (y - x)

    compiled = _translate._compiled(all_four, (_translate.types.float64,) * 2)
    text = compiled.library.get_llvm_str()
    found = re.findall(r" = f(?:add|sub|mul|div) ([a-z ]*)double", text)
    assert len(found) >= 4
    assert {flags.strip() for flags in found} == {"contract"}

    @kernel
    def unequal(x):  # type: ignore[no-untyped-def]
        return 1 if x != x else 0

    assert unequal(float("nan")) == 1


def test_kernels_of_one_name_do_not_meet(tmp_path):
    found = []
    for number in range(3):
        path, names = tmp_path / f"module{number}.py", {"__name__": f"module{number}"}
        path.write_text(f"def same(x):\n    return x + {number}\n")
        exec(compile(path.read_text(), str(path), "exec"), names)
        found.append(kernel(names["same"])(10))
    assert found == [10, 11, 12]


def test_functions_that_kernels_call_do_not_meet(tmp_path):
    """Two processes may give the functions that kernels hold the same names; a third loads both."""
    code = (
        "import sys\n"
        "from fastrf.kernels.cpu import _compile\n"
        "found = []\n"
        "for path in sys.argv[1:]:\n"
        "    names = {'__name__': 'own'}\n"
        "    exec(compile(open(path).read(), path, 'exec'), names)\n"
        "    names['called'] = _compile.kernel(names['called'])\n"
        "    found.append(_compile.kernel(names['caller'])(3))\n"
        "print(*found, _compile.made)\n"
    )
    paths = [str(tmp_path / f"{number}.py") for number in range(2)]
    for number, path in enumerate(paths):
        # So long that it does not become a part of the function that calls it, twice.
        steps = "".join(
            f"    while x % {p} == {number} and y < {p}:\n        y, x = y + 1, x + y // {p}\n"
            for p in range(2, 14)
        )
        Path(path).write_text(
            f"def called(x):\n    y = {number}\n{steps}    return x + y\n"
            "def caller(x):\n    return called(x) + called(x + 1)\n"
        )

    def run(cache: str, *own: str) -> list[str]:
        command = [sys.executable, "-c", code, *own]
        places = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / cache)}
        done = subprocess.run(
            command, env=places, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    (first, made), (second, others) = (run(f"cache{i}", path) for i, path in enumerate(paths))
    assert (made, others) == ("1", "1")
    shutil.copytree(tmp_path / "cache1", tmp_path / "cache0", dirs_exist_ok=True)
    assert run("cache0", *paths) == [first, second, "0"]
    assert first != second
