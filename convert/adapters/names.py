"""Names of adapters' layers in every layout, derived from the names of the model's tensors.

A key in a file consists of a naming's prefix, a layer's name and a part: `transformer.` and
`transformer_blocks.0.attn.add_q_proj` and `.lora_A.weight`. A layout has one naming for writing
and others for reading only, because some programs write them.
"""

import re
from dataclasses import dataclass

from flux_jax.settings import JOINED_LAYERS, TEXT_ONLY, layer_of
from flux_jax.weights import original
from flux_jax.weights.rules import LINEAR, Row, Swapped, Table, placeholders
from flux_jax.weights.tables import TRANSFORMER

KERNEL = "/kernel"


MODEL = "transformer."


# Width of the hidden layers relative to the stream, in every FLUX transformer.
HIDDEN = 4


# A number after the name of a stack of blocks, without leading zeros. No FLUX has a thousand;
# larger numbers would waste memory, since stacks are as deep as their last block's index.
_BLOCK = re.compile(r"(?<=blocks[._])(0|[1-9][0-9]{0,2})(?=[._])")


# A layer of the model: its path in the Flax tree, and its block's index if it is in a block.
Place = tuple[str, int | None]


@dataclass(frozen=True)
class Layer:
    """A dense layer as named by one layout.

    Attributes:
        name: for instance `double_blocks.{i}.txt_attn.qkv`.
        targets: paths of the layers in the Flax tree that it joins, in the order of its outputs.
        swapped: the halves of its outputs are swapped compared with the Flax tree.
    """

    name: str
    targets: tuple[str, ...]
    swapped: bool

    def places(self, block: int | None) -> list[Place]:
        """The model's layers that it joins, in this block."""
        return [(target, block) for target in self.targets]

    def in_block(self, block: int | None) -> str:
        """The name with the block's index."""
        return self.name.format(i=block)

    def widths(self, inputs: int) -> list[int]:
        """Number of outputs of each joined layer; the stream is the input of all."""
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


# OneTrainer's: names of the original model, with a number for each part of a joined layer.
NUMBERED = tuple(
    Layer(
        f"{layer.name}.{number}" if len(layer.targets) > 1 else layer.name, (target,), layer.swapped
    )
    for layer in JOINED
    for number, target in enumerate(layer.targets)
)


def _xlabs() -> tuple[Layer, ...]:
    """XLabs' attention processors: 1 is the image stream and 2 the text stream."""
    joined = {layer.name: layer.targets for layer in JOINED}
    layers = []
    for number, stream in ((1, "img"), (2, "txt")):
        for part in ("qkv", "proj"):
            name = f"double_blocks.{{i}}.processor.{part}_lora{number}"
            layers.append(Layer(name, joined[f"double_blocks.{{i}}.{stream}_attn.{part}"], False))
    queries = joined["single_blocks.{i}.linear1"][:3]
    layers.append(Layer("single_blocks.{i}.processor.qkv_lora", queries, False))
    out = joined["single_blocks.{i}.linear2"]
    layers.append(Layer("single_blocks.{i}.processor.proj_lora", out, False))
    return tuple(layers)


XLABS = _xlabs()


@dataclass(frozen=True)
class Naming:
    """How a layout spells its layers.

    Attributes:
        layout: "diffusers", "kohya", "original" or "xlabs".
        prefix: prefix of each name.
        layers: all layers that can have an adapter.
        flat: dots in layer names are replaced by underscores.
    """

    layout: str
    prefix: str
    layers: tuple[Layer, ...]
    flat: bool = False

    def spelled(self, layer: Layer) -> str:
        """Prefix and name, with a placeholder for the block."""
        return self.prefix + self.within(layer.name)

    def within(self, name: str) -> str:
        """The name without the prefix."""
        return name.replace(".", "_") if self.flat else name


# Prefixes of programs before names with dots: PEFT, PEFT on a pipeline, programs that store several
# models in one file, ComfyUI, diffusers, and none.
PEFT_PREFIX = "base_model.model."


PREFIXES = (
    MODEL,
    "",
    PEFT_PREFIX,
    PEFT_PREFIX + MODEL,
    "diffusion_model.",
    original.BUNDLED,
    PEFT_PREFIX + "diffusion_model.",
    "unet.",
)


# Kohya's scripts, OneTrainer, SimpleTuner with LyCORIS.
LYCORIS = "lycoris_"


FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", LYCORIS)


def _namings() -> tuple[Naming, ...]:
    """All namings; the first of each layout is the one for writing."""
    written = (
        Naming("diffusers", MODEL, SPLIT),
        Naming("kohya", "lora_unet_", JOINED, flat=True),
        Naming("original", "diffusion_model.", JOINED),
    )
    read = [Naming("diffusers", prefix, SPLIT) for prefix in PREFIXES]
    read += [Naming("original", prefix, JOINED) for prefix in PREFIXES]
    read += [Naming("original", prefix, NUMBERED) for prefix in PREFIXES]
    read.append(Naming("kohya", "lora_transformer_", NUMBERED))
    read += [Naming("xlabs", prefix, XLABS) for prefix in PREFIXES]
    for prefix in FLAT_PREFIXES:
        read.append(Naming("diffusers", prefix, SPLIT, flat=True))
        read.append(Naming("kohya", prefix, JOINED, flat=True))
        read.append(Naming("kohya", prefix, NUMBERED, flat=True))
    return (*written, *read)


