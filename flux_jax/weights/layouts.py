"""Detects the models in a file and their naming schemes from the names of its tensors.

A file may hold one model, or several with a prefix each (`vae.`), like the checkpoints of ComfyUI.
A model is recognised by one tensor that every file of it has; the part of the name before that
tensor's own name is the prefix.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_jax.errors import InputError
from flux_jax.weights import original, sizes
from flux_jax.weights.rules import Table
from flux_jax.weights.tables import CLIP, T5, TRANSFORMER, VAE

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """One naming scheme for the tensors of a model.

    Attributes:
        model: a key of `flux_jax.weights.tables.COMPONENTS`.
        marker: regular expression of the name of a tensor that every file of the model has.
        table: makes the table of all names, from the sizes of a `config.json`.
        config: derives the sizes, with the names of a `config.json`, from a file's tensors.
        dropped: regular expression of extra tensors in larger checkpoints, which are ignored.
        renamed: alternative spellings by some programs (regular expressions), with the table's.
    """

    model: str
    marker: str
    table: Callable[[Config], Table]
    config: Callable[[Path, Mapping[str, Any]], dict[str, Any]]
    dropped: str = r"(?!)"
    renamed: Mapping[str, str] | None = None

    def name(self, tensor: str) -> str | None:
        """The table's name of a tensor without its prefix; None if the tensor is ignored."""
        if re.match(self.dropped, tensor):
            return None
        for old, new in (self.renamed or {}).items():
            tensor = re.sub(old, new, tensor)
        return tensor


LAYOUTS = (
    Layout(
        "transformer",
        r"double_blocks\.0\.img_attn\.qkv\.weight",
        lambda config: original.TRANSFORMER,
        lambda file, tensors: sizes.transformer(file, tensors, original.TRANSFORMER),
        renamed={r"\b(query_norm|key_norm)\.weight$": r"\1.scale"},
    ),
    Layout(
        "transformer",
        r"single_transformer_blocks\.0\.attn\.to_q\.weight",
        lambda config: TRANSFORMER,
        lambda file, tensors: sizes.transformer(file, tensors, TRANSFORMER),
    ),
    Layout(
        "vae",
        r"decoder\.mid\.attn_1\.q\.weight",
        lambda config: original.table("vae", config),
        lambda file, tensors: sizes.vae(file, tensors, r"encoder\.down\.(\d+)\.block\.(\d+)\."),
    ),
    Layout(
        "vae",
        r"decoder\.mid_block\.attentions\.0\.to_q\.weight",
        lambda config: VAE,
        lambda file, tensors: sizes.vae(
            file, tensors, r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\."
        ),
    ),
    Layout(
        "text_encoder",
        r"(?:text_model\.)?embeddings\.token_embedding\.weight",
        lambda config: CLIP,
        sizes.clip,
        dropped=r"vision_model\.|visual_projection\.|(text_model\.)?text_projection\.|logit_scale$",
    ),
    Layout(
        "text_encoder_2",
        r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight",
        lambda config: T5,
        sizes.t5,
        dropped=r"decoder\.|lm_head\.|logit_scale$|spiece_model$",
    ),
)
# Naming schemes of diffusers and transformers in a model's folder.
FOLDERS = {
    "transformer": LAYOUTS[1],
    "vae": LAYOUTS[3],
    "text_encoder": LAYOUTS[4],
    "text_encoder_2": LAYOUTS[5],
}


@dataclass(frozen=True)
class Held:
    """A model in a file.

    Attributes:
        layout: its naming scheme.
        prefix: the prefix of its tensors' names.
    """

    layout: Layout
    prefix: str = ""


def models(where: Path, names: Collection[str]) -> dict[str, Held]:
    """Finds the models in a file, by the keys of `COMPONENTS`.

    Args:
        where: the file, for messages.
        names: names of its tensors.

    Raises:
        InputError: the file holds a model twice.
    """
    parts: dict[str, Held] = {}
    for layout in LAYOUTS:
        for name in names:
            match = re.fullmatch(rf"((?:.*?\.)?){layout.marker}", name)
            if match is None:
                continue
            if layout.model in parts:
                both = f"{parts[layout.model].prefix!r} and {match[1]!r}"
                raise InputError(
                    f"{where} contains two models of the kind {layout.model}, whose tensors' names "
                    f"begin with {both}; save only one of them"
                )
            parts[layout.model] = Held(layout, match[1])
    return parts


def tables_names(
    names: Collection[str], held: Held, others: Collection[Held] = ()
) -> dict[str, str]:
    """Maps a model's tensor names in a file to those of its table.

    Args:
        names: names of the file's tensors.
        held: the model.
        others: models in the same file, whose tensors are skipped.
    """
    longer = [one.prefix for one in others if len(one.prefix) > len(held.prefix)]
    names_of: dict[str, str] = {}
    for name in names:
        if name.startswith(held.prefix) and not name.startswith(tuple(longer)):
            table_name = held.layout.name(name[len(held.prefix) :])
            if table_name is not None:
                # A second tensor with this name keeps its file name, which no table contains.
                names_of[name] = name if table_name in names_of.values() else table_name
    return names_of
