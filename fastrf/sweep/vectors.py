"""Chains of a space as arrays: the fields of a template's convolutions, one vector per field.

A vector depends on few parameters (the kernels of 50 layers on `depth` and `kernel`), so vectors
are kept and shared between the points of a space; what is left to do for one point is to look
them up. What is not plainly a chain here, or breaks a rule, is left to the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrf.errors import InputError
from fastrf.layers import LAYERS
from fastrf.layers.checks import MAXIMUM, is_whole, normalised_taps
from fastrf.maps import factor
from fastrf.netfile import MAX_NODES
from fastrf.network import DEFAULT_NDIM
from fastrf.sweep.chain import POINTWISE, Chain, ChainAxis, Floats, Whole, shared
from fastrf.sweep.expressions import Names
from fastrf.sweep.templates import Enter, Item, Value, evaluate, names_of, settled

MOST_KEPT = 1 << 22
"""Numbers that the vectors of a space may hold together before they are dropped: 32 MB."""

_FIELDS = ("kernel", "stride", "dilation", "padding", "gain", "taps")

Axes = tuple[Any, ...]
"""One vector for all axes alike, or one per axis."""


class NotPlain(Exception):
    """The chain cannot be had this way."""


class Vectors:
    """The vectors of one space: computed when they are first asked for."""

    def __init__(self, enter: Enter) -> None:
        self.enter = enter
        self._kept: dict[Any, Any] = {}
        self._size = 0

    def get(self, key: Any, size: int, make: Callable[[], Any]) -> Any:
        """The vector of that key, which holds about `size` numbers."""
        found = self._kept.get(key)
        if found is None:
            if self._size > MOST_KEPT:
                self._kept.clear()
                self._size = 0
            found = self._kept[key] = make()
            self._size += size + 16
        return found


class _Field:
    """One field of a convolution in a template, over all repeats of it.

    `bases` are the parameters that it depends on, `varies` says that it differs between repeats.
    """

    __slots__ = ("bases", "value", "varies")

    def __init__(
        self, value: Value, bases_of: Callable[[str], frozenset[str]], varying: Collection[str]
    ) -> None:
        names = names_of(value)
        self.value = value
        self.varies = not names.isdisjoint(varying)
        self.bases = tuple(sorted(frozenset().union(*map(bases_of, names))))

    def key(self, names: Names) -> Any:
        """What tells one set of values of `bases` from another; 1, 1.0 and True differ."""
        values = tuple([names[base] for base in self.bases])
        kinds = tuple(map(type, values))
        return repr(values) if tuple in kinds else (values, kinds)

    def values(self, names: Names, times: int, enter: Enter) -> list[Any]:
        """Its values for every repeat; one where all are equal."""
        if not self.varies:
            return [evaluate(self.value, names)]
        return [evaluate(self.value, enter(names, i, 0)) for i in range(times)]


@dataclass(frozen=True, slots=True)
class _Slot:
    """A convolution of a template and the gain of the pointwise layers behind it."""

    fields: Mapping[str, _Field]
    behind: float


@dataclass(frozen=True, slots=True)
class _Body:
    """What is repeated: pointwise gain before the first convolution, and the convolutions."""

    before: float
    slots: tuple[_Slot, ...]


class ChainPlan:
    """How the points of a space become packed chains.

    Args:
        items: the space's template.
        blocks: the blocks by name.
        bases_of: name → the parameters that it depends on.
        varying: names whose value differs from repeat to repeat.
        vectors: where vectors are kept.
    """

    def __init__(
        self,
        items: Sequence[Item],
        blocks: Mapping[str, tuple[Item, ...]],
        bases_of: Callable[[str], frozenset[str]],
        varying: Collection[str],
        vectors: Vectors,
    ) -> None:
        self._items, self._blocks, self._vectors = items, blocks, vectors
        self._bases_of, self._varying = bases_of, varying
        self._bodies: dict[tuple[int, str | None], _Body | None] = {}

    def chain(self, names: Names, ndim: int | None) -> Chain:
        """The chain of one point.

        Raises:
            NotPlain: it has to be found in the network.
            InputError: an expression has no value.
        """
        segments: list[tuple[dict[str, Axes], Floats]] = []
        loose = 1.0  # pointwise gain before the first convolution
        for position, item in enumerate(self._items):
            times = item.repeat if item.repeat == 1 else evaluate(item.repeat, names)
            block = None if item.kind is not None else evaluate(item.block, names)
            body = self._body(position, item, block)
            if type(times) is not int or not 0 <= times <= MAX_NODES:
                raise NotPlain
            if times == 0:
                continue
            before = body.before**times if not body.slots else body.before
            if segments:
                segments[-1] = (segments[-1][0], _scaled_last(segments[-1][1], before))
            else:
                loose *= before
            if body.slots:
                segments.append(self._segment((position, block), body, names, times, ndim))
        if not segments:
            raise NotPlain
        if len(segments) == 1:
            fields, gain = segments[0]
        else:
            fields = _joined([fields for fields, _ in segments], np.concatenate)
            gain = np.concatenate([gain for _, gain in segments])
        return _chain(fields, gain, loose, ndim)

    # --- which convolutions

    def _body(self, position: int, item: Item, block: str | None) -> _Body:
        key = (position, block)
        if key not in self._bodies:
            try:
                before, slots = self._slots([item] if block is None else self._called(block, item))
                self._bodies[key] = _Body(before, slots)
            except (NotPlain, InputError):
                self._bodies[key] = None
        body = self._bodies[key]
        if body is None:
            raise NotPlain
        return body

    def _called(self, block: str | None, item: Item) -> Sequence[Item]:
        body = self._blocks.get(block) if isinstance(block, str) else None
        if body is None or item.values or any(i.repeat != 1 or i.kind is None for i in body):
            raise NotPlain
        return body

    def _slots(self, items: Sequence[Item]) -> tuple[float, tuple[_Slot, ...]]:
        gains, convs = [1.0], []
        for item in items:
            if item.when is not None:
                raise NotPlain
            if item.kind == "Conv":
                if not set(item.values) <= set(_FIELDS):
                    raise NotPlain
                convs.append(
                    {k: _Field(v, self._bases_of, self._varying) for k, v in item.values.items()}
                )
                gains.append(1.0)
            else:
                gains[-1] *= _pointwise_gain(item)
        slots = tuple(_Slot(f, gain) for f, gain in zip(convs, gains[1:], strict=True))
        return gains[0], slots

    # --- their vectors

    def _segment(
        self, label: Any, body: _Body, names: Names, times: int, ndim: int | None
    ) -> tuple[dict[str, Axes], Floats]:
        parts = [
            self._slot((*label, at), slot, names, times, ndim) for at, slot in enumerate(body.slots)
        ]
        if len(parts) == 1 and body.before == body.slots[0].behind == 1.0:
            return parts[0]
        gains = np.stack([gain for _, gain in parts], axis=1)
        gains *= [slot.behind for slot in body.slots]
        gains[:-1, -1] *= body.before  # of the next repeat
        fields = _joined([fields for fields, _ in parts], _interleaved)
        return fields, gains.ravel()

    def _slot(
        self, label: Any, slot: _Slot, names: Names, times: int, ndim: int | None
    ) -> tuple[dict[str, Axes], Floats]:
        enter, get = self._vectors.enter, self._vectors.get
        fields: dict[str, Axes] = {}
        keys = {}
        for name in ("kernel", "stride", "dilation"):
            spec = slot.fields.get(name)
            if spec is None:
                if name == "kernel":
                    raise NotPlain
                fields[name] = get((times,), times, lambda: (np.ones(times, dtype=np.int64),))
                keys[name] = None
                continue
            keys[name] = spec.key(names)
            key = (label, name, times, keys[name])
            fields[name] = get(
                key, times, lambda spec=spec: _whole(spec.values(names, times, enter), times)
            )
        spec = slot.fields.get("padding")
        keys["padding"] = None if spec is None else spec.key(names)
        key = (label, "padding", times, *keys.values())
        fields["lo"], fields["hi"] = get(
            key,
            2 * times,
            lambda: _padding([0] if spec is None else spec.values(names, times, enter), fields),
        )
        gain: Floats = self._gain(label, slot.fields.get("gain"), names, times)
        spec = slot.fields.get("taps")
        if spec is not None and not (spec.value is None or spec.bases == ("taps",) and names["taps"] is None):
            key = (label, "taps", times, keys["kernel"], spec.key(names), ndim)
            fields["taps"] = get(
                key, times, lambda: _taps(spec.values(names, times, enter), fields, times, ndim)
            )
        return fields, gain

    def _gain(self, label: Any, spec: _Field | None, names: Names, times: int) -> Floats:
        get = self._vectors.get
        if spec is None:
            ones: Floats = get(("ones", times), times, lambda: np.ones(times))
            return ones
        key = (label, "gain", times, spec.key(names))
        enter = self._vectors.enter
        gains: Floats = get(key, times, lambda: _positive(spec.values(names, times, enter), times))
        return gains


def _pointwise_gain(item: Item) -> float:
    if item.kind not in POINTWISE or any(names_of(v) for v in item.values.values()):
        raise NotPlain
    layer = LAYERS[item.kind](**item.values).bind(1)
    if layer.maps(None, 1) or getattr(layer, "whole_map", False):
        raise NotPlain
    return layer.pointwise_gain


def _scaled_last(gain: Floats, factor: float) -> Floats:
    if factor == 1.0:
        return gain
    scaled = gain.copy()
    scaled[-1] *= factor
    return scaled


# --- from values to vectors -----------------------------------------------------------------


def _spread_out(values: list[Any]) -> list[list[Any]]:
    """Values per layer as one list for all axes, or one list per axis."""
    if not any(isinstance(v, tuple) for v in values):
        return [values]
    lengths = {len(v) for v in values if isinstance(v, tuple)}
    if len(lengths) > 1:
        raise NotPlain
    ndim = lengths.pop()
    rows = [v if isinstance(v, tuple) else (v,) * ndim for v in values]
    return [list(axis) for axis in zip(*rows, strict=True)]


def _whole(values: list[Any], times: int, least: int = 1) -> Axes:
    axes = []
    for line in _spread_out(values):
        if not all(is_whole(v) and least <= v <= MAXIMUM for v in line):
            raise NotPlain
        axes.append(np.full(times, line[0]) if len(line) == 1 else np.array(line, dtype=np.int64))
    if not axes:
        raise NotPlain
    return tuple(axis.astype(np.int64, copy=False) for axis in axes)


def _positive(values: list[Any], times: int) -> Floats:
    if not all(type(v) in (int, float) and 0 < v < np.inf for v in values):
        raise NotPlain
    gains = np.full(times, values[0]) if len(values) == 1 else np.array(values)
    return gains.astype(np.float64)


def _padding(values: list[Any], fields: Mapping[str, Axes]) -> tuple[Axes, Axes]:
    """lo and hi of one rule or number for all layers."""
    rule = values[0]
    if any(type(v) is not type(rule) or v != rule for v in values):
        raise NotPlain
    kernels, dilations = _alike(fields["kernel"], fields["dilation"])
    spans = [d * (k - 1) for k, d in zip(kernels, dilations, strict=True)]
    if rule == "causal":
        return tuple(spans), tuple(span * 0 for span in spans)
    if rule == "same" and any((s != 1).any() for s in fields["stride"]):
        raise NotPlain
    if rule in ("same", "centred"):
        halves = [span // 2 for span in spans]
        return tuple(halves), tuple(s - h for s, h in zip(spans, halves, strict=True))
    if rule == "valid":
        rule = 0
    if not is_whole(rule) or not 0 <= rule <= MAXIMUM:
        raise NotPlain
    pads = (np.full(len(kernels[0]), rule, dtype=np.int64),)
    return pads, pads


def _taps(
    values: list[Any], fields: Mapping[str, Axes], times: int, ndim: int | None
) -> Axes | None:
    """Per axis the taps of every layer, as `ChainAxis` has them."""
    if ndim is None:
        ndim = max(DEFAULT_NDIM if len(k) == 1 else len(k) for k in (fields["kernel"],))
    kernels = np.stack([fields["kernel"][a % len(fields["kernel"])] for a in range(ndim)], axis=1)
    values = values * times if len(values) == 1 else values
    rows: list[tuple[Floats | None, ...]] = []
    for kernel, value in zip(kernels.tolist(), values, strict=True):
        taps = settled({"kernel": tuple(kernel), "taps": value}, ndim).get("taps")
        nested = None if taps is None else normalised_taps("Conv", taps, tuple(kernel))
        if nested is None:
            rows.append((None,) * ndim)
            continue
        factors = factor(np.asarray(nested, dtype=np.float64))
        if not isinstance(factors, tuple):
            raise NotPlain
        rows.append(factors)
    return tuple(zip(*rows, strict=True))


def _alike(*groups: Axes) -> list[Axes]:
    """The same number of axes everywhere: one, or as many as the longest has."""
    ndim = max(map(len, groups))
    if any(len(group) not in (1, ndim) for group in groups):
        raise NotPlain
    return [group * ndim if len(group) == 1 else group for group in groups]


def _interleaved(columns: Sequence[Whole]) -> Whole:
    return np.stack(columns, axis=1).ravel()


def _joined(
    parts: Sequence[Mapping[str, Axes]], join: Callable[[Sequence[Whole]], Whole]
) -> dict[str, Axes]:
    """The fields of several convolutions as one, axis by axis."""
    if any("taps" in part for part in parts):
        raise NotPlain
    joined: dict[str, Axes] = {}
    for name in parts[0]:
        groups = _alike(*(part[name] for part in parts))
        joined[name] = tuple(join(axis) for axis in zip(*groups, strict=True))
    return joined


def _chain(fields: Mapping[str, Axes], gain: Floats, loose: float, ndim: int | None) -> Chain:
    taps = fields.get("taps")
    names = ("kernel", "stride", "dilation", "lo", "hi")
    width = max(len(fields[name]) for name in names)
    if ndim is None:
        ndim = DEFAULT_NDIM if width == 1 else width
    if width not in (1, ndim):
        raise NotPlain
    if width == 1 and taps is None:
        axis = ChainAxis(*[fields[name][0] for name in names])
        return Chain((axis,) * ndim, gain, loose)
    columns = zip(*_alike(*(fields[name] for name in names), (None,) * ndim)[:-1], strict=True)
    lines = (None,) * ndim if taps is None else taps
    axes = [
        ChainAxis(*column, None if line is None or not any(v is not None for v in line) else line)
        for column, line in zip(columns, lines, strict=True)
    ]
    return Chain(shared(axes), gain, loose)

