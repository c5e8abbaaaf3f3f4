"""Calls side by side, in threads, processes, event loops, interpreters; what calls leave alone."""

from __future__ import annotations

import asyncio
import decimal
import locale
import os
import pickle
import random
import signal
import subprocess
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load
from sweeping import table

import fastrf as rf
from fastrf.engine import METHODS, threads
from fastrf.errors import InputError
from fastrf.lowering import KEPT_UNITS, lower

ROOT = Path(__file__).parents[1]


def _residual(kernel: int) -> rf.Residual:
    return rf.Residual(rf.Conv(kernel, padding=kernel // 2), rf.Conv(kernel, padding=kernel // 2))


NETS: dict[str, tuple[rf.Network, int | None]] = {
    "chain": (rf.Sequential(*[rf.Conv(3, padding=1)] * 6, rf.MaxPool(2), rf.Conv(5)), None),
    "residual": (rf.Sequential(rf.Conv(3, padding=1), *[_residual(3)] * 4), None),
    "correlated": (rf.Sequential(rf.Conv(3), rf.AvgPool(3, stride=1), rf.Conv(3)), None),
    "borders": (rf.zoo.resnet18(), 64),
}

Call = tuple[str, str]
CALLS: list[Call] = [(name, what) for name in NETS for what in (*METHODS, "all", "check", "plan")]


def answer(net: rf.Network, call: Call) -> Any:
    """What a user gets, as something that can be compared bit by bit."""
    size, what = NETS[call[0]][1], call[1]
    try:
        if what == "check":
            return str(rf.check(net, input_size=size))
        if what == "plan":
            return str(rf.plan(net, input_size=size))
        if what == "all":
            every = rf.erf(net, input_size=size, layers="all")
            return {node: erf.to_numpy().tobytes() for node, erf in every.items()}
        erf = rf.erf(net, input_size=size, method=what, workers=2)
        return erf.to_numpy().tobytes(), erf.std, erf.luo_size(), erf.field.size
    except InputError as error:  # a method that does not serve it
        return str(error)


def fresh() -> dict[str, rf.Network]:
    """The networks without anything that was worked out before."""
    return {name: pickle.loads(pickle.dumps(net)) for name, (net, _) in NETS.items()}


@pytest.fixture(scope="module")
def serial() -> dict[Call, Any]:
    nets = fresh()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "TILE_CELLS", 64)  # where images are cut shows in the last bits
        return {call: answer(nets[call[0]], call) for call in CALLS}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both workers have something to do in small images, too."""
    monkeypatch.setattr(threads, "TILE_CELLS", 64)


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads change places after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("shared", [True, False], ids=["same networks", "own networks"])
def test_many_threads_at_once_give_the_bits_of_serial_calls(serial, shared):
    together = fresh()
    with ThreadPoolExecutor(6) as pool:
        own = [(call, together) for call in CALLS * 2] if shared else [(c, fresh()) for c in CALLS]
        found = [(call, pool.submit(answer, nets[call[0]], call)) for call, nets in own]
        for call, future in found:
            assert future.result() == serial[call], call


@pytest.mark.usefixtures("hurried")
def test_sweeps_from_many_threads_give_the_same_tables(tmp_path):
    parameters = {"depth": [2, 3, 9], "kernel": [3, 5]}
    space = rf.Space({"name": "s", "ndim": 2, "parameters": parameters})

    def swept(i: int) -> Any:
        with rf.sweep(space, tmp_path / f"{i}.db", workers=0, progress=False) as store:
            return table(store)

    first = swept(0)
    assert len(first) == 6
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(swept, range(1, 4))) == [first] * 3


@pytest.mark.usefixtures("hurried")
def test_what_a_graph_keeps_is_made_and_dropped_by_many_threads():
    graph = lower(rf.Sequential(rf.Conv(3)), None)

    def use(thread: int) -> None:
        for i in range(2 * KEPT_UNITS):
            key = (thread * i) % (2 * KEPT_UNITS)
            assert graph.lately(key, lambda key=key: key + 1) == key + 1
            assert graph.once(("own", i), lambda i=i: [i]) is graph.once(("own", i), list)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert len(graph.recent) <= KEPT_UNITS + 4


def test_an_event_loop_goes_on_while_threads_compute(serial):
    async def gathered() -> list[Any]:
        nets = fresh()
        return await asyncio.gather(
            *(asyncio.to_thread(answer, nets[call[0]], call) for call in CALLS)
        )

    assert dict(zip(CALLS, asyncio.run(gathered()), strict=True)) == serial


def test_children_by_fork_spawn_and_forkserver_give_the_same_bits(tmp_path):
    """Forked too after the parent has run its thread pool."""
    (tmp_path / "job.py").write_text(
        "import multiprocessing, sys, warnings\n"
        "import fastrf as rf\n"
        "from fastrf.engine import threads\n"
        "threads.TILE_CELLS = 64\n"
        "def job(_=0):\n"
        "    threads.TILE_CELLS = 64\n"
        "    net = rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 5)\n"
        "    found = [rf.erf(net, method=m, workers=2, input_size=s) for m, s in\n"
        "             (('direct', 20), ('direct', None), ('factored', None), ('spectral', None))]\n"
        "    return [f.to_numpy().tobytes() for f in found]\n"
        "if __name__ == '__main__':\n"
        "    own = job()\n"
        "    for how in sys.argv[1:]:\n"
        "        with warnings.catch_warnings():\n"
        "            # Python's general remark on forks beside threads.\n"
        "            warnings.simplefilter('ignore', DeprecationWarning)\n"
        "            with multiprocessing.get_context(how).Pool(1) as pool:\n"
        "                assert pool.apply_async(job).get(60) == own, how\n"
        "    assert job() == own\n"
    )
    ways = ("fork", "spawn", "forkserver") if sys.platform != "win32" else ("spawn",)
    command = [sys.executable, str(tmp_path / "job.py"), *ways]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_waits_for_what_is_being_compiled(tmp_path):
    code = (
        "import os, threading, time\n"
        "import numpy as np\n"
        "from fastrf.kernels import load\n"
        "from fastrf.kernels.cpu import _compile\n"
        "def call():\n"
        "    out = np.ones((1, 2, 2))\n"
        "    load().accumulate(out.copy(), 2.0, out)\n"
        "    assert (out == 3).all()\n"
        "load()\n"
        "compiling = threading.Thread(target=call)\n"
        "compiling.start()\n"
        "while _compile._lock.acquire(blocking=False):\n"
        "    _compile._lock.release()\n"
        "    time.sleep(0.001)\n"
        "child = os.fork()\n"
        "assert _compile.made == 1\n"
        "call()\n"
        "assert _compile.made == 1\n"
        "if child:\n"
        "    compiling.join()\n"
        "    status = os.waitpid(child, 0)[1]\n"
        "    assert os.waitstatus_to_exitcode(status) == 0\n"
    )
    places = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(
        command, env=places, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_sub_interpreter_is_refused():
    """Numba would wait for ever in one, so that the refusal has to come first."""
    code = (
        "try:\n"
        "    import _interpreters as interpreters\n"
        "except ImportError:\n"
        "    import _xxsubinterpreters as interpreters\n"
        "script = '''\n"
        "import fastrf as rf\n"
        "try:\n"
        "    rf.erf(rf.Sequential(rf.Conv(3)))\n"
        "except (rf.errors.DeviceError, ImportError) as error:\n"
        "    print(type(error).__name__, error)\n"
        "'''\n"
        "interpreters.run_string(interpreters.create(), script)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    # From 3.12 on NumPy itself may refuse to be imported there.
    assert "this is a sub-interpreter" in done.stdout or "subinterpreter" in done.stdout, done


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"),
    reason="this Python has a GIL; Numba has wheels for one without from CPython 3.14 on (cp314t)",
)
def test_threads_without_a_gil(serial):
    assert not sys._is_gil_enabled()  # type: ignore[attr-defined]
    test_many_threads_at_once_give_the_bits_of_serial_calls(serial, True)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_are_obeyed(monkeypatch, workers):
    monkeypatch.setattr(threads, "TILE_CELLS", 16)
    kernels, used = load("cpu"), set()
    all_in = threading.Barrier(workers)

    def watched(*arguments: Any) -> None:
        if threading.get_ident() not in used:
            used.add(threading.get_ident())
            all_in.wait(30)  # every worker has a part, if it has to wait for one
        plain(*arguments)

    plain = kernels.box_run
    monkeypatch.setattr(kernels, "box_run", watched)
    before = threading.active_count()
    rf.erf(rf.zoo.plain(12), method="direct", workers=workers, tail=1e-300)
    assert len(used) == workers
    assert threading.active_count() == before


# --- global state ---------------------------------------------------------------------------


def state() -> dict[str, Any]:
    """What belongs to the process and not to fastrf."""
    handlers = {}
    for number in signal.valid_signals():
        handlers[number] = signal.getsignal(number)
    found: dict[str, Any] = {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signal handlers": handlers,
        "warnings filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "numpy errors": np.geterr(),
        "numpy error call": np.geterrcall(),
        "print options": np.get_printoptions(),
        "numpy random": repr(np.random.get_state()),  # noqa: NPY002 - that of others
        "random": random.getstate(),
        "decimal": repr(decimal.getcontext()),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion limit": sys.getrecursionlimit(),
        "integer digits": sys.get_int_max_str_digits(),
        "switch interval": sys.getswitchinterval(),
        "thread stack": threading.stack_size(),
        "hooks": (sys.excepthook, sys.displayhook, sys.breakpointhook, sys.unraisablehook),
        "thread hook": threading.excepthook,
        "trace": (sys.gettrace(), sys.getprofile()),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "path": list(sys.path),
        "threads": threading.active_count(),
    }
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return found
    found["BLAS threads"] = {p["filepath"]: p["num_threads"] for p in threadpool_info()}
    return found


def test_no_global_state_changes(tmp_path):
    """Nor does an environment variable have to be set: none is here. (That CuPy's allocator is
    left alone shows in tests/cuda: the stand-in for CuPy has no call that would set one.)"""
    numba = [name for name in os.environ if name.startswith("NUMBA_") and "CACHE" not in name]
    assert not numba
    answer(fresh()["borders"], ("borders", "check"))  # what imports change is not a call's doing
    before = state()
    for call in CALLS:
        answer(fresh()[call[0]], call)
        assert state() == before, call
    net = rf.zoo.resnet18()
    parameters = {"depth": [2, 3], "kernel": [3, 5], "dilation": "kernel // 2"}
    space = rf.Space({"name": "s", "ndim": 2, "parameters": parameters})
    with rf.sweep(space, tmp_path / "s.db", workers=0, progress=False):
        pass
    rf.advice(net)
    rf.receptive_field(net)
    after = state()
    assert {name for name in before if before[name] != after[name]} == set()


@pytest.mark.parametrize("name", NETS)
def test_a_caller_whose_numpy_raises_gets_the_same(serial, name):
    """Numbers far out in the tails underflow, which is meant."""
    net = fresh()[name]
    with np.errstate(all="raise"):
        for call in CALLS:
            if call[0] == name:
                assert answer(net, call) == serial[call], call
        rf.erf(net, input_size=NETS[name][1]).to_dict()
