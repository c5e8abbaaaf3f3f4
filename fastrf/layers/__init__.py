"""The layers a network is made of: frozen dataclasses that lower to primitive axis maps.

Every size is per axis. A plain number means the same on every axis; a tuple gives one value per
axis (``kernel=(3, 5)``). Padding is a number, one number or one ``(lo, hi)`` pair per axis, or a
name:

* ``"valid"``: none. ``"same"``: PyTorch's rule (needs stride 1; the odd pixel goes to the end).
* ``"same_upper"``: TensorFlow's SAME and ONNX's SAME_UPPER: the output has ⌈n/stride⌉ pixels,
  so with a stride the padding depends on the size of the map; ``"same_lower"``: the same with
  the odd pixel at the beginning. On the unbounded grid the size counts as divisible by the stride.
* ``"causal"``: d(k−1) at the beginning, nothing at the end.

`Layer.bind` fixes the number of axes: it checks every value and spells each one out per axis.
`Layer.maps` lowers a bound layer to `SpatialMap`s (see `fastrf.maps`).
"""

from __future__ import annotations

from fastrf.layers.base import Identity, Input, Layer
from fastrf.layers.borders import Crop, Pad
from fastrf.layers.convolution import Conv, ConvTranspose, FullyConnected
from fastrf.layers.filtering import Filter
from fastrf.layers.merging import Add, ChannelShuffle, ChannelSlice, Concat, Multiply
from fastrf.layers.pointwise import Activation, Attention, Dropout, Norm, Scale, SqueezeExcite
from fastrf.layers.pooling import AdaptivePool, AvgPool, GlobalPool, MaxPool
from fastrf.layers.resizing import PixelShuffle, PixelUnshuffle, Upsample

LAYERS: dict[str, type[Layer]] = {
    cls.__name__: cls
    for cls in (
        Input,
        Identity,
        Conv,
        ConvTranspose,
        Filter,
        MaxPool,
        AvgPool,
        AdaptivePool,
        GlobalPool,
        FullyConnected,
        Attention,
        SqueezeExcite,
        Norm,
        Upsample,
        PixelShuffle,
        PixelUnshuffle,
        Pad,
        Crop,
        Activation,
        Scale,
        Dropout,
        Add,
        Multiply,
        Concat,
        ChannelSlice,
        ChannelShuffle,
    )
}
"""Every layer by the name that Python, files and the command line share."""

__all__ = [
    "LAYERS",
    "Activation",
    "AdaptivePool",
    "Add",
    "Attention",
    "AvgPool",
    "ChannelShuffle",
    "ChannelSlice",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Crop",
    "Dropout",
    "Filter",
    "FullyConnected",
    "GlobalPool",
    "Identity",
    "Input",
    "Layer",
    "MaxPool",
    "Multiply",
    "Norm",
    "Pad",
    "PixelShuffle",
    "PixelUnshuffle",
    "Scale",
    "SqueezeExcite",
    "Upsample",
]
