"""The sweep as a whole: what its table holds, and what it survives.

A table is compared with that of an undisturbed run in this process, every column but the times.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from sweeping import GRAPHS, SPACE, Deadly, Unsendable, layer_table, networks, table

import fastrf as rf
from fastrf.errors import DeviceError, InputError, MissingExtra, StoreError, WorkerError
from fastrf.sweep import graphs, rows, run, store, work
from fastrf.sweep.chain import Chain
from fastrf.sweep.content import chain_fingerprint
from fastrf.sweep.graphs import figures_of
from fastrf.sweep.pool import Workers
from fastrf.sweep.progress import Progress
from fastrf.sweep.rows import said
from fastrf.sweep.space import Space

CHAINS, SMALL_GRAPHS = Space(SPACE), Space(GRAPHS)


def swept(space, path, **options):
    return rf.sweep(space, path, **{"workers": 0, "progress": False} | options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The undisturbed tables, by space."""
    folder = tmp_path_factory.mktemp("expected")
    tables = {}
    for name, space in (("chains", CHAINS), ("graphs", SMALL_GRAPHS)):
        with swept(space, folder / f"{name}.db") as found:
            tables[name] = table(found)
    return tables


# --- the table ------------------------------------------------------------------------------


def test_a_row_is_what_erf_says(tmp_path):
    with swept(CHAINS, tmp_path / "s.db") as found:
        assert len(found) == len(CHAINS) == 48
        rows = found.query()
    for point, row in zip(CHAINS, rows, strict=True):
        assert {name: row[name] for name in point.parameters} == point.parameters
        assert row["fingerprint"] == chain_fingerprint(point.chain())
        assert row["error"] is None
        assert row["device"] == "cpu"
    for i in (0, 17, 47):
        figures = figures_of(rf.erf(list(CHAINS)[i].network(), method="direct"))
        for name, value in figures.items():
            if name not in rows[i] or name in ("node", "method"):
                continue
            if value is None or isinstance(value, str):
                assert rows[i][name] == value
            else:
                assert rows[i][name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
    assert "std_1" in rows[0]
    assert "std_2" not in rows[0]  # no network has a third axis


def test_graphs_are_rows_too(tmp_path):
    with swept(SMALL_GRAPHS, tmp_path / "s.db") as found:
        rows = found.query()
    for point, row in zip(SMALL_GRAPHS, rows, strict=True):
        erf = rf.erf(point.network(), **point.options, workers=1)
        wanted = erf.to_dict()
        if row["method"] != "chain":
            assert row["fingerprint"] == wanted["fingerprint"]
            assert row["node"] == wanted["node"]
        assert row["std_0"] == pytest.approx(wanted["std"][0], rel=1e-12)
        assert row["luo_size_amplitude"] == pytest.approx(wanted["luo_size"]["amplitude"])
        assert row["area_ratio_50"] == pytest.approx(wanted["area_ratio"]["0.5"])
        assert row["trf_size_1"] == wanted["trf_size"][1]
        assert [row["input_size_0"], row["input_size_1"]] == wanted["input_size"]
        assert json.loads(row["warnings"]) == wanted["warnings"]
    assert {row["method"] for row in rows} > {"chain"}


def test_a_single_wrong_network_is_a_row(tmp_path):
    deep = rf.Sequential(rf.Conv(3, stride=2), rf.Conv(3, stride=2))
    given = [
        ({"i": 0}, rf.Conv(3)),
        ({"i": 1}, rf.Conv(0)),
        ({"i": 2}, "no network"),
        ({"i": 3}, deep),  # the map becomes too small
        ({"i": 4}, rf.Conv(3, padding_mode="reflect", padding=5)),
        ({"i": 5}, rf.Conv(3, padding=9)),  # the corner unit sees padding alone
        ({"i": 6}, rf.Residual(rf.Conv(3, padding=1))),
    ]
    with swept(given, tmp_path / "s.db", input_size=4, unit=[0, 0]) as found:
        rows = found.query("SELECT i, error, std_0, seconds FROM sweep")
    assert [row["i"] for row in rows] == list(range(7))
    assert [row["seconds"] for row in rows[1:3]] == [0, 0]  # nothing was computed
    assert [row["error"] is None for row in rows] == [True, *[False] * 5, True]
    assert [(row["std_0"] is None) == (row["error"] is not None) for row in rows]
    assert "kernel=0" in rows[1]["error"]
    assert rows[2]["error"].startswith("InputError: str is not a network")
    assert "padding" in rows[5]["error"]
    for row, (_, net) in zip(rows[3:6], given[3:6], strict=True):
        with pytest.raises(InputError) as caught:
            rf.erf(net, input_size=4, unit=(0, 0))
        assert row["error"] == said(caught.value)


def test_equal_networks_are_computed_once(tmp_path, monkeypatch):
    tasks = []
    monkeypatch.setattr(work, "run", counted(work.run, tasks))
    conv = rf.Conv(3, padding=1)
    given = [({"n": n}, rf.Sequential(*[conv] * (1 + n % 2))) for n in range(10)]
    given += [({"n": 10}, rf.Sequential(rf.Identity(), rf.Conv((3, 3), padding=(1, 1))))]
    given += [({"n": n}, rf.Residual(rf.Conv(3, padding=1))) for n in (11, 12)]
    with swept(given, tmp_path / "s.db") as found:
        assert len(found) == 13
        assert found.rows("SELECT COUNT(*) FROM results") == [(3,)]
    assert computed(tasks) == 3


def test_what_a_chain_has_from_its_network(tmp_path):
    """Gains that follow from the network around a layer, what they assume, and trained weights."""
    conv, act = rf.Conv, rf.Activation
    nets = [
        rf.Sequential(conv(3), act("gelu"), conv(5), act("gelu")),
        rf.Sequential(act("tanh"), conv(3), rf.Norm("batch", mean_field=True), conv(3)),
        rf.Sequential(conv(3, channels=4, init="he"), act("silu"), conv(3, channels=2)),
        rf.Sequential(conv(3, channels=4), conv(3, channels=4, init="delta-orthogonal"), conv(5)),
        rf.Sequential(conv(3, channels=4, init="delta-orthogonal"), conv(3)),  # needs the input's
        rf.Sequential(conv(3, init="trained"), conv(3)),
        rf.Sequential(conv(3), act("relu"), rf.Dropout(0.2), conv(4)),
    ]
    given = [({"i": i}, net) for i, net in enumerate(nets)]
    with swept(given, tmp_path / "s.db", layers="all") as found:
        rows = found.query()
        layers = found.query("SELECT key, assumptions FROM layers")
    assert [row["i"] for row in rows if row["method"] == "chain"] == [0, 1, 2, 3, 6]
    assert [row["i"] for row in rows if row["error"]] == [4]
    with pytest.raises(InputError) as caught:
        rf.erf(nets[4])
    assert rows[4]["error"] == said(caught.value)
    for net, row in zip(nets[:4] + nets[5:], rows[:4] + rows[5:], strict=True):
        erf = rf.erf(net, method="direct")
        assert row["log_gain"] == pytest.approx(erf.log_gain, rel=1e-13, abs=1e-13)
        assert row["std_1"] == pytest.approx(erf.std[1], rel=1e-13, abs=1e-13)
        assert json.loads(row["assumptions"]) == list(erf.assumptions)
        assert row["exact"] == erf.exact
        own = {layer["assumptions"] for layer in layers if layer["key"] == row["key"]}
        assert own == {row["assumptions"]}
    assert "mean field" in rows[0]["assumptions"]
    # The same gains, assumed and given, are two results.
    chain = Chain.of(nets[0])
    assert chain.assumptions
    assert chain_fingerprint(chain) != chain_fingerprint(replace(chain, assumptions=()))


def counted(function, tasks):
    def watched(task):
        tasks.append(task)
        return function(task)

    return watched


def computed(tasks):
    return sum(len(task) for task in tasks if isinstance(task, work.Graphs | work.Chains))


def test_layers_of_all_networks(tmp_path):
    space = [*list(CHAINS)[40:42], ({}, rf.Residual(rf.Conv(3, padding=1), rf.Conv(3, padding=1)))]
    with swept(space, tmp_path / "s.db", layers="all") as found:
        keys = [key for (key,) in found.rows("SELECT key FROM sweep")]
        rows = {key: [] for key in keys}
        names = [row[1] for row in found.rows("PRAGMA table_info(layers)")]
        for row in layer_table(found):
            rows[row[0]].append(dict(zip(names, row, strict=True)))
    for point, key in zip(space, keys, strict=True):
        net = point[1] if isinstance(point, tuple) else point.network()
        fields = list(rf.erf(net, layers="all", method="direct").values())
        fields = [field for field in fields if field.node != "input"]
        got = rows[key]
        assert [row["position"] for row in got] == list(range(len(got)))
        if got[0]["method"] == "chain":
            assert len(got) == len(fields)
        for row, field in zip(got[-len(fields) :], fields, strict=True):
            assert row["std_0"] == pytest.approx(field.std[0], rel=1e-12)
            assert row["trf_size_0"] == field.field.size[0]


def test_profiles_and_images_are_kept_where_asked_for(tmp_path):
    space = [*list(CHAINS)[:3], ({}, rf.Residual(rf.Conv(3, padding=1), rf.Conv((3, 5))))]
    with swept(space, tmp_path / "s.db") as found:
        (key, *_), *_ = found.rows("SELECT key FROM sweep")
        with pytest.raises(InputError, match="run the sweep with profiles=True"):
            found.profiles(key)
    # What is there but for these is computed again.
    with swept(space, tmp_path / "s.db", profiles=True, images=True) as found:
        keys = [key for (key,) in found.rows("SELECT key FROM sweep")]
        for point, key in zip(space, keys, strict=True):
            net = point[1] if isinstance(point, tuple) else point.network()
            erf = rf.erf(net, method="direct")
            np.testing.assert_allclose(found.image(key), erf.image, rtol=1e-13)
            for axis, profile in enumerate(found.profiles(key)):
                np.testing.assert_allclose(profile, erf.profile(axis), rtol=1e-13)
        assert "image" not in found.query()[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7,), (1, 1), (5, 6), (3, 4, 5)])
