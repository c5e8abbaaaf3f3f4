"""The report in a real browser: Chromium without a window, driven by Selenium."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastrf as rf

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip(
        "no Chromium with its driver (on Debian: apt-get install chromium chromium-driver)",
        allow_module_level=True,
    )
pytest.importorskip("selenium", reason="the browser is driven by the package selenium")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "</script><script>document.title = 'hacked'</script><img src=x onerror=\"alert(1)\">'&"

REPORTS = {
    "resnet50": (rf.zoo.resnet50(), None),
    "unet": (rf.zoo.unet(4, 2), None),
    "wavenet": (rf.zoo.wavenet(3), None),
    "image": (
        rf.Sequential(
            rf.Conv(3, padding=1), rf.MaxPool(2), *[rf.Conv(3, padding=1)] * 2, name="image"
        ),
        (40, 60),
    ),
    "decoder": (rf.zoo.unet(1, 1), None),
    "volume": (rf.zoo.plain(4, 3, ndim=3), None),
    "global": ([rf.Conv(3, padding=1), rf.SqueezeExcite(), rf.Conv(3, padding=1)], None),
    "strides": (rf.Parallel(rf.Conv(1, stride=2), rf.Conv(3)), None),
    "hostile": (
        rf.Network({HOSTILE: (rf.Conv(3), "input"), "b": (rf.Conv(3), HOSTILE)}, name=HOSTILE),
        None,
    ),
}


class Report:
    """A page, as its reader uses it."""

    def __init__(self, driver: webdriver.Chrome, path: Path) -> None:
        self.driver = driver
        driver.get(path.as_uri())
        self.settle()

    def js(self, code: str, *arguments: object):
        return self.driver.execute_script(code, *arguments)

    def settle(self) -> None:
        """Waits until pictures are unpacked and everything is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0]; setTimeout(() => requestAnimationFrame(() => done()), 40)"
        )

    def find(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    @property
    def said(self) -> str:
        return self.find("#said").text

    @property
    def layer(self) -> str:
        return self.find("#layer").text

    @property
    def unit(self) -> tuple[int, ...]:
        (text,) = re.findall(r"^Unit \(?([−\d, ]+)\)? of", self.said)
        return tuple(int(u.replace("−", "-")) for u in text.split(","))

    @property
    def box(self) -> tuple[tuple[int, int], ...]:
        found = re.findall(r"[zyx] (−?\d+) … (−?\d+)", self.said)
        return tuple(tuple(int(n.replace("−", "-")) for n in ends) for ends in found)

    def slide(self, index: int) -> None:
        self.js(
            "const s = document.getElementById('slider'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))",
            index,
        )
        self.settle()

    def canvas(self, number: int = 0):
        canvas = self.driver.find_elements(By.CSS_SELECTOR, "#panels canvas")[number]
        self.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
        return canvas

    @property
    def frame(self) -> dict:
        """Where the first canvas shows what: all of them are as large in one page."""
        return json.loads(self.canvas().get_attribute("data-frame"))

    def point(self, pixel: tuple[float, ...], axes=(0, 1), number: int = 0) -> None:
        """Moves the mouse to an input pixel."""
        frame, canvas = self.frame, self.canvas(number)
        places = [
            frame[side] + (pixel[axis] - frame["view"][axis][0]) * frame["scale"]
            for side, axis in zip(("top", "left"), axes, strict=True)
            if axis is not None
        ]
        y, x = places if len(places) == 2 else (frame["top"] + 20, *places)
        size = canvas.size
        ActionChains(self.driver, duration=0).move_to_element_with_offset(
            canvas, round(x - size["width"] / 2), round(y - size["height"] / 2)
        ).perform()
        self.settle()

    def colour(self, pixel: tuple[float, float]) -> list[int]:
        """Red, green and blue of the first canvas at an input pixel of a 2-D grid."""
        frame = self.frame
        x, y = (
            frame[side] + (pixel[axis] - frame["view"][axis][0]) * frame["scale"]
            for side, axis in (("left", 1), ("top", 0))
        )
        return self.js(
            "const copy = document.createElement('canvas'), r = devicePixelRatio || 1;"
            "copy.width = copy.height = 1; const pen = copy.getContext('2d');"
            "pen.drawImage(document.querySelector('#panels canvas'), -arguments[0] * r,"
            " -arguments[1] * r);"
            "return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3)",
            x,
            y,
        )

    def problems(self) -> list[dict]:
        return self.driver.get_log("browser")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1100,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(executable_path=DRIVER)
    with webdriver.Chrome(options=options, service=service) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory):
    """Writes each report once, when it is first asked for."""
    folder = tmp_path_factory.mktemp("reports")

    def page(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            net, size = REPORTS[name]
            rf.report(net, path, input_size=size, check=name == "hostile")
        return path

    return page


@pytest.fixture
def opened(driver, pages):
    """Opens a report; at the end its console is empty and nothing was fetched."""
    reports = []

    def open_page(name: str) -> Report:
        screen(driver, 1100, 900)
        driver.get_log("browser")
        reports.append(Report(driver, pages(name)))
        return reports[-1]

    yield open_page
    for report in reports[-1:]:
        assert report.problems() == []
        assert report.js("return performance.getEntriesByType('resource').length") == 0


def screen(driver: webdriver.Chrome, width: int, height: int, scheme: str = "light") -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@pytest.mark.parametrize("name", ["resnet50", "unet", "wavenet"])
def test_slides_over_layers_and_points_at_units(opened, pages, name):
    assert pages(name).stat().st_size < 3_000_000
    report = opened(name)
    net, _ = REPORTS[name]
    layers = list(net.nodes)[1:]
    last = rf.receptive_field(net)
    assert report.layer == last.node
    assert report.box == last.box()
    axes = (None, 0) if name == "wavenet" else (0, 1)
    for index in (0, len(layers) // 3, len(layers) // 2, layers.index(last.node)):
        report.slide(index)
        field = rf.receptive_field(net, layers[index])
        assert report.layer == layers[index]
        assert f"layer {index + 1} of {len(layers)}" in report.find("#op").text
        start = report.unit
        # Units may be drawn closer to each other than the screen's pixels are.
        close = report.frame["scale"] * float(min(field.stride))
        blur, far = (0, 1) if close > 2 else (math.ceil(1 / close), math.ceil(9 / close))
        for step in (far, -far):
            unit = tuple(u + step for u in start)
            report.point(drawn_at(field, unit), axes)
            assert report.unit == pytest.approx(unit, abs=blur)
            assert report.unit != start
            assert report.box == field.box(report.unit)
            assert "ERF: " in report.said


def drawn_at(field: rf.ReceptiveField, unit: tuple[int, ...]) -> tuple[float, ...]:
    """The centre of a unit's field: of unit 0's, and the stride from unit to unit."""
    places = zip(field.center, field.stride, unit, strict=True)
    return tuple(float(c + s * u) for c, s, u in places)


def test_the_image_is_where_the_unit_looks(opened):
    """The ERF's colours, where a unit is pointed at; beside its box there are none."""
    report = opened("resnet50")
    report.slide(3)  # maxpool: 11 × 11, stride 4
    field = rf.receptive_field(REPORTS["resnet50"][0], "maxpool")
    blank = report.colour((-14, -14))  # between the dots of the units, which are at multiples of 4
    for unit in ((0, 0), (2, 1), (-1, 2)):
        ((top, bottom), (left, right)) = field.box(unit)
        report.point(((top + bottom) / 2, (left + right) / 2))
        assert report.unit == unit
        for inside in ((top + 2, left + 2), (bottom - 2, right - 2)):
            assert report.colour(inside) != blank
        for outside in ((top - 1, left + 2), (bottom + 1, right - 2)):
            assert report.colour(outside) == blank


def test_keys_move_the_unit(opened):
    report = opened("resnet50")
    canvas = report.canvas()
    start = report.unit
    for key, step in (
        (Keys.ARROW_RIGHT, (0, 1)),
        (Keys.ARROW_DOWN, (1, 0)),
        (Keys.ARROW_LEFT, (0, -1)),
        (Keys.ARROW_UP, (-1, 0)),
    ):
        before = report.unit
        canvas.send_keys(key)
        report.settle()
        assert report.unit == tuple(a + b for a, b in zip(before, step, strict=True))
    assert report.unit == start
    report.find("#slider").send_keys(Keys.ARROW_LEFT)
    report.settle()
    names = list(REPORTS["resnet50"][0].nodes)[1:]
    assert report.layer == names[names.index("layer4.2.relu_2") - 1]
    report.find("#back").click()
    report.find("#on").click()
    report.find("#on").click()
    report.settle()
    assert report.layer == "layer4.2.relu_2"


def test_units_on_an_image_say_whose_field_is_shown(opened):
    report = opened("image")
    net, size = REPORTS["image"]
    field = rf.receptive_field(net, input_size=size)
    assert field.map_size == (20, 30)
    inner = [n for n in range(20) if rf.erf(net, unit=(n, 15), input_size=size).lost_mass == 0]
    for unit, text in (
        ((10, 15), "ERF: this unit's own."),
        ((0, 0), "ERF: this unit's own."),
        ((19, 15), "ERF: this unit's own."),
        ((inner[0], inner[0]), "ERF: this unit's own, which is that of unit (10, 15) moved"),
        ((inner[-1], 12), "ERF: this unit's own, which is that of unit (10, 15) moved"),
        ((inner[0] - 1, 12), "own differs somewhat, as the border cuts it otherwise"),
        ((18, 28), "ERF: that of unit (19, 29), moved here"),
    ):
        report.point(drawn_at(field, unit))
        assert report.unit == unit
        assert report.box == field.box(unit)
        assert text in report.said, unit
    # Beyond the last unit is the last unit.
    report.point((42, 62))
    assert report.unit == (19, 29)
    assert "beyond the image" in report.said


def test_phases_of_a_decoder_have_their_own_fields(opened):
    report = opened("decoder")
    for unit in ((0, 0), (1, 0), (2, -1)):
        canvas = report.canvas()
        for axis, keys in (
            (0, (Keys.ARROW_UP, Keys.ARROW_DOWN)),
            (1, (Keys.ARROW_LEFT, Keys.ARROW_RIGHT)),
        ):
            while (now := report.unit[axis]) != unit[axis]:
                canvas.send_keys(keys[unit[axis] > now])
                report.settle()
        assert report.box == rf.receptive_field(REPORTS["decoder"][0]).box(unit)
        phase = tuple(u % 2 for u in unit)
        own = "." if phase == unit else f", which is that of unit {phase} moved."
        assert f"ERF: this unit's own{own}" in report.said


def test_three_axes_have_three_sections(opened):
    report = opened("volume")
    assert len(report.driver.find_elements(By.CSS_SELECTOR, "#panels canvas")) == 3
    report.point((0, 2, -1), (1, 2), 0)
    assert report.unit == (0, 2, -1)
    report.point((3, 2, -1), (0, 2), 1)
    assert report.unit == (3, 2, -1)
    report.point((1, -2, -1), (0, 1), 2)
    assert report.unit == (1, -2, -1)
    assert report.box == rf.receptive_field(REPORTS["volume"][0]).box((1, -2, -1))
    assert "Sections at z = 1, y = −2, x = −1" in report.said


def test_a_global_layer_is_said_to_be_one(opened):
    report = opened("global")
    assert "TRF: ∞ × ∞ pixels" in report.said
    assert "No ERF: unbounded by squeezeexcite1" in report.said
    report.slide(0)
    assert "ERF: this unit's own." in report.said


def test_units_of_differing_strides_have_boxes_and_one_field(opened):
    report = opened("strides")
    field = rf.receptive_field(REPORTS["strides"][0])
    assert "ERF: this unit's own." in report.said
    report.canvas().send_keys(Keys.ARROW_RIGHT)
    report.settle()
    assert report.unit == (0, 1)
    assert report.box == field.box((0, 1))
    assert "no shift of another one is it" in report.said


def test_the_table_sorts_and_chooses(opened):
    report = opened("unet")
    net = REPORTS["unet"][0]
    names = list(net.nodes)[1:]
    sizes = {row.name: row.size[0] for row in rf.receptive_field(net).layers}

    def column(number: int) -> list[str]:
        return report.js(
            "return [...document.querySelectorAll('#layers tbody tr')]"
            ".map((row) => row.cells[arguments[0]].textContent)",
            number,
        )

    assert column(1) == names
    heads = report.driver.find_elements(By.CSS_SELECTOR, "#layers thead th")
    trf = [head.text.split()[0] for head in heads].index("TRF")
    button = heads[trf].find_element(By.TAG_NAME, "button")
    for direction, reverse in (("ascending", False), ("descending", True)):
        button.click()
        assert heads[trf].get_attribute("aria-sort") == direction
        assert [sizes[n] for n in column(1)] == sorted(sizes.values(), reverse=reverse)
    heads[1].find_element(By.TAG_NAME, "button").click()
    assert heads[trf].get_attribute("aria-sort") is None
    assert sorted(column(1)) == sorted(names)
    report.js("document.querySelector('tr[data-layer=\"3\"] button').click()")
    report.settle()
    assert report.layer == names[3]
    assert report.js("return document.querySelector('tr.chosen').dataset.layer") == "3"


def test_the_chart_chooses_a_layer(opened):
    report = opened("unet")
    chart = report.find("svg.growth")
    report.js("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(report.driver, duration=0).move_to_element(chart).click().perform()
    report.settle()
    names = list(REPORTS["unet"][0].nodes)[1:]
    assert abs(names.index(report.layer) - len(names) // 2) <= 3


def test_views_and_scales(opened):
    report = opened("resnet50")
    report.slide(10)
    frames = []
    for selector, value in (("#view", "network"), ("#view", "layer"), ("#scale", "linear")):
        report.js(
            "const s = document.querySelector(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('change'))",
            selector,
            value,
        )
        report.settle()
        frames.append(report.frame["scale"])
    assert frames[0] < frames[1] == frames[2]
    assert report.find("#lowest").text == "0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("name", ["wavenet", "image"])
def test_the_page_fits_the_screen(opened, driver, name, width, scheme):
    report = opened(name)
    screen(driver, width, 800, scheme)
    report.settle()
    assert report.js("return document.documentElement.scrollWidth") <= width
    background = report.js("return getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert (light > 128) == (scheme == "light")
    canvas = report.canvas()
    assert canvas.size["width"] <= width


def test_hostile_names_stay_names(opened):
    report = opened("hostile")
    assert report.driver.title == f"{HOSTILE}: receptive fields"
    assert report.find("h1").text == HOSTILE
    report.slide(0)
    assert report.layer == HOSTILE
    assert f"of {HOSTILE}." in report.said
    assert report.js("return document.querySelectorAll('img').length") == 0
    assert report.js("return document.scripts.length") == 2
    assert report.js("return document.querySelectorAll('#check details table tbody tr').length") > 9


def test_no_script_but_the_pages_own_runs(driver, pages, tmp_path):
    """The policy works, were a name ever to get through."""
    text = pages("decoder").read_text(encoding="utf-8")
    path = tmp_path / "spoilt.html"
    spoilt = text.replace("<main>", "<script>document.title = 'hacked'</script><main>")
    path.write_text(spoilt, encoding="utf-8")
    report = Report(driver, path)
    WebDriverWait(driver, 5).until(lambda _: report.layer)
    assert driver.title != "hacked"
    (refused,) = report.problems()
    assert "Content Security Policy" in refused["message"]
