"""Reads PEFT's configuration of an adapter: alphas, and settings that change its meaning.

It is stored as `adapter_config.json` beside PEFT's files, and in the header of diffusers' files:
`FluxPipeline.save_lora_weights` prefixes its fields with `transformer.`, and
`FluxTransformer2DModel.save_lora_adapter` does not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.adapters.names import MODEL
from flux_jax.errors import InputError
from flux_jax.system.files import read_bytes
from flux_jax.system.json_files import parse_json

PEFT_METADATA = "lora_adapter_metadata"
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
# Exceptions that JSON of an unexpected structure can cause.
DAMAGES = (ValueError, TypeError, KeyError, AttributeError, OverflowError)
TYPES = ("LORA", "LOKR", "LOHA")
# Initialisations that change the model's weights, on which the adapter then depends.
REBASED = ("pissa", "olora", "loftq", "corda")


@dataclass(frozen=True)
class Scales:
    """Alphas and ranks by layer name; a layer without any has scale 1.

    Attributes:
        alphas: patterns of names and their alphas; the first match counts.
        ranks: patterns of names and their ranks, for adapters whose matrices do not show the rank.
        general: alpha of all other layers.
        rank: rank of all other layers.
        root: the scale is alpha / sqrt(rank) (rsLoRA) instead of alpha / rank.
        dora: the layers have DoRA magnitudes.
    """

    alphas: Mapping[re.Pattern[str], float] = field(default_factory=dict)
    ranks: Mapping[re.Pattern[str], float] = field(default_factory=dict)
    general: float | None = None
    rank: float | None = None
    root: bool = False
    dora: bool = False

    def alpha(self, name: str, rank: int) -> float | None:
        """The alpha for which alpha / R is the layer's scale; None if it is not specified."""
        alpha = _first(self.alphas, name, self.general)
        return alpha * rank**0.5 if alpha is not None and self.root else alpha

    def scale(self, name: str) -> float:
        """The scale of a layer whose matrices do not show their rank."""
        alpha = _first(self.alphas, name, self.general)
        rank = _first(self.ranks, name, self.rank)
        return 1.0 if alpha is None or not rank else alpha / rank


def header_scales(file: Path, metadata: Mapping[str, str]) -> Scales:
    """Reads the configuration in the header of diffusers' files.

    Raises:
        InputError: it is damaged, or has unsupported settings.
    """
    if PEFT_METADATA not in metadata:
        return Scales()
    where = f"{file}: {PEFT_METADATA} in the header"
    try:
        config = parse_json(metadata[PEFT_METADATA])
        values = {k.removeprefix(MODEL): v for k, v in config.items() if k.startswith(MODEL)}
        values = values or {name: value for name, value in config.items() if "." not in name}
    except DAMAGES as error:
        raise _damaged(where, error) from error
    return _scales(where, values)


def folder_scales(file: Path) -> Scales | None:
    """Reads PEFT's configuration beside its file; None if there is none.

    Raises:
        InputError: it is damaged, or has unsupported settings.
    """
    path = file.parent / PEFT_CONFIG
    if file.name != PEFT_FILE or not path.is_file():
        return None
    try:
        config = dict(parse_json(read_bytes(path)))
    except DAMAGES as error:
        raise _damaged(str(path), error) from error
    return _scales(str(path), config)


def _scales(where: str, config: Mapping[str, Any]) -> Scales:
    kind = config.get("peft_type")
    if kind is not None and str(kind).upper() not in TYPES:
        raise InputError(
            f"{where}: peft_type = {str(kind)[:40]!r} is not supported; save the adapter as one of "
            f"{', '.join(TYPES)}, or merge it with PEFT's merge_and_unload"
        )
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(REBASED):
        raise InputError(
            f"{where}: init_lora_weights = {begun[:40]!r} depends on modified weights of the "
            "model; convert the adapter with PEFT (path_initial_model_for_weight_conversion)"
        )
    lokr = str(kind).upper() in TYPES[1:]
    try:
        general = config.get("alpha" if lokr else "lora_alpha")
        rank = config.get("r")
        return Scales(
            _patterns(config.get("alpha_pattern")),
            _patterns(config.get("rank_pattern")),
            None if general is None else float(general),
            None if rank is None else float(rank),
            bool(config.get("use_rslora")),
            bool(config.get("use_dora")),
        )
    except (*DAMAGES, re.error) as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> InputError:
    return InputError(f"{where} is damaged ({str(error)[:80]}); save the adapter again")


def _first(
    patterns: Mapping[re.Pattern[str], float], name: str, general: float | None
) -> float | None:
    matches = (value for pattern, value in patterns.items() if pattern.fullmatch(name))
    return next(matches, general)


def _patterns(values: Any) -> dict[re.Pattern[str], float]:
    return {_pattern(text): float(value) for text, value in (values or {}).items()}


def _pattern(text: str) -> re.Pattern[str]:
    """Compiles a layer name as PEFT writes it: a regular expression for the end of the name.

    Raises:
        ValueError: it is more than a name with a few repetitions; some expressions would run
            practically forever.
    """
    if not re.fullmatch(r"[\w.\\^$*+-]*", text) or len(re.findall(r"[*+]", text)) > 2:
        raise ValueError(f"unsupported pattern {text[:40]!r}: write the layer names out")
    return re.compile(rf"(.*\.)?({text})")
