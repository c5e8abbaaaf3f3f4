"""`fastrf warmup`: every kernel compiled ahead."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from fastrf.cli.options import COMPUTE, AsJson
from fastrf.cli.printing import print_json, show
from fastrf.cli.progress import Progress


def warmup(
    *,
    device: Annotated[
        str, Parameter(group=COMPUTE, help="auto (all that work), cpu, cuda or cuda:N.")
    ] = "auto",
    as_json: AsJson = False,
) -> int:
    """Compiles every kernel, as for a container image, so that no later process has to."""
    from fastrf.warmup import warmup as warm

    with Progress() as progress:
        done = warm(device, progress=progress)
    if as_json:
        print_json(done.to_dict())
    else:
        show(str(done))
    return 0
