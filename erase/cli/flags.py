"""Shared command-line handling: the configuration flag, help, usage errors and start-up.

Help and most usage errors need neither JAX nor the methods, so commands import these only after
parsing their flags.
"""

import functools
import itertools
import re
import sys
import textwrap
import traceback
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from erase.config.fields import paths, shown, unknown
from flux_jax.errors import InputError, exits_cleanly, fitted, nearest, say

if TYPE_CHECKING:
    from erase.config.schema import Config

FLAG = "config"


HELP = frozenset({"-h", "-?", "-help", "--help", "--helpshort", "--helpfull"})


# Start of ml_collections' message when a configuration file raises an error.
WHILE_READING = "Error whilst parsing config file"


def define_flag() -> None:
    """Declare `--config` and its overrides. A function, so that importing declares nothing."""
    config_flags.DEFINE_config_file(
        FLAG,
        None,
        f"Configuration file; see configs/. --{FLAG}.FIELD=VALUE overrides a field. Separate words "
        f"by commas (--{FLAG}.synonyms=football,ball); repeat the flag for further sentences.",
    )


def configured(method: str | None = None) -> "dict[str, Config]":
    """Load the runs that the flags configure, by name; see `erase.runs.load_runs`.

    Args:
        method: method of the runs, instead of the one that the flags choose.

    Raises:
        InputError: with a line for every field that is unknown or cannot be used.
    """
    from erase.runs import load_runs

    flag = flags.FLAGS[FLAG]
    # An absent flag has no overrides.
    given, paths = flag.value, config_flags.get_override_values(flag) if flag.present else {}
    changed = {path: attrgetter(path)(given) for path in paths}
    if "concept" in changed and isinstance(given, ConfigDict):
        given = _of_the_concept(flag, given, changed)
    if changed.get("sense") and isinstance(given, ConfigDict):
        if changed.get("synonyms"):
            _note(f"sense = {shown(given.sense)} has no effect, since synonyms are given too")
        else:
            given = _of_the_sense(given)
    if method is not None and isinstance(given, ConfigDict):
        changed["method"] = method
    return load_runs(given, changed)


def check_paths(runs: "Mapping[str, Config]") -> None:
    """Check that the judges and models of the runs exist, before importing the code to read them.

    Args:
        runs: from `configured`.

    Raises:
        InputError: a judge or model is missing.
    """
    from erase.evaluation.judge import read_config
    from flux_jax.weights.hub import check_model

    for config in runs.values():
        settings = config.evaluation
        if settings.judge is not None and (settings.pictures or config.early_stop.every):
            read_config(settings.judge)
    for path in {config.model.path: None for config in runs.values()}:
        check_model(path)


def _of_the_concept(flag: Any, given: ConfigDict, changed: Mapping[str, Any]) -> ConfigDict:
    """Drop the file's values that belong to another concept than the command line's.

    Raises:
        InputError: the file names several runs, each with its own concept.
    """
    from erase.runs import EACH, RunConfig, plain
    from erase.runs.overrides import of_another_concept

    if EACH in given:
        raise InputError(
            f"concept = {shown(given.concept)} would change none of the runs that the file names, "
            "since each has its own concept; change the file instead"
        )
    # The flag's value includes the override.
    former = flag.parser.parse(flag.config_filename).get("concept")
    if not isinstance(former, str) or former.casefold() == str(given.concept).casefold():
        return given
    values, gone = of_another_concept(plain(given), former, changed, set(paths(RunConfig)))
    if gone:
        _note(
            f"concept = {shown(given.concept)} replaces {shown(former)}: ignored the file's values "
            f"for it, {', '.join(gone[:8])}{' and more' if len(gone) > 8 else ''}"
        )
    return ConfigDict(values)


def _of_the_sense(given: ConfigDict) -> ConfigDict:
    """Drop the file's synonyms, which those of the command line's sense replace."""
    from erase.runs import EACH, plain

    values = plain(given)
    runs = values.get(EACH, {})
    named = [each for each in (values, *runs.values()) if each.get("synonyms")]
    if not named:
        return given
    words = ", ".join(str(word) for each in named for word in each.pop("synonyms"))
    _note(
        f"sense = {shown(given.sense)}: its words in WordNet, if it has others, replace the file's "
        f"synonyms, {textwrap.shorten(words, 100)}"
    )
    return ConfigDict(values)


