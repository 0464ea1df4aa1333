"""Makes one adapter of several, so that a file erases many concepts.

    python -m erase.compose runs/emoji_all/cat runs/emoji_all/car:0.8 --method fusion --out both

Parts are adapters' files, their folders or runs' folders; after a colon stands a weight, 1 if
left out. What the change ΔW of each layer becomes, for weights w_i of N adapters:

- sum, or concat: Σ w_i ΔW_i, exactly, at the sum of their ranks;
- normalized: Σ (w_i / Σ w) ΔW_i, the paper's Eq. 12, exactly too: each concept gets 1 / N;
- svd: the sum's best approximation of rank `--rank` in the Frobenius norm;
- fusion: what comes closest to w_i ΔW_i on the tokens of concept i's prompts, for all i, and to no
  change on those of other prompts (`erase.fusion`); it runs the model. `--keep FILE` names what is
  to stay.

Axis letters: L blocks, I inputs, O outputs, R rank.
"""

import argparse
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from convert.adapters import find_adapter, split_strength
from convert.arguments import Parser
from convert.errors import InputError, exits_cleanly, printable
from convert.lora import TORCH_FILE, read_adapter, write_lora
from convert.mapping import flatten, nest
from erase import card, fusion
from erase.command import begin, explains_memory

METHODS = ("sum", "concat", "normalized", "svd", "fusion")
MENDS = "What needs less: fewer --prompts"

Lora = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """An adapter in a composition.

    Attributes:
        path: its file.
        weight: w.
        lora: tree of A [L, I, R] and B [L, R, O].
        alpha: the change is w * alpha / R * (x A) B.
        metadata: of the file.
    """

    path: Path
    weight: float
    lora: Lora
    alpha: float
    metadata: Mapping[str, str]

    @property
    def rank(self) -> int:
        """R."""
        return next(iter(flatten(self.lora).values())).shape[-1]

    def scaled(self, weight: float) -> dict[str, np.ndarray]:
        """Leaves by their paths, weight * alpha / R in every B, in double precision."""
        factor = weight * self.alpha / self.rank
        return {
            path: leaf.astype(np.float64) * (factor if path.endswith("/B") else 1)
            for path, leaf in flatten(self.lora).items()
        }


def read_part(text: str) -> Part:
    """Reads "PATH" or "PATH:WEIGHT".

    Raises:
        InputError: there is no adapter, it cannot be used, or the weight is no number.
    """
    path, weight = split_strength(text)
    found = read_adapter(find_adapter(path))
    return Part(path, weight, found.lora, found.alpha, found.metadata)


def check(parts: Sequence[Part]) -> None:
    """Makes sure that adapters can become one.

    Raises:
        InputError: there are fewer than two, or two have one concept, or they differ in targets,
            ranks or the base model; names all that differ from the first.
    """
    if len(parts) < 2:
        raise InputError("one adapter is no composition: name at least two")
    first, problems = parts[0], []
    for part in parts[1:]:
        shapes, wanted = _shapes(part), _shapes(first)
        if shapes.keys() != wanted.keys():
            problems.append(f"{part.path}: targets are {_targets(part)}, not {_targets(first)}")
        elif shapes != wanted:
            problems += [
                f"{part.path}: {path} is {list(shapes[path])}, not {list(wanted[path])}"
                for path in wanted
                if shapes[path] != wanted[path]
            ]
        bases = [each.metadata.get("base_model") for each in (first, part)]
        if None not in bases and bases[0] != bases[1]:
            problems.append(f"{part.path}: made for {bases[1]}, not {bases[0]}")
    for key in ("concept", None):
        counts = Counter(str(p.path) if key is None else p.metadata.get(key) for p in parts)
        problems += [
            f"{'concept ' if key else ''}{name!r} comes {count} times"
            for name, count in counts.items()
            if count > 1 and name is not None
        ]
    if problems:
        listing = "\n  ".join(problems)
        raise InputError(
            "adapters of one composition need different concepts and one base model, one rank and "
            f"the same targets; the first is {first.path}:\n  {listing}"
        )


def _shapes(part: Part) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten(part.lora).items()}


def _targets(part: Part) -> str:
    return ", ".join(sorted({path.rpartition("/")[0] for path in flatten(part.lora)}))


def weights(parts: Sequence[Part], method: str) -> list[float]:
    """What each adapter's change is multiplied with.

    Raises:
        InputError: weights that are to be normalised sum up to zero.
    """
    given = [part.weight for part in parts]
    if method != "normalized":
        return given
    if not (total := math.fsum(given)):
        raise InputError("the weights sum up to 0 and cannot be normalised; change one")
    return [weight / total for weight in given]


def summed(parts: Sequence[Part], factors: Sequence[float]) -> dict[str, np.ndarray]:
    """The exact sum of changes: ranks side by side, [A_1 A_2] [B_1; B_2] = A_1 B_1 + A_2 B_2."""
    trees = [part.scaled(factor) for part, factor in zip(parts, factors, strict=True)]
    return {
        path: np.concatenate([tree[path] for tree in trees], axis=-1 if path[-1] == "A" else -2)
        for path in trees[0]
    }


