"""The HTML report: what it says, and that it says it safely. In a browser: test_report_page.py."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import fastrf as rf
from fastrf.cli import main
from fastrf.errors import InputError
from fastrf.report.document import BUDGET, assemble
from fastrf.report.page import render
from fastrf.report.pictures import DECADES, LEVELS, packed, picture

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\'&\u2028<!--'


class Page(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._in: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._in.append(tag)

    def handle_endtag(self, tag):
        if self._in and self._in[-1] == tag:
            self._in.pop()

    def handle_data(self, data):
        if self._in[-1:] == ["script"]:
            self.scripts.append(data)
        elif not self._in:
            self.texts.append(data)

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def page_of(net, **options) -> tuple[str, Page]:
    text = render(assemble(net, **{"check": False, **options}))
    return text, Page(text)


def small() -> rf.Network:
    return rf.Sequential(
        rf.Conv(3, stride=2, padding=1),
        rf.Norm(),
        rf.Activation(),
        rf.Residual(rf.Conv(3, padding=1), rf.Activation(), rf.Conv(3, padding=1)),
        name="small",
    )


NETS = {
    "small": (small(), None),
    "small on an image": (small(), (30, 21)),
    "decoder": (rf.zoo.unet(2, 1), None),
    "decoder on an image": (rf.zoo.unet(2, 1), 16),
    "causal": (rf.zoo.wavenet(1, 4), None),
    "volume": (rf.zoo.plain(3, 3, ndim=3), None),
    "volume on an image": (rf.zoo.plain(3, 3, ndim=3), 9),
    "classifier": ([rf.Conv(3, padding=1), rf.GlobalPool(), rf.FullyConnected(10)], None),
    "global": ([rf.Conv(3, padding=1), rf.SqueezeExcite(), rf.Conv(3, padding=1)], None),
    "global on an image": ([rf.Conv(3, padding=1), rf.SqueezeExcite(), rf.Conv(3)], (20, 12)),
    "strides that differ": (rf.Parallel(rf.Conv(3, stride=2), rf.Conv(5)), None),
    "gaps": ([rf.ConvTranspose((1,), stride=3), rf.Conv((2,))], None),
    "several ends": (
        rf.Network({"a": (rf.Conv(3), "input"), "b": (rf.Conv(3), "a"), "c": (rf.Conv(5), "a")}),
        None,
    ),
}


# --- safe, alone and the same ---------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_page_needs_nothing_else(name):
    net, size = NETS[name]
    text, page = page_of(net, input_size=size)
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form", "img", "audio", "video")
        for key, value in attributes.items():
            assert not key.startswith("on"), "no script in attributes"
            if key in ("src", "href", "action", "poster", "xlink:href"):
                assert value == "data:," or value.startswith("#")
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "@import" not in text
    assert "url(" not in text
    assert [a for t, a in page.elements if t == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]


def test_policy_lets_only_the_pages_own_script_and_style_in():
    text, page = page_of(small())
    (policy,) = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    for kind, content in (("script", page.scripts[1]), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_names_are_texts_wherever_they_appear():
    net = rf.Network(
        {
            HOSTILE: (rf.Conv(3, stride=2, padding=1), "input"),
            f"{HOSTILE}2": (rf.Conv(1), "input"),
            f"{HOSTILE}3": (rf.Add(), HOSTILE, f"{HOSTILE}2"),
        },
        name=HOSTILE,
    )
    harmless = rf.Network(
        {
            "a": (rf.Conv(3, stride=2, padding=1), "input"),
            "b": (rf.Conv(1), "input"),
            "c": (rf.Add(), "a", "b"),
        },
        name="n",
    )
    (text, page), (_, plain) = (page_of(n, check=True) for n in (net, harmless))
    assert [t for t, _ in page.elements] == [t for t, _ in plain.elements]
    assert [layer["name"] for layer in page.data["layers"]] == list(net.nodes)[1:]
    assert HOSTILE in page.texts
    assert text.count("</script>") == 2
    assert "\u2028" not in page.scripts[0]


def test_a_title_is_a_text():
    _, page = page_of(small(), title="<i>mine</i>")
    assert "<i>mine</i>" in page.texts
    assert "i" not in [t for t, _ in page.elements if t == "i" and "class" not in _]


def test_same_input_same_bytes(tmp_path):
    """In another process, whose sets have another order, too."""
    arguments = "rf.zoo.unet(1, 1), sys.argv[1], input_size=8, check=False"
    code = f"import sys, fastrf as rf; rf.report({arguments})"
    path = tmp_path / "x.html"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    rf.report(rf.zoo.unet(1, 1), tmp_path / "y.html", input_size=8, check=False)
    assert path.read_bytes() == (tmp_path / "y.html").read_bytes()
    checked = [render(assemble(small())) for _ in range(2)]
    assert checked[0] == checked[1]


# --- what it says ---------------------------------------------------------------------------


def box_from(layer: dict, unit: tuple[int, ...]):
    """A unit's box from the page's data, as its script works it out."""
    result = []
    for axis, jumps in enumerate(layer["ends"]):
        first, last = np.inf, -np.inf
        for advance, firsts, lasts in jumps:
            if firsts is None:
                first, last = -np.inf, np.inf
                continue
            turn, phase = divmod(unit[axis], len(firsts))
            if firsts[phase] is not None:
                first = min(first, firsts[phase] + advance * turn)
                last = max(last, lasts[phase] + advance * turn)
        if first > last:
            return None
        result.append((first, last))
    return tuple(result)


def assert_alike(one: dict, other: dict) -> None:
    """Equal but for what engines that differ by roundings put on the two sides of a step."""
    for a, b in zip(one["profiles"], other["profiles"], strict=True):
        assert a["step"] == b["step"]
        np.testing.assert_allclose(a["values"], b["values"], rtol=0, atol=1)
    for a, b in zip(one["parts"], other["parts"], strict=True):
        assert (a["shape"], a["step"]) == (b["shape"], b["step"])
        np.testing.assert_allclose(unpacked(a).astype(int), unpacked(b).astype(int), rtol=0, atol=1)


@pytest.mark.parametrize("name", NETS)
def test_boxes_and_pictures_are_those_of_the_units(name):
    net, size = NETS[name]
    network = rf.network.as_network(net)
    _, page = page_of(net, input_size=size)
    data = page.data
    whole = rf.receptive_field(network, data["layers"][0]["name"], size)
    for layer in data["layers"]:
        field = whole.of(layer["name"])
        if layer["shape"] is None:
            units = [(u,) * network.bound.ndim for u in (-5, 0, 1, 2, 7)]
        else:
            units = {tuple(min(u, n - 1) for n in layer["shape"]) for u in (0, 1, 2, 99)}
        for unit in units:
            assert box_from(layer, unit) == field.box(unit)
        assert bool(layer["samples"]) != bool(layer["note"])
        for sample in layer["samples"]:
            unit = tuple(sample["unit"])
            erf = rf.erf(network, layer["name"], unit, size)
            assert tuple(sample["origin"]) == erf.origin
            assert_alike(data["pictures"][sample["picture"]], picture(erf).to_dict())
    assert {p for layer in data["layers"] for s in layer["samples"] for p in [s["picture"]]} == set(
        range(len(data["pictures"]))
    )


def test_every_layer_of_a_network_with_several_ends_has_a_field():
    net, _ = NETS["several ends"]
    document = assemble(net, check=False)
    assert all(layer.samples for layer in document.layers)
    assert "2 outputs" in document.notes[0]
    assert document.field.node == "b"


def test_what_is_unbounded_has_no_field_and_says_why():
    document = assemble(NETS["global"][0], check=False)
    first, gate, last = document.layers
    assert first.samples
    assert not gate.samples
    assert not last.samples
    assert "squeezeexcite1" in last.note
    assert document.why == last.note
    assert "squeezeexcite1" in document.tiling.obstacle
    text = render(document)
    assert '<td data-value="inf">∞</td>' in text
    left_out = assemble(NETS["global"][0], check=False, ignore_global=True)
    assert left_out.layers[-1].samples
    assert left_out.tiling.halos[0].overlap == 4


def test_logits_are_listed_without_a_field():
    document = assemble(NETS["classifier"][0], check=False)
    assert document.field.node == "conv1"
    assert document.layers[-1].row.op == "fullyconnected"
    assert "lost its spatial extent" in document.layers[-1].note


def test_a_network_of_one_input_alone_has_a_page():
    text, page = page_of(rf.Network({"input": (rf.Input(),)}))
    assert "script" not in [t for t, _ in page.elements]
    assert "has no ERF" not in text


def test_inner_units_have_the_middles_field_moved_and_others_not():
    net = rf.Sequential(*[rf.Conv((3,), padding=1)] * 3, rf.MaxPool(2), rf.Conv((3,), padding=1))
    layer = assemble(net, input_size=40, check=False).layers[-1]
    ((first, last),) = layer.inner
    fields = [rf.erf(net, unit=u, input_size=40) for u in range(20)]
    middle = fields[(first + last) // 2]
    for unit, field in enumerate(fields):
        assert (field.lost_mass == 0) == (first <= unit <= last)
        if first <= unit <= last:
            assert field.origin[0] == middle.origin[0] + 2 * (unit - (first + last) // 2)
            np.testing.assert_allclose(field.image, middle.image, rtol=1e-13)


def test_the_check_is_shown_and_returned(tmp_path):
    found = rf.report(small(), tmp_path / "x.html")
    assert found
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert f"All {len(found.rows)} comparisons agree" in text
    assert rf.report(small(), tmp_path / "x.html", check=False) is None
    assert "comparisons" not in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_tiling_advice_is_that_of_the_module():
    text, _ = page_of(rf.Sequential(rf.Conv(7, stride=2), rf.Conv(3)))
    (h, _) = rf.tiling.halo(rf.Sequential(rf.Conv(7, stride=2), rf.Conv(3)))
    cells = [h.block, h.units, h.left, h.right, h.overlap]
    row = "".join(f"<td>{c}</td>" for c in cells)
    assert f'<td class="word">y and x</td>{row}' in text


# --- pictures -------------------------------------------------------------------------------


def unpacked(part: dict) -> np.ndarray:
    steps = np.frombuffer(zlib.decompress(base64.b64decode(part["levels"])), np.uint8)
    steps = steps.reshape(part["shape"])
    for axis in range(steps.ndim):
        steps = np.cumsum(steps, axis=axis, dtype=np.uint8)
    return steps


def test_levels_are_within_half_a_step_of_the_image():
    erf = rf.erf([rf.Conv(5, padding=2)] * 12)
    kept = picture(erf).to_dict()
    steps = unpacked(kept["parts"][0])
    image = erf.to_numpy() / erf.to_numpy().max()
    assert steps.shape == image.shape
    assert steps.max() == LEVELS
    shown = steps > 0
    exponent = DECADES * ((steps[shown] - 1.0) / (LEVELS - 1) - 1)
    half = DECADES / (LEVELS - 1) / 2
    assert np.abs(np.log10(image[shown]) - exponent).max() < half * (1 + 1e-3)
    assert image[~shown].max() < 10.0 ** -(DECADES - half)
    assert shown.any()
    assert not shown.all()


def test_blocks_add_up_what_they_cover():
    erf = rf.erf(rf.zoo.plain(150, 3))
    kept = picture(erf)
    (block,), (step,) = kept.blocks, kept.steps
    assert step == (2, 2)
    image = np.pad(erf.to_numpy(), (0, 1))
    sums = image.reshape(151, 2, 151, 2).sum(axis=(1, 3))
    np.testing.assert_allclose(block, sums / sums.max(), rtol=1e-6, atol=1e-37)
    kept.coarser()
    assert kept.steps == [(4, 4)]
    assert kept.blocks[0].shape == (76, 76)


def test_packing_is_undone_by_sums():
    rng = np.random.default_rng(3)
    for shape in ((7,), (4, 9)):
        steps = rng.integers(0, 256, shape, dtype=np.uint8)
        part = {"shape": list(shape), "levels": packed(steps)}
        np.testing.assert_array_equal(unpacked(part), steps)


def test_pictures_are_made_coarser_until_they_fit(monkeypatch):
    from fastrf.report import document as module

    plenty = page_of(rf.zoo.plain(12, 9))[1].data["pictures"]
    size = len(json.dumps(plenty))
    assert size < BUDGET
    monkeypatch.setattr(module, "BUDGET", size // 2)
    coarse = page_of(rf.zoo.plain(12, 9))[1].data["pictures"]
    assert len(json.dumps(coarse)) <= size // 2 + 2 * len(coarse)
    steps = {p["parts"][0]["step"][0] for p in coarse}
    assert min(steps) == 1
    assert max(steps) > 1
    for p in coarse:
        assert p["profiles"][0]["step"] == p["parts"][0]["step"][0]
        assert max(p["profiles"][0]["values"]) == 1000


# --- files and the command line -------------------------------------------------------------


def test_reports_of_large_networks_stay_small():
    net = rf.zoo.resnet50()
    text = render(assemble(net, check=False))
    assert len(text.encode()) < 1_000_000
    assert text.count("<tr data-layer=") == len(net)


@pytest.mark.parametrize(
    ("name", "message"), [("x.pdf", "must end in .html"), ("no/such/x.html", "no folder")]
)
def test_a_path_that_cannot_be_is_refused_before_the_work(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        rf.report(object(), tmp_path / name)


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "x.html").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        rf.report(rf.Conv(3), tmp_path / "x.html", check=False)


def test_command(tmp_path, capsys):
    path = tmp_path / "x.html"
    assert main(["report", "unet(1, 1)", "-o", str(path), "--input-size", "8"]) == 0
    done = capsys.readouterr()
    assert done.out == ""
    assert f"wrote {path}" in done.err
    text = path.read_text(encoding="utf-8")
    assert "comparisons agree" in text
    assert "an input of 8 pixels" in text
    assert main(["report", "plain(2)", "-o", str(path), "--no-check"]) == 0
    assert "comparisons" not in path.read_text(encoding="utf-8")
    assert main(["report", "plain(2)", "-o", str(tmp_path / "x.txt")]) == 2
    assert "must end in .html" in capsys.readouterr().err


def test_command_fails_where_the_check_fails(tmp_path, capsys, monkeypatch):
    from fastrf.check import CheckReport
    from fastrf.report import document

    honest, path = document.check, tmp_path / "x.html"

    def wrong(*arguments, **options):
        found = honest(*arguments, **options)
        first, *rest = found.rows
        return replace(found, rows=(replace(first, ok=False), *rest))

    monkeypatch.setattr(document, "check", wrong)
    assert main(["report", "plain(1)", "-o", str(path)]) == 1
    assert "disagree" in capsys.readouterr().err
    monkeypatch.setattr(document, "check", lambda *a, **o: CheckReport("n", "conv1", (), ()))
    assert main(["report", "plain(1)", "-o", str(path)]) == 0
    assert "could compare nothing" in capsys.readouterr().err
    assert "Nothing could be compared" in path.read_text(encoding="utf-8")
