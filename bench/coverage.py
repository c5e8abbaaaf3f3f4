"""Which models of timm and torchvision fastrf imports: ``python -m bench.coverage``.

Every model is built without weights (on the meta device where its constructor allows it) and
imported with `fastrf.from_torch` as it is: nothing registered, ``unknown="error"``. Attention
models, of which a few per family are enough to see what is missing, are tried a second time with
``unknown="global"`` where the first attempt is refused.

A model counts as imported only when its network also lowers at the size that it was imported
with, so that every layer and every size in it fits.

Workers are processes of their own, each ended from outside where a model takes too long or too much
memory: an exception raised inside would be caught by whatever code is running.

With ``--journal FILE`` every outcome is written down as it comes, and a run that was stopped goes
on where it ended. A journal holds for one state of the code: after a change it is to be deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from bench import record

TIMEOUT = 120
"""Seconds that one model may take, unless more are asked for: a machine may be busy."""

LIFE = 40
"""Models that a worker takes before another one follows it: PyTorch keeps some of each."""

SAMPLE = 2
"""Models tried of each attention family."""

ATTENTION = frozenset(
    (
        "beit", "byoanet", "cait", "coat", "convit", "cpubone", "csatv2", "crossvit", "davit",
        "deepseek_vit", "deit", "edgenext", "efficientformer", "efficientformer_v2",
        "efficientvim", "efficientvit_mit", "efficientvit_msra", "eva", "gcvit",
        "gemma4_vit", "hiera", "hieradet_sam2", "iformer", "levit", "lowformer", "maxvit",
        "maxxvit", "mlp_mixer", "mobilenetv5", "mobilevit", "mvitv2", "naflexvit", "nest",
        "nextvit", "pit", "pvt_v2", "qwen3_vit", "sequencer", "shvit", "swiftformer",
        "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit",
        "tnt", "twins", "visformer", "vision_transformer", "vision_transformer_hybrid",
        "vision_transformer_relpos", "vision_transformer_sam", "vit", "vitamin", "volo",
        "xcit",
    )
)  # fmt: skip
"""Families whose models mix positions by attention, matrix products or recurrence throughout."""


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    Attributes:
        result: "imported", "global" (imported with ``unknown="global"``), "failed", or "unbuilt".
        why: the message of the first failure.
        nodes: layers of the network.
        global_nodes: those among them that read the whole map and are no pooling.
        seconds: of the import and the lowering.
    """

    library: str
    family: str
    name: str
    result: str
    why: str = ""
    nodes: int = 0
    global_nodes: int = 0
    seconds: float = 0.0

    @property
    def attention(self) -> bool:
        return self.family in ATTENTION

    @property
    def model(self) -> Model:
        return self.library, self.family, self.name


Model = tuple[str, str, str]
"""Library, family and name."""


# --- the models -----------------------------------------------------------------------------


def timm_models() -> Iterator[Model]:
    """(library, family, name) of every model; a family is one of timm's modules."""
    import timm
    from timm.models import model_entrypoint

    for name in timm.list_models():
        yield "timm", model_entrypoint(name).__module__.rpartition(".")[2], name


def torchvision_models() -> Iterator[Model]:
    """The same of torchvision; quantised twins of models are left out."""
    from torchvision import models

    renamed = {"vision_transformer": "vit"}
    for name in models.list_models():
        module = models.get_model_builder(name).__module__
        if "quantization" not in module:
            family = module.rpartition(".")[2]
            kind = next((k for k in ("segmentation", "detection", "video", "optical_flow")
                         if f".{k}." in module), "")  # fmt: skip
            yield "torchvision", "/".join(filter(None, (kind, renamed.get(family, family)))), name


def built(library: str, name: str) -> Any:
    """A model without weights; with them (and random) where it cannot be built on "meta"."""
    import torch

    try:
        with torch.device("meta"):
            return _create(library, name)
    except Exception:  # Constructors that compute with numbers in tensors.
        return _create(library, name)


def _create(library: str, name: str) -> Any:
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if "segmentation" in models.get_model_builder(name).__module__ or "_fpn" in name:
        options["weights_backbone"] = None
    return models.get_model(name, **options)


