"""Command line: `python -m erase train ...` runs `erase.train`; see `erase.cli.commands`."""

from erase.cli.commands import dispatch

dispatch()