def define_process_flags() -> None:
    """Declare the flags for training with several processes."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Train as one of several processes, set up by SLURM, GKE, a TPU pod or MPI (see "
        "jax.distributed.initialize).",
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process, if not detected.")
    flags.DEFINE_integer("processes", None, "Number of processes.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Index of this process, from 0.", lower_bound=0)


@functools.cache
def _note(line: str) -> None:
    """Print a note once, however many methods are configured."""
    say(fitted(line), sys.stderr)


def configured_for(
    names: Iterable[str] | None, among: Iterable[str] | None = None
) -> "dict[str, dict[str, Config]]":
    """Load the runs that the flags configure once for each of several methods, by its name.

    Args:
        names: names of the methods; by default all.
        among: methods to choose from; by default all.

    Raises:
        InputError: a method is not among these, or a field cannot be used.
    """
    from erase.methods import METHODS

    among, runs = tuple(METHODS if among is None else among), {}
    for name in among if names is None else names:
        if name not in among:
            raise InputError(f"methods: {name!r} is unknown; {nearest(name, among)}")
        runs[name] = configured(name)
    return runs


@exits_cleanly
def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Show help or parse the flags; for `app.run(main, flags_parser=...)`.

    Exits with code 0 after help, and with code 2 if a flag or the configuration file cannot be
    used.
    """
    if asked := HELP.intersection(arguments[1:]):
        show_help(full="--helpfull" in asked)
        sys.exit(0)
    file = _file(arguments) if FLAG in flags.FLAGS else None
    # Parse flags after a stray argument too, so that the argument is reported.
    flags.FLAGS.set_gnu_getopt()
    try:
        return flags.FLAGS(_with_joined_lists(arguments))
    except flags.UnrecognizedFlagError as error:
        own = (f"--{name}" for name in (*_own_flags(), "help", "helpfull"))
        raise InputError(
            f"--{error.flagname} is not a flag; {nearest(f'--{error.flagname}', own)}"
        ) from error
    except Exception as error:
        of_flag = isinstance(error, flags.Error | ValueError) and WHILE_READING not in str(error)
        if not of_flag and file is None:
            raise
        raise InputError(_refused(error) if of_flag else _of_file(error, file or "")) from error


def _with_joined_lists(arguments: Sequence[str]) -> list[str]:
    """Apply `joined_lists`, imported only if there are overrides."""
    if not any(re.match(rf"--?{FLAG}\.", argument) for argument in arguments):
        return list(arguments)
    from erase.runs import RunConfig
    from erase.runs.overrides import joined_lists

    return joined_lists(arguments, FLAG, RunConfig)


def show_help(full: bool) -> None:
    """Print the command's docstring and its flags.

    Args:
        full: whether to include the libraries' flags.
    """
    doc, values = sys.modules["__main__"].__doc__ or "", flags.FLAGS
    # Drop the first line, which has the module's file name.
    listed = values.get_help() if full else values.main_module_help().strip().partition("\n")[2]
    say(f"{doc.strip()}\n\nflags:\n{listed}")
    if not full:
        say("\n--helpfull also shows the flags of the libraries.")


def _own_flags() -> list[str]:
    return [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]


def _file(arguments: Sequence[str]) -> str | None:
    """Check the configuration's flags, as far as possible without running its file.

    Returns:
        The value of `--config`, or None.

    Raises:
        InputError: there is no such file or field.
    """
    given = None
    for argument, following in itertools.pairwise([*arguments, ""]):
        named = re.match(rf"--?(?:no)?{FLAG}\.([^=]*)", argument)
        if named and named[1].startswith("each."):
            raise InputError(
                f"{named[1]}: overrides change only fields shared by all runs; change the file "
                "instead"
            )
        if named:
            _check_field(named[1], argument.partition("=")[2] or following)
        if named and given is None:
            raise InputError(f"{argument} changes no file: give --{FLAG} FILE before it")
        if file := re.fullmatch(rf"--?{FLAG}(?:=(.*))?", argument):
            given = following if file[1] is None else file[1]
            if not given or given.startswith("--"):
                raise InputError(f"--{FLAG} has no value: give a file, --{FLAG} FILE")
            # The argument of get_config follows a colon.
            path = given.partition(":")[0]
            if not Path(path).is_file():
                raise InputError(f"config = {path!r} is not a file; check the path")
    return given