def input_shape(library: str, family: str, model: Any) -> Any:
    """The shape that a model was made for."""
    if library == "timm":
        return (1, *model.default_cfg.get("input_size", (3, 224, 224)))
    if family.startswith("video/"):
        size = 224 if family.endswith(("mvit", "swin_transformer", "s3d")) else 112
        return (1, 3, 16, size, size)
    if family.startswith("optical_flow"):
        return [(1, 3, 128, 128)] * 2
    return (1, 3, 299, 299) if family == "inception" else (1, 3, 224, 224)


# --- importing ------------------------------------------------------------------------------


def attempt(model: Model) -> Outcome:
    """Builds and imports one model."""
    library, family, name = model
    try:
        module = built(library, name)
    except Exception as error:  # Whatever a constructor raises: not fastrf's doing.
        return Outcome(library, family, name, "unbuilt", _short(error))
    shape = input_shape(library, family, module)
    why = ""
    for policy, result in (("error", "imported"), ("global", "global")):
        start = time.perf_counter()
        try:
            nodes, whole = _imported(module, shape, policy)
        except Exception as error:  # Counted as a failure, whatever it is.
            why = why or _short(error)
            continue
        seconds = round(time.perf_counter() - start, 2)
        return Outcome(library, family, name, result, why, nodes, whole, seconds)
    return Outcome(library, family, name, "failed", why)


def _imported(module: Any, shape: Any, policy: Any) -> tuple[int, int]:
    import fastrf
    from fastrf.lowering import lower

    network = fastrf.from_torch(module, shape, unknown=policy)
    first = shape[0] if isinstance(shape, list) else shape
    lower(network, first[2:])
    layers = [node.layer for node in network.nodes.values()]
    return len(network), sum(isinstance(layer, fastrf.Attention) for layer in layers)


def _short(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text.replace(f"{sysconfig.get_path('purelib')}/", "")  # of this machine
    return text if len(text) <= 300 else f"{text[:299]}…"


# --- workers --------------------------------------------------------------------------------


class Worker:
    """A process that takes one model after the other.

    Attributes:
        pipe: hands over models, and outcomes back.
        model: what it is at, None while it waits.
        deadline: when that has to be done.
        taken: models that it has been given.
    """

    def __init__(self, work: Callable[[Model], Outcome], memory: int) -> None:
        context = get_context("spawn")
        self.pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, work, memory), daemon=True)
        self._process.start()
        far.close()
        self.model: Model | None = None
        self.deadline = 0.0
        self.taken = 0

    def give(self, model: Model, seconds: float) -> None:
        # A new process imports PyTorch first.
        self.deadline = time.monotonic() + seconds + (60 if not self.taken else 0)
        self.model, self.taken = model, self.taken + 1
        self.pipe.send(model)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Any, work: Callable[[Model], Outcome], memory: int) -> None:
    if memory:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    while True:
        try:
            pipe.send(work(pipe.recv()))
        except EOFError:
            return


def outcomes_of(
    models: Sequence[Model],
    workers: int,
    work: Callable[[Model], Outcome] = attempt,
    seconds: float = TIMEOUT,
    memory: int = 0,
) -> Iterator[Outcome]:
    """What became of each model, as they are done.

    Args:
        seconds: that one model may take.
        memory: bytes of address space that a worker may have; 0: as many as it likes.
    """
    waiting = deque(models)
    crew = [Worker(work, memory) for _ in range(min(workers, len(models)))]
    try:
        while waiting or any(worker.model for worker in crew):
            for number in range(len(crew)):
                if crew[number].model is None and waiting:
                    if crew[number].taken >= LIFE:
                        crew[number].end()
                        crew[number] = Worker(work, memory)
                    crew[number].give(waiting.popleft(), seconds)
            busy = [worker for worker in crew if worker.model]
            ready = connection.wait([worker.pipe for worker in busy], timeout=1)
            for worker in busy:
                assert worker.model is not None
                if worker.pipe in ready:
                    try:
                        outcome = worker.pipe.recv()
                        worker.model = None
                        yield outcome
                        continue
                    except EOFError:
                        why = "its process died (for want of memory, most likely)"
                elif time.monotonic() > worker.deadline:
                    why = f"took longer than {seconds:g} s"
                else:
                    continue
                failed = Outcome(*worker.model, "failed", why)
                worker.end()
                crew[crew.index(worker)] = Worker(work, memory)
                yield failed
    finally:
        for worker in crew:
            worker.end()


# --- the journal ----------------------------------------------------------------------------


