"""Combine several adapters into one that erases many concepts.

    erase-anything compose runs/emoji_all/cat runs/emoji_all/car:0.8 --method fusion --out both

Each part is an adapter file, its folder or a run's folder, with an optional weight after a colon
(default 1). The change ΔW of each layer, for weights w_i of N adapters, is by method:

- sum, or concat: Σ w_i ΔW_i, exact, of rank equal to the sum of their ranks;
- normalized: Σ (w_i / Σ w) ΔW_i, the paper's Eq. 12, also exact: each concept gets 1 / N;
- svd: the sum's best approximation of rank `--rank` in the Frobenius norm, layer by layer;
- fusion: closest to w_i ΔW_i on the tokens of concept i's prompts, for all i, and to no change on
  those of other prompts (`erase.compose.fusion`); it runs the model. `--keep FILE` lists prompts to
  preserve.

Ranks, alphas, targets and blocks may differ: layers that an adapter lacks count as unchanged by it.
"""

from collections.abc import Sequence
from pathlib import Path

from convert.adapters.paths import find_adapter, split_strength
from convert.arguments import Parser
from erase.cli.flags import begin
from erase.compose import METHODS
from flux_jax.errors import InputError, exits_cleanly, say


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    parser = Parser("erase-anything compose", __doc__)
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER[:WEIGHT]")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--rank", type=int, help="svd, fusion: by default the adapters' largest")
    parser.add_argument("--prompts", type=int, default=8, help="fusion: prompts per concept")
    parser.add_argument(
        "--preserve", type=float, default=3.0, help="fusion: weight of the prompts to preserve"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="fusion: prompts to preserve, one per line; by default from the adapters' settings",
    )
    parser.add_argument("--seed", type=int, default=0, help="fusion: seed of sentences and noise")
    options = parser.parse_args(arguments)
    for text in options.adapters:
        find_adapter(split_strength(text)[0])
    from convert.adapters.files import FLAX_FILE, TORCH_FILE
    from erase.compose.combine import check, compose, read_part

    begin([])
    for name in (TORCH_FILE, FLAX_FILE):
        if (file := options.out / name).exists():
            raise InputError(f"{file} exists; choose another --out or remove it")
    parts = [read_part(text) for text in options.adapters]
    check(parts)
    say(compose(parts, options.method, options.out, options))


if __name__ == "__main__":
    main()
