"""Error messages of commands, and their exit codes."""

import logging
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import pytest

from flux_jax.errors import (
    EraseError,
    InputError,
    PreemptedError,
    RunError,
    counted,
    exits_cleanly,
    messages,
    names_file,
    nearest,
    note,
)

# Of 200 letters, with and without folders, and with spaces in their names.
PATHS = {
    "folders": "/".join(["", *["a-folder-with-a-name"] * 9, "flux.sft"]) + "x" * 2,
    "name": "n" * 188 + ".safetensors",
    "spaces": "/" + "my own files and models/" * 7 + "and the last one/flux1-dev.sft",
}
REASON = "what is wrong with it, at some length, " * 5
MEND = "; take another one of those that are read and copy it there again"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EraseError("it says why"), 1),
        (RunError("it says why"), 1),
        (InputError("it says why"), 2),
        (PreemptedError("it says why"), 75),
        (OSError(28, "it says why", "adapter"), 1),
        (KeyboardInterrupt(), 1),
    ],
)
def test_errors_end_a_command_with_a_line(error: BaseException, code: int, capsys):
    @exits_cleanly
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert ("Ctrl-C" if isinstance(error, KeyboardInterrupt) else "it says why") in said
    assert said.count("\n") == 1


def saved_by(said: str) -> str:
    """The file that a message names."""
    return Path(said.split(": ")[-1].strip()).read_text()


