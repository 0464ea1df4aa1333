"""What the commands of this package share: the configuration's flag, and how they begin."""

import contextlib
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import config_flags

from convert.errors import InputError, RunError
from erase.config import Config
from erase.fields import paths, unknown
from erase.runs import EACH
from flux_jax import compiler

FLAG = "config"
MENDS = (
    "What needs less: --config.model.remat; --config.model.quantize=int8; more devices for the "
    "weights, --config.mesh.fsdp; a smaller --config.batch_size, --config.bank.batch, "
    "--config.bank.sentences, --config.evaluation.batch, --config.height or --config.width"
)


def define_flag() -> None:
    """Declares `--config` and its overrides; a function, so that importing declares nothing."""
    config_flags.DEFINE_config_file(FLAG, None, "Configuration file; see configs/.")


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """For `app.run(main, flags_parser=...)`: unusable flags end the command with exit code 2."""
    try:
        for argument, following in itertools.pairwise([*arguments, ""]):
            named = re.match(rf"--?(?:no)?{FLAG}\.([^=]*)", argument)
            if named and named[1].startswith(f"{EACH}."):
                raise InputError(
                    f"{named[1]}: an override reaches what all runs share; change the file instead"
                )
            if named and named[1] not in set(paths(Config)):
                raise InputError(unknown(Config, named[1]))
            if file := re.fullmatch(rf"--?{FLAG}(?:=(.*))?", argument):
                # After a colon stands what get_config is called with.
                path = (file[1] or following).partition(":")[0]
                if not Path(path).is_file():
                    raise InputError(f"config = {path!r} is not a file; check the path")
        return flags.FLAGS(list(arguments))
    except (InputError, flags.Error, OSError) as error:
        # What get_config itself has to say comes at the end of a traceback.
        said = re.search(r"\bInputError: (.*)\s*$", str(error))
        print(f"error: {said[1] if said else error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def explains_memory(mends: str = MENDS) -> Iterator[None]:
    """Says what helps where a device's memory does not suffice.

    Args:
        mends: what helps.

    Raises:
        RunError: it does not.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).splitlines()[0]
        raise RunError(f"a device has too little memory ({said}). {mends}") from error


def begin(argv: Sequence[str], hint: str = "see --help") -> None:
    """The first thing that a command does: no stray arguments, quiet libraries, compiler flags.

    Args:
        argv: the program's name, and what absl left over.
        hint: what to do about an argument that is no flag.

    Raises:
        InputError: there is one.
    """
    if len(argv) > 1:
        raise InputError(f"argument {argv[1]!r} is not a flag; {hint}")
    # JAX tells which backends it does not find, Orbax every step of a checkpoint.
    logging.set_verbosity(logging.WARNING)
    compiler.set_flags()
