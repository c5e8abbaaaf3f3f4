"""The adapter in docs/examples that makes fastrf the backend of torchscan's reports.

Held against torchscan where torchscan is right (a chain's layers, one by one, composed by the
formulas of Araujo, Norris and Sim 2019), and against PyTorch's own gradients where it is not.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
torchscan = pytest.importorskip("torchscan")
nn = torch.nn

PATH = Path(__file__).parents[1] / "docs" / "examples" / "torchscan_backend.py"
NAMES = ("receptive_field", "effective_stride", "effective_padding")


@pytest.fixture(scope="module")
def adapter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torchscan_backend", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metrics(report: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """Path and the three metrics of every call that has them."""
    return [
        (layer["path"], tuple(layer["metrics"][name]["value"] for name in NAMES))
        for layer in report["layers"]
        if NAMES[0] in layer["metrics"]
    ]


def vgg() -> Any:
    layers: list[Any] = []
    for count, channels in ((2, 4), (2, 8), (3, 8)):
        for _ in range(count):
            layers += [nn.LazyConv2d(channels, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def mixed() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(4, 4, 3, padding=4, dilation=4),
        nn.AvgPool2d(2, 2),
        nn.Conv2d(4, 4, 5),
    )


def line() -> Any:
    return nn.Sequential(nn.Conv1d(3, 4, 9, 4, 2), nn.ReLU(), nn.Conv1d(4, 4, 3, 1, 2, 2))


@pytest.mark.parametrize(
    ("make", "shape"), [(vgg, (3, 64, 64)), (mixed, (3, 96, 96)), (line, (3, 200))]
)
def test_chains_agree(adapter: ModuleType, make: Callable[[], Any], shape: Any) -> None:
    model = make().eval()
    model(torch.zeros(1, *shape))  # lazy layers learn their channels
    single = metrics(torchscan.crawl_module(model, shape))
    report = adapter.crawl_module(model, shape)
    found = metrics(report)
    assert len(found) == len(single) == len(model)
    r, stride, padding = 1, 1, 0
    for (path, (k, s, p)), (own, values) in zip(single, found, strict=True):
        r, padding, stride = r + (k - 1) * stride, padding + p * stride, stride * s
        assert path == own
        assert values == (r, stride, padding)
    json.dumps(report)


def support(model: Any, size: tuple[int, int], unit: tuple[int, int]) -> tuple[int, ...]:
    """Pixels per axis that a unit's gradient spans, all weights and the image being positive."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0)
    image = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    model.double()(image)[0, :, unit[0], unit[1]].sum().backward()
    seen = (image.grad[0].sum(0) > 0).nonzero()
    return tuple((seen.max(0).values - seen.min(0).values + 1).tolist())


class Branches(nn.Module):
    """An identity, a 3×3 and a 7×7 convolution that meet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.small = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.large = nn.Conv2d(4, 4, 7, padding=3, bias=False)
        self.act = nn.ReLU()

    def forward(self, x: Any) -> Any:
        x = self.act(self.stem(x))
        return self.act(x + self.small(x) + self.large(x))


def composed(rows: list[tuple[str, tuple[Any, ...]]]) -> int:
    """The field that per-layer numbers give where one takes the calls for a chain."""
    r, stride = 1, 1
    for _, (k, s, _) in rows:
        r, stride = r + (k - 1) * stride, stride * s
    return r


def test_branches(adapter: ModuleType) -> None:
    """torchscan knows no paths: taken as a chain, branches add up. The union is the larger one."""
    model = Branches()
    found = dict(metrics(adapter.crawl_module(model, (3, 64, 64))))
    assert found["small"] == (7, 2, 3)
    assert found["large"] == (15, 2, 7)
    assert found["act"] == (15, 2, 7)  # its second call
    assert support(model, (64, 64), (16, 16)) == (15, 15)
    assert composed(metrics(torchscan.crawl_module(model.float(), (3, 64, 64)))) == 19


def test_axes_that_differ_and_padding_by_name(adapter: ModuleType) -> None:
    """torchscan looks at the first axis, and hands on the name "same" for a number."""
    model = nn.Sequential(nn.Conv2d(3, 4, (1, 7), padding="same", bias=False))
    ((_, theirs),) = metrics(torchscan.crawl_module(model, (3, 32, 32)))
    assert theirs == (1, 1, "same")
    (_, layer) = adapter.crawl_module(model, (3, 32, 32))["layers"]
    values = {name: result["value"] for name, result in layer["metrics"].items()}
    assert [values[name] for name in NAMES] == [1, 1, 0]
    assert values["receptive_field_axis1"] == 7
    assert values["effective_padding_axis1"] == 3
    assert "effective_stride_axis1" not in values
    assert support(model, (32, 32), (16, 16)) == (1, 7)


def test_transposed_convolutions(adapter: ModuleType) -> None:
    """torchscan gives −k; a unit sees one pixel of its input."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.ConvTranspose2d(4, 4, 2, 2, bias=False)
    )
    theirs = dict(metrics(torchscan.crawl_module(model, (3, 32, 32))))
    assert theirs["1"] == (-2, 0.5, 0)
    found = dict(metrics(adapter.crawl_module(model, (3, 32, 32))))
    assert found["1"][:2] == (3, 1)
    assert support(model, (32, 32), (16, 16)) == (3, 3)


def test_what_has_no_single_number(adapter: ModuleType) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    report = adapter.crawl_module(model, (3, 20, 30))
    rows = {layer["path"]: layer["metrics"] for layer in report["layers"] if layer["path"]}
    assert rows["0"]["receptive_field"]["value"] == 3
    assert rows["1"]["receptive_field"]["status"] == "unavailable"
    whole = rows["2"]["receptive_field"]
    assert (whole["status"], whole["value"], whole["known_value"]) == ("partial", None, 20)
    assert rows["2"]["effective_stride"]["status"] == "unavailable"
    said = {d["path"]: d["message"] for d in report["diagnostics"] if d["metric"] == NAMES[0]}
    assert said["1"].startswith("fastrf has no such layer")
    assert said["2"] == "each of its outputs reads the whole map"


def test_the_summary_prints_the_columns(
    adapter: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    model = mixed()
    report = adapter.summary(
        model, (3, 96, 96), max_depth=1, receptive_field=True, effective_rf_stats=True
    )
    text = capsys.readouterr().out
    assert report == adapter.crawl_module(model, (3, 96, 96))
    (last,) = [line for line in text.splitlines() if line.startswith("├─6 ")]
    assert last.split()[-3:] == ["79", "8", "21"]
