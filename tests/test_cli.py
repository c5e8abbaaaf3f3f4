"""The command line: results, JSON, exit codes, and one line for every bad input."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
import sys
import time
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastrf as rf
from fastrf import cli, kernels
from fastrf.check import CheckReport
from fastrf.cli import info, options, printing, progress
from fastrf.erf import ERF
from fastrf.erf import erf as field_of

VISION = find_spec("torchvision") is not None
LIGHT = "backend/test/data/light/light_resnet50.onnx"


def run(capsys, *arguments):
    """Exit code, standard output and standard error of one run in this process."""
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def document(capsys, *arguments):
    """The JSON document that a run prints; NaN and Infinity are no JSON."""
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err

    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    return json.loads(out, parse_constant=refuse)


def process(*arguments, **options):
    code = "import sys; from fastrf.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


# --- rf -------------------------------------------------------------------------------------


def test_rf_json_has_the_attributes_of_the_result(capsys):
    found = document(capsys, "rf", "resnet50", "--input-size", "224")
    field = rf.receptive_field(rf.zoo.resnet50(), input_size=224)
    assert found["node"] == field.node == "layer4.2.relu_2"
    for name in ("size", "stride", "padding", "map_size", "input_size", "period"):
        assert found[name] == list(getattr(field, name)), name
    assert found["aligned"] is True
    assert found["fingerprint"] == field.network.fingerprint
    assert len(found["layers"]) == len(field.layers)
    for row, expected in zip(found["layers"], field.layers, strict=True):
        assert list(row) == list(expected._fields)
        assert (row["name"], row["op"]) == (expected.name, expected.op)
        assert row["size"] == list(expected.size)


def test_rf_json_spells_exact_numbers(capsys):
    found = document(capsys, "rf", "resnet50")
    assert found["start"] == [0.5, 0.5]
    assert found["center"] == [0, 0]
    assert [Fraction(v) for v in found["dang"]["start"]] == [Fraction(1, 2)] * 2
    assert found["distill"] == {
        "r": [427, 427], "S": [32, 32], "P": [213, 213], "u": [-213, -213], "v": [213, 213],
    }  # fmt: skip
    # Behind global pooling nothing is bounded.
    last = found["layers"][-1]
    assert last["size"] == [None, None]
    assert last["unbounded"] == [True, True]


def test_rf_table(capsys):
    code, out, err = run(capsys, "rf", "resnet50", "--input-size", "224")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "resnet50: 174 layers, input 224 × 224"
    header = ["name", "op", "shape", "size", "stride", "padding", "start", "center"]
    assert lines[2].split() == header
    assert lines[3].split() == ["conv1", "conv", "112", "7", "2", "3", "1/2", "0"]
    facts = dict(line.split(maxsplit=1) for line in lines[-9:])
    assert facts["output"] == "layer4.2.relu_2 on input"
    assert facts["size"] == "427"
    assert facts["aligned"] == "yes"


def test_rf_table_per_axis(capsys, tmp_path):
    path = tmp_path / "flat.toml"
    path.write_text('layers = [{type = "Conv", kernel = [3, 5], stride = [1, 2]}]')
    _, out, _ = run(capsys, "rf", str(path), "--input-size", "10x21")
    cells = ["conv1", "conv", "8×9", "3×5", "1×2", "0", "3/2,5/2", "1,2"]
    assert out.splitlines()[3].split() == cells


@pytest.mark.parametrize(
    ("convention", "absent"), [("distill", {"start"}), ("dang", {"padding", "center"})]
)
def test_rf_convention(capsys, convention, absent):
    _, out, _ = run(capsys, "rf", "resnet18", "--convention", convention)
    columns = {"name", "op", "size", "stride", "padding", "start", "center"}
    assert set(out.splitlines()[2].split()) == columns - absent
    assert not absent & {line.split(maxsplit=1)[0] for line in out.splitlines()[-8:] if line}


def test_rf_says_what_is_misaligned_and_unbounded(capsys):
    _, out, _ = run(capsys, "rf", "inception_v3", "--output", "avgpool")
    assert "unbounded by  avgpool" in out
    found = document(capsys, "rf", "wavenet(1)")
    assert found["aligned"] is False
    assert {"node", "axis", "paths"} == set(found["misaligned"][0])


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize(
    "arguments",
    [
        ("rf", "inception_v3", "--input-size", "299,320"),
        ("rf", "unet(4, 2)"),
        ("erf", "resnet18", "--input-size", "64"),
        ("erf", "plain(4)", "--layers", "all"),
        ("check", "plain(4)"),
        ("info",),
    ],
    ids=" ".join,
)
def test_lines_fit_the_terminal(capsys, monkeypatch, width, arguments):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    tables = [line for line in out.splitlines() if not line.startswith("not compared")]
    assert max(map(len, tables)) <= width


def test_columns_are_left_out_only_where_they_do_not_fit(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, err = run(capsys, "rf", "resnet50", "--input-size", "224")
    assert "center" not in out.splitlines()[2]
    assert "left out to fit 80 characters: center" in err
    monkeypatch.setenv("COLUMNS", "120")
    _, out, err = run(capsys, "rf", "resnet50", "--input-size", "224")
    assert "center" in out.splitlines()[2]
    assert err == ""


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_shortened_names_keep_both_ends(width):
    found = printing.shortened("layer4.2.relu_2", width)
    assert len(found) == width
    head, tail = found.split("…")
    assert "layer4.2.relu_2".startswith(head)
    assert "layer4.2.relu_2".endswith(tail)


# --- networks -------------------------------------------------------------------------------


def test_network_files(capsys, tmp_path):
    net = rf.zoo.resnet18()
    expected = document(capsys, "rf", "resnet18")
    for suffix in ("toml", "json"):
        path = tmp_path / f"net.{suffix}"
        rf.save(net, path)
        found = document(capsys, "rf", str(path))
        assert found["fingerprint"] == expected["fingerprint"]
        assert found["layers"] == expected["layers"]


def test_onnx_model(capsys):
    onnx = pytest.importorskip("onnx")
    path = Path(onnx.__file__).parent / LIGHT
    found = document(capsys, "rf", str(path))
    sizes = [row["size"][0] for row in found["layers"]]
    # ResNet-50's last map is in the model, under the exporter's own names.
    assert 427 in sizes
    code, out, _ = run(capsys, "erf", str(path), "--input-size", "224")
    assert code == 0
    assert out.startswith("network")


def test_unknown_operators_of_an_onnx_model(capsys, tmp_path):
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("NoSuchOp", ["c"], ["y"], name="odd", domain="elsewhere"),
    ]
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 9])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 7, 7])
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 3, 3], [0.0] * 108)
    graph = helper.make_graph(nodes, "g", [source], [output], [weights])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    code, out, err = run(capsys, "rf", str(path))
    assert (code, out) == (2, "")
    assert "NoSuchOp" in err
    assert "unknown" in err
    found = document(capsys, "rf", str(path), "--unknown", "identity")
    assert found["size"] == [3, 3]


# --- erf ------------------------------------------------------------------------------------


def test_erf_json_has_the_attributes_of_the_result(capsys):
    found = document(capsys, "erf", "resnet18", "--input-size", "64,96", "--unit", "1,2")
    field = field_of(rf.zoo.resnet18(), unit=(1, 2), input_size=(64, 96))
    assert found["unit"] == [1, 2]
    assert found["origin"] == list(field.origin)
    assert found["log_gain"] == field.log_gain
    assert found["std"] == list(field.std)
    assert found["luo_size"]["amplitude"] == field.luo_size()
    assert found["area_ratio"]["0.5"] == field.area_ratio(0.5)
    assert found["plan"]["method"] == "direct"


def test_erf_figures(capsys):
    code, out, err = run(capsys, "erf", "plain(12)")
    assert (code, err) == (0, "")
    facts = dict(line.split("  ", maxsplit=1) for line in out.splitlines())
    facts = {name: value.strip() for name, value in facts.items()}
    # Luo's eq. 11: σ = √(n(k²−1)/12) = √8.
    assert facts["σ"] == "(2.82843, 2.82843) pixels"
    assert facts["TRF"] == "25 × 25 pixels"
    assert facts["image"] == "25 × 25 pixels from (-12, -12)"
    assert facts["exact"] == "yes"
    assert facts["lost mass"] == "0"


def test_erf_kurtosis_without_spread_is_undefined(capsys, tmp_path):
    path = tmp_path / "line.toml"
    path.write_text('layers = [{type = "Conv", kernel = [1, 3]}]')
    # Of the uniform distribution on three points: (1/3·2)/(2/3)² − 3 = −3/2.
    assert document(capsys, "erf", str(path))["kurtosis"] == [None, pytest.approx(-1.5)]
    _, out, _ = run(capsys, "erf", str(path))
    assert "undefined" in out


@pytest.mark.parametrize("unit", ["-3,4", "-3x4"])
def test_erf_unit_on_the_unbounded_grid_may_be_negative(capsys, unit):
    assert document(capsys, "erf", "plain(2)", "--unit", unit)["mean"] == [-3, 4]


def test_erf_options_reach_the_engine(capsys):
    found = document(
        capsys,
        "erf", "plain(400)", "--dtype", "float32", "--method", "direct", "--workers", "1",
        "--accuracy", "relative", "--tail", "1e-3", "--memory-limit", "1G", "--device", "cpu",
    )  # fmt: skip
    assert found["dtype"] == "float32"
    assert found["plan"]["method"] == "direct"
    assert found["plan"]["workers"] == 1
    assert found["plan"]["tail"] == 1e-3
    assert 0 < found["dropped_mass"] <= 1e-3


def test_erf_of_all_layers(capsys):
    found = document(capsys, "erf", "plain(5)", "--layers", "all")
    assert found["network"] == "plain"
    assert [d["node"] for d in found["layers"]] == [f"conv{i}" for i in range(1, 6)]
    # Variances add: (k² − 1)/12 = 2/3 per layer. Rounding: a few u per layer.
    variances = [d["std"][0] ** 2 for d in found["layers"]]
    assert variances == pytest.approx([2 / 3 * n for n in range(1, 6)], rel=1e-14)
    code, out, _ = run(capsys, "erf", "plain(5)", "--layers", "all")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == [f"conv{i}" for i in range(1, 6)]


def test_erf_plan_computes_nothing(capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["fastrf.erf"], "erf", None)
    found = document(capsys, "erf", "resnet50", "--input-size", "224", "--plan")
    assert (found["method"], found["unit"]) == ("direct", [3, 3])
    code, out, _ = run(capsys, "erf", "plain(3)", "--plan")
    assert code == 0
    assert out.startswith("Plan: unit (0, 0) of 'conv3'")


def test_erf_files(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    image, figure = tmp_path / "field.npz", tmp_path / "field.png"
    code, out, err = run(
        capsys, "erf", "plain(6)", "--save", str(image), "--plot", str(figure), "--json"
    )
    assert code == 0
    json.loads(out)
    assert err == f"fastrf: wrote {image}\nfastrf: wrote {figure}\n"
    np.testing.assert_array_equal(ERF.load(image).image, field_of(rf.zoo.plain(6)).image)
    assert figure.read_bytes().startswith(b"\x89PNG")


# --- plot -----------------------------------------------------------------------------------


PLOTS = [
    ("plain(4)", ""),
    ("plain(4)", "--kind erf --scale log --width column --theme dark"),
    ("plain(4)", "--kind profile --unit 0,3 --input-size 9"),
    ("plain(3,ndim=3)", "--kind sections"),
    ("plain(4)", "--kind growth --input-size 12x10"),
    ("plain(4)", "--kind features --input-size 12 --layers conv1,conv3 --unit 1"),
    ("plain(4,ndim=3)", "--kind features_3d --input-size 12 --axes 0,2"),
    ("resnet18", "--kind graph --depth 1"),
    ("plain(3)", "--kind graph --with-erf"),
    ("plain(4)", "--kind stack --axis 0 --align index --width 5"),
]


@pytest.mark.parametrize(("net", "options"), PLOTS, ids=[" ".join(p) for p in PLOTS])
def test_plot(capsys, tmp_path, net, options):
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.svg"
    code, out, err = run(capsys, "plot", net, "-o", str(path), *options.split())
    assert (code, out, err) == (0, "", f"fastrf: wrote {path}\n")
    assert path.read_bytes().startswith(b"<?xml")


def test_plot_over_a_picture(capsys, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    picture, path = tmp_path / "input.png", tmp_path / "figure.png"
    image.imsave(picture, np.zeros((9, 12)))
    options = ("--input-size", "9x12", "--background", str(picture), "--width", "4", "--dpi", "50")
    assert run(capsys, "plot", "plain(2)", "--file", str(path), *options)[0] == 0
    assert image.imread(path).shape[1] == 200


# --- check ----------------------------------------------------------------------------------


def test_check_agrees(capsys):
    code, out, err = run(capsys, "check", "resnet50")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith("comparisons agree")
    assert " NO " not in out


def test_check_json(capsys):
    found = document(capsys, "check", "plain(4)", "--input-size", "16")
    assert found["ok"] is True
    grids = {row["grid"] for row in found["rows"]}
    assert grids == {"unbounded", "16×16"}


def test_check_finds_a_planted_fault(capsys, monkeypatch):
    loaded = kernels.load("cpu")
    right = loaded.transposed_box

    def shifted(y, k, stride, dilation, lo, out):
        right(y, k, stride, dilation, lo + 1, out)

    monkeypatch.setattr(loaded, "transposed_box", shifted)
    code, out, _ = run(capsys, "check", "resnet50")
    assert code == 1
    assert "disagree" in out.splitlines()[-1]
    assert "expected" in out
    code, out, _ = run(capsys, "check", "resnet50", "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_check_that_can_compare_nothing_has_neither_passed_nor_failed(capsys, more):
    code, out, err = run(capsys, "check", "plain(2)", "--memory-limit", "100", *more)
    assert code == 2
    assert err.startswith("fastrf: nothing was compared")
    assert "agree" not in out
    if more:
        found = json.loads(out)
        assert (found["ok"], found["rows"]) == (False, [])
        assert found["skipped"]
    else:
        assert "not compared: cpu, direct" in out


def test_a_report_whose_check_compares_nothing(capsys, monkeypatch, tmp_path):
    empty = CheckReport("plain", "conv2", (), ("cpu: no memory",))
    assert not empty
    monkeypatch.setattr(import_module("fastrf.report.document"), "check", lambda *_, **__: empty)
    file = tmp_path / "page.html"
    code, _, err = run(capsys, "report", "plain(2)", "-o", str(file))
    assert code == 0
    assert "could compare nothing" in err
    assert "disagree" not in err
    assert "Nothing could be compared" in file.read_text(encoding="utf-8")


# --- info, help -----------------------------------------------------------------------------


def test_info(capsys):
    found = document(capsys, "info")
    assert found["fastrf"] == rf.__version__
    assert found["packages"]["numpy"] == np.__version__
    assert found["devices"] == ["cpu"]
    assert found["engines"][-1] == "channelwise"  # which needs weights
    for engine in found["engines"][:-1]:
        assert document(capsys, "erf", "plain(3)", "--method", engine)["plan"]["method"] == engine
    assert found["cores"] >= 1
    _, out, _ = run(capsys, "info")
    for name, version in found["packages"].items():
        (line,) = [line for line in out.splitlines() if line.split()[0] == name]
        assert (version or f"fastrf[{info.OPTIONAL.get(name)}]") in line


def test_version_and_help(capsys):
    assert run(capsys, "--version") == (0, f"{rf.__version__}\n", "")
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    assert "fastrf check resnet50" in out
    for command in ("rf", "erf", "check", "bench", "info"):
        code, out, err = run(capsys, command, "--help")
        assert (code, err) == (0, "")
        assert "--json" in out


def test_the_help_of_a_command_is_about_it_alone(capsys):
    for command in cli.COMMANDS:
        help_ = run(capsys, command, "--help")[1]
        takes_net = "NET" in help_.partition("\n\n")[0].split()
        assert ("NET is" in help_) == takes_net, command
        examples = [x for x in help_.splitlines() if x.startswith("  fastrf ")]
        assert all(x.split()[1] == command for x in examples)
        assert len(examples) == sum(x.split()[1:2] == [command] for x in cli._EXAMPLES.split("\n"))


def test_the_module_is_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fastrf", "rf", "plain(3)", "--json"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module("fastrf", run_name="__main__")
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out)["network"] == "plain"


def test_every_example_of_the_help_runs(capsys, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("matplotlib")
    import onnx

    monkeypatch.chdir(tmp_path)
    Path("model.onnx").symlink_to(Path(onnx.__file__).parent / LIGHT)
    import shlex

    examples = cli._EXAMPLES.strip().splitlines()
    for example in examples:
        name, *arguments = shlex.split(example)
        assert name == "fastrf"
        if "bench" in arguments:
            continue  # tests/test_benchmark.py runs it, with less work
        if "plain(1000, 3)" in arguments:  # the same with less work
            arguments[arguments.index("plain(1000, 3)")] = "plain(10, 3)"
        if any(word.startswith("torchvision.") for word in arguments) and not VISION:
            continue  # fastrf does not need it; tests/test_cli_empirical.py runs own modules
        assert run(capsys, *arguments)[0] == 0, example


# --- bad input ------------------------------------------------------------------------------

FILES = {
    "kernel.toml": 'layers = [{type = "Conv", kernel = 0}]',
    "stride.toml": 'layers = [{type = "Conv", kernel = 3, stride = -1}]',
    "typo.toml": 'layers = [{type = "Conv", kernal = 3}]',
    "syntax.toml": 'layers = [{type = "Conv", kernel = 3',
    "syntax.json": '{"layers": [',
    "binary.json": "\x00\x01",
    "shrinks.toml": 'layers = [{type = "Conv", kernel = 9}, {type = "Conv", kernel = 9}]',
    "cycle.json": json.dumps(
        {
            "nodes": [
                {"name": "a", "type": "Add", "inputs": ["input", "b"]},
                {"name": "b", "type": "Conv", "kernel": 3, "inputs": ["a"]},
            ]
        }
    ),
    "empty.onnx": "",
    "text.onnx": "this is no model",
    "notes.txt": "layers",
}

BAD = [
    ("rf kernel.toml", "kernel=0"),
    ("rf stride.toml", "stride=-1"),
    ("rf typo.toml", "kernal"),
    ("rf syntax.toml", "syntax.toml"),
    ("rf syntax.json", "syntax.json"),
    ("rf binary.json", "binary.json"),
    ("rf cycle.json", "cycle"),
    ("rf shrinks.toml --input-size 12", "conv2"),
    ("erf shrinks.toml --input-size 12", "conv2"),
    ("check shrinks.toml --input-size 12", "conv2"),
    ("rf vgg16 --input-size 16", "input_size"),
    ("erf resnet50 --unit foo", "'foo'"),
    ("erf resnet50 --unit 1.5,2", "1.5,2"),
    ("erf resnet50 --unit 7,0 --input-size 224", "(7, 7)"),
    ("erf resnet50 --unit -1,0 --input-size 224", "-1"),
    ("erf resnet50 --unit 1,2,3", "(1, 2, 3)"),
    ("check resnet50 --unit 9,9 --input-size 224", "(9, 9)"),
    ("rf resnet50 --output nowhere", "nowhere"),
    ("rf resnet50 --input nowhere", "nowhere"),
    ("rf resnet50 --input-size 0", "0"),
    ("rf resnet50 --input-size -5", "-5"),
    ("rf resnet50 --input-size 224,", "224,"),
    ("rf resnet50 --input-size 2e3", "2e3"),
    ("rf resnet50 --input-size 1,2,3", "(1, 2, 3)"),
    ("rf resnet50 --unknown identity", "--unknown"),
    ("rf resnet5", "resnet5"),
    ("rf plain(0)", "0"),
    ("rf plain(", "plain("),
    ("rf __import__('os')", "__import__"),
    ("rf absent.toml", "absent.toml"),
    ("rf absent.json", "absent.json"),
    ("rf absent.onnx", "absent.onnx"),
    ("rf empty.onnx", "empty.onnx"),
    ("rf text.onnx", "text.onnx"),
    ("rf cut.onnx", "cut.onnx"),
    ("rf notes.txt", ".toml"),
    ("rf package.module:callable", "no module 'package'"),
    ("rf resnet50 --convention third", "third"),
    ("rf resnet50 extra", "extra"),
    ("rf resnet50 --nonsense", "--nonsense"),
    ("rf", "NET"),
    ("nonsense", "nonsense"),
    ("erf resnet50 --tol x", "--tol"),
    ("erf resnet50 --tol 2", "2"),
    ("erf resnet50 --tail 0", "tail"),
    ("erf resnet50 --dtype int8", "int8"),
    ("erf resnet50 --method magic", "magic"),
    ("erf resnet50 --accuracy high", "high"),
    ("erf resnet50 --device tpu", "tpu"),
    ("erf resnet50 --device cuda", "cuda"),
    ("erf resnet50 --workers 0", "workers"),
    ("erf resnet50 --memory-limit lots", "lots"),
    ("erf resnet50 --memory-limit 1K", "memory_limit"),
    ("erf resnet50 --layers some", "some"),
    ("erf resnet50 --layers all --plot x.png", "--plot"),
    ("erf resnet50 --plot x.gif", ".gif"),
    ("erf resnet50 --plot absent/x.png", "absent"),
    ("erf resnet50 --save absent/x.npz", "absent"),
    ("plot resnet50", "--file"),
    ("plot resnet50 -o x.gif", ".gif"),
    ("plot resnet50 -o absent/x.png", "absent"),
    ("plot resnet50 -o x.png --kind pie", "pie"),
    ("plot resnet50 -o x.png --kind graph --scale log", "--scale"),
    ("plot resnet50 -o x.png --kind graph --unit 3", "--unit"),
    ("plot resnet50 -o x.png --kind graph --depth -1", "depth"),
    ("plot resnet50 -o x.png --kind features", "input_size"),
    ("plot resnet50 -o x.png --kind stack", "output="),
    ("plot plain(2) -o x.png --width wide", "wide"),
    ("plot plain(2) -o x.png --background absent.png", "absent.png"),
    ("erf resnet50 --output fc", "avgpool"),
]


@pytest.mark.parametrize(("line", "named"), BAD, ids=[line for line, _ in BAD])
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, line, named):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    if "onnx" in line:
        onnx = pytest.importorskip("onnx")
        whole = (Path(onnx.__file__).parent / LIGHT).read_bytes()
        Path("cut.onnx").write_bytes(whole[: len(whole) // 2])
    code, out, err = run(capsys, *line.split(" "))
    assert (code, out) == (2, "")
    assert err.startswith("fastrf: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert named in err
    assert err.isprintable() or err[:-1].isprintable()


def test_errors_cannot_steer_the_terminal(capsys):
    _, _, err = run(capsys, "rf", "evil\x1b[2J\nname.toml")
    assert "\x1b" not in err
    assert err.count("\n") == 1


def test_an_unreadable_path_is_one_line(capsys, tmp_path):
    (tmp_path / "folder.toml").mkdir()
    code, _, err = run(capsys, "rf", str(tmp_path / "folder.toml"))
    assert code == 2
    assert err.count("\n") == 1


def test_interrupt(capsys, monkeypatch):
    def interrupted(self, net):
        raise KeyboardInterrupt

    monkeypatch.setattr(options.Selection, "read", interrupted)
    assert run(capsys, "rf", "resnet50") == (130, "", "fastrf: interrupted\n")


@pytest.mark.parametrize(
    ("error", "named"),
    [(MemoryError(), "memory"), (OSError(28, "No space left on device"), "No space left")],
)
def test_the_machine_s_limits_are_one_line(capsys, monkeypatch, error, named):
    def fails(self, net):
        raise error

    monkeypatch.setattr(options.Selection, "read", fails)
    code, out, err = run(capsys, "rf", "resnet50")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert named in err


# --- as a process ---------------------------------------------------------------------------


def test_process_good_and_bad(tmp_path):
    done = process("rf", "resnet50", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["size"] == [427, 427]
    done = process("rf", "absent.onnx", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fastrf: error: ")
    assert done.stderr.count("\n") == 1


def test_process_with_a_closed_pipe_is_quiet():
    code = "import sys; from fastrf.cli import main; sys.exit(main())"
    # The table of 3,000 layers is larger than a pipe's buffer.
    child = subprocess.Popen(
        [sys.executable, "-c", code, "rf", "plain(3000)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert (child.wait(), errors) == (141, b"")


def test_process_without_unicode():
    done = process("erf", "plain(2)", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "? " in done.stdout  # stands for σ


def test_tables_need_neither_compiler_nor_plots():
    code = (
        "import sys; from fastrf.cli import main; main(['rf', 'resnet50'])\n"
        "heavy = {'numba', 'scipy', 'matplotlib', 'onnx', 'torch', 'cupy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# --- progress -------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("patience", "shown"), [(0.0, True), (60.0, False)])
def test_progress_appears_for_long_work_alone(monkeypatch, patience, shown):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "PATIENCE", patience)
    monkeypatch.setenv("TERM", "xterm")
    with progress.Progress() as bar:
        bar(0.25)
        end = time.monotonic() + 5
        while shown and bar._bar is None and time.monotonic() < end:
            time.sleep(0.01)
        bar(0.5)
    assert ("computing" in terminal.getvalue()) is shown


def test_progress_needs_a_terminal(monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.Progress() as bar:
        bar(0.5)
        time.sleep(0.05)
    assert errors.getvalue() == ""


def test_progress_reports_shares(monkeypatch):
    shares = []
    monkeypatch.setattr(progress.Progress, "__call__", lambda self, share: shares.append(share))
    assert cli.main(["erf", "plain(5)", "--method", "direct"]) == 0
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
