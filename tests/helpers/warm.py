"""Run Python commands in forks of one process that has imported the slow modules.

`python tests/helpers/warm.py` reads requests from stdin, a line of JSON each, and answers each with
a line of JSON: a request to start a command with its process's id, a request to wait with its exit
code. It starts no JAX backend, so that each command has its own flags and number of devices.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What most commands import; not the modules that tests run by `-m`.
SLOW = (
    "pytest",
    "jaxtyping",
    "flax.linen",
    "optax",
    "orbax.checkpoint",
    "PIL.Image",
    "erase.cli.commands",
    "erase.training.run",
    "erase.report.tables",
)


# Exit codes of processes that have ended.
ENDED: dict[int, int] = {}


class Command:
    """A started command."""

    def __init__(self, *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None):
        """Start `python` with these arguments: -m and a module, or -c and code, and what follows.

        Args:
            arguments: as after `python` on the command line.
            cwd: the command's working directory.
            env: changes of the environment.
        """
        self.args = [sys.executable, *map(str, arguments)]
        self.folder = tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name, name) for name in ("out", "errors")]
        self.pid = server().ask(
            arguments=self.args[1:],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **(env or {})},
            cwd=str(cwd),
            files=[str(file) for file in self.files],
        )

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def running(self) -> bool:
        return server().ask(pid=self.pid, timeout=0) is None

    def wait(self, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Wait for the end and read both outputs; a command that takes longer is killed."""
        code = server().ask(pid=self.pid, timeout=timeout)
        if code is None:
            self.send_signal(signal.SIGKILL)
            server().ask(pid=self.pid, timeout=60)
        out, errors = (file.read_text() for file in self.files)
        self.folder.cleanup()
        if code is None:
            raise AssertionError(f"{self.args} took over {timeout} s; it printed {out}\n{errors}")
        return subprocess.CompletedProcess(self.args, code, out, errors)


def run(
    *arguments: object,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Start a command, see `Command`, and wait for its end."""
    return Command(*arguments, cwd=cwd, env=env).wait(timeout)


class Server:
    """The process that forks, from its caller's side."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            # Linear algebra with threads could not be forked.
            env=os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


@functools.cache
def server() -> Server:
    """The server of this process; it starts with the first command."""
    return Server()


def close() -> None:
    """End the server, if it was started."""
    if server.cache_info().currsize:
        server().close()
        server.cache_clear()


def configure_jax(env: Mapping[str, str]) -> None:
    """Apply the variables that JAX has read at its import, where they differ."""
    import jax

    for name, value in env.items():
        if name.startswith("JAX_") and os.environ.get(name) != value:
            old = getattr(jax.config, name.lower())
            new = value.lower() in ("1", "true") if isinstance(old, bool) else value
            jax.config.update(name.lower(), float(new) if isinstance(old, float) else new)


def execute(arguments: list[str]) -> int:
    """Run `python` with these arguments to the end of its threads; return the exit code."""
    from helpers.forks import ending

    kind, what, *rest = arguments
    if kind == "-m":
        code = ending([what, *rest])
    else:
        sys.argv, code = ["-c", *rest], 0
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    return code


def start(request: dict[str, Any]) -> int:
    """Fork a process that runs a command; return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for number, file in enumerate([os.devnull, *request["files"]]):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        configure_jax(request["env"])
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.path[0] = request["cwd"]
        code = execute(request["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        for file in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                file.flush()
        os._exit(code)


def wait(pid: int, timeout: float) -> int | None:
    """The exit code of a process, as `subprocess` gives it; None if it still runs."""
    end = time.monotonic() + timeout
    while pid not in ENDED:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ENDED[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= end:
            return None
        else:
            time.sleep(0.01)
    return ENDED[pid]


def answers() -> Iterator[int | None]:
    """The answers to all requests of stdin."""
    for line in sys.stdin:
        request = json.loads(line)
        yield wait(**request) if "pid" in request else start(request)


def serve() -> None:
    """Answer until stdin ends."""
    # In place of this file's folder: what commands and tests import.
    sys.path[:1] = ["", str(ROOT), str(ROOT / "tests")]
    for name in SLOW:
        importlib.import_module(name)
    sys.path[0] = str(ROOT)
    gc.set_threshold(100_000, 20, 100)
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
    for answer in answers():
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
