"""A folder that a command writes to is refused to others; those that ended do not keep it."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.experiments.study import Study, run_study
from erase.cli.ending import ends
from erase.runtime import lock
from flux_jax.errors import InputError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("BEAT", 0.05), ("ENDED", 0.4)):
        monkeypatch.setattr(lock, name, value)


def record(path: Path, **changes: object) -> lock.Holder:
    """Leave the record of another process."""
    other = replace(lock.this_process(), host="node7", pid=4321, **changes)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(other)))
    return other


def refusal(paths: list[Path]) -> str:
    with pytest.raises(InputError) as error, lock.locked(paths):
        pass
    return str(error.value)


def test_the_second_is_told_who_has_the_folder(tmp_path: Path):
    paths = lock.of_runs(tmp_path / "runs", ["a", "b"])
    with lock.locked(paths):
        # Also one of the folders alone, and by another path.
        for other in (paths, lock.of_runs(tmp_path / "runs" / "a", [""])):
            message = refusal(other)
            me = lock.this_process()
            assert f"host {me.host}, process {os.getpid()}, since {me.since[:10]}" in message
            assert str(other[0].parent) in message
            assert "\n" not in message
        with lock.locked(lock.of_runs(tmp_path / "runs" / "c", [""])):
            pass
        assert all(path.is_file() for path in paths)
    # Nothing is left, and the folder is free.
    assert list(tmp_path.iterdir()) == []
    with lock.locked(paths):
        pass


def test_a_study_s_results_have_one_writer(tmp_path: Path):
    out = tmp_path / "study.json"
    message = "another command writes to this folder"
    with lock.locked([lock.of_file(out)]), pytest.raises(InputError, match=message):
        run_study(Study("", {}, {}, ()), out)
    assert not out.exists()


def test_a_folder_that_has_files_stays(tmp_path: Path):
    path = lock.of_file(tmp_path / "out" / "result.json")
    with lock.locked([path]):
        assert path.name == ".result.json.lock"
        (tmp_path / "out" / "result.json").touch()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["result.json"]


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(flush=True); "
HOLD += "sys.stdin.read()"


def test_a_killed_process_does_not_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "ENDED", 60.0)
    path = lock.of_folder(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert "it has no record yet" in refusal([path])
        record(path)
        assert "host node7, process 4321, since" in refusal([path])
        child.kill()
    # The system knows that it ended, so that nobody waits.
    with lock.locked([path]):
        pass


def test_another_host_that_updates_its_record_has_the_folder(tmp_path: Path):
    """`flock` alone succeeds here, as on NFS with local locks."""
    path, over = lock.of_folder(tmp_path), threading.Event()
    other = record(path, machine="another")

    def beat() -> None:
        # As the program writes: at once, so that no reader finds a part of it.
        written, number = lock.Lock(path, os.open(path, os.O_RDWR)), 0
        while not over.wait(0.02):
            number += 1
            written.write(replace(other, beats=number))
        os.close(written.descriptor)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert "host node7, process 4321, since" in refusal([path])
    finally:
        over.set()
        thread.join()
    # It ended, and left its record.
    with lock.locked([path]):
        assert lock._read(path) != other.token


def test_an_old_record_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "ENDED", 60.0)
    path = lock.of_folder(tmp_path)
    record(path, machine="another")
    os.utime(path, (1e9, 1e9))
    with lock.locked([path]):
        pass
    # And one of this system counts for nothing, as its lock is free.
    record(path)
    with lock.locked([path]):
        pass


@pytest.mark.parametrize("supported", [True, False])
def test_whoever_loses_its_lock_ends(tmp_path: Path, monkeypatch, supported: bool, capsys):
    if not supported:
        monkeypatch.setattr(lock, "_flock", lambda descriptor: None)
    codes: list[int] = []
    path = lock.of_folder(tmp_path)
    with lock.locked([path], codes.append):
        time.sleep(0.2)
        assert codes == []
        other = record(path, machine="another")

        def noticed() -> bool:
            # Again, since a record that was being written may have replaced it.
            if not codes:
                record(path, machine="another", token=other.token)
            return codes == [2]

        wait_for(noticed)
    assert "host node7, process 4321" in capsys.readouterr().err
    # The other's record stays.
    assert lock._read(path) == other.token


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"host": 1', "\0" * 9, "[" * 9999])
def test_a_damaged_record_keeps_nothing(tmp_path: Path, content: str):
    lock.of_folder(tmp_path).write_text(content)
    with lock.locked([lock.of_folder(tmp_path)]):
        pass


def test_what_is_no_file_is_no_lock(tmp_path: Path):
    os.mkfifo(lock.of_folder(tmp_path))
    assert "is not a regular file" in refusal([lock.of_folder(tmp_path)])


@pytest.mark.parametrize(
    ("error", "code"), [(SystemExit(2), 2), (SystemExit("no"), 1), (ValueError(), 1)]
)
def test_a_process_ends_though_a_thread_does_not(error: BaseException, code: int):
    codes: list[int] = []
    goes_on = threading.Event()
    main = threading.Thread(target=goes_on.wait)
    main.start()
    with pytest.raises(type(error)), ends(0.01, codes.append, main):
        raise error
    time.sleep(0.1)
    assert codes == []
    goes_on.set()
    wait_for(lambda: codes == [code])


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait at most ten seconds, for threads on busy machines."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()
