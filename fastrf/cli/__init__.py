"""The command line, one module a command.

Results go to standard output, everything else (progress, notes, errors) to standard error.
Exit codes: 0 done, 1 a check failed, 2 bad input (of `check` also where nothing can be compared);
an interrupt gives 130, and a reader that closed the pipe 141, as the shell reports the two signals.

With ``--json`` a command prints one JSON document with the names of the Python attributes. Exact
numbers are JSON numbers where these are exact (2, 0.5) and else texts such as "1/3"; what is
infinite or undefined is null.

NumPy, Numba and matplotlib are imported by the commands that use them, so that tables and errors
come at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from cyclopts import App, CycloptsError

import fastrf
from fastrf.cli.exits import BAD_INPUT, INTERRUPTED, PIPE_CLOSED
from fastrf.cli.options import FILES
from fastrf.cli.printing import one_line
from fastrf.errors import FastrfError
from fastrf.kernels._shield import is_busy

_NET = f"""NET is
  a zoo network            resnet50, "plain(1000, 3)", "unet(4, 2)"
  a network file           {", ".join(f"model{suffix}" for suffix in FILES)}
  Python code              torchvision.models:resnet50, any package.module:name
                           that returns a torch.nn.Module or a fastrf.Network"""

_EXAMPLES = """
  fastrf rf resnet50 --input-size 224
  fastrf rf model.onnx --json
  fastrf erf resnet50 --input-size 224 --plot erf.png
  fastrf erf "plain(1000, 3)" --save erf.npz
  fastrf plot resnet50 --kind graph -o graph.svg
  fastrf empirical torchvision.models:resnet18 --input-size 64 --initialise he
  fastrf check resnet50
  fastrf advice resnet50 --input-size 224
  fastrf design --target-erf 60 --stride 4
  fastrf report "unet(4, 2)" -o report.html
  fastrf bench --quick"""

COMMANDS = (
    "rf",
    "erf",
    "plot",
    "report",
    "empirical",
    "check",
    "advice",
    "design",
    "sweep",
    "bench",
    "warmup",
    "info",
)
"""Each is the function of its name in the module of its name."""

_WITHOUT_NET = ("empirical", "design", "sweep", "bench", "warmup", "info")


def _epilogue(command: str) -> str:
    """What NET is, where a command takes one, and examples of the command alone."""
    examples = [x for x in _EXAMPLES.splitlines() if x.split()[1:2] == [command]]
    parts = [] if command in _WITHOUT_NET else [_NET]
    return "\n\n".join([*parts, *(["\n".join(["Examples:", *examples])] if examples else [])])


app = App(
    name="fastrf",
    help="Theoretical and effective receptive fields of convolutional networks.",
    help_epilogue=f"{_NET}\n\nExamples:{_EXAMPLES}",
    help_format="plaintext",
    version=fastrf.__version__,
)
for _command in COMMANDS:
    app.command(
        getattr(import_module(f"fastrf.cli.{_command}"), _command),
        name=_command,
        help_epilogue=_epilogue(_command),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: words behind "fastrf"; default: those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        # Where the encoding lacks "×" or "σ", "?" stands in.
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    try:
        command, bound, _ = app.parse_args(
            sys.argv[1:] if arguments is None else list(arguments),
            exit_on_error=False,
            print_error=False,
        )
        code = command(*bound.args, **bound.kwargs)
        sys.stdout.flush()
    except (FastrfError, CycloptsError) as error:
        return _refused(error)
    except KeyboardInterrupt:
        sys.stderr.write("fastrf: interrupted\n")
        if arguments is None and is_busy():
            # The process would wait for a compilation that the interrupt has left.
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return _refused(f"{error.filename or 'output'}: {error.strerror or error}")
    except MemoryError:
        return _refused("memory ran out; give --input-size, --tail or --dtype float32")
    return code if isinstance(code, int) else 0


def _refused(error: object) -> int:
    sys.stderr.write(f"fastrf: error: {one_line(error)}\n")
    return BAD_INPUT
