"""Converts PyTorch tensors to a Flax tree, and back, by a table of names.

Leaves are built one after the other, each with all of its blocks, and passed on: a model never has
to fit into host memory as a whole.
"""

import math
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flux_jax.errors import LONGEST, InputError, counted
from flux_jax.tree import Params, flatten, nest
from flux_jax.weights.rules import Row, Shape, Table, match, placeholders

MEND = "take weights and config.json of one model"


DAMAGED = "the file is damaged, or was saved with NaN or infinities in it: fetch it again"


# Tensors that are read at once, besides the leaf being filled.
READERS = 8


# Number of problems that an error message shows.
EXAMPLES = 3


# Numbers that are checked at once.
PIECE = 1 << 19


# Bits that are all set in infinities and NaNs: those of the exponent; in the type without
# infinities, all but the sign.
NOT_FINITE = {
    "float8_e4m3fn": 0x7F,
    "float8_e5m2": 0x7C,
    "bfloat16": 0x7F80,
    "float16": 0x7C00,
    "float32": 0x7F800000,
}


# Candidates for the common type of several others, narrowest first; all of them hold any fp8.
WIDER = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Slot:
    """One expected PyTorch tensor: its row, the leaves it fills and which block of them.

    Attributes:
        name: name of the tensor.
        shape: shape of the tensor.
        row: row of the table.
        leaves: paths of the leaves, in the row's order.
        leaf_shapes: shapes of one block of each leaf.
        block: index of the block; None for leaves that are not stacked.
    """

    name: str
    shape: Shape
    row: Row
    leaves: tuple[str, ...]
    leaf_shapes: tuple[Shape, ...]
    block: int | None


# A tensor, and the index of one of its leaves.
Held = tuple[Slot, int]


@dataclass(frozen=True)
class _Parts:
    """Reads the tensors' parts for leaves.

    Attributes:
        tensors: by the table's names.
        problems: problems of the parts that were read so far.
    """

    tensors: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    def assemble(
        self, held: Sequence[Held], shape: Shape, pool: Executor, advance: Callable[[int], Any]
    ) -> np.ndarray:
        """Builds a leaf from all its parts."""
        first, *others = held
        part = self._read(first)
        dtype = common_type(_dtype(self.tensors[slot.name]) for slot, _ in held)
        leaf = _lying_like(part, shape, dtype)
        advance(self._fill(leaf, first, part))
        for read_bytes in pool.map(lambda one: self._fill(leaf, one, self._read(one)), others):
            advance(read_bytes)
        return leaf

    def _fill(self, leaf: np.ndarray, held: Held, part: np.ndarray) -> int:
        """Writes a part into its leaf; returns its number of bytes in the file."""
        slot, _ = held
        block = ... if slot.block is None else slot.block
        _bits(leaf)[block] = _bits(part.astype(leaf.dtype, copy=False))
        return self.tensors[slot.name].nbytes * part.size // max(math.prod(slot.shape), 1)

    def _read(self, held: Held) -> np.ndarray:
        slot, index = held
        part = slot.row.rule.to_leaf(self.tensors[slot.name], slot.leaf_shapes, index)
        if not is_finite(part):
            problem = f"not finite: {slot.name} contains infinities or NaN"
            self.problems.append(problem)
        return part


def to_flax(
    table: Table,
    tensors: Mapping[str, Any],
    shapes: Params,
    *,
    source: str | os.PathLike[str] = "weights",
    mend: str = MEND,
    place: Callable[[str, np.ndarray], Any] = lambda path, leaf: leaf,
    advance: Callable[[int], Any] = lambda read: None,
) -> dict[str, Any]:
    """Builds a Flax tree from PyTorch tensors, one leaf after the other.

    Args:
        table: names of the component.
        tensors: arrays (of a memory-mapped file, for instance),
            `flux_jax.weights.quantized.lazy.Lazy`s, or `torch.Tensor`s, by PyTorch name.
        shapes: nested dictionaries of objects with `.shape`: the tree to fill.
        source: origin of the tensors, for error messages.
        mend: what the user can do about tensors that do not fit, for error messages.
        place: called with the path of each leaf, joined by "/", and the leaf; for
            instance moves it to a device.
        advance: called with the number of bytes in the file of each part that was read.

    Returns:
        Nested dictionaries of the results of `place`, from arrays with the requested shapes. Their
        dtypes are those of the tensors, or the `common_type` of a leaf's blocks. Their memory
        layout is that of the tensors: transposing is left to `place`.

    Raises:
        InputError: tensors are missing, surplus or misshapen, or hold non-finite numbers.
    """
    slots, tensors = _fitting(table, tensors, shapes, source, mend)
    flat_shapes = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    parts = _Parts(tensors)
    held: dict[str, list[Held]] = {}
    for slot in slots:
        for index, path in enumerate(slot.leaves):
            held.setdefault(path, []).append((slot, index))
    flat: dict[str, Any] = {}
    # NumPy copies without the GIL.
    with ThreadPoolExecutor(READERS) as pool:
        # Largest first: the extra memory for placing a leaf then adds to a small total.
        sizes = {path: math.prod(flat_shapes[path]) for path in held}
        for path in sorted(held, key=lambda path: -sizes[path]):
            flat[path] = place(path, parts.assemble(held[path], flat_shapes[path], pool, advance))
    refuse(source, DAMAGED, list(dict.fromkeys(parts.problems)))
    return nest({path: flat[path] for path in held})


