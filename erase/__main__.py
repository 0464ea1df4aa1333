"""`python -m erase train ...` is `python -m erase.train ...`; see `erase.commands`."""

from erase.commands import dispatch

dispatch()
