"""Show the contents of an adapter file, in any layout that `erase-anything convert adapter` reads.

    erase-anything convert inspect runs/soccer-ball/adapter

There is one line for each target: its layers' shapes, the number of blocks, the Frobenius norm of
the change alpha / R * B A over all blocks, and the effective rank: the number of singular values of
the change above 1 % of the layer's largest, as a range over the blocks. Both are computed from the
Gram matrices of A and B, [R, R], without the change itself. A change of zeros has effective rank 0.
Blocks that FLUX.1 does not have are reported on stderr.

A full difference (of LoKr or LoHa, for instance) has its norm, rank "full" and no alpha. Further
parts of layers are listed: "DoRA", whose magnitudes do not count in the norm, since they set the
lengths of the model's rows, and "bias", which does not count either. Long header entries are
shortened.

Axis letters: I inputs, O outputs, R rank.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from convert.adapters.files import LayerFile, read_layers
from convert.adapters.layers import Full, Layers, Pair, text
from convert.adapters.names import Place
from convert.arguments import Parser, check_exists
from convert.tables import Table, show
from flux_jax.errors import counted, exits_cleanly, note, printable, shortened
from flux_jax.settings import BLOCKS, MOST_BLOCKS

IN_USE = 0.01
# Maximum length of the header's names and values in the output.
SHOWN = 240


@dataclass(frozen=True)
class Line:
    """A target's line: common values of its layers, or the distinct values among them.

    Attributes:
        target: path in the Flax tree.
        shapes: inputs and outputs, "32 -> 96".
        blocks: number of blocks.
        ranks: ranks of the pairs, in ascending order.
        alphas: alphas of the pairs, as stored in the file.
        types: types of A and B, or of the full difference.
        norm: Frobenius norm of the change, over all blocks.
        used: smallest and largest effective rank of the pairs, if there are any.
        besides: "full" if there are full differences, "DoRA", "bias".
    """

    target: str
    shapes: tuple[str, ...]
    blocks: int
    ranks: tuple[int, ...]
    alphas: tuple[str, ...]
    types: tuple[str, ...]
    norm: float
    used: tuple[int, int] | None
    besides: tuple[str, ...] = ()


def singular_values(pair: Pair) -> Float[np.ndarray, "R"]:
    """Singular values of alpha / R * B A, largest first; at most R of them are not 0.

    With S the square root of A Aᵀ, those of B A are the square roots of the eigenvalues of
    S Bᵀ B S.
    """
    # Normalised to maximum 1, so that no square overflows.
    down, up = (matrix.astype(np.float64) for matrix in (pair.down, pair.up))
    sizes = [float(np.abs(matrix).max()) or 1.0 for matrix in (down, up)]
    down, up = down / sizes[0], up / sizes[1]
    values, vectors = np.linalg.eigh(down @ down.T)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    squares = np.linalg.eigvalsh(root @ (up.T @ up) @ root)[::-1]
    with np.errstate(over="ignore"):
        return abs(float(pair.scale)) * np.sqrt(np.maximum(squares, 0)) * sizes[0] * sizes[1]


def lines(found: LayerFile) -> list[Line]:
    """One line for each target, in the file's order."""
    targets: dict[str, dict[Place, Pair | Full]] = {}
    for place, layer in found.layers.items():
        targets.setdefault(place[0], {})[place] = layer
    return [_line(target, layers, found.alphas) for target, layers in targets.items()]


