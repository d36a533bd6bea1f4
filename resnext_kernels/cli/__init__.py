"""The console commands: ``python -m resnext_kernels COMMAND`` or ``resnext-kernels COMMAND``.

A command is a module with ``add_parser(subparsers)``, whose parser sets ``run``: a function from
the parsed arguments to an exit code. 0 is success, 1 a result that is wrong or cannot be printed, 2
a misuse, 130 an interrupt of `verify` or before there was anything to keep, 141 that nobody reads
what is printed.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from ..version import __version__
from . import bench, demo, info, tune, verify
from .console import OutputError, UserError, note

_COMMANDS = (info, verify, bench, tune, demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="resnext-kernels", description="Fast grouped convolution for PyTorch."
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    parsed = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that its encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return parsed.run(parsed)
    except BrokenPipeError:
        return 141  # as shells have it
    except (UserError, OutputError) as error:
        note(f"resnext-kernels {parsed.command}: {error}")
        return error.code
    except KeyboardInterrupt:
        note(f"resnext-kernels {parsed.command}: interrupted")
        return 130  # as shells have it
