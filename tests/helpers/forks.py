"""Run commands in forks of one process: `python tests/helpers/forks.py` reads them from stdin.

A command is a line of JSON, a module and its arguments. The answer is a line of JSON as well, see
`Answer`. The process imports first what all commands may import; each command's time includes it.
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What a command did: user and system time, exit code, output, and all imported modules."""

    seconds: float
    code: int
    out: str
    errors: str
    modules: list[str]


class Forks:
    """The process, from its caller's side."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> Answer:
        """Run `python -m` with these arguments."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        return Answer(*json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.communicate()


def ending(arguments: Sequence[str]) -> int:
    """Run a module as `python -m` does, and return its exit code."""
    sys.argv = list(arguments)
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def answer(arguments: Sequence[str]) -> tuple[Any, ...]:
    """Run a command in a fork, see `Answer`."""
    names = ("out", "errors", "modules")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in names]
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(files[0].fileno(), 1)
                os.dup2(files[1].fileno(), 2)
                code = ending(arguments)
                json.dump(sorted(sys.modules), files[2])
                for file in (sys.stdout, sys.stderr, files[2]):
                    file.flush()
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        _, status, usage = os.wait4(child, 0)
        for file in files:
            file.seek(0)
        out, errors, modules = (file.read() for file in files)
    own = os.times()
    seconds = own.user + own.system + usage.ru_utime + usage.ru_stime
    return seconds, os.waitstatus_to_exitcode(status), out, errors, json.loads(modules or '["?"]')


def serve() -> None:
    """Answer until stdin ends."""
    sys.path[0] = os.getcwd()
    # Light, and imported by commands of each kind.
    import erase.cli.commands
    import erase.runs  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
