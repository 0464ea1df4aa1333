r"""Make a figure of the paper in its own layout, with a model and adapters of your own.

    erase-anything figure single-concept --adapter runs/cat --adapter ESD=runs/cat-esd \
        --out figures

Each adapter is a file, its folder, a run's folder, or a folder of runs, with :STRENGTH if not 1 and
LABEL= before it; by default the label is the method in its header. What it erases is in its header,
too. All pictures of a prompt have the same noise. The figures, with their numbers in the paper:

- single-concept (4): a row for each label, a column for each concept;
- methods (14): a row for each concept, a column for each label, and attention map erasure;
- disentanglement (15): each concept's picture and erased picture; right of the dashed line
  unrelated prompts with the same adapter;
- unrelated (16): unrelated prompts under sums of several adapters, normalised ones above the dashed
  line, plain ones below;
- related (17): prompts that name several concepts, each erased alone and in their normalised sum;
- losses (18): a row for each combination of losses, which labels default to, a column for each
  concept.

--prompt: 4, 14 and 18 have one for each concept by default; 17 needs prompts that name two concepts
or more, 15 and 16 such that name none. FIGURE.png and FIGURE.json, which has the command and the
settings of each picture, are written to --out.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from convert.arguments import Parser
from erase.cli.flags import begin
from erase.figures import FIGURES
from flux_jax.errors import InputError, exits_cleanly, say
from flux_jax.settings import SamplingOptions


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    numbers = {str(number): name for name, number in FIGURES.items()}
    parser = Parser("erase-anything figure", __doc__)
    parser.add_argument("figure", choices=[*FIGURES, *numbers], metavar="FIGURE")
    parser.add_argument("--adapter", action="append", default=[], metavar="[LABEL=]PATH[:STRENGTH]")
    parser.add_argument("--model", default="models/emoji-flux", help="folder, file or hub name")
    parser.add_argument("--prompt", action="append", default=[], help="may be repeated")
    parser.add_argument("--seed", action="append", type=int, help="prompts take them in turns")
    parser.add_argument("--count", action="append", type=int, help="unrelated: adapters in a sum")
    parser.add_argument("--steps", type=int, default=28, help="Euler steps")
    parser.add_argument("--guidance", type=float, default=3.5, help="distilled guidance scale")
    parser.add_argument("--height", type=int, help="pixels; by default the model's size")
    parser.add_argument("--width", type=int, help="pixels; by default the model's size")
    parser.add_argument("--batch", type=int, default=16, help="pictures generated at once")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of the figure")
    given = parser.parse_args(arguments)
    name: str = numbers.get(given.figure) or given.figure
    seeds = given.seed or [0]
    options = SamplingOptions(given.steps, given.guidance, given.height, given.width, given.batch)
    from erase.model.request import check_request
    from flux_jax.system.files import check_folder
    from flux_jax.weights.hub import check_model

    check_request(given.prompt or ["by default"], seeds, options)
    if given.count and name != "unrelated":
        raise InputError(f"count is for the figure 'unrelated', not {name!r}; leave it out")
    check_folder(str(given.out), "out")
    check_model(given.model)
    from erase.figures.adapters import read_adapters
    from erase.figures.layouts import Request
    from erase.figures.make import make
    from erase.runtime.memory import explains_memory, mends_of_drawing

    begin([])
    adapters = read_adapters(given.adapter)
    request = Request(adapters, given.prompt, seeds, tuple(given.count or ()))
    words = ["erase-anything", "figure", *(sys.argv[1:] if arguments is None else arguments)]
    with explains_memory(mends_of_drawing(given.batch, given.height, given.width)):
        for file in make(name, given.model, request, options, given.out, words):
            say(file)


if __name__ == "__main__":
    main()