def _line(target: str, of: Layers, alphas: Mapping[Place, np.ndarray]) -> Line:
    layers = list(of.values())
    pairs = [layer for layer in layers if isinstance(layer, Pair)]
    wholes = [layer for layer in layers if isinstance(layer, Full)]
    values = [singular_values(pair) for pair in pairs]
    used = [int((each > IN_USE * each[0]).sum()) for each in values]
    # The squares of large float64 numbers may overflow.
    with np.errstate(over="ignore"):
        squares = [(each**2).sum() for each in values]
        squares += [np.square(whole.delta, dtype=np.float64).sum() for whole in wholes]
        norm = float(np.sqrt(sum(squares)))
    arrays = [array for pair in pairs for array in (pair.down, pair.up)]
    arrays += [whole.delta for whole in wholes]
    has = {
        "full": bool(wholes),
        "DoRA": any(layer.magnitude is not None for layer in layers),
        "bias": any(layer.bias is not None for layer in layers),
    }
    return Line(
        target,
        _occurring(
            f"{inputs} -> {outputs}" for outputs, inputs in (layer.shape for layer in layers)
        ),
        len(layers),
        tuple(sorted({pair.rank for pair in pairs})),
        _occurring(
            text(alphas.get(place, pair.alpha))
            for place, pair in of.items()
            if isinstance(pair, Pair)
        ),
        _occurring(array.dtype.name for array in arrays),
        norm,
        (min(used), max(used)) if used else None,
        tuple(name for name, there in has.items() if there),
    )


def _occurring(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def header_table(file: Path, found: LayerFile, rows: Sequence[Line]) -> Table:
    """The header's entries, and the values of the whole file."""
    table = Table("", show_header=False)
    table.add_column("", overflow="fold")
    # In the table, because a title is wrapped to the table's width.
    table.add_row("file", str(file))
    whole = {
        "layout": found.described or found.layout,
        "layers": str(len(found.layers)),
        "type": ", ".join(_occurring(word for row in rows for word in row.types)),
        "rank": _ranks(rows),
        "alpha": ", ".join(_occurring(word for row in rows for word in row.alphas)),
        "norm": f"{math.hypot(*(row.norm for row in rows)):.4g}",
    }
    for name, value in {**found.metadata, **whole}.items():
        # Some programs store whole tables of data in the header, thousands of lines long.
        table.add_row(*(shortened(printable(part), SHOWN) for part in (name, value)))
    return table


def _ranks(rows: Sequence[Line]) -> str:
    """The ranks that occur, and "full" if there are full differences."""
    ranks = [str(rank) for rank in sorted({rank for row in rows for rank in row.ranks})]
    return ", ".join([*ranks, *(["full"] if any("full" in row.besides for row in rows) else [])])


def target_table(rows: Sequence[Line]) -> Table:
    """The table with one line for each target."""
    caption = f"effective rank: singular values over {IN_USE:.0%} of the layer's largest"
    table = Table(title="Changes", caption=caption)
    # On narrow terminals names are wrapped, not truncated.
    for heading in ("target", "inputs -> outputs"):
        table.add_column(heading, overflow="fold")
    for heading in ("blocks", "rank", "alpha", "norm", "effective rank"):
        table.add_column(heading, justify="right", overflow="fold")
    besides = [", ".join(word for word in row.besides if word != "full") for row in rows]
    if any(besides):
        table.add_column("besides", overflow="fold")
    for row, more in zip(rows, besides, strict=True):
        least, most = row.used or (None, None)
        cells = [
            row.target,
            ", ".join(row.shapes),
            str(row.blocks),
            _ranks([row]),
            ", ".join(row.alphas),
            f"{row.norm:.4g}",
            "" if least is None else str(most) if least == most else f"{least} to {most}",
        ]
        table.add_row(*cells, *([more] if any(besides) else []))
    return table


def unknown_blocks(layers: Layers) -> list[str]:
    """One line for each kind of block whose largest index is beyond FLUX.1's last block."""
    said = []
    for kind, most in MOST_BLOCKS.items():
        last = max(
            (n for target, n in layers if n is not None and target.startswith(kind)), default=0
        )
        if last >= most:
            said.append(f"block {last}: FLUX.1 has {counted(most, BLOCKS[kind])}, 0 to {most - 1}")
    return said


@exits_cleanly
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module's docstring."""
    parser = Parser("erase-anything convert inspect", __doc__)
    parser.add_argument("file", metavar="FILE", type=Path, help="adapter file or its folder")
    options = parser.parse_args(arguments)
    check_exists("FILE", options.file)
    adapter = read_layers(options.file)
    rows = lines(adapter)
    show(header_table(options.file, adapter, rows), target_table(rows))
    for line in unknown_blocks(adapter.layers):
        note(f"{options.file}: {line}")


if __name__ == "__main__":
    main()