def journalled(journal: Path) -> list[Outcome]:
    """The outcomes that an earlier run wrote down; what it was writing when it was stopped is cut
    off."""
    if not journal.exists():
        return []
    whole, _, rest = journal.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        journal.write_text(whole + "\n" if whole else "", encoding="utf-8")
    outcomes = (Outcome(**json.loads(line)) for line in whole.splitlines())
    return [*{outcome.model: outcome for outcome in outcomes}.values()]


def write_down(journal: Path, outcome: Outcome) -> None:
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


# --- the report -----------------------------------------------------------------------------


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Totals and families by library, convolutional models and attention models apart."""
    found: dict[str, Any] = {}
    for library in dict.fromkeys(o.library for o in outcomes):
        for kind, attention in (("convolutional", False), ("attention", True)):
            chosen = [
                o for o in outcomes
                if o.library == library and o.attention == attention and o.result != "unbuilt"
            ]  # fmt: skip
            families: dict[str, list[int]] = {}
            for outcome in chosen:
                counts = families.setdefault(outcome.family, [0, 0])
                counts[0] += outcome.result == "imported"
                counts[1] += 1
            found[f"{library} {kind}"] = {
                "imported": sum(o.result == "imported" for o in chosen),
                "global": sum(o.result == "global" for o in chosen),
                "models": len(chosen),
                "families_imported": sum(a == b for a, b in families.values()),
                "families": families,
            }
    return found


def _line(o: Outcome) -> str:
    return f"{o.result:9} {o.library} {o.family} {o.name}: {o.why}"


def show(outcomes: list[Outcome]) -> None:
    """The families, what failed and why, and the totals."""
    totals = summary(outcomes)
    for title, counts in totals.items():
        print(f"\n{title}")
        for family, (imported, models) in sorted(counts["families"].items()):
            print(f"  {family:28} {imported:3} of {models:3}")
    print()
    for outcome in outcomes:
        if outcome.result != "imported":
            print(_line(outcome))
    rows = [
        [
            title,
            f"{c['imported']} of {c['models']}",
            f"{c['families_imported']} of {len(c['families'])}",
            str(c["global"]),
        ]
        for title, c in totals.items()
    ]
    header = ["models", "imported", "families, all of them", 'with unknown="global"']
    print("\n" + record.table(header, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="models whose name contains this text")
    parser.add_argument("--every", action="store_true", help="all models of attention families")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--seconds", type=float, default=TIMEOUT, help="that one model may take (%(default)s)"
    )
    parser.add_argument("--journal", type=Path, help="file that a stopped run goes on from")
    parser.add_argument("--no-record", action="store_true", help="print, and write no record")
    arguments = parser.parse_args()
    chosen: list[Model] = []
    seen: dict[tuple[str, str], int] = {}
    for model in (*timm_models(), *torchvision_models()):
        library, family, name = model
        if arguments.only and arguments.only not in name:
            continue
        count = seen[library, family] = seen.get((library, family), 0) + 1
        if family not in ATTENTION or arguments.every or count <= SAMPLE:
            chosen.append(model)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.perf_counter()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (arguments.workers + 1)
    memory = max(memory, 8 << 30)
    order = {model: number for number, model in enumerate(chosen)}
    known = journalled(arguments.journal) if arguments.journal else []
    outcomes = [o for o in known if o.model in order]
    done = {o.model for o in outcomes}
    left = [model for model in chosen if model not in done]
    for outcome in outcomes_of(left, arguments.workers, seconds=arguments.seconds, memory=memory):
        outcomes.append(outcome)
        if arguments.journal:
            write_down(arguments.journal, outcome)
        if outcome.result != "imported":
            print(_line(outcome), file=sys.stderr, flush=True)
        if len(outcomes) % 50 == 0:
            elapsed = time.perf_counter() - start
            print(f"{len(outcomes)} of {len(chosen)} after {elapsed:.0f} s", file=sys.stderr)
    outcomes.sort(key=lambda o: order[o.model])
    show(outcomes)
    if not arguments.no_record:
        results = {
            "seconds": round(time.perf_counter() - start) if not known else None,
            "versions": {name: metadata.version(name) for name in ("timm", "torchvision")},
            "totals": summary(outcomes),
            "not_imported": [asdict(o) for o in outcomes if o.result != "imported"],
        }
        record.write("coverage", results)


if __name__ == "__main__":
    main()
