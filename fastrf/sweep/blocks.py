"""The blocks that spaces know by name, in the language in which users write their own.

Every block is a list of layers as in a network file (see `fastrf.netfile`), with placeholders in
braces. Names that the space does not give have the value in `DEFAULTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULTS: Mapping[str, Any] = {
    "kernel": 3,
    "stride": 1,
    "dilation": 1,
    "padding": "centred",
    "gain": 1.0,
    "taps": None,
    "convs": 2,
    "pool": 2,
}
"""What a block takes for a name that is neither a parameter nor an argument."""

_CONV = {
    "type": "Conv",
    "kernel": "{kernel}",
    "dilation": "{dilation}",
    "padding": "{padding}",
    "taps": "{taps}",
}
_STRIDED = {**_CONV, "stride": "{stride}"}
_PROJECTION = {"type": "Conv", "kernel": 1, "stride": "{stride}", "when": "stride != 1"}
_LEVEL = [{**_CONV, "repeat": "{convs}"}]

BLOCKS: Mapping[str, list[dict[str, Any]]] = {
    # One convolution.
    "plain": [{**_STRIDED, "gain": "{gain}"}],
    # He et al. 2016: two convolutions beside the identity, or a projection where it strides.
    "residual": [
        {
            "type": "Residual",
            "branch": [{**_STRIDED, "gain": "{gain}"}, _CONV],
            "shortcut": [_PROJECTION],
        }
    ],
    # The same, 1×1 in front and behind.
    "bottleneck": [
        {
            "type": "Residual",
            "branch": [
                {"type": "Conv", "kernel": 1},
                {**_STRIDED, "gain": "{gain}"},
                {"type": "Conv", "kernel": 1},
            ],
            "shortcut": [_PROJECTION],
        }
    ],
    # Huang et al. 2017: every layer reads all that was made before it.
    "dense": [
        {"type": "Parallel", "branches": [[], [{**_CONV, "gain": "{gain}"}]], "merge": "concat"},
        {"type": "MaxPool", "kernel": "{stride}", "when": "stride != 1"},
    ],
    # Ronneberger et al. 2015: one level of a U-Net; the next level stands at `Inner`. The gain
    # keeps the variance, as in `fastrf.zoo.unet`.
    "unet": [
        *_LEVEL,
        {
            "type": "Parallel",
            "merge": "concat",
            "branches": [
                [],
                [
                    {"type": "MaxPool", "kernel": "{pool}"},
                    {"type": "Inner", "otherwise": _LEVEL},
                    {
                        "type": "ConvTranspose",
                        "kernel": "{pool}",
                        "stride": "{pool}",
                        "gain": "{1.0 * pool**ndim}",
                    },
                ],
            ],
        },
        *_LEVEL,
    ],
}
