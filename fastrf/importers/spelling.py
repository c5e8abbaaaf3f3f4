"""ONNX's lists of values per axis as fastrf's layers take them, shortly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastrf.layers import Crop, Layer


def spell(values: Sequence[Any]) -> Any:
    """Values per axis as one where they are equal, pairs as one number likewise."""
    spelled = tuple(v[0] if isinstance(v, tuple) and v[0] == v[1] else v for v in values)
    same = all(v == spelled[0] for v in spelled) and not isinstance(spelled[0], tuple)
    return spelled[0] if same else spelled


def uncropped(padding: Sequence[Any]) -> tuple[list[Layer], Any]:
    """ONNX lets pads be negative, which crops: the layers that do so, and the padding left."""
    if any(isinstance(p, str) for p in padding) or min(map(min, padding)) >= 0:
        return [], spell(padding)
    cut = [tuple(max(-n, 0) for n in pair) for pair in padding]
    return [Crop(spell(cut))], spell([tuple(max(n, 0) for n in pair) for pair in padding])