def test_images_are_packed_without_loss(shape, dtype):
    image = np.random.default_rng(0).random(shape).astype(dtype)
    back = store.unpacked_image(store.packed_image(image), image.nbytes)
    np.testing.assert_array_equal(back, image)
    assert back.dtype == dtype


# --- the same table, however it is made -------------------------------------------------------


@pytest.mark.parametrize("points", [1, 5, 1000])
def test_bundles_do_not_show(points, tmp_path, monkeypatch, expected):
    monkeypatch.setattr(run, "FIRST_POINTS", points)
    monkeypatch.setattr(run, "MOST_POINTS", points)
    monkeypatch.setattr(run, "MOST_GRAPHS", points)
    for name, space in (("chains", CHAINS), ("graphs", SMALL_GRAPHS)):
        with swept(space, tmp_path / f"{name}.db") as found:
            assert table(found) == expected[name]


def test_threads_of_an_executor(tmp_path, expected):
    with (
        ThreadPoolExecutor(3) as executor,
        swept(CHAINS, tmp_path / "s.db", executor=executor) as s,
    ):
        assert table(s) == expected["chains"]


def test_own_processes_of_which_one_is_killed_and_some_networks_kill(tmp_path, expected):
    """One pool for all of it, as processes take a second to start."""
    nets = [({"i": i}, rf.Sequential(*[rf.Conv(3)] * (i + 1))) for i in range(6)]
    with swept(nets, tmp_path / "a.db") as found:
        wanted = table(found)
    once, never = tmp_path / "once", tmp_path / "never"
    given = [*nets]
    given[0] = ({"i": 0}, Deadly(nets[0][1], once, True))
    given[2] = ({"i": 2}, Deadly(nets[2][1], never, False))
    given[4] = ({"i": 4}, Unsendable())
    with swept(given, tmp_path / "b.db", workers=2) as found:
        rows = table(found)
        errors = found.query("SELECT i, error FROM sweep WHERE error IS NOT NULL")
    assert once.exists()
    assert {row["i"]: row["error"].partition(":")[0] for row in errors} == {
        2: "WorkerError",
        4: "TypeError",
    }
    assert [r for i, r in enumerate(rows) if i not in (2, 4)] == [
        r for i, r in enumerate(wanted) if i not in (2, 4)
    ]
    # Where the reason is gone, so are the errors.
    with swept(nets, tmp_path / "b.db") as found:
        assert table(found) == wanted


