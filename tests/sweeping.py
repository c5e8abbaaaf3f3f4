"""What the tests of sweeps share: spaces, tables without times, and processes that die."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import fastrf as rf
from fastrf.sweep.columns import LAYERS, MEASURED

SPACE = {
    "name": "small",
    "ndim": 2,
    "parameters": {
        "depth": {"from": 1, "to": 12},
        "kernel": [3, 4],
        "stride": "2 if i == 1 else 1",
        "rate": [1, 2],
        "dilation": "rate",
    },
}

GRAPHS = {
    "name": "graphs",
    "ndim": 2,
    "parameters": {"depth": [1, 2, 3], "block": ["residual", "plain"], "kernel": [3, 5]},
    "options": {"input_size": 20},
}


def table(store, *columns):
    """The table in its order, without what differs from run to run; blobs included."""
    names = [row[1] for row in store.rows("PRAGMA table_info(sweep)") if row[1] not in MEASURED]
    quoted = ", ".join(f'"{name}"' for name in columns or names)
    return store.rows(f"SELECT {quoted} FROM sweep")


def layer_table(store):
    names = ", ".join(LAYERS)
    return store.rows(f"SELECT {names} FROM layers ORDER BY key, position")


class Deadly:
    """A network that kills the process that unpickles it, as long as `flag` does not exist; with
    `once`, it makes the flag before."""

    def __init__(self, net, flag, once):
        self.net, self.flag, self.once = net, str(flag), once

    def __reduce__(self):
        return _unpickled, (self.net, self.flag, self.once)


def _unpickled(net, flag, once):
    if not os.path.exists(flag):
        if once:
            Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return net


class Unsendable:
    """A network that cannot be pickled."""

    def __reduce__(self):
        raise TypeError("cannot be sent")


def networks(count):
    """Small networks of the zoo's graph kinds with a name each, some of them invalid."""
    for i in range(count):
        kind, depth, kernel = i % 4, 1 + i // 4 % 3, 3 + 2 * (i // 12 % 3)
        conv = rf.Conv(kernel, padding=kernel // 2, gain=1 + i)
        if kind == 0:
            net = rf.Sequential(*[rf.Residual(conv)] * depth)
        elif kind == 1:
            net = rf.Sequential(*[rf.Parallel(None, conv, merge="concat")] * depth)
        elif kind == 2:
            up = rf.Sequential(rf.MaxPool(2), conv, rf.Upsample(2))
            net = rf.Sequential(*[rf.Parallel(None, up)] * depth)
        else:
            net = rf.Sequential(rf.Conv(kernel, gain=1 + i, stride=0 if i % 8 == 7 else 1))
        yield {"i": i, "kind": ("residual", "dense", "unet", "conv")[kind]}, net
