"""What a command's errors print, and the exit codes that they end it with."""

import pytest

from convert.errors import EraseError, InputError, PreemptedError, RunError, exits_cleanly


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
