r"""Generate pictures with a model and optional adapters.

    erase-anything sample --model models/emoji-flux --prompt "a photo of a cat" \
        --seed 0 --seed 1 --adapter runs/soccer-ball:0.8 --out pictures

Every prompt is combined with every seed. The files' names are printed, one per line. The text
entries of each PNG record the prompt, seed and settings.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from convert.adapters.paths import find_adapter, split_strength
from erase.cli.flags import begin, parse_flags
from erase.runtime.signals import listening
from flux_jax.errors import exits_cleanly, say


def define_flags() -> None:
    """Declare the command's flags. A function, so that importing this module declares none."""
    flags.DEFINE_string("model", "models/emoji-flux", "Pipeline: folder, file or name on the hub.")
    flags.DEFINE_multi_string("prompt", [], "Text prompt; may be repeated.")
    flags.DEFINE_multi_integer("seed", [0], "Seed of the noise; may be repeated.")
    flags.DEFINE_multi_string(
        "adapter", [], "Adapter file or folder, with :STRENGTH if not 1; may be repeated."
    )
    flags.DEFINE_string(
        "silence",
        None,
        "Training-free erasure: mute the tokens of this word; prompts without it are not affected.",
    )
    flags.DEFINE_integer("steps", 28, "Euler steps.")
    flags.DEFINE_float("guidance", 3.5, "Distilled guidance scale.")
    flags.DEFINE_integer("height", None, "Pixels; by default the model's size.")
    flags.DEFINE_integer("width", None, "Pixels; by default the model's size.")
    flags.DEFINE_integer("batch", 16, "Pictures generated at once.")
    flags.DEFINE_string("out", "pictures", "Folder for the PNG files.")


@exits_cleanly
@listening()
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv, "prompts are given with --prompt")
    from erase.model.request import check_request
    from flux_jax.settings import SamplingOptions
    from flux_jax.weights.hub import check_model

    given = flags.FLAGS
    options = SamplingOptions(given.steps, given.guidance, given.height, given.width, given.batch)
    check_request(given.prompt, given.seed, options)
    check_model(given.model)
    for text in given.adapter:
        find_adapter(split_strength(text)[0])
    from erase.model.sample import sample
    from erase.runtime.memory import explains_memory, mends_of_drawing

    with explains_memory(mends_of_drawing(given.batch, given.height, given.width)):
        files = sample(
            given.model,
            given.prompt,
            given.seed,
            given.adapter,
            Path(given.out),
            silenced=given.silence,
            options=options,
        )
    for file in files:
        say(file)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
