"""Error messages of commands, and their exit codes."""

import pytest

from flux_jax.errors import (
    EraseError,
    InputError,
    PreemptedError,
    RunError,
    counted,
    exits_cleanly,
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


def test_other_errors_pass():
    @exits_cleanly
    def main() -> None:
        raise KeyError("a fault of our own")

    with pytest.raises(KeyError):
        main()


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
