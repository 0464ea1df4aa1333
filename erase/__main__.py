"""Command line: `erase-anything train ...` runs `erase.train`; see `erase.cli.commands`."""

from erase.cli.commands import dispatch

dispatch()
