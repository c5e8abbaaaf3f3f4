"""The wheel, the imports, and the walls between the rooms."""

from __future__ import annotations

import ast
import email
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = PROJECT["version"]

SOURCES = (".py", ".cu", ".cuh", ".css", ".js")
OPTIONAL = {"numba", "scipy", "onnx", "torch", "matplotlib", "cupy"}


def sources(*folders: str) -> Iterator[Path]:
    """Python and CUDA sources, and parts of the report's page, relative to the checkout."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SOURCES and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT)


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a process that must succeed; where it does not, the test shows what it printed."""
    done = subprocess.run(
        [*map(str, command)], check=False, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, *options, "-c", code, cwd=ROOT)


# --- the wheel ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel of a copy of the tree, so that no old build folder has a part in it."""
    import shutil

    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("out")
    for name in ("fastrf", "kernels", "tests", "bench"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    run(*command, "--outdir", out, tree)
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_tree_and_nothing_else(wheel):
    info = f"fastrf-{VERSION}.dist-info"
    expected = {"fastrf/py.typed", f"{info}/licenses/LICENSE"}
    expected |= {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL")}
    expected |= {f"{info}/{name}" for name in ("entry_points.txt", "top_level.txt")}
    expected |= {path.as_posix() for path in sources("fastrf")}
    expected |= {f"fastrf/{path.as_posix()}" for path in sources("kernels")}
    assert set(wheel.namelist()) == expected


def test_wheel_has_the_sources_unchanged(wheel):
    for path in [*sources("fastrf"), *sources("kernels")]:
        inside = path.as_posix() if path.parts[0] == "fastrf" else f"fastrf/{path.as_posix()}"
        assert wheel.read(inside) == (ROOT / path).read_bytes(), inside
    assert b"MIT License" in wheel.read(f"fastrf-{VERSION}.dist-info/licenses/LICENSE")


def test_wheel_is_pure_and_complete(wheel, tmp_path):
    wheel.extractall(tmp_path)
    assert "Root-Is-Purelib: true" in wheel.read(f"fastrf-{VERSION}.dist-info/WHEEL").decode()
    # Only the standard library and what lies beside the wheel: -S hides this environment's own
    # (editable) fastrf, its dependencies are added by hand. Two small kernels are compiled.
    code = (
        "import sys\n"
        f"sys.path[:0] = [{str(tmp_path)!r}]\n"
        f"sys.path += [{sysconfig.get_path('purelib')!r}]\n"
        "import fastrf, fastrf.kernels\n"
        f"assert fastrf.kernels.__file__.startswith({str(tmp_path)!r}), fastrf.kernels.__file__\n"
        "from fastrf.cli import main\n"
        "sys.exit(main(['erf', 'plain(3)', '--method', 'factored']))\n"
    )
    run(sys.executable, "-S", "-c", code, cwd=tmp_path)


def test_metadata(wheel):
    text = wheel.read(f"fastrf-{VERSION}.dist-info/METADATA").decode()
    metadata = email.message_from_string(text)
    assert metadata["Name"] == "fastrf"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    extras = {"onnx", "torch", "cuda12", "cuda13", "plot", "dask", "data", "fuzz", "test", "dev"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    names = {re.match(r"[\w-]+", line)[0] for line in needed}
    assert names == {"numpy", "numba", "scipy", "cyclopts", "rich"}
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    entry = wheel.read(f"fastrf-{VERSION}.dist-info/entry_points.txt").decode()
    assert entry.split() == ["[console_scripts]", "fastrf", "=", "fastrf.cli:main"]


def test_tests_on_cuda_12_bring_no_newer_compiler():
    """CuPy loads the newest NVRTC that is installed, of whatever CUDA CuPy itself is for."""
    extras = PROJECT["optional-dependencies"]
    for line in (*extras["cuda12"], *extras["test"]):
        assert not re.match(r"nvidia-cuda-(nvrtc|runtime)(?!-cu12)", line), line


def test_cuda_extras_bring_what_engines_call():
    """CuPy's wheels hold none of CUDA's libraries; from 14 on they find those of other wheels."""
    extras = PROJECT["optional-dependencies"]
    for extra in ("cuda12", "cuda13"):
        assert any(re.fullmatch(r"cupy-cuda\d+x>=14", line) for line in extras[extra])
        libraries = "cuda-nvrtc", "cuda-runtime", "cublas", "cufft", "cusolver", "cusparse"
        for library in libraries:
            assert any(line.startswith(f"nvidia-{library}") for line in extras[extra]), library


def test_cuda_extras_do_without_the_toolkit():
    for extra in ("cuda12", "cuda13"):
        assert not any("[" in line for line in PROJECT["optional-dependencies"][extra])


def test_version_is_said_once_and_the_same():
    import fastrf

    assert fastrf.__version__ == VERSION
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {VERSION}" in changelog


def test_tests_run_with_what_is_pinned():
    """Every pinned distribution that is installed here has the pinned version."""
    from importlib import metadata

    from packaging.version import Version

    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    for line in wanted:
        name = re.match(r"[\w-]+", line)[0]
        if name != "fastrf":
            assert name in pins, name
            assert Version(metadata.version(name)).release == Version(pins[name]).release, name


# --- imports --------------------------------------------------------------------------------


def test_import_is_quick_and_light():
    code = (
        "import sys; import fastrf\n"
        f"heavy = ({OPTIONAL!r} | {{'numpy', 'rich', 'cyclopts'}}) & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    python(code)
    # The promise is 100 ms. The least of five readings is what the import costs; the others hold
    # what else the machine did.
    readings = []
    for _ in range(5):
        report = python("import fastrf", "-X", "importtime").stderr
        (line,) = [line for line in report.splitlines() if line.endswith("| fastrf")]
        readings.append(int(line.split("|")[1]) / 1000)
    assert min(readings) < 100


def test_public_names_do_not_depend_on_what_was_imported_before():
    """Importing the module fastrf.erf must not put it in the place of the function rf.erf."""
    python(
        "import fastrf as rf, fastrf.erf, fastrf.check\n"
        "from fastrf import erf, check\n"
        "import types\n"
        "for verb in (rf.erf, rf.check, erf, check):\n"
        "    assert isinstance(verb, types.FunctionType), verb\n"
    )


def test_every_public_name_is_there():
    python("import fastrf\nfor name in fastrf.__all__: getattr(fastrf, name)")


def test_analytic_loads_no_engine():
    modules = [
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path in sources("fastrf/analytic")
    ]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "bad = [m for m in sys.modules if m.startswith(('fastrf.engine', 'fastrf.kernels',"
        " 'fastrf.erf', 'numba'))]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    python(code)


# --- rooms ----------------------------------------------------------------------------------


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it, those for typing left out."""
    package = list(path.parent.parts)
    if package[0] == "kernels":
        package.insert(0, "fastrf")
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # "from fastrf import erf" imports fastrf.erf as far as a wall is concerned.
            found.update(f"{module}.{alias.name}" for alias in node.names)

    Visitor().visit(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    return found


def reaches(names: set[str], rooms: tuple[str, ...]) -> list[str]:
    return sorted(n for n in names if any(n == r or n.startswith(f"{r}.") for r in rooms))


OUTER = (
    "fastrf.erf", "fastrf.check", "fastrf.cli", "fastrf.plot", "fastrf.report", "fastrf.tiling",
    "fastrf.empirical", "fastrf.comparison", "fastrf.advice", "fastrf.design", "fastrf.sweep",
)  # fmt: skip
CORE = (
    "fastrf/layers", "fastrf/layers.py", "fastrf/maps.py", "fastrf/network.py", "fastrf/lowering",
    "fastrf/lowering.py", "fastrf/netfile.py", "fastrf/zoo", "fastrf/importers", "fastrf/errors.py",
)  # fmt: skip
COMPUTING = ("fastrf.engine", "fastrf.kernels", *OUTER)
ANALYTIC_BUT_BOUNDS = (
    *(
        f"fastrf.analytic.{path.stem}"
        for path in sources("fastrf/analytic")
        if path.stem not in ("__init__", "bounds")
    ),
    *OUTER,
)

WALLS = [
    # files, files left out, what they may not import
    (("fastrf/analytic",), (), COMPUTING),
    (CORE, (), ("fastrf.analytic", "fastrf.metrics", "fastrf.device", *COMPUTING)),
    # The planner reads moments and bounds; an engine may choose its window by a bound, and no more.
    (("fastrf/engine",), ("fastrf/engine/plan.py",), ANALYTIC_BUT_BOUNDS),
    (("fastrf/engine/plan.py",), (), ("fastrf.analytic.geometry", *OUTER)),
    # What is measured owes nothing to what it is held against.
    (("fastrf/empirical",), (), ("fastrf.engine", "fastrf.kernels", "fastrf.analytic")),
    (
        ("fastrf/metrics", "fastrf/images.py", "fastrf/arrays.py"),
        (),
        ("fastrf.analytic", *COMPUTING),
    ),
    (("fastrf", "kernels"), ("fastrf/device.py", "kernels/cuda"), ("cupy",)),
]


def files(rooms: tuple[str, ...], without: tuple[str, ...]) -> list[Path]:
    def lies_in(path: Path, places: tuple[str, ...]) -> bool:
        name = path.as_posix()
        return any(name == place or name.startswith(f"{place}/") for place in places)

    modules = [path for path in sources("fastrf", "kernels") if path.suffix == ".py"]
    return [path for path in modules if lies_in(path, rooms) and not lies_in(path, without)]


@pytest.mark.parametrize(
    ("rooms", "without", "banned"), WALLS, ids=[f"{w[0][0]} without {w[2][0]}" for w in WALLS]
)
def test_walls(rooms, without, banned):
    chosen = files(rooms, without)
    assert chosen
    broken = {str(p): found for p in chosen if (found := reaches(imported(p), banned))}
    assert not broken


def test_kernels_import_nothing_else_of_fastrf():
    for path in files(("kernels",), ()):
        own = reaches(imported(path), ("fastrf",))
        assert not [name for name in own if not name.startswith("fastrf.kernels")], path


@pytest.mark.parametrize("oracle", ["naive.py", "torch_oracle.py"])
def test_oracles_share_no_code_with_what_they_check(oracle):
    top = {name.partition(".")[0] for name in imported(Path("tests") / oracle)}
    allowed = {"naive.py": {"numpy"}, "torch_oracle.py": {"numpy", "torch"}}[oracle]
    assert top - set(sys.stdlib_module_names) <= allowed


def test_walls_see_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    folder = tmp_path / "fastrf" / "analytic"
    folder.mkdir(parents=True)
    lines = [
        "import fastrf.engine.plan",
        "from fastrf import erf",
        "from fastrf.kernels import load",
        "from ..engine import direct",
        "from .. import check",
        "def f():\n    import fastrf.engine",
    ]
    for line in lines:
        (folder / "spy.py").write_text(line)
        assert reaches(imported(Path("fastrf/analytic/spy.py")), COMPUTING), line
    (folder / "spy.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastrf.erf import ERF\n"
        "from fastrf.engineering import x\nfrom .geometry import y\n"
    )
    assert not reaches(imported(Path("fastrf/analytic/spy.py")), COMPUTING)


# --- the README -----------------------------------------------------------------------------


def test_python_in_the_readme_prints_what_it_says():
    import doctest

    found = doctest.testfile(str(ROOT / "README.md"), module_relative=False, encoding="utf-8")
    assert found.attempted > 0
    assert found.failed == 0


def test_readme_has_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    main, tests = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    assert "fastrf check resnet50" in main
    assert "pytest" in tests