def truncated(
    flat: Mapping[str, np.ndarray], rank: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The best approximation of a lower rank of every layer's change.

    Args:
        flat: leaves A [L, I, R] and B [L, R, O] by their paths.
        rank: of the result.

    Returns:
        The leaves, and by target how far the change is off: ‖ΔW - ΔW_rank‖ / ‖ΔW‖ over all blocks.

    Raises:
        InputError: the rank is below 1 or over what the leaves have.
    """
    out, errors = {}, {}
    for target in sorted({path.rpartition("/")[0] for path in flat}):
        a, b = flat[f"{target}/A"], flat[f"{target}/B"]
        most = min(a.shape[-2:] + b.shape[-2:])
        if not 1 <= rank <= most:
            raise InputError(f"rank = {rank} must be from 1 to {most} for {target}")
        # The change's singular values are those of a small matrix between orthonormal ones.
        left, inner = np.linalg.qr(a)
        right, outer = np.linalg.qr(b.swapaxes(-1, -2))
        u, values, v = np.linalg.svd(inner @ outer.swapaxes(-1, -2))
        root = np.sqrt(values[..., :rank])
        out[f"{target}/A"] = left @ u[..., :rank] * root[..., None, :]
        out[f"{target}/B"] = root[..., None] * (v[..., :rank, :] @ right.swapaxes(-1, -2))
        errors[target] = relative(values[..., rank:], values)
    return out, errors


def relative(part: Float[np.ndarray, "..."], whole: Float[np.ndarray, "..."]) -> float:
    """‖part‖ / ‖whole‖; 0 of nothing."""
    return float(np.linalg.norm(part) / (np.linalg.norm(whole) or 1))


def table(method: str, found: Mapping[str, Mapping[str, float]]) -> Table:
    """A line for each target, a column for each number."""
    out = Table("target", title=f"Composed by {method}")
    for heading in next(iter(found.values())):
        out.add_column(heading, justify="right")
    for target, numbers in found.items():
        out.add_row(target, *(f"{number:.3f}" for number in numbers.values()))
    return out


def write(
    parts: Sequence[Part], flat: Mapping[str, np.ndarray], method: str, options: Any, out: Path
) -> Path:
    """Writes the adapter, as diffusers loads it, with what it was made of in its header.

    Raises:
        InputError: the type of the file does not hold the numbers.
    """
    with np.errstate(over="ignore"):
        leaves = {path: leaf.astype(np.float32) for path, leaf in flat.items()}
    if lost := [path for path, leaf in leaves.items() if not np.isfinite(leaf).all()]:
        raise InputError(
            f"{', '.join(lost)} would hold numbers beyond float32's: give smaller weights"
        )
    rank = next(leaf.shape[-1] for path, leaf in leaves.items() if path.endswith("/A"))
    settings = {"method": method, "rank": rank, **options}
    settings["adapters"] = [
        {"path": str(part.path), "weight": part.weight, "concept": part.metadata.get("concept")}
        for part in parts
    ]
    metadata = {
        "concept": ", ".join(part.metadata.get("concept", str(part.path)) for part in parts),
        "method": card.COMPOSED,
        "settings": json.dumps(settings),
    }
    for key in ("base_model", "version"):
        if key in parts[0].metadata:
            metadata[key] = parts[0].metadata[key]
    write_lora(out, nest(leaves), float(rank), metadata)
    try:
        run = dataclasses.asdict(fusion.settings(str(parts[0].path), parts[0].metadata))
    except InputError as error:
        # The adapter is none the worse.
        print(f"no model card: {printable(str(error))}")
    else:
        names = [part.metadata.get("concept", str(part.path)) for part in parts]
        card.of_composition(out, names, method, run)
    return out / TORCH_FILE


def read_lines(file: Path) -> tuple[str, ...]:
    """The sentences of a file, a line each.

    Raises:
        InputError: it cannot be read, or has none.
    """
    try:
        lines = (line.strip() for line in file.read_text("utf-8").splitlines())
        sentences = tuple(line for line in lines if line)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"keep = {str(file)!r} cannot be read ({error}); check the path"
        ) from error
    if not sentences:
        raise InputError(f"keep = {str(file)!r} has no sentence; write one a line")
    return sentences


def compose(parts: Sequence[Part], method: str, out: Path, options: argparse.Namespace) -> Path:
    """Makes and writes the one adapter, and prints what is lost.

    Args:
        parts: checked.
        method: one of `METHODS`.
        out: folder of the adapter.
        options: of the command.

    Raises:
        InputError: the method cannot do it with these adapters.
    """
    factors = weights(parts, method)
    rank = options.rank or parts[0].rank
    console = Console()
    if method == "fusion":
        given = [part.scaled(factor) for part, factor in zip(parts, factors, strict=True)]
        headers = {str(part.path): part.metadata for part in parts}
        keep = read_lines(options.keep) if options.keep else ()
        prompts = fusion.prompts(headers, options.prompts, options.seed, keep)
        with explains_memory(MENDS):
            flat, found = fusion.fuse(given, prompts, rank, options.preserve, options.seed)
        console.print(table(method, found))
        used = {"prompts": options.prompts, "preserve": options.preserve, "seed": options.seed}
        used |= {"keep": keep} if keep else {}
        return write(parts, flat, method, used, out)
    flat = summed(parts, factors)
    if method == "svd":
        flat, errors = truncated(flat, rank)
        console.print(table(method, {t: {"error": error} for t, error in errors.items()}))
    return write(parts, flat, method, {}, out)


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = Parser("erase.compose", __doc__)
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER[:WEIGHT]")
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the adapter to")
    parser.add_argument("--rank", type=int, help="svd, fusion: default the adapters' own")
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
    begin([])
    file = options.out / TORCH_FILE
    if file.exists():
        raise InputError(f"{file} exists; choose another --out or remove it")
    parts = [read_part(text) for text in options.adapters]
    check(parts)
    print(compose(parts, options.method, options.out, options))


if __name__ == "__main__":
    main()
