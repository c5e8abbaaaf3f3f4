"""Input of strangers: every door refuses it with a clear error, in bounded work, and runs nothing.

What is refused must be refused before it is made: `bounded` holds the memory of each case below
`ROOM`, which everything that a case names would exceed by far.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf import netfile, zoo
from fastrf.analytic import intervals
from fastrf.cli import main
from fastrf.errors import FastrfError, InputError, NetworkFileError, PlanError, StoreError
from fastrf.network import MOST_NODES
from fastrf.sweep.expressions import Expression
from fastrf.sweep.store import Store

ROOM = 256 << 20
"""Bytes that refusing may take."""

HUGE = 10**5000
"""More digits than Python prints."""

MOST = 2**31 - 1

EVIL = "\x1b[31mred\x07\u202e$\\frac{$ <script>alert(1)</script> \"' </script>"
"""A name that steers terminals, breaks mathematics and leaves HTML."""


@contextmanager
def bounded() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < ROOM
    finally:
        tracemalloc.stop()


def refused(call: Callable[[], Any], kind: type[FastrfError] = FastrfError) -> str:
    with pytest.raises(kind) as found:
        call()
    message = str(found.value)
    assert message.isprintable()
    assert 0 < len(message) < 2100
    return message


# --- numbers --------------------------------------------------------------------------------

NO_NUMBERS: list[Any] = [
    HUGE,
    10**30,
    -1,
    True,
    float("nan"),
    float("inf"),
    -HUGE,
    3j,
    {},
    object(),
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("name", ["kernel", "stride", "dilation", "padding", "groups", "channels"])
def test_fields_of_layers(name: str, value: Any) -> None:
    fields = {"kernel": 3, name: value}
    refused(lambda: rf.receptive_field(rf.Conv(**fields)), InputError)
    refused(lambda: netfile.from_dict({"layers": [{"type": "Conv", **fields}]}), NetworkFileError)


@pytest.mark.parametrize(
    "options",
    [
        {"unit": HUGE},
        {"unit": 10**30},
        {"input_size": 10**18},
        {"input_size": HUGE},
        {"input_size": {HUGE: 3}},
        {"output": HUGE},
        {"input": HUGE},
        {"method": HUGE},
        {"accuracy": HUGE},
        {"tol": HUGE},
        {"tail": float("nan")},
        {"workers": HUGE},
        {"memory_limit": HUGE},
        {"dtype": "x" * 100_000},
        {"device": "cuda:" + "9" * 5000},
        {"layers": HUGE},
        {"channel": HUGE},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_options(options: dict[str, Any]) -> None:
    refused(lambda: rf.erf(rf.Conv(3), **options))


def test_axes_of_a_grid() -> None:
    refused(lambda: rf.receptive_field(rf.Conv((3,) * 10_000)), InputError)
    refused(lambda: rf.Network([], ndim=HUGE), InputError)  # type: ignore[arg-type]


WIDE = {
    "kernel": rf.Conv(MOST),
    "dilation": rf.Conv(3, dilation=MOST),
    "window": rf.AvgPool(MOST, stride=1),
    "correlating windows": [rf.Conv(3), rf.AvgPool(100_001, stride=1)],
    "transposed": rf.ConvTranspose(MOST, stride=MOST),
    "strides": [rf.Conv(3, 2)] * 70,
    "more strides": [rf.Conv(3, 2)] * 1200,
    "dilations": [rf.Conv(3, dilation=MOST)] * 3,
}


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("method", ["auto", "direct", "factored", "spectral"])
@pytest.mark.parametrize("name", WIDE)
def test_fields_wider_than_memory(name: str, method: str, layers: Any) -> None:
    network = rf.Sequential(WIDE[name])
    with bounded():
        refused(lambda: rf.erf(network, method=method, layers=layers, memory_limit=ROOM))


def test_maps_wider_than_memory() -> None:
    """A small field on a map of 2³¹ pixels a side takes no more than itself; tables are refused."""
    network = rf.Sequential(*[rf.Conv(5, padding=2)] * 3, rf.Residual(rf.Conv(3, padding=1)))
    with bounded():
        assert rf.erf(network, input_size=MOST).shape == (15, 15)
        for layer in (rf.Upsample(3, "linear"), rf.AdaptivePool(10**6), rf.Pad(1, "reflect")):
            refused(lambda layer=layer: rf.receptive_field(layer, input_size=MOST // 4), InputError)


def test_patterns_of_taps() -> None:
    with bounded():
        refused(lambda: rf.receptive_field(rf.Conv(MOST, taps="corner")), InputError)


def test_regions_of_many_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "MAX_INTERVALS", 100)
    with bounded():
        for network in (rf.Conv(MOST, dilation=2), [rf.Conv(9, 100)] * 4):
            refused(lambda net=network: rf.receptive_field(net).holes(), InputError)


# --- networks -------------------------------------------------------------------------------


def test_blocks_that_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrf.network.MOST_NODES", 1000)

    def doubled(join: Callable[[Any], Any]) -> Any:
        block: Any = rf.Conv(3, padding=1)
        for _ in range(60):
            block = join(block)
        return rf.Sequential(block)

    cyclic: list[Any] = []
    cyclic.append(cyclic)
    refused(lambda: doubled(lambda b: rf.Residual(b, b)), InputError)
    refused(lambda: doubled(lambda b: [b, b]), InputError)
    refused(lambda: doubled(lambda b: rf.Parallel(b, b)), InputError)
    refused(lambda: rf.Sequential(cyclic), InputError)
    assert MOST_NODES > netfile.MAX_NODES


def test_as_many_nodes_as_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrf.network.MOST_NODES", 4)
    assert len(rf.Sequential(*[rf.Conv(3)] * 3).nodes) == 4  # with the input
    refused(lambda: rf.Sequential(*[rf.Conv(3)] * 4).nodes, InputError)


def test_deep_lists() -> None:
    block: Any = rf.Conv(3)
    for _ in range(50_000):
        block = [block]
    assert rf.receptive_field(rf.Sequential(block)).size == (3, 3)


def nested(levels: int, times: int, layers: list[Any]) -> dict[str, Any]:
    for _ in range(levels):
        layers = [{"type": "Sequential", "repeat": times, "layers": layers}]
    return {"layers": layers}


CONV = {"type": "Conv", "kernel": 3}

CONTENTS: dict[str, Any] = {
    "nested repeats": nested(5, 1000, [CONV]),
    "repeat": {"layers": [CONV | {"repeat": HUGE}]},
    "ndim": {"ndim": HUGE, "layers": []},
    "name": {"name": HUGE, "layers": []},
    "type": {"layers": [{"type": HUGE}]},
    "outputs": {"layers": [CONV], "outputs": [HUGE]},
    "merge": {"layers": [{"type": "Parallel", "branches": [[]], "merge": HUGE}]},
    "key": {"x" * 10**6: 1, "layers": []},
    "long type": {"layers": [{"type": "C" * 10**5}]},
    "controls": {"nodes": [CONV | {"name": EVIL, "inputs": [EVIL + "2"]}]},
    "unknown name": {
        "nodes": [*(CONV | {"name": f"n{i}", "inputs": ["input"]} for i in range(300)),
                  CONV | {"name": "q", "inputs": ["n" * 50_000]}]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_of_network_files(name: str) -> None:
    with bounded():
        refused(lambda: netfile.from_dict(CONTENTS[name]), NetworkFileError)


def test_nothing_repeated_is_nothing() -> None:
    assert len(netfile.from_dict(nested(1, 1_000_000, []))) == 0


FILES = {
    "deep.json": '{"layers":' + "[" * 50_000 + "]" * 50_000 + "}",
    "deep.toml": "layers = " + "[" * 50_000 + "]" * 50_000,
    "tables.toml": "[" + ".".join("a" * 1000) + "]",
    "digits.json": '{"layers": [{"type": "Conv", "kernel": ' + "9" * 10**6 + "}]}",
    "digits.toml": "ndim = " + "9" * 10**6,
    "hexadecimal.toml": "layers = [{type = 'Conv', kernel = 0x" + "f" * 10**5 + "}]",
    "infinite.json": '{"layers": [{"type": "Conv", "kernel": 3, "gain": 1e999}]}',
    "constants.json": '{"layers": [{"type": "Conv", "kernel": NaN}]}',
}


@pytest.mark.parametrize("name", FILES)
def test_network_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    with bounded():
        refused(lambda: rf.load(path), NetworkFileError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("suffix", [".toml", ".json", ".onnx", ".npz", ".db"])
def test_what_is_no_file(suffix: str, tmp_path: Path) -> None:
    """A pipe would be waited for, a device read for ever."""
    if suffix == ".onnx":
        pytest.importorskip("onnx")
    pipe, folder, device = (tmp_path / f"{name}{suffix}" for name in "pfd")
    os.mkfifo(pipe)
    folder.mkdir()
    device.symlink_to("/dev/zero")
    read = {".npz": rf.ERF.load, ".db": Store}.get(suffix, rf.load)
    for path in (pipe, folder, device, tmp_path / f"missing{suffix}", tmp_path / f"a\0{suffix}"):
        refused(lambda path=path: read(path))
        if suffix == ".db":
            refused(lambda path=path: rf.sweep([rf.Conv(3)], path, workers=0, progress=False)
                    if path.exists() else read(path))  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["plain(10**9)", "plain(1000000000)", "plain(" + "9" * 900 + ")", "plain(" + "(" * 400,
     "plain([1]*9)", "__import__('os').system('x')", "plain(*[1])", "plain(**{})", "unet(31, 2)",
     "plain(3, channels=10**9)", "plain(1e999)", "plain({[]: 2})", "\0", "", "x" * 10**6,
     "wavenet(1000000000)", "plain(depth=3, depth=4)", "plain(lambda: 1)"],
    ids=lambda t: t[:20],
)  # fmt: skip
def test_names_of_the_zoo(text: str) -> None:
    with bounded():
        refused(lambda: zoo.get(text), InputError)


# --- expressions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "'a' * 10**9", "[1] * 10**9", "-" * 400 + "1", "[" * 90 + "]" * 90,
     "__import__('os')", "().__class__", "binomial(10**9)", "1e400", "9" * 490, "1 << 99",
     "lambda: 1", "[i for i in [1]]", "f'{1}'", "(x := 3)", "a.b", "{}", "...", "1j", "b'a'",
     "0.1**-9999", "(-8)**0.5", "2**62 + 2**62", "1 / 0", "max()", "0x" + "f" * 400, "\0", ""],
    ids=lambda t: t[:20],
)  # fmt: skip
def test_expressions(text: str) -> None:
    with bounded():
        refused(lambda: Expression(text, "p")({}), InputError)


def test_wide_binomials_are_quick() -> None:
    """One product and one quotient a tap, of numbers that grow and fall by one tap at a time."""
    taps = Expression("binomial(10000)", "p")({})
    assert len(taps) == 10_000
    assert taps == taps[::-1]
    assert max(taps) == taps[5000] == 1


# --- saved fields ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("npz") / "e.npz"
    rf.erf(rf.Sequential(rf.Conv(3, padding=1), rf.Conv(3, padding=1))).save(path)
    with np.load(path) as data:
        return dict(data)


IMAGES = {
    "text": np.array("x"),
    "nan": np.full((5, 5), np.nan),
    "negative": -np.ones((5, 5)),
    "zero": np.zeros((5, 5)),
    "empty": np.zeros((0, 5)),
    "axes": np.ones(5) / 5,
    "complex": np.ones((5, 5), complex) / 25,
    "sum": np.ones((5, 5)),
    "integers": np.ones((5, 5), int),
}

META: dict[str, Any] = {
    "unit": [0],
    "origin": ["a", "b"],
    "node": "zz",
    "input": "zz",
    "input_sizes": {"zz": [3, 3]},
    "log_gain": "x",
    "lost_mass": [1],
    "ignore_global": "x",
    "inexact": 5,
    "plan": {"a": 1},
    "draws": "x",
    "network": [],
    "format": "x",
    "more": 1,
    "values": 1,
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_saved_fields(name: str, saved: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **(saved | {"image": IMAGES[name]}))
    refused(lambda: rf.ERF.load(tmp_path / "t.npz"), InputError)


@pytest.mark.parametrize("name", META)
def test_descriptions_of_saved_fields(name: str, saved: dict[str, Any], tmp_path: Path) -> None:
    meta = json.loads(str(saved["meta"])) | {name: META[name]}
    np.savez(tmp_path / "t.npz", **(saved | {"meta": np.array(json.dumps(meta))}))
    refused(lambda: rf.ERF.load(tmp_path / "t.npz"), InputError)
    np.savez(tmp_path / "t.npz", **(saved | {"meta": np.array("[" * 10**5 + "]" * 10**5)}))
    refused(lambda: rf.ERF.load(tmp_path / "t.npz"), InputError)


def member(shape: tuple[int, ...], zeros: int, path: Path, dtype: str = "<f8") -> None:
    """An NPZ file whose image says one shape and holds so many zeros."""
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("image.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            for _ in range(zeros >> 20):
                file.write(bytes(1 << 20))
        with archive.open("meta.npy", "w") as file:
            np.save(file, np.array("{}"))


def test_files_that_unpack_to_too_much(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    member((1 << 23,), 64 << 20, path)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    refused(lambda: rf.ERF.load(path, memory_limit=1 << 20), PlanError)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [(1 << 40, 1 << 10), (-5,), (3,), (1 << 17, 2)])
def test_headers_that_lie(shape: tuple[int, ...], tmp_path: Path) -> None:
    member(shape, 1 << 20, tmp_path / "t.npz")
    with bounded():
        refused(lambda: rf.ERF.load(tmp_path / "t.npz"), InputError)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (touched,)

    path = tmp_path / "p.npz"
    np.savez(path, image=np.array([Evil()], dtype=object), meta=np.array("{}"))
    refused(lambda: rf.ERF.load(path), InputError)
    assert not touched.exists()


# --- stores ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s.db"
    networks = [rf.Sequential(rf.Conv(3), ndim=1)]
    rf.sweep(networks, path, workers=0, progress=False, profiles=True, images=True).close()
    return path


@pytest.mark.parametrize(
    "sql",
    ["DROP TABLE points", "ATTACH 'x.db' AS y", "INSERT INTO points VALUES (1, 2, 3, 4)",
     "VACUUM INTO 'z.db'", "SELECT 1; DROP TABLE points", "CREATE TEMP TABLE t(x)", "", "\0",
     "SELECT load_extension('x')", "SELECT writefile('a', 'b')", "UPDATE results SET ndim = 9",
     "SELECT " + "(" * 5000 + "1" + ")" * 5000, "PRAGMA query_only = OFF; DROP TABLE points"],
    ids=lambda t: t[:30],
)  # fmt: skip
def test_queries_only_read(
    sql: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = store.read_bytes()
    with Store(store) as found:
        refused(lambda: found.query(sql), InputError)
        found.rows("SELECT * FROM sweep")
    assert store.read_bytes() == before
    assert not list(tmp_path.iterdir())


DAMAGES = [
    "image = zeroblob(100)",
    "image = 'text'",
    "profiles = zeroblob(9)",
    "dtype = 'O'",
    "dtype = 5",
    "shape_0 = -1",
    "shape_0 = 'x'",
    "shape_0 = 1000000000000",
    "shape_0 = 5",
]


def changed(store: Path, folder: Path, change: str, *values: Any) -> Store:
    path = folder / "d.db"
    path.write_bytes(store.read_bytes())
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE results SET {change}", values)
    connection.commit()
    connection.close()
    return Store(path)


@pytest.mark.parametrize("change", DAMAGES)
def test_damaged_results(change: str, store: Path, tmp_path: Path) -> None:
    with changed(store, tmp_path, change) as found, bounded():
        ((key,),) = found.rows("SELECT key FROM results")
        for read in (found.image, found.profiles):
            try:
                read(key)
            except (StoreError, PlanError):
                continue
            assert change.split()[0] not in (read.__name__, "dtype", "shape_0")


def test_images_that_unpack_to_too_much(store: Path, tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(300 << 20), 1)
    with changed(store, tmp_path, "image = ?", bomb) as found:
        ((key,),) = found.rows("SELECT key FROM results")
        with bounded():
            refused(lambda: found.image(key), StoreError)


# --- names ----------------------------------------------------------------------------------


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    nodes = [
        CONV | {"name": EVIL, "padding": 1, "inputs": ["input"]},
        CONV | {"name": EVIL + "2", "padding": 1, "inputs": [EVIL]},
    ]
    content = {"nodes": nodes, "name": EVIL, "endpoints": {EVIL + "end": EVIL}}
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("words", [["rf"], ["erf"], ["erf", "--layers", "all"], ["advice"],
                                   ["erf", "--plan"], ["rf", "--json"], ["check"]],
                         ids=" ".join)  # fmt: skip
def test_names_do_not_steer_terminals(
    words: list[str], evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], str(evil), *words[1:]]) == 0
    told = capsys.readouterr()
    assert "red" in told.out
    assert all(c.isprintable() for c in (told.out + told.err).replace("\n", ""))


@pytest.mark.parametrize("kind", ["erf", "profile", "growth", "features", "graph", "stack"])
def test_names_are_drawn_as_text(kind: str, evil: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "f.svg"
    words = ["plot", str(evil), "--kind", kind, "-o", str(path), "--input-size", "16"]
    assert main(words) == 0
    assert "<script" not in path.read_text(encoding="utf-8")


def test_names_do_not_leave_html(evil: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["report", str(evil), "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert page.count("</script>") == page.count("<script")


# --- the command line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["rf", "\x1b[2J"], ["rf", "plain(10**9)"], ["rf", "__import__('os').system('x')"],
     ["rf", "plain(3)", "--input-size", "9" * 30], ["rf", "plain(3)", "--output", EVIL],
     ["erf", "plain(3)", "--unit", "9" * 40], ["erf", "plain(3)", "--unit", "9" * 19],
     ["erf", "plain(3)", "--memory-limit", "1"], ["erf", "plain(3)", "--tol", "nan"],
     ["erf", "plain(3)", "--workers", "99999999999"], ["rf", "sys:exit"], ["rf", "json:dumps"],
     ["rf", "no_such_module:x"], ["design", "--target-erf", "nan"], ["sweep", "--store", "a\0b"],
     ["design", "--target-erf", "60", "--stride", "9" * 20], ["rf", "missing.onnx"]],
    ids=lambda w: " ".join(w)[:40],
)  # fmt: skip
def test_the_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err[:-1].isprintable()
    assert "Traceback" not in told.err