def _check_field(name: str, value: str) -> None:
    """Check that a configuration has a field, and that it is not a section of fields.

    Raises:
        InputError: there is no field of this name, or it is a section.
    """
    from erase.runs import RunConfig

    known = list(paths(RunConfig))
    if name not in known:
        raise InputError(unknown(RunConfig, name))
    if inner := [f"--{FLAG}.{each}" for each in known if each.startswith(f"{name}.")]:
        raise InputError(
            f"{name} = {shown(value)} sets a section, which has fields of its own: set one of "
            f"them, such as {' or '.join(inner[:2])}"
        )


def _refused(error: Exception) -> str:
    """Describe a usage error in one line."""
    said = str(error)
    if missing := re.findall(r"Flag --(\S+) must have a value other than None", said):
        names = " and ".join(f"--{name}" for name in missing)
        return f"{names} {'are' if len(missing) > 1 else 'is'} missing; see --help"
    if absent := re.fullmatch(r"Missing value for flag -*(\S+)", said):
        return f"--{absent[1]} has no value: give one after it; see --help"
    named = re.match(r"flag --(\S+?)=(.*?): ", said, re.DOTALL)
    if named and named[1] in flags.FLAGS:
        flag, value = flags.FLAGS[named[1]], named[2]
        if isinstance(flag.parser, flags.EnumParser):
            return f"{flag.name} = {value!r} is unknown; {nearest(value, flag.parser.enum_values)}"
        if wanted := "true or false" if flag.boolean else flag.parser.syntactic_help:
            return f"{flag.name} = {value!r} must be {wanted}"
    return " ".join(said.split())


def _of_file(error: BaseException, given: str) -> str:
    """Describe an error raised by a configuration file, with the line of the file.

    Args:
        error: raised when running the file; the libraries wrap the file's error.
        given: value of `--config`.
    """
    file = Path(given.partition(":")[0]).resolve()
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, InputError) and WHILE_READING not in str(each):
            return str(each)
        frames = traceback.extract_tb(each.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file]
        if lines or isinstance(each, SyntaxError):
            where = f" in line {lines[-1]}" if lines else ""
            told = f"{type(each).__name__}{where}: {' '.join(str(each).split())}"
            break
        each = each.__context__
    else:
        told = str(error).strip().splitlines()[-1]
    return f"config = {given!r} cannot be run: {told}"


def begin(argv: Sequence[str], hint: str = "see --help") -> None:
    """Start a command: refuse stray arguments, silence libraries, set up the compiler.

    Args:
        argv: the program's name, and arguments that absl did not parse.
        hint: advice on an argument that is not a flag.

    Raises:
        InputError: there is a stray argument.
    """
    if len(argv) > 1:
        raise InputError(f"argument {argv[1]!r} is not a flag; {hint}")
    from flux_jax.system import compile_cache, xla_flags

    quiet()
    xla_flags.set_flags()
    compile_cache.use()


def quiet() -> None:
    """Silence libraries below warnings."""
    # JAX logs missing backends, Orbax every step of a checkpoint.
    logging.set_verbosity(logging.WARNING)


def folders(texts: Sequence[str]) -> dict[str, Path]:
    """Read METHOD=FOLDER of each method.

    Raises:
        InputError: one has another form, or a method is there twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        method, equals, folder = text.partition("=")
        if not (method and equals and Path(folder).is_dir()):
            raise InputError(f"pictures = {text!r:.100}: write METHOD=FOLDER, with a folder's path")
        if method in found:
            raise InputError(f"pictures: the method {method!r:.60} is there twice")
        found[method] = Path(folder)
    return found