class Breaking(ThreadPoolExecutor):
    """An executor that breaks with its third task."""

    count = 0

    def submit(self, call, *arguments):
        self.count += 1
        if self.count == 3:
            raise BrokenExecutor("gone")
        return super().submit(call, *arguments)


def test_an_executor_that_breaks(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(run, "FIRST_POINTS", 10)
    monkeypatch.setattr(run, "MOST_POINTS", 10)
    with Breaking(1) as executor, pytest.raises(WorkerError, match="what was computed is in the"):
        swept(CHAINS, tmp_path / "s.db", executor=executor)
    with swept(CHAINS, tmp_path / "s.db") as found:
        assert table(found) == expected["chains"]


class Failing(Executor):
    """An executor whose tasks fail with an error of their own, and which breaks at the last."""

    def __init__(self, last):
        self.left = last

    def submit(self, call, *arguments):
        self.left -= 1
        if not self.left:
            raise BrokenExecutor("gone")
        future = Future()
        future.set_exception(ValueError("cannot be sent"))
        return future


def test_failed_tasks_are_no_results_where_an_executor_breaks(tmp_path):
    with pytest.raises(WorkerError, match="the executor broke"):
        swept(CHAINS, tmp_path / "s.db", executor=Failing(2))


def test_workers_stay_where_tasks_cannot_be_sent(tmp_path, monkeypatch):
    """Every network has its row with the error."""
    monkeypatch.setattr(run.Workers, "rebuild", lambda self: pytest.fail("they are not lost"))
    nets = [({"i": i}, rf.zoo.plain(i + 1)) for i in range(5)]
    with swept(nets, tmp_path / "s.db", executor=Failing(-1)) as found:
        errors = found.query("SELECT error FROM sweep")
    assert [row["error"] for row in errors] == ["ValueError: cannot be sent"] * 5


ORPHAN = """
import os, signal
from fastrf.sweep.pool import Workers

if __name__ == "__main__":
    workers = Workers(None, 1)
    print(workers.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_end_with_their_coordinator(tmp_path):
    """One that is killed has said nothing to them."""
    script = tmp_path / "script.py"
    script.write_text(ORPHAN)
    # To a file: a worker that stays would keep a pipe open.
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, script], stdout=out, check=False)
    state = Path(f"/proc/{int((tmp_path / 'out').read_text())}/stat")
    stop = time.monotonic() + 30
    try:
        # Ended, and perhaps not yet waited for by whoever adopted it.
        while state.exists() and ") Z" not in state.read_text():
            assert time.monotonic() < stop
            time.sleep(0.01)
    except (FileNotFoundError, ProcessLookupError):  # between the two looks
        pass


# --- going on -------------------------------------------------------------------------------


def test_a_changed_space_adds_what_is_new(tmp_path, monkeypatch, expected):
    tasks = []
    monkeypatch.setattr(work, "run", counted(work.run, tasks))
    smaller = Space(SPACE | {"parameters": SPACE["parameters"] | {"kernel": [4]}})
    swept(smaller, tmp_path / "s.db").close()
    assert computed(tasks) == len(smaller) == 24
    with swept(CHAINS, tmp_path / "s.db") as found:
        assert table(found) == expected["chains"]
    assert computed(tasks) == len(CHAINS)
    # Rows that the smaller space does not have stay, behind its own.
    with swept(smaller, tmp_path / "s.db") as found:
        assert sorted(table(found)) == sorted(expected["chains"])
    assert computed(tasks) == len(CHAINS)
    # Other options, other results; another parameter, another column.
    with swept(smaller, tmp_path / "s.db", input_size=32) as found:
        assert len(found) == len(CHAINS) + len(smaller)
    more = Space(SPACE | {"parameters": SPACE["parameters"] | {"gain": [2]}})
    with swept(more, tmp_path / "s.db") as found:
        gains = found.rows("SELECT gain, COUNT(*) FROM sweep GROUP BY gain")
    assert gains == [(None, 72), (2, 48)]


def test_another_version_of_the_numerics_is_computed_anew(tmp_path, monkeypatch):
    from fastrf.sweep import content

    swept(CHAINS, tmp_path / "s.db").close()
    tasks = []
    monkeypatch.setattr(work, "run", counted(work.run, tasks))
    monkeypatch.setattr(content, "NUMERICS", 99)
    with swept(CHAINS, tmp_path / "s.db") as found:
        assert len(found) == len(CHAINS)
    assert computed(tasks) == len(CHAINS)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import fastrf as rf
from fastrf.sweep import run
from fastrf.sweep.space import Space
from sweeping import SPACE
run.FIRST_POINTS = run.MOST_POINTS = 2
run.WRITE_SECONDS = 0
rf.sweep(Space(SPACE), {path!r}, workers={workers}, progress=False)
"""


def started(path, workers=0, **how):
    """A coordinator in a process of its own, which writes two rows at a time."""
    text = SCRIPT.format(tests=str(Path(__file__).parent), path=str(path), workers=workers)
    return subprocess.Popen([sys.executable, "-c", text], **how)


def rows_in(path):
    try:
        with store.Store(path) as found:
            return len(found)
    except StoreError:
        return 0


def wait_for(path, count, process):
    """Waits until a store has so many rows or its coordinator has ended."""
    while rows_in(path) < count and process.poll() is None:
        time.sleep(0.002)


def test_kill_and_go_on(tmp_path, expected):
    """Killed once it has a number of rows drawn at random (by a seed), then resumed, again and
    again; what was committed is never less, and in the end nothing is missing or double."""
    path, draw, before = tmp_path / "s.db", random.Random(3), 0
    for _ in range(2):
        process = started(path)
        wait_for(path, before + draw.randint(1, 10), process)
        process.kill()
        process.wait()
        assert rows_in(path) >= before
        before = rows_in(path)
    assert 0 < before < len(CHAINS)
    with swept(CHAINS, path) as found:
        assert table(found) == expected["chains"]


def test_a_point_has_its_first_place_whatever_comes_first(tmp_path):
    """Of points that a space has twice; and that of the latest run, where that has other places."""
    nets = [({"n": n}, rf.zoo.plain(n)) for n in (3, 1, 2, 3, 1)]
    with swept(nets, tmp_path / "s.db") as found:
        assert [row["n"] for row in found.query()] == [3, 1, 2]
        points = found.rows("SELECT _point, _number, _key, n FROM points ORDER BY _number")
    again = [(p, number, k, n) for number in (3, 0) for p, _, k, n in points[:1]]
    for order in (again, again[::-1]):
        with store.Writer(tmp_path / "s.db") as writer:
            for p, number, k, n in [*order, *((p, 10 - i, k, n) for p, i, k, n in points[1:])]:
                writer.write([store.PointRows(("n",), [(p, number, k, n)], [])])
        with rf.Store(tmp_path / "s.db") as found:
            assert [row["n"] for row in found.query()] == [3, 2, 1]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_parameters_of_a_valid_and_an_invalid_network(order, tmp_path, monkeypatch):
    """Both have their rows, also in the next run, whichever comes first."""
    nets = [({"n": 1}, rf.Conv(3)), ({"n": 1}, rf.Conv(0))]
    monkeypatch.setattr(run, "FIRST_POINTS", 1)
    monkeypatch.setattr(run, "MOST_POINTS", 1)
    for write_seconds in (0, 1, 0):
        monkeypatch.setattr(run, "WRITE_SECONDS", write_seconds)
        with swept([nets[i] for i in order], tmp_path / "s.db") as found:
            rows = found.query("SELECT n, error FROM sweep")
        assert [row["error"] is None for row in rows] == [i == 0 for i in order]
    # Where it is not invalid any more, that row goes.
    with swept(nets[:1], tmp_path / "s.db") as found:
        assert [row["error"] for row in found.query()] == [None]


def test_interrupt_keeps_what_is_done(tmp_path, expected):
    path = tmp_path / "s.db"
    process = started(path, workers=1, stderr=subprocess.PIPE, text=True)
    wait_for(path, 3, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode != 0
    assert "KeyboardInterrupt" in said
    assert not Path(f"{path}-wal").exists()  # closed, and not torn away
    assert 3 <= rows_in(path) < len(CHAINS)
    with swept(CHAINS, path) as found:
        assert table(found) == expected["chains"]


def test_an_interrupt_waits_for_no_task(tmp_path):
    class Unfinished(Future):
        def exception(self, timeout=None):
            raise AssertionError("waits for what is not done")

    wanted = rows.Wanted("cpu", "float64", False, False, False)
    with store.Writer(tmp_path / "s.db") as writer, Progress(1, False) as progress:
        one = run._Run(writer, Workers(None, 0), progress, wanted, {}, retry_errors=False)
        one._out[Unfinished()] = run._Chunk(work.Graphs((), wanted, {}), one._graphs)
        one._keep_what_is_done()


@pytest.mark.parametrize("committed", [False, True])
def test_an_interrupt_between_new_columns_and_their_rows(committed, tmp_path, monkeypatch):
    """Whether it comes before they stay or right after, the next write has them."""
    block = store.PointRows(("depth",), [("p", 0, "k", 3)], [])

    def interrupting():
        raise KeyboardInterrupt
        yield

    with store.Writer(tmp_path / "s.db") as writer:
        own = writer._transaction
        if committed:

            @contextmanager
            def interrupted():
                with own():
                    yield
                raise KeyboardInterrupt

            monkeypatch.setattr(writer, "_transaction", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.write([block], () if committed else interrupting())
        monkeypatch.setattr(writer, "_transaction", own)
        writer.write([block])
        assert writer.rows("SELECT _point, depth FROM points") == [("p", 3)]


# --- stores that refuse ---------------------------------------------------------------------


def test_the_second_coordinator_is_refused(tmp_path, expected):
    path = tmp_path / "s.db"
    with (
        store.Writer(path),
        pytest.raises(StoreError, match=rf"another sweep \(process {os.getpid()} on .*\): a store"),
    ):
        swept(CHAINS, path)
    process = started(path)
    wait_for(path, 1, process)
    with pytest.raises(StoreError, match=f"process {process.pid} on"):
        swept(CHAINS, path)
    process.kill()
    process.wait()
    with swept(CHAINS, path) as found:  # its lease died with it
        assert table(found) == expected["chains"]


@pytest.mark.parametrize("where", ["head", "page", "cut", "text", "other"])
def test_damaged_files_are_left_as_they_are(where, tmp_path):
    path = tmp_path / "s.db"
    swept(CHAINS, path).close()
    content = bytearray(path.read_bytes())
    if where == "head":
        content[:16] = b"no SQLite at all"
    elif where == "page":
        # The first bytes of all pages but the first, which say what the pages are.
        for page in range(4096, len(content), 4096):
            content[page : page + 64] = bytes(64)
    elif where == "cut":
        del content[len(content) // 2 :]
    elif where == "text":
        content = bytearray(b"this is my thesis\\n" * 1000)
    path.write_bytes(content)
    if where == "other":
        path.unlink()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (x)")
        connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"was left as it is"):
        swept(CHAINS, path)
    assert path.read_bytes() == before


def test_a_full_disk(tmp_path, monkeypatch, expected):
    """SQLite's own limit on pages gives the error of a full disk. What was committed stays."""
    path = tmp_path / "s.db"
    prepare = store.Writer._prepare

    def small(self):
        prepare(self)
        ((pages,),) = self._connection.execute("PRAGMA page_count")
        self._connection.execute(f"PRAGMA max_page_count = {pages + 5}")

    monkeypatch.setattr(run, "FIRST_POINTS", 4)
    monkeypatch.setattr(run, "MOST_POINTS", 4)
    monkeypatch.setattr(run, "WRITE_SECONDS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(store.Writer, "_prepare", small)
        with pytest.raises(StoreError, match=r"disk is full: what was committed is kept"):
            swept(CHAINS, path)
    with store.Store(path) as found:
        some = table(found)
    assert 0 < len(some) < len(CHAINS)
    assert some == expected["chains"][: len(some)]
    with swept(CHAINS, path) as found:
        assert table(found) == expected["chains"]


@contextmanager
def locked_folder():
    """A folder with a store that may be read and not written, also where the tests are root's."""
    folder = Path(tempfile.mkdtemp())
    swept(CHAINS, folder / "s.db").close()
    (folder / "s.db-lease").unlink()
    folder.chmod(0o555)
    (folder / "s.db").chmod(0o444)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs the permissions of POSIX")
def test_a_read_only_store(expected):
    # Not a fixture: coverage, too, writes files between tests.
    with locked_folder() as folder:
        for name in ("s.db", "new.db"):
            with pytest.raises(StoreError, match="cannot be written: give a store in a folder"):
                swept(CHAINS, folder / name)
        with rf.Store(folder / "s.db") as found:
            assert table(found) == expected["chains"]


# --- reading --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "s.db"
    given = [*CHAINS, ({"depth": 1, "kernel": "x", "taps": [1, 2]}, rf.Conv(0))]
    with swept(given, path) as found:
        yield found


def test_queries_only_read(small):
    found = small.query("SELECT depth, std_0 AS s FROM sweep WHERE kernel = 3 AND rate = 1")
    assert [row["depth"] for row in found] == list(range(1, 13))
    assert list(found[0]) == ["depth", "s"]
    for sql in (
        "DROP TABLE points",
        "DELETE FROM results",
        "UPDATE points SET depth = 1",
        "SELECT nothing FROM sweep",
        "ATTACH '/tmp/other.db' AS other",
        "SELECT 1; DROP TABLE points",
        "",
    ):
        with pytest.raises((InputError, StoreError), match=r"query|not authorized"):
            small.query(sql)
    assert len(small) == 49


def test_top(small):
    rows = small.top("std_0", 3)
    assert [row["std_0"] for row in rows] == sorted((r["std_0"] for r in rows), reverse=True)
    every = [row["std_0"] for row in small.query() if row["std_0"] is not None]
    assert rows[0]["std_0"] == max(every)
    assert small.top("std_0", 1, largest=False)[0]["std_0"] == min(every)
    with pytest.raises(InputError, match="there is no column 'size'; there are depth"):
        small.top("size")


def test_equal_values_come_in_the_order_of_the_space(tmp_path):
    """Whatever the key, and in whichever order results were written; also of two networks that
    are the same one."""
    depths = [3, 1, 2, 3, 1]
    given = [({"number": i, "depth": n}, rf.zoo.plain(n, 3, ndim=1)) for i, n in enumerate(depths)]
    path = tmp_path / "s.db"
    swept(given[3:], path).close()
    with swept(given, path) as found:
        assert len(found) == 5
        for largest in (True, False):
            rows = found.top("ndim", 5, largest=largest)
            assert [row["number"] for row in rows] == [row["number"] for row in found.query()]
        rows = found.top("std_0", 5)
        assert [row["depth"] for row in rows] == [3, 3, 2, 1, 1]
        places = [row["number"] for row in found.query()]
        assert [row["number"] for row in rows] == sorted(
            places, key=lambda i: (-depths[i], places.index(i))
        )


def test_names_that_are_taken(tmp_path):
    given = [({"std_0": 1, "parameter_std_0": 2, "Ratio": 3}, rf.Conv(3))]
    with swept(given, tmp_path / "s.db") as found:
        (row,) = found.top("std_0")
        shown = {name: row[name] for name in row if name.startswith("parameter_")}
        assert shown == {
            "parameter_std_0": 1, "parameter_parameter_std_0": 2, "parameter_Ratio": 3
        }  # fmt: skip


def test_texts_are_no_formulas(tmp_path):
    """They begin with an apostrophe in a CSV file, which is taken away again; numbers do not."""
    texts = ["=1+1", "+1", "-x", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'=1", "''-1", "＝1"]
    texts += ["'", "'a", "a=1", "", " =1", "resnet18"]
    given = [({"text": text, "less": -i}, rf.Conv(3)) for i, text in enumerate(texts)]
    with swept(given, tmp_path / "s.db") as found:
        found.export(tmp_path / "t.csv")
        found.export(tmp_path / "q.csv", "SELECT 'a' AS \"=a\", -1.5, NULL")
        rows = found.query()
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == texts
    assert [row["text"] for row in read] == [f"'{text}" for text in texts[:10]] + texts[10:]
    assert [row["less"] for row in read] == [str(-i) for i in range(16)]
    assert (tmp_path / "q.csv").read_text() == "'=a,'-1.5,NULL\na,-1.5,\n"


def test_frames_and_files(small, tmp_path):
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = small.query()
    names = list(rows[0])
    for frame in (small.to_pandas(), small.to_polars().to_pandas(), small.to_arrow().to_pandas()):
        assert list(frame.columns) == names
        assert len(frame) == 49
        assert frame["std_0"][:48].tolist() == [row["std_0"] for row in rows[:48]]
    small.export(tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").equals(small.to_arrow())
    small.export(tmp_path / "t.csv")
    read = pandas.read_csv(tmp_path / "t.csv")
    assert read["std_1"][:48].tolist() == [row["std_1"] for row in rows[:48]]
    assert polars.read_csv(tmp_path / "t.csv", infer_schema_length=None).columns == names
    small.export(tmp_path / "q.csv", "SELECT depth FROM sweep WHERE depth > 11 AND rate = 2")
    assert (tmp_path / "q.csv").read_text() == "depth\n12\n12\n"
    with pytest.raises(InputError, match=r"a name that ends in \.csv or \.parquet"):
        small.export(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="there is no folder"):
        small.export(tmp_path / "no" / "t.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        small.export(tmp_path / "folder.csv")


def test_a_missing_library_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pandas is not installed.*fastrf\[data\]"):
        small.to_pandas()


def test_parameters_of_all_kinds(tmp_path):
    given = [
        ({"a": 1, "list": [1, [2]], "error": "mine", "big": 2**70}, rf.Conv(3)),
        ({"b": True, 'with "quotes"': 0.5}, rf.Conv(3)),
    ]
    with swept(given, tmp_path / "s.db") as found:
        first, second = found.query()
        assert (first["a"], first["list"], first["big"]) == (1, "[1, [2]]", str(2**70))
        assert first["parameter_error"] == "mine"
        assert first["error"] is None
        assert (second["b"], second['with "quotes"'], second["a"]) == (1, 0.5, None)
        assert first["key"] == second["key"]
    refused = [
        ({"_key": 1}, "begin with a letter"),
        ({3: 1}, "a parameter is called 3; names of parameters are texts"),
        ({"a\0b": 1}, "no null character"),
        ({"\ud800": 1}, "give parameters that UTF-8 can hold"),
        ({"a": "\ud800"}, "give parameters that UTF-8 can hold"),
        ({"a": 1, "A": 2}, "'a' and 'A' differ in capitals alone"),
    ]
    for parameters, message in refused:
        with pytest.raises(InputError, match=message):
            swept([(parameters, rf.Conv(3))], tmp_path / "s.db")
    # SQLite folds the capitals of ASCII alone.
    with swept([({"é": 1}, rf.Conv(3)), ({"É": 2}, rf.Conv(5))], tmp_path / "other.db") as found:
        assert [(row["é"], row["É"]) for row in found.query()] == [(1, None), (None, 2)]


@pytest.mark.parametrize("net", [rf.Conv(3), rf.Residual(rf.Conv(3, padding=1))])
def test_what_is_kept_stays_when_more_is_asked_for(tmp_path, net):
    path = tmp_path / "s.db"
    for asked in ({"profiles": True}, {"images": True}, {"layers": "all"}):
        with swept([net], path, **asked) as found:
            (row,) = found.query()
    with rf.Store(path) as found:
        image = rf.erf(net).to_numpy()
        assert np.array_equal(found.image(row["key"]), image)
        assert np.allclose(found.profiles(row["key"])[0], image.sum(1), rtol=0, atol=1e-15)
        assert found.rows("SELECT COUNT(*) FROM layers") == [(len(rf.erf(net, layers="all")),)]


def test_an_error_takes_no_figures_away(tmp_path, monkeypatch):
    path, net = tmp_path / "s.db", rf.Residual(rf.Conv(3, padding=1))
    with swept([net], path) as found:
        (row,) = found.query()

    def full(image):
        raise MemoryError

    monkeypatch.setattr(graphs, "packed_image", full)
    with swept([net], path, images=True) as found:
        assert found.query() == [row]
    monkeypatch.undo()
    with swept([net], path, images=True) as found:
        assert found.image(row["key"]).shape == (3, 3)


def test_options_of_numpy_are_taken_as_erf_takes_them(tmp_path):
    options = {
        "input_size": np.array([9, 8]),
        "unit": np.array([1, 2]),
        "dtype": np.float32,
        "tail": np.float32(0.1),
    }
    expected = rf.erf(rf.Conv(3), **options)
    with swept([rf.Conv(3)], tmp_path / "s.db", **options) as found:
        (row,) = found.query()
    assert row["error"] is None
    assert (row["input_size_0"], row["input_size_1"], row["unit_1"]) == (9, 8, 2)
    assert row["dtype"] == str(expected.values.dtype) == "float32"
    assert (row["shape_0"], row["shape_1"]) == expected.shape


def test_a_space_may_be_given_as_its_content(tmp_path):
    with swept(SPACE, tmp_path / "s.db") as found:
        assert len(found) == len(CHAINS)


def test_a_store_of_any_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with swept([rf.Conv(3)], ":memory:") as found:
        assert len(found) == 1
    assert Path(":memory:").is_file()


def test_a_device_that_cannot_be_used_is_no_error_of_every_row(tmp_path):
    """Such rows would count as done, with an error, on the CPU too."""
    path = tmp_path / "s.db"
    with pytest.raises(InputError, match="device='gpu' is unknown"):
        swept([rf.Conv(3)], path, device="gpu")
    with pytest.raises(DeviceError, match="cuda:4096"):
        swept([rf.Conv(3)], path, device="cuda:4096")
    assert not path.exists()
    # The workers of an executor may have what this machine has not.
    with ThreadPoolExecutor(1) as pool:
        with swept([rf.Conv(3)], path, device="cuda:4096", executor=pool) as found:
            assert found.query()[0]["error"].startswith("DeviceError")
        with pytest.raises(InputError, match="device='gpu' is unknown"):
            swept([rf.Conv(3)], path, device="gpu", executor=pool)


def test_what_cannot_be_swept_is_refused(tmp_path):
    path = tmp_path / "s.db"
    refusals = [
        (rf.Sequential(rf.Conv(3)), {}, "Network is no space"),
        (3, {}, "int is no space"),
        (CHAINS, {"layers": "some"}, "layers='some' is unknown"),
        (CHAINS, {"size": 3}, "size: no option of a sweep; give accuracy, dtype"),
        (CHAINS, {"workers": -1}, "workers=-1"),
        (CHAINS, {"executor": 3}, "executor is a int"),
    ]
    for space, options, message in refusals:
        with pytest.raises(InputError, match=message):
            swept(space, path, **options)
    with pytest.raises(StoreError, match="there is no store"):
        rf.Store(path.with_name("none.db"))


# --- progress -------------------------------------------------------------------------------


def test_progress_in_plain_lines():
    now, text = [0.0], StringIO()
    with Progress(100, True, text, lambda: now[0]) as bar:
        bar.add(30, there=10)
        now[0] = 10.0
        bar.add(30, failed=2)
        now[0] = 15.0
        bar.add(40)
    assert text.getvalue().splitlines() == [
        "sweep: 100 points",
        "sweep: 60 of 100 points, 5/s, 10 were there, 2 with an error, 8 s left",
        "sweep: 100 of 100 points, 6/s, 10 were there, 2 with an error",
    ]


def test_progress_of_nothing_new_knows_no_rate():
    now, text = [0.0], StringIO()
    with Progress(10, True, text, lambda: now[0]) as bar:
        now[0] = 20.0
        bar.add(3, there=3)
        bar.add(7, there=7)
    assert text.getvalue().splitlines()[1:] == [
        "sweep: 3 of 10 points, 0/s, 3 were there",
        "sweep: 10 of 10 points, 0/s, 10 were there",
    ]


def test_progress_on_a_terminal():
    class Terminal(StringIO):
        def isatty(self):
            return True

    text = Terminal()
    with Progress(8, True, text) as bar:
        bar.add(8)
    assert "8/8" in text.getvalue()
    silent = StringIO()
    with Progress(8, False, silent) as bar:
        bar.add(8)
    assert not silent.getvalue()


# --- graphs by the hundred ------------------------------------------------------------------


def test_errors_of_graphs_are_their_own(tmp_path):
    """Of each eight networks the last one is wrong, and no other."""
    with swept(networks(64), tmp_path / "s.db", input_size=24) as found:
        rows = found.query("SELECT i, kind, error, std_0 FROM sweep")
    assert [row["i"] for row in rows] == list(range(64))
    assert [row["i"] for row in rows if row["error"]] == list(range(7, 64, 8))
    assert all(row["std_0"] is not None for row in rows if not row["error"])


# --- Dask -----------------------------------------------------------------------------------


def test_dask_of_which_a_worker_is_killed(tmp_path, expected, monkeypatch):
    """A real scheduler and two real worker processes, over TCP."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(run, "FIRST_POINTS", 2)
    monkeypatch.setattr(run, "MOST_POINTS", 2)
    monkeypatch.setattr(run, "WRITE_SECONDS", 0)
    path = tmp_path / "s.db"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        killer = ThreadPoolExecutor(1)

        def kill_one():
            while rows_in(path) < 5:
                time.sleep(0.005)
            os.kill(next(iter(pids.values())), signal.SIGKILL)

        killed = killer.submit(kill_one)
        with swept(CHAINS, path, executor=client) as found:
            assert table(found) == expected["chains"]
        killed.result()
        killer.shutdown()


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import fastrf as rf\n"
        f"rf.sweep([rf.Conv(3)], {str(tmp_path / 's.db')!r}, workers=1, progress=False)\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "call sweep under `if __name__ == '__main__':`" in ran.stderr.splitlines()[-1]


# --- the command line -----------------------------------------------------------------------


TOML = """
name = "small"
ndim = 2
[parameters]
depth = {from = 1, to = 12}
kernel = [3, 4]
stride = "2 if i == 1 else 1"
rate = [1, 2]
dilation = "rate"
"""


def test_the_command_line(tmp_path, capsys, expected, monkeypatch):
    from fastrf import cli

    file, path = tmp_path / "space.toml", str(tmp_path / "s.db")
    file.write_text(TOML)

    def command(*words):
        code = cli.main(["sweep", *map(str, words)])
        return code, *capsys.readouterr()

    code, out, err = command(file, "--store", path, "--workers", 0)
    assert (code, out) == (0, "")
    assert "sweep: 48 of 48 points" in err
    assert "48 rows in" in err
    with rf.Store(path) as found:
        assert table(found) == expected["chains"]
    code, out, _ = command("--store", path, "--query", "SELECT depth, std_0 FROM sweep LIMIT 2")
    assert out.split() == ["depth", "std_0", "1", "0.816497", "1", "1.63299"]
    code, out, _ = command("--store", path, "--top", "-ratio", "--count", 3, "--json")
    ratios = [row["ratio"] for row in json.loads(out)["rows"]]
    assert len(ratios) == 3
    assert ratios == sorted(ratios)
    code, out, _ = command("--store", path, "--top", "depth", "--count", 1)
    assert out.split()[:3] == ["depth", "kernel", "rate"]
    code, out, err = command("--store", path, "--export", tmp_path / "t.csv")
    assert (code, out) == (0, "")
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 49
    monkeypatch.setenv("COLUMNS", "32")
    code, out, err = command("--store", path, "--top", "trf_size_0", "--count", 1)
    assert out.split() == ["depth", "kernel", "rate", "trf_size_0", "12", "4", "2", "133"]
    assert "left out to fit 32 characters: ratio, luo_size_amplitude, std_0" in err
    monkeypatch.delenv("COLUMNS")
    for words, message in (
        (["--store", path, "--query", "DROP TABLE points"], "readonly"),
        (["--store", path + "x"], "there is no store"),
        ([file, "--store", path, "--no-resume"], "is there; give another --store, or --resume"),
        (["--store", path, "--top", "ratio", "--export", "t.csv"], "leave out one of them"),
        (["--store", path, "--top", "depth", "--query", "SELECT 1"], "give one of them"),
        ([file, "--store", path, "--dask", "tcp://127.0.0.1:1"], "no scheduler answers"),
    ):
        code, out, err = command(*words)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1
    # What the table cannot answer is said before a sweep, and before there is a store.
    for words, message in (
        (["--top", "nothing"], "there is no column 'nothing'"),
        (["--query", "SELECT absent FROM sweep"], "no such column: absent"),
        (["--export", tmp_path / "none" / "t.csv"], "there is no folder"),
        (["--export", "t.txt"], "ends in .csv or .parquet"),
    ):
        code, out, err = command(file, "--store", tmp_path / "new.db", *words)
        assert (code, out) == (2, "")
        assert message in err
        assert not (tmp_path / "new.db").exists()
    # Columns that the store has of another space count, too.
    other = tmp_path / "other.toml"
    other.write_text("[parameters]\ndepth = [1, 2]\nkernel = [3]\ndilation = [1]\n")
    code, out, err = command(
        other, "--store", path, "--workers", 0, "--query", "SELECT dilation, rate FROM sweep"
    )
    assert code == 0, err
    assert out.split()[:2] == ["dilation", "rate"]
