"""The command line: `python -m experiments list | train | evaluate | predict | compare | ..`.

Exit codes: 0 fine, 1 numerical failure, 2 bad input, 130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import sys
from collections.abc import Sequence

import typer

from experiments import own
from experiments.command import about, failures, options, reporting, runs, searches, studies
from experiments.command.app import app
from experiments.command.failures import PROGRAM
from experiments.train import processes

#: Their commands are there once they are imported, in this order.
COMMANDS = (about, runs, studies, reporting, searches)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of this process if left out) and return its exit code.

    This is the one place where a failure becomes a message: `error:` and one line on standard error.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # A process may be started without one of them: then nobody reads what would be written to it.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        if arguments[:1] != ["train"]:
            processes.require_one(" ".join(arguments[:1]) or PROGRAM)
        command = typer.main.get_command(_application(arguments))
        with command.make_context(PROGRAM, arguments or ["--help"]) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as stop:
        return stop.exit_code
    except (Exception, KeyboardInterrupt, SystemExit) as failure:
        code, message = failures.verdict(failure)
        if message and processes.speaks():
            try:
                print("error:", " ".join(message.split()), file=sys.stderr, flush=True)
            except OSError:
                failures.silence(sys.stderr)
        return code


def _application(arguments: Sequence[str]) -> typer.Typer:
    """The commands, of which `train` has options for the arguments of what is one's own on this command line."""
    names = options.named_in(arguments[1:]) if arguments[:1] == ["train"] else {}
    if not any(map(own.is_own, names.values())):
        return app
    wider = copy.copy(app)
    known = functools.partial(options.settings_with, names)
    wider.registered_commands = [
        copy.copy(command) for command in app.registered_commands if command.callback is not runs.train
    ]
    wider.command("train")(options.has_settings(known=known)(inspect.unwrap(runs.train)))
    return wider
