"""The way back from max-pooling."""

from __future__ import annotations

from collections.abc import Sequence

from fastrf.importers.failing import refuse
from fastrf.importers.spelling import spell
from fastrf.layers import ConvTranspose


def unpooling(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    more: Sequence[int],
) -> ConvTranspose:
    """Every value goes to one of the k pixels of its window, each as often as any other: with 1/k,
    as max-pooling takes them.

    Args:
        kernel, stride, padding: of the pooling.
        more: pixels of the result behind the last window.
    """
    if min(more) < 0 or any(m and m >= s for m, s in zip(more, stride, strict=True)):
        refuse(f"writes a map that is {list(more)} pixels longer than its windows reach")
    return ConvTranspose(
        spell(kernel),
        stride=spell(stride),
        padding=spell(padding),
        output_padding=spell(more),
        groups="depthwise",
    )
