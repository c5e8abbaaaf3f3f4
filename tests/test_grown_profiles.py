"""Profiles grown from the input against whole fractions, pixel by pixel, and what they share.

Tolerance: the kernel's own from the specification; the oracle is exact and rounded once.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from fastrf.kernels import KERNELS, load
from fastrf.kernels.cpu.grown_profiles import _what_is_kept
from test_chain_profiles import CHAINS, UNEVEN, Chain, Layer, exact, plain, row_agrees

DTYPES = (np.float32, np.float64)

# Chains without maps, from pixel 0 on, whose first and last taps are not 0 (they would be the
# image's first and last pixels).
UNBOUNDED = [
    Chain(tuple(layer._replace(lo=0) for layer in chain.layers))
    for chain in CHAINS
    if all(layer.size < 0 and 0 not in layer.taps[:1] for layer in chain.layers)
]
A, B, C = Layer(3), Layer(9, 2, 1), Layer(2, 1, 3, 0, -1, UNEVEN[:2])
# Prefixes of each other, forks at several depths, equal chains, and one that has nothing shared.
FOREST = [
    *(Chain(layers) for layers in ((A,), (A, A), (A, A, A), (A, A, B), (A, A, B, C), (A, A, C))),
    *(Chain(layers) for layers in ((A, B), (A, B), (), (B,), (B, A, A), (B, A, C), (B, C), (C,))),
]


def arguments(chains, dtype):
    """The arrays of a call, with results full of NaN."""
    flat, offsets, places, pool, rows = [], [0], [0], [], []
    index = {}
    for chain in chains:
        jump, width = 1, 1
        for layer in chain.layers:
            if layer.taps and layer.taps not in index:
                index[layer.taps] = len(pool)
                pool += layer.taps
            spacing = layer.dilation * jump
            rows.append((layer.kernel, spacing, index.get(layer.taps, -1) if layer.taps else -1))
            width += (layer.kernel - 1) * spacing
            jump *= layer.stride
        flat += chain.layers
        offsets.append(len(flat))
        places.append(places[-1] + width)
    return {
        "offsets": np.array(offsets),
        "layers": np.array(rows, np.int64).reshape(-1, 3).T,
        "taps": np.array(pool, dtype),
        "places": np.array(places),
        "exponents": np.full(len(chains), 77, np.int64),
        "out": np.full(places[-1], np.nan, dtype),
    }


def in_dtype(chain, dtype):
    """The chain with taps as the dtype holds them."""
    layers = (
        layer._replace(taps=tuple(map(float, np.array(layer.taps, dtype))))
        for layer in chain.layers
    )
    return Chain(tuple(layers))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chains", [UNBOUNDED, FOREST, UNBOUNDED[::-1]], ids=len)
def test_agrees_with_fractions(chains, dtype):
    chains = [in_dtype(chain, dtype) for chain in chains]
    values = arguments(chains, dtype)
    assert load().grown_profiles(*values.values()) is None
    places = values["places"]
    for c, chain in enumerate(chains):
        row = values["out"][places[c] : places[c + 1]]
        image, _, whole = exact(chain)
        terms = sum(2 * layer.kernel + 1 for layer in chain.layers)
        bound = Fraction(KERNELS["grown_profiles"].tolerance(dtype, terms))
        assert 1 <= row.max() <= 2
        window = [image.get(j, 0) for j in range(len(row))]
        row_agrees(row, values["exponents"][c], window, whole, dtype, bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_does_not_depend_on_the_others(dtype):
    chains = [*FOREST, *UNBOUNDED]
    together = arguments(chains, dtype)
    load().grown_profiles(*together.values())
    for c, chain in enumerate(chains):
        alone = arguments([chain], dtype)
        load().grown_profiles(*alone.values())
        row = together["out"][together["places"][c] : together["places"][c + 1]]
        np.testing.assert_array_equal(row, alone["out"])
        assert together["exponents"][c] == alone["exponents"][0]


@pytest.mark.parametrize("kernel", range(2, 40))
def test_equal_taps_are_symmetric(kernel):
    """Bit for bit, so that nothing of a symmetric image leans."""
    values = arguments([Chain((Layer(kernel), Layer(3), Layer(kernel, 1, 2)))], np.float64)
    load().grown_profiles(*values.values())
    np.testing.assert_array_equal(values["out"], values["out"][::-1])


def test_only_forks_are_kept():
    values = arguments(FOREST, np.float64)
    kept = _what_is_kept(values["offsets"], values["layers"])
    assert kept.shared.tolist() == [0, 1, 2, 2, 3, 2, 1, 2, 0, 0, 1, 2, 1, 0]
    depths = np.split(kept.depths, kept.offsets)[1:-1]
    assert [d.tolist() for d in depths][:3] == [[1], [2], []]
    # One image is kept of all depths of a stack, at a time.
    stack = arguments([plain(depth) for depth in range(1, 50)], np.float64)
    kept = _what_is_kept(stack["offsets"], stack["layers"])
    assert kept.shared.tolist() == list(range(49))
    assert kept.pixels <= sum(range(3, 2 * 49 + 2, 2))


REFUSED = [
    ("offsets", np.array([0, 3]), "offsets go from 0 to 3; they have to rise"),
    ("layers", np.ones((2, 2), np.int64), "rows of layers and its properties"),
    ("layers", np.array([[3, 3], [1, 0], [-1, -1]]), "spacing is 0; it has to be at least 1"),
    ("layers", np.array([[3, 3], [1, 1], [-1, 0]]), "a layer's taps end at 3; taps has 0"),
    ("places", np.array([0, 4]), "places go from 0 to 4 in an out of 5"),
    ("places", np.array([1, 6]), "places go from 1 to 6 in an out of 5"),
    ("exponents", np.zeros(2, np.int64), "lengths of exponents and places"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_impossible_chains_are_refused(name, value, message):
    values = arguments([plain(2)], np.float64)
    with pytest.raises(ValueError, match=message):
        load().grown_profiles(*(values | {name: value}).values())