def check(
    table: Table,
    tensors: Mapping[str, Any],
    shapes: Params,
    *,
    source: str | os.PathLike[str] = "weights",
) -> None:
    """Checks that `to_flax` will find each tensor; reads none.

    Raises:
        InputError: tensors are missing, surplus or misshapen.
    """
    _fitting(table, tensors, shapes, source, MEND)


def _fitting(
    table: Table,
    tensors: Mapping[str, Any],
    shapes: Params,
    source: str | os.PathLike[str],
    mend: str,
) -> tuple[list[Slot], dict[str, Any]]:
    """The slots of a tree of these shapes, and the tensors under the table's names."""
    flat_shapes = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    slots, problems = _slots(table, flat_shapes)
    expected = {slot.name: slot.shape for slot in slots}
    tensors = _canonical(table, tensors, expected)
    problems += differences(tensors, expected)
    for name in expected:
        if name in tensors and _dtype(tensors[name]).kind in "iub":
            dtype = _dtype(tensors[name])
            problems.append(f"integers: {name} is {dtype}; take the model in bfloat16")
    refuse(source, mend, problems)
    return slots, tensors


def _dtype(tensor: Any) -> np.dtype:
    """NumPy's type of an array or of a `torch.Tensor`."""
    return np.dtype(str(tensor.dtype).removeprefix("torch."))


def common_type(types: Iterable[np.dtype]) -> np.dtype:
    """The narrowest type that holds every number of these floating-point types."""
    names = {dtype.name for dtype in types}
    if len(names) > 1:
        # Neither 16-bit type holds the other's numbers, nor does either fp8 type.
        both = {"bfloat16", "float16"}
        wide = {name for name in names if name in WIDER} or {"bfloat16"}
        names = {"float32"} if wide == both else {max(wide, key=WIDER.index)}
    return np.dtype(names.pop())


