"""`fastrf empirical`: a field measured by the gradients of a real module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fastrf.cli.erf import erf_facts
from fastrf.cli.exits import FAILED
from fastrf.cli.options import (
    CHOOSE,
    COMPUTE,
    RESULTS,
    AsJson,
    Unit,
    bytes_of,
    named_by_code,
    numbers,
    unit_of,
)
from fastrf.cli.printing import note, print_facts, print_json, show
from fastrf.cli.progress import Progress
from fastrf.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from fastrf.comparison import Comparison
    from fastrf.erf import ERF
    from fastrf.network import Network


def empirical(
    code: Annotated[
        str,
        Parameter(help="package.module:callable that returns a torch.nn.Module, weights and all."),
    ],
    /,
    *,
    output: Annotated[
        str | None,
        Parameter(
            group=CHOOSE,
            help="Path of a submodule, or a key of what the module returns. Default: what it "
            "returns, or the last map before it lost its spatial extent.",
        ),
    ] = None,
    unit: Unit = "center",
    channel: Annotated[
        str | None,
        Parameter(
            group=CHOOSE,
            help="Channel of the unit by its number, or sum for their sum. Default: independent "
            "signs for all.",
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        Parameter(group=CHOOSE, help="Pixels of the images: 224, 224,320 or 224x320; default 224."),
    ] = None,
    channels: Annotated[
        int | None,
        Parameter(
            group=CHOOSE,
            help="Channels of the images. Default: what the first convolution reads, else 3.",
        ),
    ] = None,
    draws: Annotated[
        int | None, Parameter(group=COMPUTE, help="Independent samples. Default: 100.")
    ] = None,
    initialise: Annotated[
        str | None,
        Parameter(
            group=COMPUTE,
            help="New weights for every draw, by a scheme: unit (what fastrf erf takes for "
            "granted), he, he-fan-out, lecun, glorot, orthogonal, delta-orthogonal or pytorch. "
            "Default: the module as it is.",
        ),
    ] = None,
    cotangents: Annotated[
        int,
        Parameter(group=COMPUTE, help="Backward passes for each image, with signs of their own."),
    ] = 1,
    training: Annotated[
        bool,
        Parameter(
            group=COMPUTE,
            negative="",
            show_default=False,
            help="Run it as in training, not as in evaluation.",
        ),
    ] = False,
    seed: Annotated[int, Parameter(group=COMPUTE, help="Of everything random.")] = 0,
    memory_limit: Annotated[
        str | None,
        Parameter(group=COMPUTE, help="Memory for what passes at once: bytes, or 500M, 8G."),
    ] = None,
    compare: Annotated[
        bool,
        Parameter(
            group=RESULTS,
            negative="",
            show_default=False,
            help="Hold it against what fastrf erf computes; exits 1 where they disagree.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        Parameter(
            group=RESULTS, help="Write a figure: .png, .svg or .pdf; of both, with --compare."
        ),
    ] = None,
    save: Annotated[
        Path | None, Parameter(group=RESULTS, help="Write image and errors to an .npz file.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """The effective receptive field of a unit, measured by backward passes on random images."""
    if not named_by_code(code):
        raise InputError(
            f"{code!r} is no Python code; gradients are those of a real module: give "
            f"package.module:callable that returns a torch.nn.Module"
        )
    # What would fail at the end is refused before the work.
    if plot is not None:
        from fastrf.plot import check_path

        check_path(plot)
    for path in (plot, save):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    size = None if input_size is None else numbers(input_size, "--input-size")
    chosen: Any = channel if channel in (None, "sum") else numbers(channel, "--channel")
    module, shape = _module(code, seed, input_size=size, channels=channels)
    network = _network(module, shape, initialise, training) if compare else None
    if network is not None and not training and _follows_norms(network):
        note(
            "batch norms divide by the statistics that the module holds, and fastrf erf takes for "
            "granted that these are of the new weights; where they are not, give --training"
        )
    from fastrf.empirical import empirical as measure

    with Progress() as progress:
        found = measure(
            module,
            shape,
            output,
            unit_of(unit),
            draws=draws,
            initialise=initialise,
            channel=chosen,
            cotangents=cotangents,
            seed=seed,
            training=training,
            network=network,
            memory_limit=bytes_of(memory_limit),
            progress=progress,
        )
        theory, comparison = _compared(found) if compare else (None, None)
        document = found.to_dict()
    document["errors"] = _errors(found)
    if as_json:
        held = {} if comparison is None else {"comparison": comparison.to_dict()}
        print_json({**document, **held})
    else:
        print_facts([*erf_facts(found, document), *_error_facts(document["errors"])])
        if comparison is not None:
            show("")
            show(str(comparison))
    if save is not None:
        found.save(save)
        note(f"wrote {save}")
    if plot is not None:
        _draw(found, theory, plot)
        note(f"wrote {plot}")
    return 0 if comparison is None or comparison else FAILED


def _module(code: str, seed: int, **options: Any) -> tuple[Any, tuple[int, ...]]:
    """The module, and the shape of an image. The seed is that of its weights, too."""
    try:
        import torch
    except ImportError:
        raise MissingExtra(
            'measuring gradients needs the package torch; pip install "fastrf[torch]"'
        ) from None
    from fastrf.importers.named import module_from_name

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module_from_name(code, **options)


def _network(module: Any, shape: tuple[int, ...], scheme: str | None, training: bool) -> Any:
    """The network whose field is to be compared: told the scheme that the weights are drawn by."""
    from fastrf.importers.torch import from_torch
    from fastrf.initialisation import ALIASES, SCHEMES

    init = scheme if scheme in (*SCHEMES, *ALIASES) else None
    return from_torch(module, shape, init=init, training=training)


def _follows_norms(network: Network) -> bool:
    """Whether fixed norms count as those of the weights that are drawn."""
    from fastrf.layers import Norm

    layers = (node.layer for node in network.bound.nodes.values())
    return any(isinstance(n, Norm) and n.mean_field and n.statistics == "batch" for n in layers)


def _compared(found: ERF) -> tuple[ERF, Comparison]:
    from fastrf.comparison import compare
    from fastrf.erf import erf

    theory = erf(found.network, found.node, found.unit, found.input_sizes, input=found.input)
    return theory, compare(theory, found)


def _draw(found: ERF, theory: ERF | None, path: Path) -> None:
    from fastrf.plot import comparison_figure, erf_figure, save

    save(erf_figure(found) if theory is None else comparison_figure(theory, found), path)


def _errors(found: ERF) -> dict[str, Any]:
    """Standard errors of the sizes; empty where one draw says nothing about them."""
    if found.groups is None or len(found.groups) < 2:
        return {}
    from fastrf.metrics.given import defined

    return {
        "mean": found.uncertainty(lambda erf: erf.mean).tolist(),
        "std": found.uncertainty(lambda erf: erf.std).tolist(),
        "luo_size": defined(lambda: found.uncertainty(lambda erf: erf.luo_size())),
    }


def _error_facts(errors: dict[str, Any]) -> list[tuple[str, str]]:
    def told(values: Any) -> str:
        return ", ".join(f"{v:.2g}" for v in (values if isinstance(values, list) else [values]))

    if not errors:
        return []
    said = f"mean {told(errors['mean'])}; σ {told(errors['std'])}"
    if errors["luo_size"] is not None:
        said += f"; Luo's size {told(errors['luo_size'])}"
    return [("standard errors", said)]