def test_other_errors_pass_and_end_a_process_with_a_line(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    @exits_cleanly
    def main() -> None:
        raise KeyError("a fault of our own\x1b[1m" + "\nmore\n" * 400)

    with pytest.raises(KeyError) as caught:
        main()
    # As Python does when it ends the process.
    sys.excepthook(KeyError, caught.value, caught.tb)
    said = capsys.readouterr().err
    assert said.startswith("error: KeyError: 'a fault of our own")
    assert said.count("\n") == 1
    assert len(said) <= 600
    assert "Traceback" not in said
    assert said[:-1].isprintable()
    saved = saved_by(said)
    assert "Traceback (most recent call last)" in saved
    assert "a fault of our own" in saved
    assert "\x1b" not in saved


def test_messages_of_many_lines_are_in_a_file(capsys):
    lines = [f"field_{i} = {i} is wrong; take another" for i in range(100)]

    @exits_cleanly
    def main() -> None:
        raise InputError("\n".join(lines))

    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert len(said) <= 600
    assert said.startswith(f"error: {lines[0]}\n{lines[1]}\n")
    assert "the whole message: " in said.splitlines()[-1]
    assert "\n".join(lines) in saved_by(said)


def test_a_message_is_bounded_without_a_file(capsys, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    messages._file.cache_clear()
    monkeypatch.setattr(tempfile, "mkstemp", full)

    @exits_cleanly
    def main() -> None:
        raise InputError("\n".join(["wrong"] * 10_000))

    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert len(said) <= 600
    assert said.endswith("the rest is not shown\n")


class Failing:
    """An object whose deletion fails, where nothing can catch the error."""

    def __del__(self):
        raise ValueError("of a deletion")


def test_libraries_print_short_lines_without_tracebacks(capsys):
    output = logging.StreamHandler(sys.stderr)
    logging.root.addHandler(output)
    try:

        @exits_cleanly
        def main() -> None:
            log = logging.getLogger("a.library")
            try:
                raise ValueError("deep \x1b[1m inside")
            except ValueError:
                log.exception("it failed")
            log.warning("red \x1b[1m %s", "x" * 10_000)
            log.error("two\nlines")
            text = warnings.formatwarning("w\x1b[1m" * 1000, UserWarning, "file.py", 1)
            print(text, end="", file=sys.stderr)
            sys.excepthook(ValueError, ValueError("of a callback"), None)
            Failing()
            thread = threading.Thread(target=lambda: 1 / 0, name="saving")
            thread.start()
            thread.join()

        main()
    finally:
        logging.root.removeHandler(output)
    said = capsys.readouterr().err.splitlines()
    assert [line[:12] for line in said] == ["red \\x1b[1m ", "two", "UserWarning:", "note: thread"]
    assert all(len(line) <= 400 and line.isprintable() for line in said)
    saved = saved_by(said[-1])
    for part in ("it failed\nTraceback", "deep ", "x" * 10_000, "two\nlines", "of a callback"):
        assert part in saved
    assert "of a deletion" in saved
    assert "ZeroDivisionError: division by zero" in saved


def test_an_error_names_the_file_of_libraries_messages(capsys):
    @exits_cleanly
    def main() -> None:
        sys.excepthook(ValueError, ValueError("of a callback"), None)
        raise RunError("it was not written")

    with pytest.raises(SystemExit):
        main()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "error: it was not written"
    assert "of a callback" in saved_by(last)


# Programs that print, or end, in the ways that commands do.
PRINTS = {
    "much": "say('x' * 100_000)",
    "little": "say('x')",
    "help": "say('x'); sys.exit(0)",
    "a note": "say('x', sys.stderr)",
}


def unread(program: str) -> tuple[int, str]:
    """Exit code and stderr of a command whose stdout nobody reads; of a note, nor its stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    code = (
        "import os, sys; from flux_jax.errors import InputError, exits_cleanly, say\n"
        f"@exits_cleanly\ndef main():\n    {program}\nmain()"
    )
    stderr = writer if "sys.stderr" in program else subprocess.PIPE
    ended = subprocess.run(
        [sys.executable, "-c", code],
        stdout=writer,
        stderr=stderr,
        text=True,
        check=False,
        # Otherwise nothing is left to write when the command ends.
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    )
    os.close(writer)
    return ended.returncode, ended.stderr or ""


@pytest.mark.parametrize("what", PRINTS)
def test_a_command_whose_reader_goes_away_ends_quietly(what: str):
    assert unread(PRINTS[what]) == (141, "")


def test_an_error_is_told_where_nobody_reads_the_output():
    code, said = unread("say('x'); raise InputError('it says why')")
    assert (code, said) == (2, "error: it says why\n")
    # Another pipe's reader has gone, and stdout is read.
    program = "r, w = os.pipe(); os.close(r); os.write(w, b'x')"
    ended = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import os; from flux_jax.errors import exits_cleanly\n"
            f"@exits_cleanly\ndef main():\n    {program}\nmain()",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "error: [Errno 32] Broken pipe\n")


def test_an_error_of_a_full_disk_names_the_file(tmp_path: Path):
    file = tmp_path / "adapter"
    with pytest.raises(OSError, match=r"No space left on device: '.*adapter"), names_file(file):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="'other'"), names_file(tmp_path):
        raise OSError(28, "No space left on device", "other")


@pytest.mark.parametrize("kind", PATHS)
def test_long_paths_are_shortened_and_what_is_said_of_them_is_not(kind: str, capsys):
    path = PATHS[kind]
    assert 199 <= len(path) <= 201
    # Twice, as when a message names a file and its folder.
    message = f"{path}: {REASON}{path}{MEND}"

    @exits_cleanly
    def main() -> None:
        raise InputError(message)

    with pytest.raises(SystemExit):
        main()
    note(message)
    said = capsys.readouterr().err.splitlines()
    for line in (str(InputError(message)), *said):
        assert len(line) <= 400
        assert line.endswith(MEND)
        assert REASON.strip() in line
        assert path[-10:] in line
        assert "…" in line
    assert [line.split(": ")[0] for line in said] == ["error", "note"]


def test_lines_that_are_short_enough_stay_and_any_other_is_cut(capsys):
    short = f"{PATHS['folders']}: no such file"
    assert str(InputError(f"{short}\n{short}\n{short}")).split("\n") == [short] * 3
    words = "word " * 200 + "; do that"
    assert len(str(InputError(words))) <= 393
    assert str(InputError(words)).endswith("; do that")

    @exits_cleanly
    def main() -> None:
        # Escapes lengthen it.
        raise OSError(28, "full", "\x1b" * 200)

    with pytest.raises(SystemExit):
        main()
    assert len(capsys.readouterr().err) <= 401


def test_one_is_no_plural():
    assert [counted(n, "tensor") for n in (0, 1, 2)] == ["0 tensors", "1 tensor", "2 tensors"]


def test_of_many_names_the_first_stand_for_all():
    names = [f"person {index}" for index in range(100)]
    assert nearest("cat", names) == f"choose from {', '.join(names[:10])} and 90 more"
    assert nearest("cat", names[:40]) == f"choose from {', '.join(names[:40])}"
    assert nearest("persn 7", names).startswith("did you mean person 7")
