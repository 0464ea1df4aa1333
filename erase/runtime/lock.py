"""Locks, so that one command at a time writes to a folder.

A lock is a file with a record of its holder. Two mechanisms protect it, since neither is enough:

- `flock`, which the system releases when a process ends in any way. It works between processes of a
  host, and between hosts on NFS unless it is mounted with local locks.
- A count in the record that the holder increases every few seconds. A record of another host whose
  count does not change belongs to a process that ended.

Clocks of different hosts are not compared.
"""

import contextlib
import fcntl
import json
import os
import platform
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from erase.runtime import processes
from erase.runtime.run_folder import LOCK
from flux_jax.errors import InputError, printable, say, shortened

# Seconds between updates of the record, after which a holder on another host counts as ended, and
# by which two times of the file system must differ to tell so at once.
BEAT, ENDED, OLD = 4.0, 20.0, 120.0
# Bytes of the record, which is always written at once.
SIZE = 1024
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        host: name of its host.
        machine: identifies the running system, also across containers.
        pid: number of the process on the host.
        since: when it took the lock, in UTC.
        token: unique text.
        beats: number of updates of this record.
    """

    host: str
    machine: str
    pid: int
    since: str
    token: str
    beats: int = 0


def this_process() -> Holder:
    """Return a record of this process."""
    host = platform.node() or "unknown"
    try:
        machine = BOOT.read_text().strip()
    except OSError:
        machine = host
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return Holder(host[:120], machine[:120], os.getpid(), since, uuid.uuid4().hex)


def of_folder(folder: Path) -> Path:
    """Return the path of a folder's lock."""
    return folder / LOCK


def of_file(path: Path) -> Path:
    """Return the path of a file's lock."""
    return path.with_name(f".{path.name}.lock")


def of_runs(workdir: Path, names: Iterable[str]) -> list[Path]:
    """Return the paths of the locks of runs' folders, and of the folder that contains them."""
    return [of_folder(workdir), *(of_folder(workdir / name) for name in names)]


@contextlib.contextmanager
def locked(paths: Sequence[Path], end: Callable[[int], Any] = os._exit) -> Iterator[None]:
    """Hold locks within this context, in the first process for all processes of a command.

    Folders that are missing are created; those that are still empty afterwards are removed again.

    Args:
        paths: files of the locks.
        end: ends the process after another one has taken the lock, which happens if this one was
            suspended.

    Raises:
        InputError: another process holds a lock; raised in all processes.
    """
    with contextlib.ExitStack() as stack:

        def take() -> None:
            holder = this_process()
            locks = [
                stack.enter_context(_held(path, holder))
                for path in dict.fromkeys(path.absolute() for path in paths)
            ]
            stack.enter_context(_beating(locks, holder, end))

        processes.from_first(take)
        yield


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds.

    Attributes:
        path: its file.
        descriptor: the open file.
    """

    path: Path
    descriptor: int

    def is_there(self) -> bool:
        """Whether the file still has its name: its last holder may have removed it."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self.descriptor), os.stat(self.path))
        return False

    def write(self, holder: Holder) -> None:
        """Write the record."""
        content = json.dumps(asdict(holder)).ljust(SIZE - 1) + "\n"
        os.pwrite(self.descriptor, content.encode(), 0)
        os.fsync(self.descriptor)


@contextlib.contextmanager
def _held(path: Path, holder: Holder) -> Iterator[Lock]:
    """Hold one lock.

    Raises:
        InputError: another process holds it.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    lock = None
    try:
        lock = _take(path, holder)
        yield lock
    finally:
        if lock is not None:
            if lock.is_there() and _read(path) in (None, holder.token):
                path.unlink(missing_ok=True)
            os.close(lock.descriptor)
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _take(path: Path, holder: Holder) -> Lock:
    while True:
        lock = _opened(path)
        try:
            alone = _flock(lock.descriptor)
            if alone is False:
                raise _refused(path)
            if lock.is_there():
                before = _record(path)
                # On the same system, `flock` alone tells that the holder ended.
                if before and not (alone and before.machine == holder.machine):
                    _wait_until_ended(lock, before)
            if lock.is_there():
                lock.write(holder)
                return lock
        except BaseException:
            os.close(lock.descriptor)
            raise
        os.close(lock.descriptor)


def _opened(path: Path) -> Lock:
    """Open a lock's file.

    Raises:
        InputError: it is not a regular file.
    """
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The folder may be removed by a command that ends.
        with contextlib.suppress(FileNotFoundError):
            flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o666)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise InputError(f"{path} is not a regular file: remove it, or name another folder")
            return Lock(path, descriptor)
    raise InputError(f"{path.parent} is removed again and again: name another folder")


def _flock(descriptor: int) -> bool | None:
    """Lock an open file; False if another process holds it, None if the file system cannot."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _wait_until_ended(lock: Lock, before: Holder) -> None:
    """Wait until it is certain that the holder of another system ended.

    Raises:
        InputError: it has not.
    """
    # Both times are of the file system's clock.
    last = os.stat(lock.path).st_mtime
    with contextlib.suppress(OSError):
        os.utime(lock.path)
    if os.stat(lock.path).st_mtime - last > OLD:
        return
    say(
        f"{lock.path.parent}: host {printable(shortened(before.host))} used this folder; waiting "
        f"{ENDED:.0f} s to see whether it still does",
        sys.stderr,
    )
    deadline = time.monotonic() + ENDED
    while time.monotonic() < deadline and lock.is_there():
        time.sleep(min(1.0, ENDED))
        now = _record(lock.path)
        if now and (now.token, now.beats) != (before.token, before.beats):
            raise _refused(lock.path)


def _refused(path: Path) -> InputError:
    """Return the error that names the holder of a lock."""
    for _ in range(10):
        # It may not have written its record yet.
        if holder := _record(path):
            who = f"host {shortened(holder.host)}, process {holder.pid}, since {holder.since}"
            break
        time.sleep(0.1)
    else:
        who = "it has no record yet"
    what = str(path.parent)
    return InputError(
        f"{what}: another command writes to this folder ({printable(who)}): wait until it ends, or "
        "name another folder"
    )


def _record(path: Path) -> Holder | None:
    """Read a lock's record; None if there is none. Opened anew, since NFS caches open files."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            content = os.pread(descriptor, SIZE, 0)
        finally:
            os.close(descriptor)
        values = json.loads(content)
        host, machine, since, token = (
            str(values[name])[:120] for name in ("host", "machine", "since", "token")
        )
        return Holder(host, machine, int(values["pid"]), since, token, int(values["beats"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _read(path: Path) -> str | None:
    """Return the token of a lock's holder."""
    return record.token if (record := _record(path)) else None


@contextlib.contextmanager
def _beating(locks: Sequence[Lock], holder: Holder, end: Callable[[int], Any]) -> Iterator[None]:
    """Update the records from a thread."""
    over = threading.Event()

    def beat() -> None:
        number = 0
        # The first time sooner: without `flock`, two hosts may have taken the lock at once.
        while not over.wait(BEAT if number else min(1.0, BEAT)):
            number += 1
            for lock in locks:
                if _read(lock.path) not in (None, holder.token):
                    say(f"error: {_refused(lock.path)}", sys.stderr)
                    end(InputError.exit_code)
                    return
                # A full or lost disk is reported by those who write results.
                with contextlib.suppress(OSError):
                    lock.write(replace(holder, beats=number))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
