"""Generate pictures with a model and adapters, and write them with their prompts and settings."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from erase.config.fields import shown
from erase.data.words.spelling import mentions
from erase.data.words.word_tokens import marks
from erase.model.adapters import parse_adapter
from erase.model.draw import draw, picture_size, png
from erase.model.request import check_request
from erase.runtime.files import write
from flux_jax.errors import say
from flux_jax.pipeline import load
from flux_jax.settings import SamplingOptions


def file_names(prompts: Sequence[str], seeds: Sequence[int]) -> Iterator[str]:
    """Generate a name for each (prompt, seed): the prompt's number, its words and the seed."""
    for number, prompt in enumerate(prompts):
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "empty"
        yield from (f"{number:03}-{words}-seed{seed}.png" for seed in seeds)


def sample(
    model: str | Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    adapters: Sequence[str],
    out: Path,
    *,
    silenced: str | None = None,
    options: SamplingOptions | None = None,
) -> list[Path]:
    """Generate a picture for every prompt and every seed, and write PNG files.

    Args:
        model: pipeline folder; its weights are read only after all other settings are checked.
        prompts: text prompts.
        seeds: seeds of the noise.
        adapters: "PATH" or "PATH:STRENGTH" each.
        out: output folder; files of the same names are replaced.
        silenced: word whose tokens are muted.
        options: sampling options.

    Returns:
        The files, by prompt and then by seed.

    Raises:
        InputError: no prompt or seed, an unusable setting, or an adapter that does not fit.
    """
    options = options or SamplingOptions()
    check_request(prompts, seeds, options)
    _note_silence(prompts, silenced)
    read = [parse_adapter(text) for text in adapters]
    pipe = load(model)
    # Make all checks that need no weights before reading them.
    pipe.grid(*picture_size(pipe, options))
    pipe.tokenize(prompts)
    if silenced is not None:
        marks(pipe.tokenizer_2, prompts, silenced)
    for text, (adapter, _) in zip(adapters, read, strict=True):
        pipe.check(adapter, text)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    pictures = draw(
        pipe,
        [prompt for prompt, _ in pairs],
        [seed for _, seed in pairs],
        options,
        adapters=read,
        silenced=silenced,
    )
    files = [out / name for name in file_names(prompts, seeds)]
    settings = {
        "model": str(model),
        "steps": options.steps,
        "guidance": options.guidance,
        "adapters": list(adapters),
        "silenced": silenced,
    }
    for file, picture, (prompt, seed) in zip(files, pictures, pairs, strict=True):
        notes = {"prompt": prompt, "seed": str(seed), "settings": json.dumps(settings)}
        write(file, png(picture, notes))
    return files


def _note_silence(prompts: Sequence[str], silenced: str | None) -> None:
    """Print a note if the word to silence is in none of the prompts."""
    if silenced is not None and not any(mentions(prompt, silenced) for prompt in prompts):
        say(
            f"silence = {shown(silenced)} is in none of the prompts: nothing is silenced",
            sys.stderr,
        )
