"""Reference networks by name.

Each function returns a `Network` whose docstring says which paper and implementation it follows
and which end points it has. Nodes are called as in that implementation ("layer1.0.conv1"), end
points as in the literature ("layer1", "pool5", "Mixed_7c"). All are 2-D and read 3 channels
unless their docstring says otherwise.

**Gains.** The networks count as initialised so that the gradient keeps its variance (He et al.
2015): activations and norms have gain 1, a convolution has gain 1, a transposed convolution the
product of its strides, and the two factors of a gated unit 1/2 each. Shortcut and branch of equal
size therefore weigh equally. Dropout stands only in classifier heads, behind the last map with
spatial extent or on 1×1 maps, where a constant factor changes no image.

>>> from fastrf import zoo
>>> zoo.get("plain(10, kernel=5, ndim=1)")
Network('plain', 10 layers, 1-D, output conv10)
"""

from __future__ import annotations

from fastrf.zoo.classic import (
    alexnet,
    alexnet_dang,
    alexnet_v2,
    vgg11,
    vgg13,
    vgg16,
    vgg19,
    zfnet,
)
from fastrf.zoo.compact import darknet53, densenet121, mobilenet_v1, mobilenet_v2
from fastrf.zoo.inceptions import googlenet, inception_v3
from fastrf.zoo.parametric import cifar_resnet, plain, residual, tcn, unet, wavenet
from fastrf.zoo.registry import get, names
from fastrf.zoo.resnets import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnet_v1_50_slim,
    resnet_v1_101_slim,
    resnet_v1_152_slim,
    resnet_v1_200_slim,
)

__all__ = [
    "alexnet",
    "alexnet_dang",
    "alexnet_v2",
    "cifar_resnet",
    "darknet53",
    "densenet121",
    "get",
    "googlenet",
    "inception_v3",
    "mobilenet_v1",
    "mobilenet_v2",
    "names",
    "plain",
    "residual",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet_v1_50_slim",
    "resnet_v1_101_slim",
    "resnet_v1_152_slim",
    "resnet_v1_200_slim",
    "tcn",
    "unet",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "wavenet",
    "zfnet",
]