NAMINGS = _namings()


WRITTEN = {naming.layout: naming for naming in reversed(NAMINGS[:3])}


FLAX = "flax"


LAYOUTS = ("diffusers", "kohya", "original", FLAX)


# Endings of A (down) and B (up) in the two spellings; alpha has a single one.
PEFT_PARTS = {"down": ".lora_A.weight", "up": ".lora_B.weight"}


KOHYA_PARTS = {"down": ".lora_down.weight", "up": ".lora_up.weight"}


# Of the original layout's spellings, diffusers reads only kohya's.
PARTS = {"diffusers": PEFT_PARTS, "kohya": KOHYA_PARTS, "original": KOHYA_PARTS}


ALPHA = ".alpha"


BIAS = ".lora_B.bias"


MAGNITUDE = ".lora_magnitude_vector.weight"


FULL = ".diff"


FULL_BIAS = ".diff_b"


# Endings of keys, and the part of a layer's change: spellings of pairs by PEFT (with or without an
# adapter name), kohya's scripts, older diffusers and XLabs.
_ENDINGS = (
    (r"\.lora_A(\.(?P<adapter>[^.]+))?\.weight", "down"),
    (r"\.lora_B(\.(?P<adapter>[^.]+))?\.weight", "up"),
    (r"\.lora_A", "down"),
    (r"\.lora_B", "up"),
    (r"\.lora_down\.weight", "down"),
    (r"\.lora_up\.weight", "up"),
    (r"(\.|_)lora\.down\.weight", "down"),
    (r"(\.|_)lora\.up\.weight", "up"),
    (r"\.lora_linear_layer\.down\.weight", "down"),
    (r"\.lora_linear_layer\.up\.weight", "up"),
    (r"\.down\.weight", "down"),
    (r"\.up\.weight", "up"),
    (r"\.alpha", "alpha"),
    (r"\.lora_B(\.(?P<adapter>[^.]+))?\.bias", "bias"),
    (r"\.lora_up\.bias", "bias"),
    (r"\.dora_scale", "magnitude"),
    (r"\.lora_magnitude_vector(\.(?P<adapter>(?!weight$)[^.]+))?(\.weight)?", "magnitude"),
    (r"\.diff", "diff"),
    (r"\.diff_b", "diff_b"),
    (r"\.(?P<part>lokr_w[12](_[ab])?|hada_w[12]_[ab])", None),
)


_ENDING = [(re.compile(f"(?P<stem>.+?)(?P<ending>{text})"), part) for text, part in _ENDINGS]


@dataclass(frozen=True)
class Key:
    """A parsed tensor key.

    Attributes:
        naming: spelling of the layer.
        layer: the layer.
        block: index of the block, if the layer is in one.
        part: "down", "up", "alpha", "bias", "magnitude", "diff", "diff_b", or the name of one of
            LoKr's or LoHa's factors.
        ending: spelling of the part.
        adapter: adapter name in PEFT's keys, or "".
    """

    naming: Naming
    layer: Layer
    block: int | None
    part: str
    ending: str
    adapter: str = ""

    @property
    def stem(self) -> str:
        """The key without its ending, as the naming spells it."""
        return self.naming.spelled(self.layer).format(i=self.block)


_SPELLED = {
    naming.spelled(layer): (naming, layer)
    for naming in reversed(NAMINGS)
    for layer in naming.layers
}


def parse(name: str) -> Key | None:
    """Parses a key; None if it belongs to no layout."""
    for ending, part in _ENDING:
        match = ending.fullmatch(name)
        if not match:
            continue
        stem = match["stem"].replace(".processor.to_", ".to_")
        if stem.endswith("attn.to_out"):
            stem += ".0"
        block = _BLOCK.search(stem)
        place = _SPELLED.get(_BLOCK.sub("{i}", stem, count=1))
        if place:
            said = match.groupdict()
            number = int(block[0]) if block else None
            return Key(
                *place, number, part or said["part"], said["ending"], said.get("adapter") or ""
            )
    return None


def spell(layout: str, layer: Layer, block: int | None, suffix: str) -> str:
    """The key for writing a layer's part."""
    return WRITTEN[layout].spelled(layer).format(i=block) + suffix


_NAMES = {layer.targets[0]: layer.name for layer in SPLIT}


def label(place: Place) -> str:
    """Diffusers' name of a layer, for messages."""
    target, block = place
    ending = " on text tokens only" if target.endswith(f"/{TEXT_ONLY}") else ""
    return _NAMES[layer_of(target)].format(i=block) + ending


def _halves() -> Table:
    """The table of names of every layer's A and B."""
    rows = []
    for layer in SPLIT:
        for letter, suffix in zip("AB", PEFT_PARTS.values(), strict=True):
            leaf = f"{layer.targets[0]}/{letter}"
            rows.append(Row(MODEL + layer.name + suffix, (leaf,), LINEAR))
    return Table(tuple(rows))


# Diffusers' keys with the leaves of the Flax tree.
TABLE = _halves()


# Paths of the leaves that stack a layer over all blocks.
STACKED = {row.flax[0] for row in TABLE.rows if placeholders(row.torch)}


# The same of targets on text tokens only, which no table has, because only one layout has them.
TEXT_HALVES = {f"{path}/{TEXT_ONLY}/{letter}" for path in JOINED_LAYERS for letter in "AB"}
