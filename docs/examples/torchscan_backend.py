"""torchscan's reports with fastrf as their backend for receptive fields.

torchscan (0.2) reports of each module call what that layer alone does: its own kernel, stride and
padding, of the first axis. These functions have its names, arguments and report, with the columns
"receptive field", "effective stride" and "effective padding" of each call's output *on the model's
input*, over all paths (r, S and P of Araujo, Norris and Sim 2019):

    from torchscan_backend import crawl_module, summary   # instead of: from torchscan import …
    summary(model, (3, 224, 224), receptive_field=True, effective_rf_stats=True)

Where the axes differ, the metric is that of the first axis, as in torchscan, and the others stand
beside it, as "receptive_field_axis1" and so on. What has no single number (paths that do not line
up, layers that see everything) is "partial", with a diagnostic; modules that only pass a map on are
no layers in fastrf and "unavailable".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torchscan
from torch import nn
from torchscan.report import AnalysisReport, Diagnostic, LayerReport, metric_result
from torchscan.utils import aggregate_info, format_info

import fastrf as rf

METRICS = {"receptive_field": "size", "effective_stride": "stride", "effective_padding": "padding"}
"""torchscan's names, and those of the columns of `field.layers`."""


def crawl_module(
    module: nn.Module, input_shape: tuple[int, ...], *args: Any, **options: Any
) -> AnalysisReport:
    """As `torchscan.crawl_module` for one `input_shape` (C, spatial…), fields from the input."""
    report = torchscan.crawl_module(module, input_shape, *args, **options)
    network = rf.from_torch(module, (1, *input_shape))
    rows = {row.name: row for row in rf.receptive_field(network).layers}
    report["diagnostics"] = [d for d in report["diagnostics"] if d["metric"] not in METRICS]
    for layer in report["layers"]:
        if "receptive_field" not in layer["metrics"]:
            continue  # a container; its calls have their own rows
        call = layer["call_index"]
        row = rows.get(f"{layer['path']}_{call}" if call else layer["path"])
        report["diagnostics"] += _measured(layer, row, input_shape[1:])
    return report


def summary(
    module: nn.Module,
    input_shape: tuple[int, ...],
    wrap_mode: str = "mid",
    max_depth: int | None = None,
    receptive_field: bool = False,
    effective_rf_stats: bool = False,
    **options: Any,
) -> AnalysisReport:
    """As `torchscan.summary`: prints the report of `crawl_module` and returns it."""
    report = crawl_module(module, input_shape, **options)
    shown = report if max_depth is None else aggregate_info(report, max_depth)
    print(format_info(shown, wrap_mode, receptive_field, effective_rf_stats))
    return report


def _measured(layer: LayerReport, row: Any, pixels: tuple[int, ...]) -> Iterator[Diagnostic]:
    """Puts a row of fastrf's table in the place of a layer's metrics; yields what is to be said."""
    for metric, column in METRICS.items():
        values = (None,) if row is None else getattr(row, column)
        for axis, value in enumerate(values):
            if axis and value == values[0]:
                continue
            name = f"{metric}_axis{axis}" if axis else metric
            known = pixels[axis] if value is None and row and column == "size" else value
            whole = value is not None and row.aligned
            layer["metrics"][name] = metric_result(
                status="complete" if whole else "unavailable" if known is None else "partial",
                value=float(value) if whole else None,
                known_value=None if known is None else float(known),
                unit="pixels",
                scope="forward",
                method="fastrf",
            )
    if row is None:
        said = "fastrf has no such layer: the module passes a map on as it is"
    elif None in row.size:
        said = "each of its outputs reads the whole map"
    elif not row.aligned:
        said = "paths that meet here or before do not line up: the field depends on the unit"
    else:
        return
    yield Diagnostic(
        code="no_single_field",
        severity="warning",
        metric="receptive_field",
        path=layer["path"],
        message=said,
    )