def _lying_like(part: np.ndarray, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An empty array for one or more parts, with the part's order of axes in memory."""
    stacked = len(shape) - part.ndim
    order = [*range(stacked), *(stacked + np.argsort([-s for s in part.strides], kind="stable"))]
    return np.empty([shape[axis] for axis in order], dtype).transpose(np.argsort(order))


def _bits(array: np.ndarray) -> np.ndarray:
    """The array viewed as integers, which NumPy copies faster than ml_dtypes' floats."""
    return array.view(f"u{array.itemsize}") if array.dtype.name in NOT_FINITE else array


def is_finite(array: np.ndarray) -> bool:
    """Whether the array has neither infinities nor NaNs."""
    bits = NOT_FINITE.get(array.dtype.name)
    if bits is None:
        return array.dtype.kind != "f" or bool(np.isfinite(array).all())
    mask = np.array(bits, f"u{array.itemsize}")
    flat = _bits(array).transpose(np.argsort([-s for s in array.strides])).reshape(-1)
    # Pieces that fit into the processor's cache.
    pieces = np.split(flat, range(PIECE, len(flat), PIECE))
    return not any(((piece & mask) == mask).any() for piece in pieces)


def to_torch(table: Table, params: Params) -> dict[str, np.ndarray]:
    """Converts a Flax tree to tensors with PyTorch's names; the arrays are views where possible.

    Args:
        table: names of the component.
        params: nested dictionaries of arrays.

    Returns:
        Arrays with the leaves' dtypes by PyTorch name, in the table's order of leaves.

    Raises:
        InputError: the table has no name for a leaf.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    tensors = {}
    for slot in slots(table, flat):
        leaves = [flat[path] for path in slot.leaves]
        if slot.block is not None:
            leaves = [leaf[slot.block] for leaf in leaves]
        tensors[slot.name] = slot.row.rule.to_torch(leaves)
    return tensors


def torch_shapes(table: Table, shapes: Params) -> dict[str, Shape]:
    """Shapes of the PyTorch tensors of a Flax tree with these shapes, by their names.

    Raises:
        InputError: the table has no name for a leaf.
    """
    return {slot.name: slot.shape for slot in slots(table, shapes)}


def slots(table: Table, shapes: Params) -> list[Slot]:
    """The PyTorch tensors of a Flax tree with these shapes, each with its leaves and block.

    Raises:
        InputError: the table has no name for a leaf.
    """
    found, problems = _slots(
        table, {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    )
    refuse("parameters", MEND, problems)
    return found


def _slots(table: Table, shapes: Mapping[str, Shape]) -> tuple[list[Slot], list[str]]:
    """The PyTorch tensors of a tree with these shapes, and the leaves without a name."""
    slots, problems = [], []
    named = set()
    for path in shapes:
        for row in table.rows:
            numbers = match(row.flax[0], path)
            if numbers is not None:
                break
        else:
            continue
        leaves = tuple(template.format(**numbers) for template in row.flax)
        absent = [
            f"missing: {leaf}, the partner of {path}" for leaf in leaves if leaf not in shapes
        ]
        problems += absent
        if absent:
            continue
        named |= set(leaves)
        counter = placeholders(row.torch) - set(numbers)
        leaf_shapes = tuple(shapes[leaf] for leaf in leaves)
        blocks: Iterable[int | None] = [None]
        if counter:
            blocks = range(leaf_shapes[0][0])
            leaf_shapes = tuple(shape[1:] for shape in leaf_shapes)
        shape = row.rule.torch_shape(leaf_shapes)
        for block in blocks:
            name = row.torch.format(**numbers, **dict.fromkeys(counter, block))
            slots.append(Slot(table.prefix + name, shape, row, leaves, leaf_shapes, block))
    problems += [f"surplus: {path} {list(shapes[path])}" for path in shapes if path not in named]
    return slots, problems


def _canonical(
    table: Table, tensors: Mapping[str, Any], expected: Container[str]
) -> dict[str, Any]:
    """Tensors under the table's names; tensors that it does not expect keep the file's names."""
    named: dict[str, Any] = {}
    copies: dict[str, Any] = {}
    for name, tensor in tensors.items():
        full = name if name.startswith(table.prefix) else table.prefix + name
        if full in table.copies:
            copies[full] = tensor
        elif full not in table.ignored:
            named[full if full in expected and full not in tensors else name] = tensor
    for name, tensor in copies.items():
        original = named.setdefault(table.copies[name], tensor)
        if original is not tensor and not np.array_equal(original, tensor):
            raise InputError(
                f"{name} differs from {table.copies[name]}; this model shares them, so the file "
                "belongs to another architecture"
            )
    return named


def differences(tensors: Mapping[str, Any], expected: Mapping[str, Shape]) -> list[str]:
    """Lists missing, misshapen and surplus tensors, one line each."""
    problems = [
        f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in tensors
    ]
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name not in expected:
            problems.append(f"surplus: {name} {list(shape)}")
        elif shape != expected[name]:
            problems.append(f"misshapen: {name} is {list(shape)}, expected {list(expected[name])}")
    return problems


def refuse(source: str | os.PathLike[str], mend: str, problems: Sequence[str]) -> None:
    """Raises one `InputError` if there are problems: one line with their number and examples.

    Args:
        source: origin of the tensors.
        mend: what the user can do.
        problems: a text for each, "kind: what"; the first of every kind is shown before others.
    """
    if not problems:
        return
    firsts = {problem.partition(":")[0]: at for at, problem in reversed([*enumerate(problems)])}
    order = sorted(range(len(problems)), key=lambda at: at not in firsts.values())
    does = "does" if len(problems) == 1 else "do"
    text = f"{source}: {counted(len(problems), 'tensor')} {does} not fit: "
    shown: list[str] = []
    for at in order[:EXAMPLES]:
        # Names in a file may have any length.
        example = problems[at] if len(problems[at]) < LONGEST // 2 else problems[at][:99] + "..."
        if not shown or len("; ".join([text, *shown, example, mend])) < LONGEST - 5:
            shown.append(example)
    dots = ["..."] if len(shown) < len(problems) else []
    raise InputError(f"{text}{'; '.join([*shown, *dots])}; {mend}")
