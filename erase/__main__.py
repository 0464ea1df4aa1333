"""`python -m erase train ...` is `python -m erase.train ...`; see `erase.cli.commands`."""

from erase.cli.commands import dispatch

dispatch()
