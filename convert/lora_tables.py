"""Names of adapters' layers in every layout, derived from the names of the model's own tensors.

A key in a file is a naming's prefix, a layer's name and a part: `transformer.` and
`transformer_blocks.0.attn.add_q_proj` and `.lora_A.weight`. A layout has one naming that is
written and others that only are read, because some program writes them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from convert import original
from convert.mapping import Row, Table, placeholders
from convert.rules import LINEAR, Swapped
from convert.tables import TRANSFORMER

KERNEL = "/kernel"
MODEL = "transformer."
# Width of the hidden layers over the width of the stream, in every FLUX transformer.
HIDDEN = 4
# A number after the name of a stack of blocks, without leading zeros. No FLUX has a thousand; more
# would be a lie that costs memory, since stacks are as deep as their last block says.
_BLOCK = re.compile(r"(?<=blocks[._])(0|[1-9][0-9]{0,2})(?=[._])")

# A layer of the model: its path in the Flax tree, and which block of it, if it lies in blocks.
Place = tuple[str, int | None]


@dataclass(frozen=True)
class Layer:
    """A dense layer as one layout names it.

    Attributes:
        name: for instance `double_blocks.{i}.txt_attn.qkv`.
        targets: paths of the layers in the Flax tree that it joins, in the order of its outputs.
        swapped: the halves of its outputs stand in the other order than in the Flax tree.
    """

    name: str
    targets: tuple[str, ...]
    swapped: bool

    def places(self, block: int | None) -> list[Place]:
        """The layers of the model that it joins in this block."""
        return [(target, block) for target in self.targets]

    def in_block(self, block: int | None) -> str:
        """The name with the block's number."""
        return self.name.format(i=block)

    def widths(self, inputs: int) -> list[int]:
        """How many outputs each of the joined layers has; they all read the stream."""
        hidden = [target.endswith("proj_mlp") for target in self.targets]
        return [HIDDEN * inputs if wide else inputs for wide in hidden]


def _layers(base: Table) -> tuple[Layer, ...]:
    rows = [row for row in base.rows if row.flax[0].endswith(KERNEL)]
    return tuple(
        Layer(
            row.torch.removesuffix(".weight"),
            tuple(leaf.removesuffix(KERNEL) for leaf in row.flax),
            isinstance(row.rule, Swapped),
        )
        for row in rows
    )


SPLIT = _layers(TRANSFORMER)
JOINED = _layers(original.TRANSFORMER)


@dataclass(frozen=True)
class Naming:
    """How a layout spells its layers.

    Attributes:
        layout: "diffusers", "kohya" or "original".
        prefix: stands before each name.
        layers: all that can have an adapter.
        flat: underscores stand for the dots in layers' names.
    """

    layout: str
    prefix: str
    layers: tuple[Layer, ...]
    flat: bool = False

    def spelled(self, layer: Layer) -> str:
        """Prefix and name, with a placeholder for the block."""
        return self.prefix + (layer.name.replace(".", "_") if self.flat else layer.name)


# The first one of a layout is written. Programs that write the others: PEFT's functions without a
# pipeline (no prefix), kohya's scripts on diffusers' modules, programs that keep several models in
# one file, PEFT on the original model.
NAMINGS = (
    Naming("diffusers", MODEL, SPLIT),
    Naming("diffusers", "", SPLIT),
    Naming("diffusers", "lora_transformer_", SPLIT, flat=True),
    Naming("kohya", "lora_unet_", JOINED, flat=True),
    Naming("original", "diffusion_model.", JOINED),
    Naming("original", original.BUNDLED, JOINED),
    Naming("original", "base_model.model.", JOINED),
    Naming("original", "", JOINED),
)
WRITTEN = {naming.layout: naming for naming in reversed(NAMINGS)}
FLAX = "flax"
LAYOUTS = (*dict.fromkeys(naming.layout for naming in NAMINGS), FLAX)

# How A (down) and B (up) are called, in either way; alpha has one name.
PEFT_PARTS = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
KOHYA_PARTS = {"down": ".lora_down.weight", "up": ".lora_up.weight"}
# Of the original layout's spellings, diffusers reads only kohya's.
PARTS = {"diffusers": PEFT_PARTS, "kohya": KOHYA_PARTS, "original": KOHYA_PARTS}
ALPHA = ".alpha"


@dataclass(frozen=True)
class Key:
    """What the key of a tensor says.

    Attributes:
        naming: how the layer is spelled.
        layer: which one.
        block: in which block, if it lies in blocks.
        part: "down", "up" or "alpha".
        parts: how down and up are called in this way, None for alpha.
    """

    naming: Naming
    layer: Layer
    block: int | None
    part: str
    parts: Mapping[str, str] | None


_SPELLED = {naming.spelled(layer): (naming, layer) for naming in NAMINGS for layer in naming.layers}
_SUFFIXES: dict[str, tuple[str, Mapping[str, str] | None]] = {
    ALPHA: ("alpha", None),
    **{
        suffix: (part, parts)
        for parts in (PEFT_PARTS, KOHYA_PARTS)
        for part, suffix in parts.items()
    },
}


def parse(name: str) -> Key | None:
    """What a key says, or None if no layout has it."""
    for suffix, (part, parts) in _SUFFIXES.items():
        if name.endswith(suffix):
            stem = name.removesuffix(suffix)
            block = _BLOCK.search(stem)
            found = _SPELLED.get(_BLOCK.sub("{i}", stem, count=1))
            if found:
                return Key(*found, int(block[0]) if block else None, part, parts)
    return None


def spell(layout: str, layer: Layer, block: int | None, suffix: str) -> str:
    """The key that is written for a layer's part."""
    return WRITTEN[layout].spelled(layer).format(i=block) + suffix


_NAMES = {layer.targets[0]: layer.name for layer in SPLIT}


def label(place: Place) -> str:
    """Diffusers' name of a layer, for messages."""
    target, block = place
    return _NAMES[target].format(i=block)


def _halves() -> Table:
    """Names of every layer's A and B."""
    rows = []
    for layer in SPLIT:
        for letter, suffix in zip("AB", PEFT_PARTS.values(), strict=True):
            leaf = f"{layer.targets[0]}/{letter}"
            rows.append(Row(MODEL + layer.name + suffix, (leaf,), LINEAR))
    return Table(tuple(rows))


# Diffusers' keys beside the leaves of the Flax tree.
TABLE = _halves()
# Paths of the leaves that stack a layer of all blocks.
STACKED = {row.flax[0] for row in TABLE.rows if placeholders(row.torch)}
