"""`fastrf empirical`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import sys

import pytest

import fastrf as rf
from fastrf.cli import main
from fastrf.lowering import lower

torch = pytest.importorskip("torch")

CODE = """
import torch
from torch import nn
import fastrf as rf

def net():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)
    )

def normed():
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())

def network():
    return rf.Sequential(rf.Conv(3))

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else self.conv(-x)
"""


@pytest.fixture(autouse=True)
def _code(tmp_path, monkeypatch):
    (tmp_path / "measured_models.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("measured_models", None)


def run(capsys, *arguments):
    code = main(["empirical", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


NET = ("measured_models:net", "--input-size", "9")


def test_facts(capsys):
    code, out, err = run(capsys, *NET, "--draws", "40", "--initialise", "he")
    assert (code, err) == (0, "")
    assert "unit              (4, 4) of 2 on input" in out
    assert "the mean of 40 draws" in out
    assert "standard errors" in out
    assert "lost mass" not in out


def test_json_has_the_names_of_attributes(capsys):
    def document(*options):
        code, out, err = run(capsys, *NET, "--json", *options)
        assert (code, err) == (0, "")
        return json.loads(out)

    found = document("--draws", "40")
    assert (found["draws"], found["lost_mass"], found["plan"]["seed"]) == (40, None, 0)
    assert len(found["errors"]["std"]) == 2
    # The seed is that of the module's own weights, too.
    state = torch.get_rng_state()
    assert document("--draws", "40") == found
    assert (torch.get_rng_state() == state).all()
    assert document("--draws", "40", "--seed", "1")["std"] != found["std"]
    single = document("--channel", "3", "--output", "0", "--unit", "2,3", "--draws", "1")
    assert (single["node"], single["unit"], single["errors"]) == ("0", [2, 3], {})
    assert single["plan"]["channels"] == "3 alone"


def test_compared(capsys, tmp_path):
    options = ("--initialise", "he", "--draws", "600", "--compare")
    code, out, err = run(capsys, *NET, *options, "--save", "erf.npz", "--plot", "both.png")
    assert code == 0, out
    assert "theory against experiment: '2', unit (4, 4), 600 draws" in out
    assert "wrote erf.npz" in err
    assert (tmp_path / "both.png").stat().st_size > 10_000
    assert rf.ERF.load("erf.npz").draws == 600
    code, out, _ = run(capsys, *NET, *options, "--json")
    assert json.loads(out)["comparison"]["ok"] is True
    # A module as it is has weights of its own.
    code, out, _ = run(capsys, *NET, "--draws", "600", "--compare")
    assert code == 1
    assert "FAIL" in out


def test_a_plot_of_its_own(capsys, tmp_path):
    assert run(capsys, *NET, "--draws", "40", "--plot", "own.png")[0] == 0
    assert (tmp_path / "own.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50",), "is no Python code"),
        (("measured_models:network",), "is a fastrf.Network, and has no gradients"),
        (("measured_models:missing",), "has no 'missing'"),
        ((*NET, "--channels", "2"), "does not run on inputs of the shapes [(1, 2, 9, 9)]"),
        ((*NET, "--initialise", "hee"), "initialise='hee' is unknown"),
        ((*NET, "--channel", "7"), "channel=7 is no channel"),
        ((*NET, "--channel", "all"), "--channel 'all' cannot be read"),
        ((*NET, "--plot", "a.gif"), "'.gif'"),
        ((*NET, "--save", "nowhere/a.npz"), "there is no folder"),
        ((*NET, "--draws", "5", "--compare"), "too few for errors"),
        (("measured_models:Branching", "--input-size", "9", "--compare"), "depends on the values"),
    ],
)
def test_what_is_refused(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fastrf: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_control_flow_is_measured(capsys):
    code, out, _ = run(capsys, "measured_models:Branching", "--input-size", "9")
    assert code == 0
    assert "counts as the whole image" in out


class Skipping(torch.nn.Module):
    """What slopes and largest values have in common along its ways is followed."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Conv2d(n, 32, 3, padding=1) for n in (8, 32))
        self.up = torch.nn.ConvTranspose2d(32, 32, 2, 2)
        self.out = torch.nn.Conv2d(64, 4, 3, padding=1)
        self.pool = torch.nn.MaxPool2d(2)

    def forward(self, x):
        a = torch.relu(self.a(x))
        b = torch.relu(self.b(self.pool(a)))
        return self.out(torch.cat([a, self.up(b)], 1))


def test_a_measured_field_holds_the_network_and_not_its_settled_gains():
    """Gains alone do not say what they have in common: the computed field would be another."""
    module, shape = Skipping(), (1, 8, 16, 16)
    net = rf.from_torch(module, shape, init="he")
    measured = rf.empirical(module, shape, draws=2, initialise="he", network=net)
    assert measured.network == net
    again = rf.erf(measured.network, measured.node, measured.unit, measured.input_sizes)
    theory = rf.erf(net, input_size=16)
    assert again.std == theory.std
    assert again.log_gain == theory.log_gain
    settled = lower(net, 16).network
    assert settled != net
    assert abs(rf.erf(settled, input_size=16).std[0] / theory.std[0] - 1) > 0.02


def test_norms_that_count_as_those_of_drawn_weights_are_said(capsys):
    code = ("measured_models:normed", "--input-size", "9", "--draws", "40", "--compare")
    said = "divide by the statistics that the module holds"
    assert said in run(capsys, *code, "--initialise", "he")[2]
    assert said not in run(capsys, *code, "--initialise", "unit")[2]
    assert said not in run(capsys, *code, "--initialise", "he", "--training")[2]
