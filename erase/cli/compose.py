"""Makes one adapter of several, so that a file erases many concepts.

    python -m erase compose runs/emoji_all/cat runs/emoji_all/car:0.8 --method fusion --out both

Parts are adapters' files, their folders or runs' folders; after a colon stands a weight, 1 if
left out. What the change ΔW of each layer becomes, for weights w_i of N adapters:

- sum, or concat: Σ w_i ΔW_i, exactly, at the sum of their ranks;
- normalized: Σ (w_i / Σ w) ΔW_i, the paper's Eq. 12, exactly too: each concept gets 1 / N;
- svd: the sum's best approximation of rank `--rank` in the Frobenius norm, layer by layer;
- fusion: what comes closest to w_i ΔW_i on the tokens of concept i's prompts, for all i, and to no
  change on those of other prompts (`erase.compose.fusion`); it runs the model. `--keep FILE` names
  what is to stay.

Ranks, alphas, targets and blocks may differ: what an adapter does not have, it does not change.
"""

from collections.abc import Sequence
from pathlib import Path

from convert.adapters.paths import find_adapter, split_strength
from convert.arguments import Parser
from erase.cli.flags import begin
from erase.compose import METHODS
from flux_jax.errors import InputError, exits_cleanly


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = Parser("erase compose", __doc__)
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER[:WEIGHT]")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the adapter to")
    parser.add_argument("--rank", type=int, help="svd, fusion: default the adapters' largest")
    parser.add_argument("--prompts", type=int, default=8, help="fusion: of each concept")
    parser.add_argument(
        "--preserve", type=float, default=3.0, help="fusion: weight of what is to stay"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FILE",
        help="fusion: sentences with what is to stay, a line each; default from the adapters",
    )
    parser.add_argument("--seed", type=int, default=0, help="fusion: of sentences and noise")
    options = parser.parse_args(arguments)
    for text in options.adapters:
        find_adapter(split_strength(text)[0])
    from convert.adapters.files import TORCH_FILE
    from erase.compose.combine import check, compose, read_part

    begin([])
    file = options.out / TORCH_FILE
    if file.exists():
        raise InputError(f"{file} exists; choose another --out or remove it")
    parts = [read_part(text) for text in options.adapters]
    check(parts)
    print(compose(parts, options.method, options.out, options))


if __name__ == "__main__":
    main()
