"""Chains of a space as arrays: the fields of a template's convolutions, one vector per field.

A vector depends on few parameters (the kernels of 50 layers on `depth` and `kernel`), so vectors
are kept and shared between the points of a space; what is left to do for one point is to look
them up. What is not plainly a chain here, or breaks a rule, is left to the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from fastrf.errors import InputError
from fastrf.layers import LAYERS
from fastrf.layers.checks import MAXIMUM, is_whole, normalised_taps
from fastrf.maps import factor
from fastrf.netfile import MAX_NODES
from fastrf.network import DEFAULT_NDIM
from fastrf.sweep.chain import Chain, ChainAxis, Floats, Whole, is_pointwise, shared
from fastrf.sweep.expressions import Expression, Names
from fastrf.sweep.expressions import settled as settled_value
from fastrf.sweep.templates import Item, Value, evaluate, names_of, settled

MOST_KEPT = 1 << 22
"""Numbers that the vectors of a space may hold together before they are dropped: 32 MB."""

_BRANCHING = ("Residual", "Parallel")
"""Blocks that make a network no chain. (One branch would be a chain, which is run as a graph.)"""

_FIELDS = ("kernel", "stride", "dilation", "padding", "gain", "taps")

Axes: TypeAlias = tuple[Any, ...]
"""One vector for all axes alike, or one per axis."""


class NotPlain(Exception):
    """The chain cannot be had this way."""


class NoChain(NotPlain):
    """The network is no chain, whatever the values."""


class Vectors:
    """The vectors of one space: computed when they are first asked for."""

    def __init__(self) -> None:
        self._kept: dict[Any, Any] = {}
        self._size = 0

    def get(self, key: Any, size: int, make: Callable[[], Any]) -> Any:
        """What `make` makes, of about `size` numbers, for that key."""
        found = self._kept.get(key)
        if found is None:
            found = make()
            self._keep(key, found, size)
        return found

    def first(self, key: Any, times: int, make: Callable[[int, int], Axes]) -> Axes:
        """The first `times` layers of the vectors of that key; `make(start, stop)` makes some.

        What was made for fewer layers is continued: the layers of a network of 50 are the first
        ones of a network of 51.
        """
        found: Axes = self._kept.get(key, ())
        have = len(found[0]) if found else 0
        if have < times:
            more = make(have, times)
            if found:
                more = tuple(map(np.concatenate, zip(*_alike(found, more), strict=True)))
            self._keep(key, more, (times - have) * len(more))
            return more
        return found if have == times else tuple([axis[:times] for axis in found])

    def _keep(self, key: Any, value: Any, size: int) -> None:
        if self._size > MOST_KEPT:
            self._kept.clear()
            self._size = 0
        self._kept[key] = value
        self._size += size + 16


class _Field:
    """One field of a convolution in a template, over all repeats of it.

    Attributes:
        bases: the parameters that it depends on.
        layered: the parameters with a value per layer that it needs.
        varies: whether it differs between repeats.
    """

    __slots__ = ("bases", "layered", "value", "varies")

    def __init__(self, value: Value, scope: Scope) -> None:
        names = names_of(value)
        self.value = value
        self.varies = not names.isdisjoint(scope.varying)
        self.bases = tuple(sorted(frozenset().union(*map(scope.bases_of, names))))
        self.layered = scope.layered_for(names)

    def key(self, names: Names) -> Any:
        """What tells one set of values of `bases` from another; 1, 1.0 and True differ."""
        values = tuple([names[base] for base in self.bases])
        kinds = tuple(map(type, values))
        return repr(values) if tuple in kinds else (values, kinds)

    def values(self, names: Names, start: int, stop: int) -> list[Any]:
        """Its values for the repeats from `start` to `stop`."""
        if not self.varies:
            return [evaluate(self.value, names)] * (stop - start)
        here, found = {**names, "j": 0}, []
        for i in range(start, stop):
            here["i"] = i
            for name, expression in self.layered:
                here[name] = settled_value(expression, here)
            found.append(evaluate(self.value, here))
        return found


class Scope(Protocol):
    """What names mean in a space."""

    @property
    def varying(self) -> Collection[str]:
        """Names whose value differs from repeat to repeat."""

    def bases_of(self, name: str) -> frozenset[str]:
        """The parameters that a name depends on."""

    def layered_for(self, names: Collection[str]) -> Sequence[tuple[str, Expression]]:
        """The parameters with a value per layer that names depend on, each behind what it reads."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A convolution of a template and the gain of the pointwise layers behind it.

    `rest` stands for all fields but the stride: its key tells their values apart.
    """

    fields: Mapping[str, _Field]
    behind: float
    rest: _Field


@dataclass(frozen=True, slots=True)
class _Body:
    """What is repeated: pointwise gain before the first convolution, and the convolutions."""

    before: float
    slots: tuple[_Slot, ...]


class _Everywhere:
    """The scope of what reads no names."""

    varying: Collection[str] = ()

    def bases_of(self, name: str) -> frozenset[str]:
        return frozenset((name,))

    def layered_for(self, names: Collection[str]) -> Sequence[tuple[str, Expression]]:
        return ()


_ONE, _ZERO = _Field(1, _Everywhere()), _Field(0, _Everywhere())


class ChainPlan:
    """How the points of a space become packed chains.

    Args:
        items: the space's template.
        blocks: the blocks by name.
        scope: what the names in them mean.
    """

    def __init__(
        self, items: Sequence[Item], blocks: Mapping[str, tuple[Item, ...]], scope: Scope
    ) -> None:
        self._items, self._blocks, self._scope = items, blocks, scope
        self._vectors = Vectors()
        self._bodies: dict[tuple[int, str | None], _Body | type[NotPlain]] = {}

    def chain(self, names: Names, ndim: int | None) -> Chain:
        """The chain of one point.

        Raises:
            NoChain: there is none.
            NotPlain: it has to be found in the network, if there is one.
            InputError: an expression has no value.
        """
        segments: list[tuple[dict[str, Axes], Floats]] = []
        loose = 1.0  # pointwise gain before the first convolution
        for position, item in enumerate(self._items):
            times = item.repeat if item.repeat == 1 else evaluate(item.repeat, names)
            if type(times) is not int or not 0 <= times <= MAX_NODES:
                raise NotPlain
            if times == 0:
                continue
            block = None if item.kind is not None else evaluate(item.block, names)
            body = self._body(position, item, block)
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
                items = [item] if block is None else self._called(block, item)
                self._bodies[key] = _Body(*self._slots(items))
            except NotPlain as error:
                self._bodies[key] = type(error)
            except InputError:
                self._bodies[key] = NotPlain
        body = self._bodies[key]
        if not isinstance(body, _Body):
            raise body
        return body

    def _called(self, block: str | None, item: Item) -> Sequence[Item]:
        body = self._blocks.get(block, ()) if isinstance(block, str) else ()
        if any(i.kind in _BRANCHING and i.when is None and i.repeat == 1 for i in body):
            raise NoChain
        if not body or item.values or any(i.repeat != 1 or i.kind is None for i in body):
            raise NotPlain
        return body

    def _slots(self, items: Sequence[Item]) -> tuple[float, tuple[_Slot, ...]]:
        gains, convs = [1.0], []
        for item in items:
            if item.when is not None:
                raise NotPlain
            if item.kind in _BRANCHING:
                raise NoChain
            if item.kind == "Conv":
                if not set(item.values) <= set(_FIELDS):
                    raise NotPlain
                convs.append({k: _Field(v, self._scope) for k, v in item.values.items()})
                gains.append(1.0)
            else:
                gains[-1] *= _pointwise_gain(item)
        slots = tuple(
            _Slot(fields, gain, self._all_but_stride(fields))
            for fields, gain in zip(convs, gains[1:], strict=True)
        )
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
        rest, gain, needs_stride_one = self._vectors.get(
            (label, times, ndim, slot.rest.key(names)),
            0,
            lambda: self._all_but_stride_of(label, slot, names, times, ndim),
        )
        spec = slot.fields.get("stride", _ONE)
        stride = self._vector((label, "stride", spec.key(names)), spec, names, times, _whole)
        if needs_stride_one and any((axis != 1).any() for axis in stride):
            raise NotPlain
        return {**rest, "stride": stride}, gain

    def _all_but_stride(self, fields: Mapping[str, _Field]) -> _Field:
        values = (field.value for name, field in fields.items() if name != "stride")
        return _Field(tuple(values), self._scope)

    def _all_but_stride_of(
        self, label: Any, slot: _Slot, names: Names, times: int, ndim: int | None
    ) -> tuple[dict[str, Axes], Floats, bool]:
        """The fields of a slot, its gain, and whether its padding needs a stride of 1."""
        fields: dict[str, Axes] = {}
        if "kernel" not in slot.fields:
            raise NotPlain
        for name in ("kernel", "dilation"):
            spec = slot.fields.get(name, _ONE)
            key = (label, name, spec.key(names))
            fields[name] = self._vector(key, spec, names, times, _whole)
        spec = slot.fields.get("padding", _ZERO)
        rules = spec.values(names, 0, times if spec.varies else 1)
        fields["lo"], fields["hi"], needs_stride_one = _padding(rules, fields)
        spec = slot.fields.get("gain", _ONE)
        (gain,) = self._vector((label, "gain", spec.key(names)), spec, names, times, _positive)
        if (spec := slot.fields.get("taps", _ONE)) is not _ONE:
            taps = _taps(spec.values(names, 0, times), fields["kernel"], ndim)
            if taps:
                fields["taps"] = taps
        return fields, gain, needs_stride_one

    def _vector(
        self,
        key: Any,
        spec: _Field,
        names: Names,
        times: int,
        read: Callable[[list[Any]], Axes],
    ) -> Axes:
        return self._vectors.first(key, times, lambda a, b: read(spec.values(names, a, b)))


def _pointwise_gain(item: Item) -> float:
    if item.kind not in LAYERS or any(names_of(v) for v in item.values.values()):
        raise NotPlain
    try:
        layer = LAYERS[item.kind](**item.values).bind(1)
    except TypeError:  # a field that it has not, which the network says
        raise NotPlain from None
    if not is_pointwise(layer) or layer.depends_on_network:
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


def _whole(values: list[Any]) -> Axes:
    axes = _spread_out(values)
    if not axes or not all(is_whole(v) and 1 <= v <= MAXIMUM for line in axes for v in line):
        raise NotPlain
    return tuple(np.array(line, dtype=np.int64) for line in axes)


def _positive(values: list[Any]) -> Axes:
    if not all(type(v) in (int, float) and 0 < v < np.inf for v in values):
        raise NotPlain
    return (np.array(values, dtype=np.float64),)


def _padding(values: list[Any], fields: Mapping[str, Axes]) -> tuple[Axes, Axes, bool]:
    """lo and hi of one rule or number for all layers, and whether it needs a stride of 1."""
    rule = values[0]
    if any(type(v) is not type(rule) or v != rule for v in values):
        raise NotPlain
    kernels, dilations = _alike(fields["kernel"], fields["dilation"])
    spans = [d * (k - 1) for k, d in zip(kernels, dilations, strict=True)]
    if rule in ("same", "centred"):
        halves = [span // 2 for span in spans]
        rests = [span - half for span, half in zip(spans, halves, strict=True)]
        return tuple(halves), tuple(rests), rule == "same"
    if rule == "causal":
        return tuple(spans), tuple(span * 0 for span in spans), False
    if rule == "valid":
        rule = 0
    if not is_whole(rule) or not 0 <= rule <= MAXIMUM:
        raise NotPlain
    pads = (np.full(len(kernels[0]), rule, dtype=np.int64),)
    return pads, pads, False


def _taps(values: list[Any], kernel: Axes, ndim: int | None) -> Axes:
    """Per axis the taps of every layer, as `ChainAxis` has them; () where all are equal."""
    if all(value is None for value in values):
        return ()
    if ndim is None:
        ndim = DEFAULT_NDIM if len(kernel) == 1 else len(kernel)
    if len(kernel) not in (1, ndim):
        raise NotPlain
    kernels = np.stack([kernel[axis % len(kernel)] for axis in range(ndim)], axis=1)
    rows: list[tuple[Floats | None, ...]] = []
    for k, value in zip(map(tuple, kernels.tolist()), values, strict=True):
        taps = settled({"kernel": k, "taps": value}, ndim).get("taps")
        nested = None if taps is None else normalised_taps("Conv", taps, k)
        factors = None if nested is None else factor(np.asarray(nested, dtype=np.float64))
        if isinstance(factors, np.ndarray):
            raise NotPlain
        rows.append((None,) * ndim if factors is None else factors)
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
    width = max([len(fields[name]) for name in names])
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
        ChainAxis(
            kernel,
            stride,
            dilation,
            lo,
            hi,
            None if line is None or all(v is None for v in line) else line,
        )
        for (kernel, stride, dilation, lo, hi), line in zip(columns, lines, strict=True)
    ]
    return Chain(shared(axes), gain, loose)
