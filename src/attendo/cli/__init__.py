"""The command line: the only part of attendo that prints and exits."""

from __future__ import annotations

import os
import sys

from cyclopts import App, CycloptsError
from rich.console import Console
from rich.markup import escape

from attendo import __version__
from attendo._errors import AttendoError
from attendo.kernels.allocator import tune_allocator

app = App(
    name="attendo",
    help="Attention for convolutional networks: does it help on your images, what does it cost, where does it look?",
    version=__version__,
)
app.command(
    "attendo.cli.comparing:compare",
    help="Does attention help? Train networks that differ in it alone, several times, and say.\n\n"
    "Every network is trained with the same recipe, data order and backbone initialisation, once per seed. Ends with a "
    "table, a verdict in words, results.csv and a self-contained report.html. Killed at any moment, the same command "
    "goes on where it was and ends with the same numbers. Exits with 1 if a network failed.",
)
app.command("attendo.cli.training:train", help="Train one network and save its weights.")
app.command("attendo.cli.training:evaluate", help="Measure saved weights on labelled images.")
app.command("attendo.cli.training:predict", help="Name the classes of images.")
app.command("attendo.cli.converting:insert", help="Put attention into any network; show where and what it costs.")
app.command("attendo.cli.converting:convert", help="Turn a published checkpoint into a file that describes itself.")
app.command("attendo.cli.converting:export", help="Write a network for ONNX, torch.export or OpenVINO, proven equal.")
app.command("attendo.cli.inspecting:summary", help="Print the layers of a network, with parameters and MACs.")
app.command("attendo.cli.inspecting:profile", help="Compare what networks cost: MACs, latency, memory.")
app.command("attendo.cli.inspecting:list_names", name="list", help="List the mechanisms and networks.")
app.command("attendo.cli.diagnosing:doctor", help="Say what runs on this machine and how fast, and what to change.")


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 if all went well, 1 if something failed, 2 if the command was wrong.

    Args:
        arguments: the words of the command; None takes those of the process.
    """
    console = Console(stderr=True)
    try:
        tune_allocator()  # the process is ours; `attendo doctor` says whether it could be done
        code = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here", highlight=False)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `attendo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (AttendoError, OSError) as error:  # OSError: a file that is not there, a full disk
        console.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
